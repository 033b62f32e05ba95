"""The worker's side of the exchange: its state beside the weights, on their device."""

from __future__ import annotations

import torch
from torch import Tensor

from minga.algorithm import codec as codecs


class Exchange:
    """Base, residual, and the weights at the last push; at most one push is outstanding.

    Deltas are formed, encoded and decoded on the device; payloads cross in memory that is
    allocated once, pinned where the device is a GPU.

    Args:
        codec: name of the run's codec.
        numel: parameters.
        device: where the weights are.

    Attributes:
        base: fp32 [numel], the weights that the ps knows this worker to hold.
    """

    def __init__(self, codec: str, numel: int, device: torch.device) -> None:
        self._codec = codecs.make_codec(codec, numel, device)
        self.base = torch.zeros(numel, device=device)
        self._residual = torch.zeros(numel, device=device)
        self._pushed = torch.zeros(numel, device=device)
        self._payload = torch.zeros(self._codec.nbytes, dtype=torch.uint8, device=device)
        on_gpu = device.type == "cuda"
        self._sent = self._payload.cpu().pin_memory() if on_gpu else self._payload.cpu()

    @property
    def payload_bytes(self) -> int:
        """Length of a push's payload, and of a reply's."""
        return self._codec.nbytes

    def restart(self, weights: Tensor) -> None:
        """Start from the ps's full weights, fp32 [numel] on any device."""
        self.base.copy_(weights)
        self._residual.zero_()

    def hold(self, weights: Tensor) -> None:
        """Copy the weights for the next push; they may change from now on."""
        self._pushed.copy_(weights)

    def encode(self) -> Tensor:
        """Encode the difference of held weights and base; return the payload on the CPU.

        May run beside training. The payload is this object's own memory: it stays until the
        next call.
        """
        codecs.encode_push(self._codec, self.base, self._pushed, self._residual, self._payload)
        if self._sent is not self._payload:
            self._sent.copy_(self._payload)
        return self._sent

    def rebase(self, reply: Tensor, weights: Tensor) -> None:
        """Apply the reply to the last push; ``weights`` keep the progress made since."""
        payload = reply.to(self._payload.device, non_blocking=True)
        codecs.rebase(self._codec, payload, self.base, self._pushed, weights)

    def base_crc(self) -> int:
        """Return the CRC-32 of the base, which the ps compares with its reference."""
        return codecs.crc(self.base.cpu())
