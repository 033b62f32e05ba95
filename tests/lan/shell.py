"""Commands of the host, run with a time limit and loud about what went wrong."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping


class CommandError(RuntimeError):
    """A command ended badly; the message has its last words."""


def sh(
    *words: str,
    check: bool = True,
    timeout_s: float = 60.0,
    text_in: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the host; ``env`` adds variables to this process's own."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
        env={**os.environ, **(env or {})},
        input=text_in or "",  # never the developer's terminal
    )
    if check and done.returncode != 0:
        last_words = (done.stdout + done.stderr)[-3000:].strip()
        raise CommandError(f"`{' '.join(words)}` ended with {done.returncode}:\n{last_words}")
    return done


def wait_for(
    what: str, condition: Callable[[], bool], limit_s: float, pause_s: float = 0.2
) -> float:
    """Wait until ``condition`` holds, return the seconds it took; no wait is without end."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit_s:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(pause_s)
    return time.monotonic() - start
