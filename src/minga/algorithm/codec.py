"""Encodings of pushes and replies, with error feedback on both sides.

A payload is one flat uint8 tensor. ``int8`` holds one byte per element, then one exponent per
block of 256: values are ``q * 2**exponent``, exact in fp32, so a multiply-add and a fused one
agree and both copies of a reference stay bit-equal (algorithms.md, section 7). Error feedback
follows Karimireddy et al. 2019 upwards and EF21 (Richtarik et al. 2021) downwards.

Everything runs over chunks with preallocated scratch: whole-tensor expressions with fresh
temporaries are ten times slower.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch

BLOCK = 256
CHUNK = 262_144
CODECS = ("int8", "bf16", "none")

_LOWEST_EXPONENT = -100
"""Below it products become denormals, which a GPU flushes to zero."""
_NON_FINITE = 127


def chunks(numel: int) -> Iterator[tuple[int, int]]:
    """Return the (start, stop) of each chunk."""
    return ((start, min(start + CHUNK, numel)) for start in range(0, numel, CHUNK))


class Codec(ABC):
    """Encodes a vector of ``numel`` fp32 values into ``nbytes`` bytes, chunk by chunk."""

    nbytes: int

    def __init__(self, numel: int) -> None:
        self.numel = numel
        self._scratch = torch.empty(min(CHUNK, -(-numel // BLOCK) * BLOCK))

    @abstractmethod
    def encode(self, values: torch.Tensor, payload: torch.Tensor, start: int) -> None:
        """Encode a chunk of fp32 values that begins at element ``start``."""

    @abstractmethod
    def decode(self, payload: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return elements ``start`` to ``stop`` as fp32, valid until the next call."""


class _Plain(Codec):
    """``none`` and ``bf16``: the values themselves in their type."""

    def __init__(self, numel: int, dtype: torch.dtype) -> None:
        super().__init__(numel)
        self._dtype = dtype
        self.nbytes = numel * dtype.itemsize

    def encode(self, values: torch.Tensor, payload: torch.Tensor, start: int) -> None:
        payload.view(self._dtype)[start : start + values.numel()].copy_(values)

    def decode(self, payload: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        return self._scratch[: stop - start].copy_(payload.view(self._dtype)[start:stop])


class _Int8(Codec):
    """Blocks of 256 with a power-of-two scale; a non-finite block is marked and decodes to nan."""

    def __init__(self, numel: int) -> None:
        super().__init__(numel)
        self.nbytes = numel + -(-numel // BLOCK)
        self._quotients = torch.empty_like(self._scratch)

    def encode(self, values: torch.Tensor, payload: torch.Tensor, start: int) -> None:
        count = values.numel()
        blocks = -(-count // BLOCK)
        work = self._scratch[: blocks * BLOCK]
        work[:count].copy_(values)
        work[count:].zero_()  # the last block may be short
        rows = work.view(blocks, BLOCK)
        other = self._quotients[: blocks * BLOCK].view(blocks, BLOCK)
        largest = torch.abs(rows, out=other).amax(1)
        mantissa, exponent = torch.frexp(largest / 127)
        exponent -= (mantissa == 0.5).to(exponent.dtype)  # ceil(log2), exact
        exponent.clamp_(min=_LOWEST_EXPONENT, max=_NON_FINITE - 1)
        torch.mul(rows, _power_of_two(-exponent).unsqueeze(1), out=other)
        exponent[~torch.isfinite(largest)] = _NON_FINITE
        signed = payload.view(torch.int8)
        signed[start : start + count].copy_(other.round_().view(-1)[:count])
        first = self.numel + start // BLOCK
        signed[first : first + blocks].copy_(exponent)

    def decode(self, payload: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        count = stop - start
        blocks = -(-count // BLOCK)
        signed = payload.view(torch.int8)
        work = self._scratch[: blocks * BLOCK]
        work[:count].copy_(signed[start:stop])
        first = self.numel + start // BLOCK
        exponent = signed[first : first + blocks].to(torch.int32)
        scale = _power_of_two(exponent)
        scale[exponent == _NON_FINITE] = math.nan
        work.view(blocks, BLOCK).mul_(scale.unsqueeze(1))
        return work[:count]


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    return torch.ldexp(torch.ones(exponent.numel()), exponent)


def make_codec(name: str, numel: int) -> Codec:
    """Return the codec ``int8``, ``bf16`` or ``none`` for vectors of ``numel`` elements."""
    match name:
        case "int8":
            return _Int8(numel)
        case "bf16":
            return _Plain(numel, torch.bfloat16)
        case "none":
            return _Plain(numel, torch.float32)
    raise ValueError(f"no codec {name!r}")


def encode_push(
    codec: Codec,
    base: torch.Tensor,
    local: torch.Tensor,
    residual: torch.Tensor,
    payload: torch.Tensor,
) -> None:
    """Encode ``base - local + residual``; what the encoding lost becomes the new residual.

    All fp32 [numel] on the CPU; ``payload`` uint8 [codec.nbytes] and ``residual`` are written.
    """
    for start, stop in chunks(codec.numel):
        left = residual[start:stop]
        left.add_(base[start:stop]).sub_(local[start:stop])
        codec.encode(left, payload, start)
        left.sub_(codec.decode(payload, start, stop))


def encode_reply(
    codec: Codec,
    read: Callable[[int, int], torch.Tensor],
    reference: torch.Tensor,
    payload: torch.Tensor,
) -> None:
    """Encode what ``reference`` lacks of the weights and add exactly that to it.

    What the encoding lost stays in (weights - reference) and goes out with the next reply.

    Args:
        codec: for vectors of the weights' length.
        read: returns a copy of weights ``start`` to ``stop``, fp32; it is overwritten.
        reference: fp32 [numel], what the worker holds; updated.
        payload: uint8 [codec.nbytes]; written.
    """
    for start, stop in chunks(codec.numel):
        lacking = read(start, stop).sub_(reference[start:stop])
        codec.encode(lacking, payload, start)
        reference[start:stop].add_(codec.decode(payload, start, stop))


def apply_delta(codec: Codec, payload: torch.Tensor, target: torch.Tensor) -> None:
    """Add a decoded payload to ``target`` (fp32 [numel]) in place."""
    for start, stop in chunks(codec.numel):
        target[start:stop].add_(codec.decode(payload, start, stop))


def payload_norm(codec: Codec, payload: torch.Tensor) -> float:
    """Return the L2 norm of the decoded payload; nan if anything in it is not finite."""
    total = 0.0
    for start, stop in chunks(codec.numel):
        total += float(torch.linalg.vector_norm(codec.decode(payload, start, stop))) ** 2
    return math.sqrt(total) if math.isfinite(total) else math.nan


def crc(vector: torch.Tensor) -> int:
    """Return the CRC-32 of a contiguous CPU tensor's memory."""
    return zlib.crc32(memoryview(vector.numpy()).cast("B"))
