"""The audit finds what is double, missing or different, and what a resume repeated."""

from __future__ import annotations

import json
from pathlib import Path

from minga.data.leases import ids_crc, permutation
from minga.ps.audit import audit
from minga.ps.journal import Journal

SAMPLES, EPOCHS, SEED = 50, 2, 3


def entry(push: int, epoch: int, start: int, stop: int) -> dict:
    crc = ids_crc(permutation(SEED, epoch, SAMPLES)[start:stop])
    return {"push": push, "spans": [[epoch, start, stop, crc]]}


def complete() -> list[dict]:
    return [entry(10 * epoch + k, epoch, 10 * k, 10 * k + 10) for epoch in (0, 1) for k in range(5)]


def checked(entries: list[dict]):
    return audit(map(json.dumps, entries), seed=SEED, samples=SAMPLES, epochs=EPOCHS)


def test_a_complete_journal_is_exact() -> None:
    found = checked(complete())
    assert found.exact
    assert found.samples == 100
    assert not found.problems


def test_a_push_written_twice_is_found() -> None:
    assert checked([*complete(), complete()[3]]).double == 10


def test_a_lost_push_is_found() -> None:
    assert checked(complete()[:-1]).missing == 10


def test_other_samples_than_the_leased_ones_are_found() -> None:
    entries = complete()
    entries[0]["spans"][0][3] ^= 1
    found = checked(entries)
    assert not found.exact
    assert found.wrong_ids == 10


def test_what_a_crash_lost_is_repeated_and_counted_as_such(tmp_path: Path) -> None:
    path, entries = tmp_path / "journal.jsonl", complete()
    before = Journal(path)
    for each in entries[:6]:
        before.write(each)
    before.close()
    after = Journal(path)
    assert after.resume(4) == 2  # the checkpoint had seen 4 pushes
    for each in entries[4:]:
        after.write(each)
    assert after.resume(after.lines) == 0, "nothing was lost by a clean stop"
    after.close()
    found = audit(path.read_text().splitlines(), seed=SEED, samples=SAMPLES, epochs=EPOCHS)
    assert found.exact
    assert found.repeated_pushes == 2


def test_a_second_crash_before_a_checkpoint_repeats_the_resume_line_as_well() -> None:
    entries = complete()
    lines = [*entries[:6], {"resume": 4}, entries[4], {"resume": 4}, *entries[4:]]
    found = checked(lines)
    assert found.exact
    assert found.repeated_pushes == 3
