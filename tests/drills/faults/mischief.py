"""What can happen to pushes on their way, done to them between worker and wire.

``beside``: each is sent twice at once. ``again``: each arrives once more after its answer.
``old``: the one before arrives once more, after a newer one's answer. ``late``: every twelfth takes
LATE_S longer. ``expired``: its worker is silent before every twelfth until a lease has expired.
Controls: ``taken``, the ps takes whatever comes; ``lost``, fifteen of sixteen are
answered and counted, and change nothing.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

LATE_S = 5.0
_LATE_EVERY, _KEPT_EVERY = 12, 16
_SILENT_S = 60.0


def install(names: str) -> None:
    """Do what is named, in every process that this is read by."""
    chosen = names.split(",")
    _on_the_way(chosen)
    if "taken" in chosen:
        _take_everything()
    if "lost" in chosen:
        _lose_pushes()


def _on_the_way(chosen: list[str]) -> None:
    from minga.messages import Push
    from minga.transport.dial import Link

    start = Link.start
    before: list[tuple[Any, Any]] = []
    silence = threading.Lock()

    def start_in_disorder(self: Link, message: Any, tensors: Any = (), **named: Any) -> Any:
        if not isinstance(message, Push):
            with silence:
                return start(self, message, tensors, **named)
        if "expired" in chosen and message.sequence % _LATE_EVERY == 0:
            with silence:
                _wait_until_a_lease_expires()
        if "late" in chosen and message.sequence % _LATE_EVERY == 0:
            time.sleep(LATE_S)
        copy = message, tuple(tensor.clone() for tensor in tensors)
        call = start(self, message, tensors, **named)
        if "beside" in chosen:
            start(self, *copy, **named)
        else:
            call.result()
        repeated = [copy] * ("again" in chosen) + before * ("old" in chosen)
        for each in repeated:
            start(self, *each, **named)
        before[:] = [copy]
        return call

    Link.start = start_in_disorder


def _wait_until_a_lease_expires() -> None:
    def expired() -> int:
        files = Path(os.environ["FAULTS_FOLDER"]).parent.glob("runs/*/events.jsonl")
        return sum(file.read_text().count('"lease_expired"') for file in files)

    before, deadline = expired(), time.monotonic() + _SILENT_S
    while expired() == before and time.monotonic() < deadline:
        time.sleep(0.1)


def _take_everything() -> None:
    from minga.ps.bookkeeper import Bookkeeper
    from minga.ps.ledger import Ledger

    class Forgetful(dict[str, int]):
        def get(self, *_: object) -> int:
            return 0

    prepare = Bookkeeper.__init__

    def prepare_forgetful(self: Bookkeeper, *arguments: Any, **named: Any) -> None:
        prepare(self, *arguments, **named)
        self.last_sequence = Forgetful()

    Bookkeeper.__init__ = prepare_forgetful
    Ledger.objection = lambda *_: None
    count = Ledger.count

    def count_what_is_leased(self: Ledger, spans: Any, now_s: float) -> None:
        if all(span.lease in self._leases for span in spans):
            count(self, spans, now_s)

    Ledger.count = count_what_is_leased


def _lose_pushes() -> None:
    from minga.ps.parameters import SharedParameters, Update

    apply = SharedParameters.apply

    def apply_few(self: SharedParameters, update: Update, *, push_id: int, slot: int) -> int:
        if push_id % _KEPT_EVERY:
            update = replace(update, scale=0.0)
        return apply(self, update, push_id=push_id, slot=slot)

    SharedParameters.apply = apply_few
