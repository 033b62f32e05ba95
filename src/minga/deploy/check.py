"""``python -m minga.deploy.check``: what ``make check`` shows.

Reads ``build/check.json``, the playbook's notes of every PC's answers. ``require`` reads one
PC's answers from stdin instead, for ``make deploy`` before it changes the PC.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.text import Text

from minga.console import print_result, results
from minga.deploy.notes import read_answers, spread_out
from minga.deploy.paths import STAGED, described, run
from minga.deploy.preflight import Row, Wanted, rows_of
from minga.deploy.ssh_problems import HERE
from minga.deploy.variants import VARIANTS
from minga.errors import Hint, Unreachable

_STYLES = {"PASS": "good", "WARN": "warn", "FAIL": "bad"}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_BEFORE_DEPLOY = ("python", "sudo", "architecture", "disk", "gpu", "port")
"""Checks that deploy itself cannot fix, unlike Docker and data."""

app = App(name="minga.deploy.check", help="What each PC is missing.")


@app.default
def check(*, json_: bool = False) -> None:
    """Show the answers of all PCs.

    Args:
        json_: as JSON instead.
    """
    answers = read_answers("check")
    rows = all_rows(answers, _wanted(answers, STAGED))
    if json_:
        print_result(json.dumps(as_json(rows), indent=1))
    else:
        spread_out()
        for line in lines_of(rows):
            results().print(line, soft_wrap=True)
    require_ready(rows)


@app.command
def require() -> None:
    """Print why a PC cannot train; nothing if it can."""
    answers = json.load(sys.stdin)
    rows = all_rows(answers, _wanted(answers, STAGED))
    for row in rows:
        if row.state == "FAIL" and row.check.startswith(_BEFORE_DEPLOY):
            words = f"{row.detail}. {told(row)}" if row.fix else row.detail
            print_result(words)


def all_rows(answers: Mapping[str, Any], wanted: Wanted) -> list[Row]:
    """Return the rows of all PCs."""
    pcs = {pc: decoded(asked) for pc, asked in answers["pcs"].items()}
    ps = pcs.get(wanted.ps, {}).get("facts", {}).get("answer") or {}
    return [row for pc, asked in pcs.items() for row in rows_of(pc, asked, wanted, ps)]


def lines_of(rows: Iterable[Row]) -> Iterable[Text]:
    """Yield the lines of the table; commands have their own lines, for copying."""
    for pc, of_pc in groupby(rows, key=lambda row: row.pc):
        yield Text(pc, style="heading")
        for row in of_pc:
            yield Text.assemble(
                "  ", (row.state, _STYLES[row.state]), f"  {row.check:12}  {row.detail}"
            )
            if row.fix:
                yield Text(f"{'':22}{told(row)}")


def told(row: Row) -> str:
    """Return the PC to type on, and the command."""
    return f"{'here' if row.on == HERE else f'on {row.on}'}:  {row.fix}"


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the rows for ``JSON=1``."""
    return {
        "ok": not _failing(rows := list(rows)),
        "pcs": {
            pc: [{key: value for key, value in asdict(row).items() if key != "pc"} for row in of_pc]
            for pc, of_pc in groupby(rows, key=lambda row: row.pc)
        },
    }


def require_ready(rows: Iterable[Row]) -> None:
    """Raise Unreachable ``not-ready`` if any row is a FAIL."""
    if failing := _failing(rows):
        raise Unreachable(
            f"not ready: {', '.join(failing)}",
            code="not-ready",
            hints=(Hint("mended?", "make check"), Hint("start the others", "make deploy")),
        )


def _failing(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.pc for row in rows if row.state == "FAIL"))


def decoded(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a PC's answers, with the object that the probe printed as ``answer``; else None."""
    found = dict(asked)
    for name in ("facts", "dial"):
        result = asked.get(name, {})
        said = result.get("stdout") if result.get("rc") == 0 else None
        found[name] = {**result, "answer": _object_in(said or "")}
    return found


def _object_in(said: str) -> dict[str, Any] | None:
    """Return the JSON object in the last line: a login's profile may print before it."""
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(said.strip().rpartition("\n")[2])
        return answer if isinstance(answer, dict) else None
    return None


def _wanted(answers: Mapping[str, Any], staged: Path) -> Wanted:
    """Return what to deploy: the images built last, and this PC's data."""
    here = answers["here"]
    basis = {"port": int(answers["port"]), "ps": answers["ps"], "data": here["data"]}
    basis["variants"] = answers["variants"]
    if answers.get("images"):
        basis["images"] = dict.fromkeys(here["data"], answers["images"])
    images = {}
    for variant in VARIANTS:
        with contextlib.suppress(FileNotFoundError):
            images[variant] = described(variant)
    if not images:
        return Wanted(machine=here["machine"], **basis)
    pieces = (path.stem.partition("-") for path in (staged / "layers").glob("*.zst"))
    architecture = json.loads(next(config for _, config in images.values()))["architecture"]
    return Wanted(
        machine=_MACHINES.get(architecture, architecture),
        layers={variant: current["layers"] for variant, (current, _) in images.items()},
        layer_bytes={f"sha256:{digest}": int(size) for digest, _, size in pieces},
        **basis,
    )


if __name__ == "__main__":
    sys.exit(run(lambda: app(result_action="return_value")))
