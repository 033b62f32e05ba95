"""``python -m minga.deploy.status``: what ``make status`` shows.

Reads ``build/status.json``, the playbook's notes of every PC's answers: ``run``, the text
of the ps's ``status.json``, and ``pcs``, Ansible's result of ``docker container ls`` by PC.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from minga.console import results, status_view
from minga.deploy.notes import read_answers, spread_out


def main() -> int:
    """Show the run and the containers; exit status 3 if a PC did not answer."""
    spread_out()
    answers = read_answers("status")
    rows = [row for pc, answer in answers["pcs"].items() for row in rows_of(pc, answer)]
    table = Table(box=None, pad_edge=False, header_style="heading")
    for title in ("PC", "CONTAINER", "STATE", "IMAGE"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if answers["run"]:
        results().print(status_view(json.loads(answers["run"])))
    else:
        results().print("No run yet: make train")
    results().print()
    results().print(table)
    return 3 if any(map(silent, answers["pcs"].values())) else 0


def silent(answer: Mapping[str, Any]) -> bool:
    """Return whether a PC did not answer: it is off, or sudo failed."""
    return bool(answer.get("unreachable")) or ("rc" not in answer and "msg" in answer)


def rows_of(pc: str, answer: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield PC, container, state and image of each container, or the reason for none."""
    lines = answer.get("stdout_lines", [])
    if not answer:
        yield pc, "-", "not asked", "-"
    elif silent(answer):
        state = "unreachable" if answer.get("unreachable") else "failed"
        yield pc, "-", " ".join((state, *answer.get("msg", "").split())), "-"
    elif answer.get("rc") != 0:
        yield pc, "-", answer.get("stderr") or "no Docker", "-"
    elif not lines:
        yield pc, "-", "none: make deploy, make train", "-"
    for line in lines:
        name, image, state = line.split(maxsplit=2)
        yield pc, name, state, image


if __name__ == "__main__":
    sys.exit(main())
