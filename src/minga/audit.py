"""``minga audit``: check that every sample of a run counted once, from the run's own files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minga.errors import DataError, Hint
from minga.ps.audit import Audit, audit

UNKNOWN = "unknown"
DIED = "the ps died: it was killed, or its PC went down"


@dataclass(frozen=True, slots=True)
class RunAudit:
    """The audit of a run's folder.

    Args:
        run_id: name of the run.
        finished: whether the run is done; then every epoch must be complete.
        found: the journal's audit.
        reasons: why each of ``found.repeats`` happened, from the events, or ``unknown``.
        uncounted: samples dealt out again before they counted, by reason, from the events.
        notes: what the audit could not judge.
    """

    run_id: str
    finished: bool
    found: Audit
    reasons: list[str]
    uncounted: dict[str, int]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        found = self.found
        return {
            "run_id": self.run_id,
            "finished": self.finished,
            "exact": found.exact,
            "samples": found.samples,
            "epochs": [{**asdict(each), "epoch": each.epoch + 1} for each in found.epochs],
            "repeated": [
                {"pushes": each.pushes, "samples": each.samples, "reason": reason}
                for each, reason in zip(found.repeats, self.reasons, strict=True)
            ],
            "uncounted": self.uncounted,
            "damaged_lines": found.damaged,
            "problems": found.problems,
            "notes": self.notes,
        }


def audit_run(folder: Path) -> RunAudit:
    """Audit a run, live, stopped, finished or collected.

    Args:
        folder: ``runs/<run id>``.

    Raises:
        DataError: ``audit-files``: a file that the audit needs is missing or unreadable.
    """
    config = _json(folder, "config.json")
    status = _json(folder, "status.json")  # before the journal, which a live run appends to
    finished = (folder / "summary.json").exists()
    epochs = int(status["epochs"])
    samples = int(status["total_samples"]) // max(1, epochs)
    notes: list[str] = []
    lines = list(_lines(folder / "journal.jsonl", notes)) if samples else []
    complete = epochs if finished else int(status["epoch"])
    seed = int(config["settings"]["train"]["seed"])
    behind = not finished and _last_version(lines) < int(status["version"])
    found = audit(
        lines, seed=seed, samples=samples, epochs=epochs, complete=0 if behind else complete
    )
    if behind:
        notes.append(
            "the journal is older than status.json (collected during training?): "
            "only epochs that are complete in the journal were judged"
        )
        for tally in found.epochs:
            tally.complete = not tally.missing
    events = list(_events(folder / "events.jsonl", notes))
    return RunAudit(
        run_id=str(status["run_id"]),
        finished=finished,
        found=found,
        reasons=_reasons(events, len(found.repeats)),
        uncounted=_uncounted(events),
        notes=notes,
    )


def _reasons(events: Iterable[dict[str, Any]], repeats: int) -> list[str]:
    """Return why each resume repeated pushes, in order; ``unknown`` without its event."""
    reasons, outcome, ended, failed = [], "", "", ""
    for event in events:
        match event.get("kind"):
            case "run_start":
                ended, outcome = outcome, ""
            case "run_end":
                outcome = f"the ps ended ({event.get('outcome')})"
            case "checkpoint":
                failed = ""
            case "checkpoint_failed":
                failed = f"; its checkpoint could not be written: {event.get('reason')}"
            case "resume" if event.get("repeated_pushes"):
                reasons.append((ended or DIED) + failed)
    return reasons if len(reasons) == repeats else [UNKNOWN] * repeats


def _uncounted(events: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return how many samples were dealt out again without having counted, by reason."""
    counts: dict[str, int] = {}
    for event in events:
        kind = event.get("kind")
        if kind == "worker_lost":
            reason, samples = "worker lost", event.get("samples_back")
        elif kind == "lease_expired":
            reason, samples = "lease expired", event.get("samples")
        elif kind == "refused":
            reason, samples = f"push refused: {event.get('reason')}", event.get("samples")
        else:
            continue
        counts[reason] = counts.get(reason, 0) + int(samples or 0)
    return {reason: samples for reason, samples in counts.items() if samples}


def _last_version(lines: list[str]) -> int:
    for line in reversed(lines):
        try:
            return int(json.loads(line)["version"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return 0


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(folder, name, error) from error


def _unusable(folder: Path, name: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(
        f"{folder} cannot be audited: {name}: {reason}",
        code="audit-files",
        hints=(
            Hint("which runs are here?", f"ls {folder.parent}"),
            Hint("on other PCs?", "make collect"),
        ),
    )


def _lines(path: Path, notes: list[str]) -> Iterator[str]:
    """Yield whole lines; the last one of a killed or live process may be half written."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.endswith("\n"):
                    notes.append(f"{path.name} ends in half a line, which does not count")
                    return
                yield line.rstrip("\n")
    except OSError as error:
        raise _unusable(path.parent, path.name, error) from error


def _events(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the events that can be read; without them reasons are unknown."""
    if not path.exists():
        notes.append(f"{path.name} is missing: reasons are unknown")
        return
    for line in _lines(path, notes):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event
