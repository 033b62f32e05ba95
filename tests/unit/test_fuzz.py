"""Bytes of others, made up: each parser takes them or raises its own error, and nothing else.

Some seconds of it; `make fuzz` takes longer.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minga import messages
from minga.data import shards
from minga.errors import MingaError
from minga.messages import Malformed, decode, encode
from minga.ps import checkpoint, requests
from minga.ps.audit import audit
from minga.transport.identity import Secret
from minga.transport.stream import frame_length, read_preamble

INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
fuzzed = settings(
    max_examples=INPUTS,
    deadline=5000,  # a hang is an error
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize="FUZZ_INPUTS" not in os.environ,
)
SAMPLES = [
    messages.Hello(protocol=2, uuid="ab", proof="00", name="pc", batch_size=8),
    messages.Preparation(failed=messages.Problem(code="c", what="w")),
    messages.Signed(
        key="ab",
        call=messages.Push(sequence=1, base_version=0, progress=[messages.Span(1, 0, 0, 8, 7)]),
    ),
    messages.StoreCall(do="compare_set", key="k", expected="a", value="b"),
    messages.StreamHello(key="ab", role="rpc"),
]
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**700, -1, 0, 2**53, 2**64, 5e-324, 1e308])
)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(), st.sampled_from(["\x1b[2J", "\n"]))
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)


@fuzzed
@given(raw=st.binary(max_size=200))
def test_bytes(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_preamble(raw)
    if len(raw) >= 4:
        with contextlib.suppress(ValueError):
            frame_length(raw[:4])
    for sample in SAMPLES:
        with contextlib.suppress(Malformed):
            decode(raw, type(sample))
    with contextlib.suppress(Malformed):
        requests.decode_request(raw)


@fuzzed
@given(text=st.text(max_size=80))
def test_tokens(text: str) -> None:
    with contextlib.suppress(MingaError):
        Secret.parse(text)


@fuzzed
@given(data=st.data())
def test_messages_with_one_odd_field(data: st.DataObject) -> None:
    """What is taken can be sent on: it is within every range."""
    sample = data.draw(st.sampled_from(SAMPLES))
    plain = msgspec.to_builtins(sample)
    where = plain
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else [0]))
        inner = where[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            where[key] = data.draw(values)
            break
        where = inner
    with contextlib.suppress(Malformed):
        taken = decode(json.dumps(plain), type(sample))
        assert decode(encode(taken), type(sample)) == taken


@fuzzed
@given(lines=st.lists(st.one_of(st.text(), values.map(json.dumps)), max_size=8))
def test_journals(lines: list[str]) -> None:
    audit(lines, seed=0, samples=50, epochs=2)


@fuzzed
@given(data=st.data())
def test_checkpoints_with_odd_bytes(data: st.DataObject, tmp_path: Path) -> None:
    whole = tmp_path / "last.pth"
    if not whole.exists():
        checkpoint.write(whole, {"run_id": "run", "last_push": 7})
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    odd = tmp_path / "odd.pth"
    odd.write_bytes(raw)
    with contextlib.suppress(MingaError):
        checkpoint.read(odd)


@fuzzed
@given(raw=st.one_of(st.binary(max_size=300), values.map(lambda value: json.dumps(value).encode())))
def test_manifests_of_shards(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with contextlib.suppress(MingaError):
        shards.read_manifest(tmp_path)


def test_a_planted_fault_is_found() -> None:
    """The control: a parser that does not like one number."""

    @settings(max_examples=INPUTS, database=None)
    @given(data=leaves)
    def parse(data: object) -> None:
        assert not (isinstance(data, int) and data >= 2**53), "planted"

    with pytest.raises(AssertionError, match="planted"):
        parse()
