"""Update rules and codecs: pure functions on tensors, without I/O or imports from minga."""
