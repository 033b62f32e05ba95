"""``python -m minga.deploy.play ... PLAYBOOK``: a playbook, and a table of its outcome on each PC.

All arguments go to ``ansible-playbook``. A PC that is off or fails does not stop the
others: the table names it, and the exit status is 3.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from minga.console import results, talk
from minga.deploy.inventory import hosts_of, names_by_address
from minga.deploy.notes import spread_out
from minga.deploy.paths import ROOT, run
from minga.deploy.progress import Watch
from minga.errors import INTERRUPTED, Hint, MingaError, Refused, RunFailed, Unreachable, UsageError

ANSIBLE = ROOT / "ansible"
LOCK = ROOT / ".minga" / "deploy.lock"

_INTERRUPTED = (99, -2, INTERRUPTED)
"""Exit status of ansible-playbook after Ctrl-C."""
_ASK = "--ask-become-pass"


@dataclass(frozen=True, slots=True)
class Ending:
    """Outcome of a playbook on one PC, and the reason."""

    pc: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a playbook."""

    status: int
    """Of ansible-playbook."""
    refused_by: str = ""
    """The role that refused before any PC was changed, or nothing."""
    refused: str = ""
    endings: Sequence[Ending] = field(default=())


def main(words: Sequence[str]) -> None:
    """Run the playbook and show its outcome; raise the error of :func:`to_error`."""
    verb = Path(words[-1]).stem
    with _alone(verb) as holder, _password(words) as safe_words:
        outcome = _play(safe_words, verb, holder)
    if outcome.status in _INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.endings and not outcome.refused_by:
        _show(outcome.endings)
    if error := to_error(verb, outcome):
        raise error


def to_error(verb: str, outcome: Outcome) -> MingaError | None:
    """Return the error for this make verb, or None after success. No I/O."""
    if outcome.refused_by:
        what = f"make {verb} did nothing. {outcome.refused}"
        if outcome.refused_by == "lock":
            return Refused(what, code="deploy-busy")
        if outcome.refused_by == "uncollected":
            return Refused(what, code="uncollected")
        return UsageError(what, code="inventory-wrong")
    missed = [each.pc for each in outcome.endings if each.state != "done"]
    if missed:
        count = len(outcome.endings)
        return Unreachable(
            f"make {verb} succeeded on {count - len(missed)} of {count} PCs, "
            f"not on {', '.join(missed)}",
            code="pcs-missed",
            hints=(Hint("fixed? retry only these", f"make {verb} LIMIT={','.join(missed)}"),),
        )
    if outcome.status:
        return RunFailed(
            f"make {verb}: ansible-playbook ended with {outcome.status}; see its last lines above",
            code="playbook-failed",
        )
    return None


def _play(words: Sequence[str], verb: str, holder: str) -> Outcome:
    """Run the playbook, and release the lock on the PCs."""
    with tempfile.TemporaryDirectory() as folder:
        noted_in = Path(folder) / "outcome.json"
        env = {"MINGA_OUTCOME": str(noted_in), "MINGA_VERB": f"make {verb}", "MINGA_HOLDER": holder}
        status = _playbook(words, env)
        noted = json.loads(noted_in.read_text()) if noted_in.exists() else None
    if noted is None:
        return Outcome(status)
    if noted["locked"]:
        release = (*words[:-1], str(ANSIBLE / "unlock.yml"))
        _playbook(release, {"MINGA_HOLDER": holder}, quiet=True)
    return Outcome(
        status,
        noted["refused"]["by"],
        noted["refused"]["reason"],
        [Ending(pc, each["state"], each["reason"]) for pc, each in noted["pcs"].items()],
    )


def _playbook(words: Sequence[str], env: Mapping[str, str], *, quiet: bool = False) -> int:
    """Run ansible-playbook to its end, and report the progress of its transfers."""
    program = Path(sys.executable).with_name("ansible-playbook")
    settings = {"ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")}
    out = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(
        [str(program), *words], env={**os.environ, **settings, **env}, stdout=out, stderr=out
    ) as process:
        return Watch(process.pid, lambda: _names(words), _print).wait(process)


def _names(words: Sequence[str]) -> Mapping[str, str]:
    """Return the PCs' names by address."""
    return names_by_address(hosts_of(Path(words[words.index("--inventory") + 1])))


def _print(line: str) -> None:
    talk().print(line, markup=False, soft_wrap=True)


def _show(endings: Sequence[Ending]) -> None:
    spread_out()
    table = Table(box=None, pad_edge=False, header_style="heading")
    for title in ("PC", "STATE", "REASON"):
        table.add_column(title, no_wrap=title != "REASON", overflow="fold")
    for each in endings:
        style = "" if each.state == "done" else "bad"
        table.add_row(each.pc, Text(each.state, style), Text(each.reason))
    results().print(table)
    results().print()


@contextlib.contextmanager
def _password(words: Sequence[str]) -> Iterator[Sequence[str]]:
    """Ask for sudo's password once for both playbooks."""
    if _ASK not in words:
        yield words
        return
    with tempfile.NamedTemporaryFile("w") as file:  # 0600
        file.write(getpass.getpass("sudo's password on the PCs: ") + "\n")
        file.flush()
        kept = [word for word in words if word != _ASK]
        yield ["--become-password-file", file.name, *kept]


@contextlib.contextmanager
def _alone(verb: str) -> Iterator[str]:
    """Let one make verb at a time change PCs from this folder; yield what others are shown."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Refused(
                f"make {verb} did nothing. Another verb runs in this folder: {lock.read().strip()}",
                code="deploy-busy",
                hints=(Hint("when that is done", f"make {verb}"),),
            ) from None
        lock.truncate(0)
        who, since = f"{getpass.getuser()}@{socket.gethostname()}", time.strftime("%F %T %Z")
        holder = f"{who}, make {verb} since {since} (process {os.getpid()})"
        lock.write(holder)
        lock.flush()
        yield holder


if __name__ == "__main__":
    sys.exit(run(lambda: main(sys.argv[1:])))
