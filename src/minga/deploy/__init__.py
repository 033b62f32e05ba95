"""The control PC's tools behind ``make image``, ``deploy`` and ``status``; never imports torch."""
