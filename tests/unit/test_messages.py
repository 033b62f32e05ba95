"""What arrives is decoded strictly: each field has a type and a range, and is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minga import messages
from minga.data.facts import DataFacts
from minga.messages import Malformed, decode, encode
from minga.ps import requests

PUSH: dict[str, Any] = {
    "do": "push",
    "sequence": 7,
    "base_version": 3,
    "progress": [[1, 0, 0, 8, 4_294_967_295]],
    "steps": 8,
    "loss": 2.5,
    "compute_s": 0.5,
}
HELLO = {"protocol": 2, "uuid": "ab", "name": "pc 7", "hostname": "aula-3"}
FACTS = {"train": 10, "val": 2, "classes": 2, "class_hash": "", "image_size": 8}


def test_a_message_survives_the_wire() -> None:
    for message in (
        decode(json.dumps(PUSH), messages.Push),
        messages.Answer(work=messages.Work(task="train", leases=[]), verdict="applied", version=3),
        messages.Preparation(data=DataFacts(**FACTS)),
    ):
        assert decode(encode(message), type(message)) == message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence", 10**700),  # guard.md, G6: every later checkpoint was unreadable
        ("sequence", 2**53 + 1),
        ("sequence", 0),
        ("sequence", 1.5),
        ("sequence", True),
        ("base_version", -1),
        ("compute_s", -1.0),
        ("compute_s", 1e300),
        ("compute_s", "5"),
        ("steps", 0),
        ("loss", 1e308),
        ("progress", [[1, 0, 0, 8, -1]]),
        ("progress", [[1, 0]]),
        ("progress", [[1, 0, 0, 8, 0]] * (messages.MOST_SPANS + 1)),  # G14: 200,000 spans
        ("spare", 1),
    ],
)
def test_a_push_with_an_odd_field_is_refused_by_its_name(field: str, value: Any) -> None:
    decode(json.dumps(PUSH), messages.Push)  # control
    with pytest.raises(Malformed, match=f"push: .*{field}"):
        decode(json.dumps({**PUSH, field: value}), messages.Push)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    text = json.dumps(PUSH).replace("0.5", number)
    with pytest.raises(Malformed):
        decode(text, messages.Push)


def test_a_loss_that_is_not_finite_is_sent_as_none() -> None:
    """An honest worker may diverge: its push is refused for its content, not for its message."""
    sent = messages.Push(sequence=1, base_version=0, progress=[], loss=float("nan"))
    assert decode(encode(sent), messages.Push).loss is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "one\ntwo"),  # G15: forged lines of the log
        ("name", "\x1b[2J"),
        ("name", "a\u202eb"),
        ("hostname", "x" * 257),
        ("batch_size", 0),
        ("batch_size", 1e999),
        ("rank", 1.5),
        ("rank", 10**30),
        ("uuid", "../../etc"),
    ],
)
def test_a_join_with_an_odd_field_is_refused_by_its_name(field: str, value: Any) -> None:
    decode(json.dumps(HELLO), messages.Hello)  # control
    with pytest.raises(Malformed, match="hello: "):
        decode(json.dumps({**HELLO, field: value}), messages.Hello)


@pytest.mark.parametrize(
    ("field", "value"), [("train", 0), ("val", 0), ("classes", 3_000_000), ("image_size", 1 << 30)]
)
def test_data_that_no_ps_can_train_on_are_refused(field: str, value: int) -> None:
    decode(json.dumps({"data": FACTS}), messages.Preparation)  # control
    with pytest.raises(Malformed, match=rf"data\.{field}"):
        decode(json.dumps({"data": {**FACTS, field: value}}), messages.Preparation)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[" * 4096, b'{"protocol": ' + b"[" * 100_000, b"\xff\xfe", b"null", b'"join"', b"{}"],
    ids=["nothing", "brackets", "nested", "no text", "null", "a text", "empty"],
)
def test_what_is_no_message_is_malformed_and_nothing_else(raw: bytes) -> None:
    for kind in (messages.Version, messages.Hello, messages.Signed, messages.StoreCall):
        with pytest.raises(Malformed):
            decode(raw, kind)


def test_an_unknown_request_of_a_session_is_malformed() -> None:
    raw = encode(requests.AskWork())
    assert requests.decode_request(raw) == requests.AskWork()
    with pytest.raises(Malformed):
        requests.decode_request(raw.replace(b"work", b"wort"))
