"""Files that prove themselves: a flipped bit is found, and a week of events can be drawn."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from minga.errors import Refused
from minga.observe.curves import draw
from minga.observe.events import ALL_WRITTEN, THIN_S, EventLog, Thinned
from minga.observe.folder import RunFolder
from minga.ps import checkpoint, resume
from minga.settings.options import PsOptions
from minga.settings.sources import resolve_settings

FLIPS = 400
SETTINGS = resolve_settings(None, {}, {}).settings
BOOKS = {
    "run_id": "run",
    "settings": SETTINGS.to_dict(),
    "ledger": {},
    "last_sequence": {"ab": 7},
    "last_push": 7,
    "journal_lines": 7,
    "members": [],
}


def content(version: int) -> dict:
    torch.manual_seed(version)
    return {**BOOKS, "version": version, "model": {"weight": torch.randn(20_000)}}


def same(one: dict, other: dict) -> bool:
    return torch.equal(one["model"]["weight"], other["model"]["weight"]) and all(
        one[name] == other[name] for name in BOOKS
    )


def loads(path: Path) -> dict | None:
    with contextlib.suppress(Refused):
        return checkpoint.read(path)
    return None


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path, damaged = tmp_path / "last.pth", tmp_path / "damaged.pth"
    checkpoint.write(path, content(1))
    whole, raw = checkpoint.read(path), path.read_bytes()
    rng, found, torch_found = random.Random(0), 0, 0
    for _ in range(FLIPS):
        at = rng.randrange(len(raw))
        flipped = bytearray(raw)
        flipped[at] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        loaded = loads(damaged)
        assert loaded is None or same(loaded, whole), f"byte {at}"
        found += loaded is None
        try:
            torch.load(damaged, weights_only=True)
        except Exception:
            torch_found += 1
    assert found > 0.9 * FLIPS
    assert torch_found < 0.5 * FLIPS, "the control: torch alone loads most of them"


def test_what_cannot_be_read_back_does_not_replace_what_can(tmp_path: Path) -> None:
    """A sequence of 700 digits was written, and no ps could read it again (guard.md, G6)."""
    path = tmp_path / "last.pth"
    checkpoint.write(path, content(1))
    with pytest.raises(OSError, match="cannot be read back"):
        checkpoint.write(path, {**content(2), "last_sequence": {"ab": 10**700}})
    assert checkpoint.read(path)["version"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.pth"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with two checkpoints."""
    folder = RunFolder.create(tmp_path / "runs", "run")
    for version in (1, 2):
        checkpoint.write(folder.last, content(version), keep=folder.previous)
    return folder


def chosen(folder: RunFolder) -> resume.Choice:
    return resume.choose(PsOptions(runs=folder.path.parent), SETTINGS)


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_the_last_two_checkpoints_are_kept(folder: RunFolder) -> None:
    assert checkpoint.read(folder.previous)["version"] == 1
    choice = chosen(folder)
    assert choice.resumed is not None
    assert choice.resumed["version"] == 2
    assert choice.damage is None


def test_a_damaged_checkpoint_is_left_for_the_one_before(folder: RunFolder) -> None:
    damage(folder.last)
    choice = chosen(folder)
    assert choice.resumed is not None
    assert choice.resumed["version"] == 1
    assert choice.damage is not None
    assert str(folder.last) in choice.damage


def test_a_missing_checkpoint_is_left_for_the_one_before(folder: RunFolder) -> None:
    folder.last.unlink()
    choice = chosen(folder)
    assert choice.resumed is not None
    assert choice.resumed["version"] == 1


def test_two_damaged_checkpoints_are_refused(folder: RunFolder) -> None:
    damage(folder.last)
    damage(folder.previous)
    with pytest.raises(Refused) as refused:
        chosen(folder)
    assert refused.value.code == "checkpoint-corrupt"


def test_without_links_a_checkpoint_is_kept_all_the_same(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("exFAT has none")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    checkpoint.write(folder.last, content(3), keep=folder.previous)
    assert checkpoint.read(folder.previous)["version"] == 2
    assert checkpoint.read(folder.last)["version"] == 3


# -- events


def test_a_week_of_pushes_is_a_bounded_number_of_events() -> None:
    pushes, seconds = Thinned(), 7 * 86_400
    written = [pushes.due(float(second)) for second in range(seconds)]
    assert written[:ALL_WRITTEN] == [1] * ALL_WRITTEN
    assert sum(each > 0 for each in written) <= ALL_WRITTEN + seconds / THIN_S
    assert sum(written) > seconds - THIN_S, "each push is in one of them"
    after_a_restart = Thinned(seen=seconds)
    assert [after_a_restart.due(float(second)) for second in range(3)] == [1, 0, 0]


def test_curves_of_many_events_take_little_memory(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", "run")
    log.write("push", rank=1, loss=2.0)
    log.close()
    line = (tmp_path / "events.jsonl").read_text()
    draw(tmp_path / "events.jsonl", tmp_path / "curves.png")  # matplotlib's own memory
    with (tmp_path / "events.jsonl").open("a") as file:
        for _ in range(100_000):
            file.write(line)
        file.write("half a line")
    tracemalloc.start()
    draw(tmp_path / "events.jsonl", tmp_path / "curves.png")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 0.5 * 100_000 * len(line), "the events are not held in memory"


def test_curves_without_events_are_empty(tmp_path: Path) -> None:
    assert draw(tmp_path / "none.jsonl", tmp_path / "curves.png").exists()
    shutil.rmtree(tmp_path)


def test_a_listener_that_raises_ends_nothing_and_is_an_event(tmp_path: Path) -> None:
    heard: list[str] = []
    log = EventLog(tmp_path / "events.jsonl", "run")

    def fails(event: dict) -> None:
        raise RuntimeError("its screen is gone")

    log.subscribe(fails)
    log.subscribe(lambda event: heard.append(event["kind"]))
    for _ in range(3):
        log.write("push")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["push", "listener_failed", "push", "push"]
    assert "its screen is gone" in lines[1]["reason"]
    assert heard.count("push") == 3
