"""What :file:`benchmarks/lan.py` is made of: virtual PCs, systems, stand-in compute, rows."""
