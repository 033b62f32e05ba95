"""``minga audit`` on the folder of a run: finished, live, crashed, collected, damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minga.audit import DIED, UNKNOWN, audit_run
from minga.cli import main
from minga.data.leases import ids_crc, permutation
from minga.errors import DataError

SAMPLES, EPOCHS, SEED, PER_PUSH = 40, 3, 7, 10
PER_EPOCH = SAMPLES // PER_PUSH


def push(number: int) -> dict[str, Any]:
    epoch, place = divmod(number - 1, PER_EPOCH)
    start, stop = place * PER_PUSH, (place + 1) * PER_PUSH
    crc = ids_crc(permutation(SEED, epoch, SAMPLES)[start:stop])
    return {"push": number, "version": number, "spans": [[epoch, start, stop, crc]]}


def run_folder(
    folder: Path,
    entries: list[dict[str, Any]],
    *,
    epoch: int,
    version: int,
    events: list[dict[str, Any]] | None = None,
    finished: bool = False,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": {"train": {"seed": SEED}}}))
    status = {"run_id": "r", "epoch": epoch, "epochs": EPOCHS, "version": version}
    status["total_samples"] = SAMPLES * EPOCHS
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "journal.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries))
    if events is not None:
        (folder / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def pushes(first: int, last: int) -> list[dict[str, Any]]:
    return [push(number) for number in range(first, last + 1)]


def finished(folder: Path, entries: list[dict[str, Any]]) -> Path:
    return run_folder(folder, entries, epoch=EPOCHS, version=12, events=[], finished=True)


def test_a_finished_run_is_exact_and_says_how_often_each_sample_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path / "run", pushes(1, 12))
    assert main(["audit", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 epochs: 40 samples, each once" in shown
    assert shown.splitlines()[-1].split() == ["result", "exact"]


@pytest.mark.parametrize(
    ("entries", "double", "missing"),
    [([*pushes(1, 12), push(5)], 10, 0), (pushes(1, 4) + pushes(6, 12), 0, 10)],
    ids=["a line planted", "a line removed"],
)
def test_a_planted_and_a_removed_line_end_with_status_1(
    entries: list[dict[str, Any]],
    double: int,
    missing: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = finished(tmp_path / "run", entries)
    assert main(["audit", str(run), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["exact"]
    second = told["epochs"][1]
    assert (second["double"], second["missing"]) == (double, missing)
    assert second["once"] == 40 - double - missing


def test_an_unfinished_run_may_miss_samples_of_its_open_epoch_only(tmp_path: Path) -> None:
    live = run_folder(tmp_path / "live", pushes(1, 6), epoch=1, version=6, events=[])
    assert audit_run(live).found.exact
    doubled = [*pushes(1, 6), push(6)]
    again = run_folder(tmp_path / "double", doubled, epoch=1, version=6, events=[])
    assert audit_run(again).found.double == 10
    entries = pushes(2, 6)
    gap = run_folder(tmp_path / "gap", entries, epoch=1, version=6, events=[])
    assert audit_run(gap).found.missing == 10


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ([], DIED),
        ([{"kind": "run_end", "outcome": "failed"}], "the ps ended (failed)"),
        (
            [{"kind": "checkpoint_failed", "reason": "last.pth: No space left on device"}],
            f"{DIED}; its checkpoint could not be written: last.pth: No space left on device",
        ),
        (
            [{"kind": "checkpoint_failed", "reason": "full"}, {"kind": "checkpoint"}],
            DIED,
        ),
    ],
)
def test_a_repeat_has_its_reason_from_the_events(
    before: list[dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    events = [
        {"kind": "run_start", "resumed": False},
        *before,
        {"kind": "run_start", "resumed": True},
        {"kind": "resume", "repeated_pushes": 2},
    ]
    entries = [*pushes(1, 6), {"resume": 4}, *pushes(5, 12)]
    run = run_folder(
        tmp_path / "run", entries, epoch=EPOCHS, version=12, events=events, finished=True
    )
    audited = audit_run(run)
    assert audited.found.exact
    assert [(each.pushes, each.samples) for each in audited.found.repeats] == [(2, 20)]
    assert audited.reasons == [reason]


def test_a_repeat_without_its_event_has_an_unknown_reason(tmp_path: Path) -> None:
    entries = [*pushes(1, 6), {"resume": 4}, *pushes(5, 12)]
    run = run_folder(tmp_path / "run", entries, epoch=3, version=12, finished=True)
    audited = audit_run(run)
    assert audited.reasons == [UNKNOWN]
    assert audited.notes == ["events.jsonl is missing: reasons are unknown"]


def test_samples_that_were_dealt_out_again_are_counted_by_reason(tmp_path: Path) -> None:
    events = [
        {"kind": "worker_lost", "samples_back": 30},
        {"kind": "refused", "reason": "too stale", "samples": 10},
        {"kind": "refused", "reason": "too stale", "samples": 10},
        {"kind": "lease_expired", "samples": 0},
    ]
    run = run_folder(tmp_path / "run", pushes(1, 4), epoch=1, version=4, events=events)
    assert audit_run(run).uncounted == {"worker lost": 30, "push refused: too stale": 20}


def test_a_journal_that_was_copied_before_its_status_is_judged_by_itself(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", pushes(1, 6), epoch=2, version=9, events=[])
    audited = audit_run(run)
    assert audited.found.exact
    assert [each.complete for each in audited.found.epochs] == [True, False, False]
    assert "older than status.json" in audited.notes[0]
    late = finished(tmp_path / "finished", pushes(1, 6))
    assert not audit_run(late).found.exact, "a finished run's journal has no such excuse"


def test_half_a_line_at_the_end_does_not_count_and_other_damage_does(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", pushes(1, 6), epoch=1, version=6, events=[])
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"push": 7, "spa')
    audited = audit_run(run)
    assert audited.found.exact
    assert audited.notes == ["journal.jsonl ends in half a line, which does not count"]
    for damage in (
        "nonsense",
        "[]",
        '{"push": 7}',
        '{"push": 7, "spans": [[0, 0, 9]]}',
        "[" * 9999,
    ):
        other = run_folder(tmp_path / damage[:20], [], epoch=0, version=0, events=[])
        (other / "journal.jsonl").write_text(f"{damage}\n")
        assert audit_run(other).found.damaged == 1, damage


def test_samples_that_the_run_does_not_have_are_damage(tmp_path: Path) -> None:
    entry = push(12)
    entry["spans"][0][0] = EPOCHS
    run = finished(tmp_path / "run", [*pushes(1, 12), entry])
    assert audit_run(run).found.damaged == 1


@pytest.mark.parametrize("name", ["config.json", "status.json", "journal.jsonl"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", pushes(1, 12))
    (run / name).unlink()
    with pytest.raises(DataError, match=name) as raised:
        audit_run(run)
    assert raised.value.code == "audit-files"
    assert main(["audit", str(run)]) == 4


def test_a_run_may_be_named_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "runs" / "named", pushes(1, 12))
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "named"]) == 0
    assert main(["audit", "other"]) == 4
