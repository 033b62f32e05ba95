"""What is told of a playbook that ended: reason per PC, exit status, the command that mends it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from minga.deploy import play
from minga.deploy.play import Ending, Outcome, to_error
from minga.errors import Refused
from support import needs

needs("ansible")

DONE = Ending("desk-a", "done", "")
OFF = Ending("desk-b", "unreachable", "No route to host")
FAILED = Ending("desk-c", "failed", "no disk")


def test_all_well_is_nothing_to_tell() -> None:
    assert to_error("deploy", Outcome(0, endings=[DONE])) is None


@pytest.mark.parametrize("status", [0, 2, 4])
def test_missed_pcs_are_named_whatever_ansible_says(status: int) -> None:
    error = to_error("deploy", Outcome(status, endings=[DONE, OFF, FAILED]))
    assert error is not None
    assert (error.exit_status, error.code) == (3, "pcs-missed")
    assert "on 1 of 3 PCs, not on desk-b, desk-c" in error.what
    assert error.hints[0].command == "make deploy LIMIT=desk-b,desk-c"


@pytest.mark.parametrize(
    ("by", "code", "status"),
    [
        ("inventory", "inventory-wrong", 2),
        ("lock", "deploy-busy", 5),
        ("uncollected", "uncollected", 5),
    ],
)
def test_a_refusal_is_not_the_failure_of_a_pc(by: str, code: str, status: int) -> None:
    error = to_error("purge", Outcome(2, refused_by=by, refused="because", endings=[DONE, FAILED]))
    assert error is not None
    assert (error.code, error.exit_status) == (code, status)
    assert error.what == "make purge did nothing. because"


def test_a_playbook_that_fails_by_itself_is_a_failure() -> None:
    error = to_error("train", Outcome(4))
    assert error is not None
    assert (error.code, error.exit_status) == ("playbook-failed", 1)


def _hold(lock: Path, started: object, done: object) -> None:
    play.LOCK = lock
    with play._alone("deploy"):
        started.set()
        done.wait(30)


def test_one_at_a_time_from_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "LOCK", tmp_path / "lock")
    context = multiprocessing.get_context("spawn")
    started, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", started, done))
    other.start()
    try:
        assert started.wait(60)
        with pytest.raises(Refused, match="make deploy since"), play._alone("stop"):
            pass
    finally:
        done.set()
        other.join(30)
    with play._alone("stop") as holder:  # control: it is free again
        assert "make stop since" in holder


def test_the_pcs_names_come_from_the_inventory_of_the_words(tmp_path: Path) -> None:
    path = tmp_path / "lan.ini"
    path.write_text("[ps]\ndesk-a ansible_host=10.0.0.1\n[workers]\ndesk-b ansible_host=10.0.0.2\n")
    names = play._names(["--inventory", str(path), "--limit", "desk-b", "deploy.yml"])
    assert names == {"10.0.0.1": "desk-a", "10.0.0.2": "desk-b"}


def test_sudos_password_is_asked_for_once_and_is_in_no_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("getpass.getpass", lambda _: "geheim")
    with play._password(["-i", "lan.ini", "--ask-become-pass", "deploy.yml"]) as words:
        assert words[0] == "--become-password-file"
        assert words[2:] == ["-i", "lan.ini", "deploy.yml"]
        file = Path(words[1])
        assert file.read_text() == "geheim\n"
        assert file.stat().st_mode & 0o777 == 0o600
    assert not file.exists()
