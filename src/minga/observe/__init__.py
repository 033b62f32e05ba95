"""What a run leaves behind: its folder, events, status, statistics, curves."""
