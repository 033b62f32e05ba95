"""``python -m minga.deploy.logs``: what ``make logs`` shows, in the order of time.

The playbook notes ``docker container logs --timestamps`` of every container in
``build/logs.json``: ``pcs``, Ansible's results by PC.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from minga.console import print_result, results
from minga.deploy.notes import read_answers

_SECONDS = len("2026-11-25T19:26:38")


def main() -> int:
    """Show all PCs' lines in the order of time; exit status 3 if a PC did not answer."""
    pcs = read_answers("logs")["pcs"]
    width = max(map(len, pcs), default=0)
    lines = [line for pc, answer in pcs.items() for line in lines_of(pc, answer)]
    for _, where, line in sorted(lines, key=lambda line: line[0]):  # stable for equal times
        print_result(f"{where:{width}}  {line}")
    silent = [pc for pc, answer in pcs.items() if answer.get("unreachable")]
    for pc in silent:
        results().print(f"{pc:{width}}  unreachable", markup=False)
    return 3 if silent else 0


def lines_of(pc: str, answer: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield time, PC and text of each line; a line without a time belongs to the one before."""
    time = ""
    for result in answer.get("results", []):
        for line in (*result.get("stdout_lines", []), *result.get("stderr_lines", [])):
            stamp, _, words = line.partition(" ")
            if stamp[:1].isdigit() and "T" in stamp:
                time = stamp
            else:
                words = line
            yield time, pc, f"{time[:_SECONDS]}  {words}"


if __name__ == "__main__":
    sys.exit(main())
