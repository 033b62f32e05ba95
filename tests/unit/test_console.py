"""What minga says: log lines, the status view, and how often it is shown."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console as RichConsole

from minga import console
from minga.console import Console, Counting, Progress, duration, status_view

WORKER = {
    "rank": 1,
    "name": "desk-a",
    "host": "192.168.1.21",
    "device": "cuda:0",
    "state": "training",
    "samples": 123456,
    "local_steps": 12,
    "samples_per_s": 1210.4,
    "staleness_mean": 1.25,
    "staleness_max": 7,
    "refused": 2,
    "last_seen_s": 0.41,
}
STATUS: dict[str, Any] = {
    "run_id": "20261123-031407-resnet18",
    "state": "train",
    "epoch": 3,
    "epochs": 30,
    "samples": 300_000,
    "total_samples": 3_000_000,
    "version": 1200,
    "accuracy": 0.5712,
    "best_accuracy": 0.58,
    "loss": 0.41234,
    "samples_per_s": 1210.4,
    "eta_s": 73.2,
    "up_s": 3725.0,
    "refused": 2,
    "workers": [WORKER, {**WORKER, "rank": 2, "state": "lost", "last_seen_s": 41.0}],
}


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    is_terminal = bool(request.param)
    fake = RichConsole(
        stderr=True,
        force_terminal=is_terminal,
        width=200,
        theme=console._THEME,
        highlight=False,
    )
    monkeypatch.setattr(console, "talk", lambda: fake)
    return is_terminal


def _shown(status: dict[str, Any]) -> list[str]:
    paper = RichConsole(width=200, theme=console._THEME)
    with paper.capture() as shown:
        paper.print(status_view(status))
    return [row.rstrip() for row in shown.get().splitlines()]


def test_a_log_line_has_time_role_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    Console("ps").line(version=1200, loss=0.41234, acc=None, why="too old", at="[fe80::1]:30005")
    said = capsys.readouterr()
    expected = r'\d\d:\d\d:\d\d ps version=1200 loss=0\.4123 why="too old" at=\[fe80::1\]:30005\n'
    assert re.fullmatch(expected, said.err)
    assert said.out == ""


def test_a_long_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console("ps").line(what="x" * 500)
    assert capsys.readouterr().err.count("\n") == 1


def test_sentences_and_warnings_go_to_stderr_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Console("ps").say("[bold] is not markup")
    Console("ps").warn("EPOCHS differ")
    said = capsys.readouterr()
    assert said.err == "[bold] is not markup\nwarning: EPOCHS differ\n"
    assert said.out == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0, "0s"), (45.2, "45s"), (59.6, "1m00s"), (73, "1m13s"), (7500, "2h05m")],
)
def test_durations_read_as_people_say_them(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_the_status_view_shows_run_and_workers() -> None:
    headline, header, first, second = _shown(STATUS)
    assert headline == (
        "run 20261123-031407-resnet18  train  epoch 3/30 (10.0%)  version 1,200  acc 57.1%"
        "  best 58.0%  loss 0.412  1,210 samples/s  refused 2  up 1h02m  eta 1m13s"
    )
    assert header.split()[:6] == ["RANK", "NAME", "HOST", "DEVICE", "STATE", "SAMPLES"]
    cells = "1 desk-a 192.168.1.21 cuda:0 training 123,456 12 1,210 1.2 / 7 2 0.4s"
    assert first.split() == cells.split()
    assert second.split()[-1] == "41s"


def test_the_status_view_of_a_run_that_has_not_begun_shows_dashes() -> None:
    headline, _, worker = _shown({"run_id": "r", "workers": [{"rank": 1}]})
    assert "acc -  best -  loss -  - samples/s" in headline
    assert worker.split() == ["1", *["-"] * 10]


def test_progress_shows_the_first_status_then_one_per_interval_and_the_last(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, interval_s = _Clock(), 1.0 if terminal else 10.0

    def said() -> bool:
        return bool(capsys.readouterr().err)

    with Progress(Console("ps"), clock=clock) as progress:
        capsys.readouterr()
        progress.update(STATUS)
        assert said()
        clock.now_s = interval_s - 0.01
        progress.update(STATUS)
        assert not said()
        clock.now_s = interval_s
        progress.update(STATUS)
        assert said()
        progress.update({**STATUS, "version": 1300})
        assert not said()
    last = capsys.readouterr().err
    assert ("1,300" if terminal else "version=1300") in last


def test_progress_on_a_pipe_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Console("ps")) as progress:
        progress.update(STATUS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line[9:] == (
        "ps state=train epoch=3/30 version=1200 loss=0.4123 acc=0.5712 samples_per_s=1210 "
        "refused=2 workers=1/2 eta=1m13s"
    )


@pytest.mark.parametrize("terminal", [True], indirect=True)
def test_a_sentence_said_during_the_live_view_goes_above_the_table(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(Console("ps")) as progress:
        progress.update(STATUS)
        Console("ps").say("worker 3 joined")
        said = capsys.readouterr().err
    before, sentence, after = said.partition("worker 3 joined")
    assert sentence
    assert "desk-a" in before
    assert "desk-a" in after


def test_a_count_is_shown_now_and_then(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    clock = _Clock()
    with Counting("packing", clock=clock) as counting:
        capsys.readouterr()
        clock.now_s = 0.01
        counting(1, 4000)
        assert capsys.readouterr().err == ""
        clock.now_s = 20.0
        counting(1000, 4000)
        said = capsys.readouterr().err
    assert (
        "1000/4000" in said if terminal else said == "packing  1,000 of 4,000  50/s  1m00s left\n"
    )
