"""minga's output: results on stdout, messages on stderr, errors, and the live view of a run.

The live view shows a *status*, which is what ``runs/<run id>/status.json`` holds::

    run_id, state, epoch, epochs, samples, total_samples, version, accuracy, best_accuracy,
    loss, samples_per_s, eta_s, up_s, refused,
    workers: [{rank, name, host, device, state, samples, local_steps, samples_per_s, staleness_mean,
               staleness_max, refused, last_seen_s}]

A missing key or None is shown as a dash. Accuracies are from 0 to 1.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from minga.errors import Hint, MingaError

Status = Mapping[str, Any]

_THEME = Theme(
    {
        "good": "green",
        "warn": "yellow",
        "bad": "bold red",
        "heading": "bold",
        "quiet": "dim",
    }
)
_STATE_STYLES = {"training": "good", "joining": "warn", "lost": "bad", "left": "quiet"}
_LIVE_INTERVAL_S = 1.0
_BAR_INTERVAL_S = 0.2


@cache
def results() -> RichConsole:
    """Return the console of results: stdout."""
    return RichConsole(theme=_THEME, highlight=False)


@cache
def talk() -> RichConsole:
    """Return the console of messages: stderr."""
    return RichConsole(theme=_THEME, highlight=False, file=cast(TextIO, _Stderr()))


class _Stderr:
    """The present stderr; a full disk or a closed pipe does not end training."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def print_result(text: object) -> None:
    """Print a text on stdout as it is: no markup, no wrapping."""
    results().print(str(text), markup=False, soft_wrap=True)


def show_error(error: MingaError) -> None:
    """Print what went wrong, what to check, and where to read more."""
    talk().print(f"[bad]error\\[{error.code}][/bad]:", Text(error.what), soft_wrap=True)
    more = Hint("more", f"docs/troubleshooting.md#{error.code}")
    hints = (*error.hints, more)
    width = max(len(hint.question) for hint in hints)
    for hint in hints:
        text = f"  {hint.question:{width}}   {hint.command}"
        talk().print(text, markup=False, soft_wrap=True)


