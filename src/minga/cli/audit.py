"""``minga audit``."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from minga.console import print_result

if TYPE_CHECKING:
    from minga.audit import RunAudit
    from minga.ps.audit import EpochTally

_RUNS = Path("runs")


def audit(run: Path, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Check that every sample of a run counted exactly once; exit status 1 if not.

    Args:
        run: A run's folder or its name in runs/; live, stopped, finished or collected.
        json: One JSON object instead of lines.
    """
    from minga.audit import audit_run

    audited = audit_run(run if run.exists() or not (_RUNS / run).exists() else _RUNS / run)
    if json:
        print_result(json_format.dumps(audited.to_dict(), indent=2))
    else:
        for label, text in _rows(audited):
            print_result(f"{label:10} {text}")
    return 0 if audited.found.exact else 1


def _rows(audited: RunAudit) -> list[tuple[str, str]]:
    """Return label and text of each line of the report."""
    found = audited.found
    rows = [("run", f"{audited.run_id} ({'finished' if audited.finished else 'not finished'})")]
    complete = [each for each in found.epochs if each.complete]
    exact = sum(each.exact for each in complete)
    size = found.epochs[0].once + found.epochs[0].double + found.epochs[0].missing
    rows.append(("complete", f"{exact} of {len(complete)} epochs: {size} samples, each once"))
    for each in found.epochs:
        counted = each.once + each.double
        if each.complete and not each.exact:
            rows.append(("not exact", f"epoch {each.epoch + 1}: {_counts(each)}"))
        elif not each.complete and counted:
            rows.append(("open", f"epoch {each.epoch + 1}: {counted} of {size}, {_counts(each)}"))
    for repeat, reason in zip(found.repeats, audited.reasons, strict=True):
        amount = f"{repeat.pushes} pushes, {repeat.samples} samples"
        rows.append(("repeated", f"{amount}: {reason}"))
    for reason, samples in audited.uncounted.items():
        rows.append(("dealt anew", f"{samples} samples that had not counted: {reason}"))
    rows += [("note", note) for note in audited.notes]
    rows += [("problem", problem) for problem in found.problems]
    rows.append(("result", "exact" if found.exact else "NOT EXACT"))
    return rows


def _counts(tally: EpochTally) -> str:
    return (
        f"{tally.once} once, {tally.double} twice or more, {tally.missing} never, "
        f"{tally.wrong_ids} with other ids"
    )
