"""Encode weight differences for the wire, chunk by chunk, with error feedback.

Chunks stay in the processor's cache and in preallocated memory: the same
arithmetic on whole vectors with fresh temporaries is ten times slower.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CODECS = ("none", "bf16", "int8")
BLOCK = 256
"""Values that share one scale in the int8 codec."""
CHUNK = 262_144
"""Values per chunk on a CPU: they stay in its cache. A multiple of BLOCK."""
GPU_CHUNK = 64 * CHUNK
"""Values per chunk on a GPU: each chunk costs about twenty kernel launches."""

_EXPONENT_MIN = -100
"""Keeps decoded values out of the denormals, which some devices flush to zero."""
_EXPONENT_NON_FINITE = 127
_FLOAT_BIAS, _FLOAT_MANTISSA_BITS, _FLOAT_NON_FINITE = 127, 23, 255
_ROUND_UP = 0x01FFFF
"""Carries a mantissa above 127/64 into the exponent: such a value needs twice the scale."""


def chunks(numel: int, chunk: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of every chunk of a vector."""
    for start in range(0, numel, chunk):
        yield start, min(start + chunk, numel)


class Codec(ABC):
    """Encodes vectors of one length into payloads; owns scratch memory, so one per thread.

    Attributes:
        numel: length of the vectors.
        nbytes: length of a payload, a flat uint8 tensor.
        chunk: values that are processed at a time.
    """

    def __init__(self, numel: int, nbytes: int, device: torch.device | str) -> None:
        self.numel = numel
        self.nbytes = nbytes
        self.device = torch.device(device)
        self.chunk = min(numel, CHUNK if self.device.type == "cpu" else GPU_CHUNK)
        padded = -(-self.chunk // BLOCK) * BLOCK
        self._scratch = torch.empty(padded, device=device)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield ``(start, stop)`` of every chunk of its vectors."""
        return chunks(self.numel, self.chunk)

    @abstractmethod
    def encode(self, values: Tensor, payload: Tensor, start: int) -> None:
        """Write the encoded values into their place in the payload.

        Args:
            values: fp32 [n <= chunk], the vector's values from ``start`` on.
            payload: uint8 [nbytes].
            start: a multiple of BLOCK.
        """

    @abstractmethod
    def decode(self, payload: Tensor, start: int, stop: int) -> Tensor:
        """Return fp32 [stop - start]: scratch memory, valid until the next call."""


class _Cast(Codec):
    """Stores each value in a floating-point type."""

    def __init__(self, dtype: torch.dtype, numel: int, device: torch.device | str) -> None:
        super().__init__(numel, numel * dtype.itemsize, device)
        self._dtype = dtype

    def encode(self, values: Tensor, payload: Tensor, start: int) -> None:
        payload.view(self._dtype)[start : start + values.numel()].copy_(values)

    def decode(self, payload: Tensor, start: int, stop: int) -> Tensor:
        return self._scratch[: stop - start].copy_(payload.view(self._dtype)[start:stop])


class _Int8(Codec):
    """Blocks of 256 values, each ``q * 2**exponent`` with ``|q| <= 127``.

    The payload is all q (int8), then one exponent (int8) per block. The scale is the smallest
    power of two that holds the block's largest value; ``q * scale`` is exact in fp32, so that
    multiply-add and fused multiply-add give the same bits on every device. A block with a
    value that is not finite (or within 1 % of the largest float) has exponent 127: all nan.
    """

    def __init__(self, numel: int, device: torch.device | str) -> None:
        blocks = -(-numel // BLOCK)
        super().__init__(numel, numel + blocks, device)
        by_code = torch.arange(256).to(torch.int8).float()  # 0, 1 .. 127, -128 .. -1
        self._scales = torch.ldexp(torch.ones(256), by_code).to(device)
        self._scales[_EXPONENT_NON_FINITE] = math.nan
        # indexed by a float's exponent bits, and one more for the carry of a nan's
        exponents = torch.arange(257) - (_FLOAT_BIAS + 6)  # 2**6 <= largest / scale < 2**7
        exponents.clamp_(min=_EXPONENT_MIN)[_FLOAT_NON_FINITE:] = _EXPONENT_NON_FINITE
        self._inverses = torch.ldexp(torch.ones(257), -exponents.float()).to(device)
        self._codes = exponents.to(torch.int8).to(device)
        self._padded = torch.zeros(BLOCK, device=device)

    def encode(self, values: Tensor, payload: Tensor, start: int) -> None:
        whole = values.numel() // BLOCK * BLOCK
        if whole:
            self._encode_blocks(values[:whole], payload, start, whole)
        if rest := values.numel() - whole:
            self._padded.zero_()[:rest].copy_(values[whole:])
            self._encode_blocks(self._padded, payload, start + whole, rest)

    def decode(self, payload: Tensor, start: int, stop: int) -> Tensor:
        n = stop - start
        blocks = -(-n // BLOCK)
        first = self.numel + start // BLOCK
        scales = self._scales.index_select(0, payload[first : first + blocks].int())
        scratch = self._scratch[: blocks * BLOCK]
        scratch[:n].copy_(payload[start:stop].view(torch.int8))
        scratch.view(blocks, BLOCK).mul_(scales.unsqueeze(1))
        return scratch[:n]

    def _encode_blocks(self, values: Tensor, payload: Tensor, start: int, kept: int) -> None:
        """Encode whole blocks; store the first ``kept`` values of them."""
        blocks = values.numel() // BLOCK
        scratch = self._scratch[: values.numel()]
        largest = torch.abs(values, out=scratch).view(blocks, BLOCK).amax(dim=1)
        # A float is mantissa * 2**exponent, mantissa in [1, 2): it fits 127 * 2**(exponent - 6) if
        # mantissa <= 127/64. Exact, where a logarithm or a division would round.
        bits = largest.view(torch.int32).add_(_ROUND_UP)
        exponents = bits.bitwise_right_shift_(_FLOAT_MANTISSA_BITS).bitwise_and_(0x1FF)
        first = self.numel + start // BLOCK
        codes = payload[first : first + blocks].view(torch.int8)
        codes.copy_(self._codes.index_select(0, exponents))
        inverses = self._inverses.index_select(0, exponents).unsqueeze(1)
        torch.mul(values.view(blocks, BLOCK), inverses, out=scratch.view(blocks, BLOCK))
        payload[start : start + kept].view(torch.int8).copy_(scratch.round_()[:kept])


def make_codec(name: str, numel: int, device: torch.device | str = "cpu") -> Codec:
    """Return the codec called ``none`` (fp32), ``bf16`` or ``int8`` for vectors of ``numel``."""
    match name:
        case "none":
            return _Cast(torch.float32, numel, device)
        case "bf16":
            return _Cast(torch.bfloat16, numel, device)
        case "int8":
            return _Int8(numel, device)
    raise ValueError(f"unknown codec {name!r}")


def encode_push(
    codec: Codec, base: Tensor, local: Tensor, residual: Tensor, payload: Tensor
) -> None:
    """Encode ``base - local + residual``; the codec's loss becomes the new residual.

    Error feedback (Karimireddy 2019): payloads plus residual add up to what was to be sent.
    ``base``, ``local``, ``residual`` are fp32 [numel], on the codec's device.
    """
    moved = torch.empty(codec.chunk, device=codec.device)
    for start, stop in codec.chunks():
        part = slice(start, stop)
        wanted = residual[part].add_(torch.sub(base[part], local[part], out=moved[: stop - start]))
        codec.encode(wanted, payload, start)
        wanted.sub_(codec.decode(payload, start, stop))


def encode_reply(
    codec: Codec, ahead: Callable[[int, Tensor], Tensor], reference: Tensor, payload: Tensor
) -> None:
    """Encode the difference from ``reference`` to the ps's weights, and add it to the reference.

    The reference is then bit-equal to the worker's base after :func:`apply_delta`.
    The codec's loss stays in the difference and is sent next time (EF21, 2021).

    Args:
        codec: of the run.
        ahead: returns the ps's weights from ``start`` on minus the given ones, fp32.
        reference: fp32 [numel], the weights that the worker holds; changed.
        payload: uint8 [nbytes]; written.
    """
    for start, stop in codec.chunks():
        held = reference[start:stop]
        codec.encode(ahead(start, held), payload, start)
        held.add_(codec.decode(payload, start, stop))


def apply_delta(codec: Codec, payload: Tensor, target: Tensor) -> None:
    """Add the decoded payload to ``target``, fp32 [numel]."""
    for start, stop in codec.chunks():
        target[start:stop].add_(codec.decode(payload, start, stop))


def rebase(codec: Codec, payload: Tensor, base: Tensor, pushed: Tensor, weights: Tensor) -> None:
    """Apply a reply: ``base += reply``, then ``weights = base + (weights - pushed)``.

    Progress made while the push was in flight stays in the weights, and so enters the next
    push once (delayed averaging with local progress; Async Local-SGD 2024, arXiv:2401.09135).

    Args:
        codec: of the run.
        payload: uint8 [nbytes], the encoded reply.
        base: fp32 [numel]; becomes the ps's reference, bit for bit.
        pushed: fp32 [numel], the weights when the push was encoded.
        weights: fp32 [numel]; changed. Without steps in between they equal the base.
    """
    for start, stop in codec.chunks():
        part = slice(start, stop)
        base[part].add_(codec.decode(payload, start, stop))
        weights[part].sub_(pushed[part]).add_(base[part])


def payload_norm(codec: Codec, payload: Tensor) -> float:
    """Return the L2 norm of the decoded payload; nan if any value or the norm is not finite."""
    squares = 0.0
    for start, stop in codec.chunks():
        values = codec.decode(payload, start, stop)
        squares += float(torch.dot(values, values))
    return math.sqrt(squares) if math.isfinite(squares) else math.nan


def crc(flat: Tensor) -> int:
    """Return the CRC-32 of a contiguous CPU tensor's memory."""
    return zlib.crc32(flat.detach().numpy().data)
