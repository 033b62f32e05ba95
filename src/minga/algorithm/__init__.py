"""The update rule: pure functions on tensors and numbers, no I/O."""
