"""Codecs: what a payload holds, what is lost, and that nothing is lost for good."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minga.algorithm.codec import (
    BLOCK,
    CHUNK,
    CODECS,
    apply_delta,
    chunks,
    crc,
    encode_push,
    encode_reply,
    make_codec,
    payload_norm,
)

LENGTHS = (1, 255, 256, 257, 1000, CHUNK, CHUNK + 1, 2 * CHUNK + 700)
NEXT_AFTER_127 = float(torch.nextafter(torch.tensor(127.0), torch.tensor(128.0)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def encoded(name: str, values: Tensor) -> Tensor:
    codec = make_codec(name, values.numel())
    payload = torch.zeros(codec.nbytes, dtype=torch.uint8)
    for start, stop in chunks(values.numel()):
        codec.encode(values[start:stop], payload, start)
    return payload


def decoded(name: str, payload: Tensor, numel: int) -> Tensor:
    target = torch.zeros(numel)
    apply_delta(make_codec(name, numel), payload, target)
    return target


def there_and_back(name: str, values: Tensor) -> Tensor:
    return decoded(name, encoded(name, values), values.numel())


@pytest.mark.parametrize("numel", LENGTHS)
def test_an_int8_payload_is_one_byte_a_value_and_one_a_block(numel: int) -> None:
    assert make_codec("int8", numel).nbytes == numel + math.ceil(numel / BLOCK)


@pytest.mark.parametrize("numel", LENGTHS)
def test_every_length_comes_back_within_half_a_step_of_int8(numel: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(numel))

    error = (there_and_back("int8", values) - values).abs()

    for start in range(0, numel, BLOCK):
        largest = float(values[start : start + BLOCK].abs().max())
        step = 2.0 ** math.ceil(math.log2(largest / 127))
        assert float(error[start : start + BLOCK].max()) <= step / 2


@pytest.mark.parametrize("numel", LENGTHS)
def test_every_length_comes_back_as_it_was_without_a_codec(numel: int) -> None:
    values = torch.randn(numel)
    assert torch.equal(there_and_back("none", values), values)


def test_bf16_is_torchs_own_rounding() -> None:
    values = torch.randn(CHUNK + 5)
    assert torch.equal(there_and_back("bf16", values), values.bfloat16().float())


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [
        (127.0, 0),
        (NEXT_AFTER_127, 1),
        (63.5, -1),
        (64.0, 0),
        (1.0, -6),
        (127 * 2.0**-100, -100),
        (1e-38, -100),
        (3.0e38, 121),
    ],
)
def test_the_scale_is_the_smallest_power_of_two_that_holds_the_block(
    largest: float, exponent: int
) -> None:
    values = torch.zeros(BLOCK)
    values[3] = largest

    payload = encoded("int8", values)

    assert int(payload[-1:].view(torch.int8)) == exponent
    assert int(payload[:BLOCK].view(torch.int8).abs().max()) <= 127


def test_zeros_cost_nothing_and_stay_zeros() -> None:
    assert torch.equal(there_and_back("int8", torch.zeros(700)), torch.zeros(700))


def test_decoding_a_part_gives_that_part_of_the_whole() -> None:
    values = torch.randn(1000)
    payload = encoded("int8", values)
    whole = decoded("int8", payload, 1000)

    part = make_codec("int8", 1000).decode(payload, 512, 900)

    assert torch.equal(part, whole[512:900])


def test_every_device_decodes_the_same_bits_because_products_are_exact() -> None:
    values = torch.randn(CHUNK, generator=torch.Generator().manual_seed(1)) * 1e-3
    payload = encoded("int8", values)
    weights = torch.randn(CHUNK, generator=torch.Generator().manual_seed(2))
    q = payload[:CHUNK].view(torch.int8).double().view(-1, BLOCK)
    scale = 2.0 ** payload[CHUNK:].view(torch.int8).double().unsqueeze(1)

    added = weights + decoded("int8", payload, CHUNK)
    fused = (weights.double() + (q * scale).view(-1)).float()  # rounds once, as fma does

    assert torch.equal(added, fused)


def test_with_free_scales_fused_and_separate_rounding_would_differ() -> None:
    """The control of the test above: what a scale of largest / 127 would do."""
    q = torch.randint(-127, 128, (CHUNK,), generator=torch.Generator().manual_seed(1)).float()
    weights = torch.randn(CHUNK, generator=torch.Generator().manual_seed(2))
    scale = torch.tensor(0.0123 / 127)

    separate = weights + q * scale
    fused = (weights.double() + q.double() * scale.double()).float()

    assert not torch.equal(separate, fused)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_arrives_as_one_and_has_no_norm(name: str, bad: float) -> None:
    values = torch.randn(1000)
    values[300] = bad
    payload = encoded(name, values)

    assert not math.isfinite(float(decoded(name, payload, 1000)[300]))
    assert math.isnan(payload_norm(make_codec(name, 1000), payload))


def test_a_non_finite_value_spoils_its_own_block_only() -> None:
    values = torch.randn(1000)
    values[300] = math.nan

    finite = torch.isfinite(there_and_back("int8", values))

    assert finite.logical_not().nonzero().flatten().tolist() == list(range(256, 512))


@pytest.mark.parametrize("name", CODECS)
def test_the_norm_is_that_of_the_decoded_payload(name: str) -> None:
    values = torch.randn(CHUNK + 300)
    payload = encoded(name, values)
    expected = float(decoded(name, payload, values.numel()).double().norm())

    assert payload_norm(make_codec(name, values.numel()), payload) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("name", CODECS)
def test_what_a_push_loses_is_what_the_residual_keeps(name: str) -> None:
    numel = CHUNK + 300
    base, local, before = torch.randn(numel), torch.randn(numel), 0.01 * torch.randn(numel)
    codec = make_codec(name, numel)
    payload = torch.zeros(codec.nbytes, dtype=torch.uint8)
    after = before.clone()

    encode_push(codec, base, local, after, payload)

    sent = decoded(name, payload, numel)
    torch.testing.assert_close(sent + after, base - local + before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CODECS)
def test_the_worker_reaches_the_reference_bit_for_bit(name: str) -> None:
    numel = CHUNK + 300
    weights, reference, base = torch.randn(numel), torch.zeros(numel), torch.zeros(numel)
    codec, workers_codec = make_codec(name, numel), make_codec(name, numel)
    payload = torch.zeros(codec.nbytes, dtype=torch.uint8)
    gaps = []

    for _ in range(4):
        encode_reply(
            codec, lambda at, held: weights[at : at + len(held)] - held, reference, payload
        )
        apply_delta(workers_codec, payload, base)
        gaps.append(float((weights - reference).abs().max()))

    assert torch.equal(base, reference)
    assert crc(base) == crc(reference)
    assert gaps[-1] < 1e-4  # what a reply lost came with a later one
    assert gaps == sorted(gaps, reverse=True)


def test_a_single_flipped_bit_changes_the_crc() -> None:
    values = torch.randn(1000)
    changed = values.clone()
    changed.view(torch.int32)[500] ^= 1

    assert crc(values) != crc(changed)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown codec 'zip'"):
        make_codec("zip", 1)
