"""Bytes of others, made up: each parser takes them or raises its own error, and nothing else.

Some seconds of it; `make fuzz` takes longer.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minga import messages
from minga.algorithm.codec import make_codec, payload_norm
from minga.data import shards
from minga.data.dataset import open_data
from minga.deploy import check
from minga.errors import MingaError
from minga.messages import Malformed, decode, encode
from minga.ps import checkpoint, requests
from minga.ps.audit import audit
from minga.settings.schema import DataConfig
from minga.settings.sources import resolve_settings
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
ODD_NUMBERS = [10**700, -1, 0, 2**53, 2**64, 5e-324, 1e308, math.inf, math.nan]
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from(ODD_NUMBERS))
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
    plain = with_one_odd_value(data, msgspec.to_builtins(sample))
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
    read = tmp_path / "odd.pth"
    read.write_bytes(odd(data, whole.read_bytes()))
    with contextlib.suppress(MingaError):
        checkpoint.read(read)


@fuzzed
@given(raw=st.one_of(st.binary(max_size=300), values.map(lambda value: json.dumps(value).encode())))
def test_manifests_of_shards(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with contextlib.suppress(MingaError):
        shards.read_manifest(tmp_path)


def with_one_odd_value(data: st.DataObject, plain: Any) -> Any:
    """Return a copy of a nested document in which one value, at any depth, is another."""
    plain = where = copy.deepcopy(plain)
    while True:
        keys = sorted(where) if isinstance(where, dict) else range(len(where))
        key = data.draw(st.sampled_from(keys))
        inner = where[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            where[key] = data.draw(values)
            return plain
        where = inner


MANIFEST: dict[str, Any] = {
    "schema": "minga.shards/1",
    "classes": ["a", "b"],
    "shards": [{"name": "train-0.tar", "bytes": 10_240, "samples": 2, "sha256": "ab"}],
}


@fuzzed
@given(data=st.data())
def test_manifests_with_one_odd_field(data: st.DataObject, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(with_one_odd_value(data, MANIFEST)))
    with contextlib.suppress(MingaError):
        shards.read_manifest(tmp_path)


@pytest.mark.parametrize("number", ODD_NUMBERS)
@pytest.mark.parametrize("field", ["bytes", "samples"])
def test_manifests_with_each_odd_number(number: float, field: str, tmp_path: Path) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["shards"][0][field] = number
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(MingaError):
        shards.read_manifest(tmp_path)


@fuzzed
@given(data=st.data())
def test_shards_with_odd_bytes(data: st.DataObject, tmp_path: Path) -> None:
    shard = tmp_path / "train-0.tar"
    if not (tmp_path / "whole").exists():
        with tarfile.open(tmp_path / "whole", "w") as tar:
            for name, content in (("0.png", b"p" * 600), ("0.cls", b"1")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    shard.write_bytes(odd(data, (tmp_path / "whole").read_bytes()))
    with contextlib.suppress(MingaError):
        open_data(DataConfig(path=str(tmp_path), format="webdataset"))


def odd(data: st.DataObject, whole: bytes) -> bytes:
    """Return bytes of which a few are replaced, taken away or added."""
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    return bytes(raw)


@fuzzed
@given(data=st.data())
def test_payloads_of_a_codec(data: st.DataObject) -> None:
    """Any bytes of the right length have a norm, or none; and decode to the same twice."""
    name = data.draw(st.sampled_from(["none", "bf16", "int8"]))
    codec = make_codec(name, data.draw(st.sampled_from([1, 255, 256, 257, 1000])))
    raw = data.draw(st.binary(min_size=codec.nbytes, max_size=codec.nbytes))
    payload = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    norm = payload_norm(codec, payload)
    assert math.isnan(norm) or math.isfinite(norm)
    once, again = (codec.decode(payload, 0, codec.numel).clone() for _ in range(2))
    assert torch.equal(once.view(torch.int32), again.view(torch.int32))
    assert math.isnan(norm) or bool(once.isfinite().all())


SETTINGS = {
    "model": {"name": "resnet18", "stem": "stock"},
    "train": {"epochs": 2, "batch_size": 16},
    "optimizer": {"lr": 0.1, "warmup_epochs": 1},
    "exchange": {"codec": "int8", "local_steps": 2, "mode": "async", "max_staleness": 8},
    "ledger": {"lease_s": 60},
}


@fuzzed
@given(data=st.data())
def test_settings_with_one_odd_value(data: st.DataObject, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(with_one_odd_value(data, SETTINGS)))  # which is YAML, too
    with contextlib.suppress(MingaError):
        resolve_settings(file, {}, {})


@fuzzed
@given(text=st.one_of(st.text(max_size=60), st.text("{}[]:,-&*!|>'\"%@`#? \nab1", max_size=60)))
def test_settings_of_any_text(text: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(MingaError):
        resolve_settings(file, {}, {})


@fuzzed
@given(said=st.one_of(st.text(max_size=60), values.map(json.dumps)))
def test_answers_of_pcs(said: str) -> None:
    """What a PC's probe printed, a login's greeting before it, or nothing of ours."""
    asked = {"facts": {"rc": 0, "stdout": said}, "dial": {"rc": 0, "stdout": said}}
    decoded = check.decoded(asked)
    assert decoded["facts"]["answer"] is None or isinstance(decoded["facts"]["answer"], dict)


def test_a_planted_fault_is_found() -> None:
    """The control: a parser that does not like one number."""

    @settings(max_examples=INPUTS, database=None)
    @given(data=leaves)
    def parse(data: object) -> None:
        assert not (isinstance(data, int) and data >= 2**53), "planted"

    with pytest.raises(AssertionError, match="planted"):
        parse()
