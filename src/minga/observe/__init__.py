"""The files of a run: folder, events, status, statistics, curves."""
