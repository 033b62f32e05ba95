"""Two questions of their own: a network-bound run, and one worker on a slow link."""

from __future__ import annotations

import time
from typing import Any

from lanbench.measure import RATE_BITS, Reading, columns, measure, plain_copy, rate, watch
from lanbench.place import place
from lanbench.systems import Case, Minga

SLOW_LINK_BITS = 20e6


def network_bound(case: Case) -> list[dict[str, Any]]:
    """Return the rows of a plain copy and of minga that pushes after every step.

    The payload is what was encoded, without RPC, TLS, TCP and Ethernet; each way as much.
    """
    copy = plain_copy(case.workers, case.slow)
    row = {**measure(case), "system": "minga-bound"}
    pushes_per_s = row["samples_per_s"] / 128
    payload = pushes_per_s * row["push_bytes"]
    slower = min(copy["towards_ps_bytes_per_s"], copy["from_ps_bytes_per_s"])
    return [copy, {**row, "payload_bytes_per_s": payload, "share_of_copy": payload / slower}]


def slow_link(case: Case) -> dict[str, Any]:
    """Return what the others of a run keep of their rate when one link is cut to 20 Mbit/s."""
    with place(case.workers + 1, RATE_BITS / case.slow) as there:
        system = Minga(there, case)
        system.start()
        system.wait_until(system.warm)
        before = Reading.take(there)
        middle = watch(system, case.window_s)
        there.set_link(case.workers, SLOW_LINK_BITS / case.slow)
        time.sleep(case.window_s / 4)  # what was in flight when the link was cut
        again_s = time.time()
        time.sleep(case.window_s)
        there.require_alive()
        after = Reading.take(there)
        marks, others = system.marks(), range(1, case.workers)
        first = sum(rate(marks, worker, before.at_s, middle.at_s) for worker in others)
        second = sum(rate(marks, worker, again_s, after.at_s) for worker in others)
        cut = [mark for mark in marks if mark.worker == case.workers and mark.at_s > again_s]
        return {
            "system": "minga-slow-link",
            "model": case.subject,
            "workers": case.workers,
            **columns(system, before, middle),
            "samples_per_s": second,
            "samples_per_s_before": first,
            "others_keep": second / first,
            "pushes_of_the_slow_one": len(cut),
            **system.finish(),
        }