class Console:
    """The messages of one role on stderr: log lines, sentences, warnings."""

    interval_s = 10.0
    """Seconds between two progress lines."""

    def __init__(self, role: str) -> None:
        self._role = role

    def line(self, /, **fields: object) -> None:
        """Print one log line, for example ``03:14:07 ps version=1200 loss=0.412``.

        A field that is None is left out.
        """
        words = [f"{key}={_plain(value)}" for key, value in fields.items() if value is not None]
        now = time.strftime("%H:%M:%S")
        talk().print(now, self._role, *words, markup=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        talk().print(sentence, markup=False, soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Print a warning."""
        talk().print(f"warning: {sentence}", style="warn", markup=False, soft_wrap=True)


def _plain(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text


def duration(seconds: float | None) -> str:
    """Return ``45s``, ``1m13s`` or ``2h05m``; a dash for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _shown(number: float | None, spec: str) -> str:
    return "-" if number is None else format(number, spec)


def _staleness(worker: Status) -> str:
    mean, most = worker.get("staleness_mean"), worker.get("staleness_max")
    return "-" if mean is None or most is None else f"{mean:.1f} / {most}"


def _seen(worker: Status) -> str:
    age_s = worker.get("last_seen_s")
    return "-" if age_s is None else f"{age_s:.1f}s" if age_s < 10 else duration(age_s)


def _state(worker: Status) -> Text:
    state = str(worker.get("state", "-"))
    return Text(state, style=_STATE_STYLES.get(state, ""))


_COLUMNS: tuple[tuple[str, Callable[[Status], str | Text]], ...] = (
    ("RANK", lambda worker: str(worker.get("rank", "-"))),
    ("NAME", lambda worker: Text(str(worker.get("name", "-")))),
    ("HOST", lambda worker: Text(str(worker.get("host", "-")))),
    ("DEVICE", lambda worker: Text(str(worker.get("device", "-")))),
    ("STATE", _state),
    ("SAMPLES", lambda worker: _shown(worker.get("samples"), ",.0f")),
    ("H", lambda worker: _shown(worker.get("local_steps"), "d")),
    ("SAMPLES/S", lambda worker: _shown(worker.get("samples_per_s"), ",.0f")),
    ("STALENESS mean/max", _staleness),
    ("REFUSED", lambda worker: _shown(worker.get("refused"), ",.0f")),
    ("LAST SEEN", _seen),
)
_LEFT = ("NAME", "HOST", "DEVICE", "STATE")


def status_view(status: Status) -> RenderableType:
    """Return a status as a headline and a table of workers."""
    samples, total = status.get("samples"), status.get("total_samples")
    done = samples / total if samples is not None and total else None
    headline = "  ".join(
        (
            f"run {status.get('run_id', '-')}",
            str(status.get("state", "-")),
            f"epoch {_epochs(status)} ({_shown(done, '.1%')})",
            f"version {_shown(status.get('version'), ',')}",
            f"acc {_shown(status.get('accuracy'), '.1%')}",
            f"best {_shown(status.get('best_accuracy'), '.1%')}",
            f"loss {_shown(status.get('loss'), '.3f')}",
            f"{_shown(status.get('samples_per_s'), ',.0f')} samples/s",
            f"refused {_shown(status.get('refused'), ',')}",
            f"up {duration(status.get('up_s'))}",
            f"eta {duration(status.get('eta_s'))}",
        )
    )
    table = Table(box=None, pad_edge=False, header_style="heading")
    for title, _ in _COLUMNS:
        table.add_column(title, justify="left" if title in _LEFT else "right", no_wrap=True)
    for worker in status.get("workers", ()):
        table.add_row(*(cell(worker) for _, cell in _COLUMNS))
    return Group(Text(headline, style="heading"), table)


def _epochs(status: Status) -> str:
    epoch = status.get("epoch")
    shown = f"{epoch:.2f}" if isinstance(epoch, float) else str(epoch if epoch is not None else "-")
    return f"{shown}/{status.get('epochs', '-')}"


def _summary(status: Status) -> dict[str, object]:
    """Return a status as the fields of a log line."""
    workers = status.get("workers", ())
    training = sum(worker.get("state") == "training" for worker in workers)
    return {
        "state": status.get("state"),
        "epoch": _epochs(status),
        "version": status.get("version"),
        "loss": status.get("loss"),
        "acc": status.get("accuracy"),
        "samples_per_s": status.get("samples_per_s"),
        "refused": status.get("refused"),
        "workers": f"{training}/{len(workers)}",
        "eta": duration(status.get("eta_s")),
    }


class Progress:
    """Shows a run's progress: a live table on a terminal, else a log line at intervals.

    Use it as a context manager; leaving it shows the last status. Not thread-safe.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        # without a refresh thread: update() is called often enough
        self._live = Live(console=talk(), auto_refresh=False) if talk().is_terminal else None
        self._interval_s = _LIVE_INTERVAL_S if self._live else console.interval_s
        self._due = clock()
        self._unseen: Status | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._unseen is not None:
            self._show(self._unseen)
        if self._live:
            self._live.stop()

    def update(self, status: Status) -> None:
        """Take the newest status, to show at the next interval."""
        if self._clock() < self._due:
            self._unseen = status
            return
        self._due = self._clock() + self._interval_s
        self._show(status)

    def _show(self, status: Status) -> None:
        self._unseen = None
        if self._live:
            self._live.update(status_view(status), refresh=True)
        else:
            self._console.line(**_summary(status))


class Counting:
    """Shows the progress of a long count: a bar on a terminal, else a line at intervals.

    Use it as a context manager, and call it with the count and the total. Not thread-safe.
    """

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Bars(
            *columns, TimeRemainingColumn(), console=talk(), auto_refresh=False, transient=True
        )
        self._task = self._bars.add_task(what, total=None)
        self._on_terminal = talk().is_terminal
        self._interval_s = _BAR_INTERVAL_S if self._on_terminal else Console.interval_s
        self._first: tuple[float, int] | None = None
        self._due = 0.0

    def __enter__(self) -> Self:
        if self._on_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._on_terminal:
            self._bars.stop()

    def __call__(self, done: int, total: int) -> None:
        """Take the newest count, to show at the next interval."""
        now_s = self._clock()
        if self._first is None:  # the time of imports before it does not count
            self._first, self._due = (now_s, done), now_s + self._interval_s
        if now_s < self._due:
            return
        self._due = now_s + self._interval_s
        if self._on_terminal:
            self._bars.update(self._task, completed=done, total=total, refresh=True)
            return
        per_s = (done - self._first[1]) / (now_s - self._first[0])
        left = duration((total - done) / per_s if per_s else None)
        said = f"{self._what}  {done:,} of {total:,}  {per_s:,.0f}/s  {left} left"
        talk().print(said, markup=False, soft_wrap=True)
