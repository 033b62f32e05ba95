"""Update rules and codecs: pure functions on tensors, no I/O, nothing else of ours."""
