"""What is trained: networks by name."""
