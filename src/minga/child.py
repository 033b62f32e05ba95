"""``python -m minga.child ...``: a minga command that ends when its parent does.

The parent starts it with a pipe as stdin, in a new session, and writes nothing. When the
parent ends, for whatever reason, the kernel closes the pipe, and this process is killed with
its whole process group.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from minga.cli import main

_STDIN = 0


def run() -> int:
    """Run the command of this process; return its exit status."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return main()


def _end_with_parent() -> None:
    while os.read(_STDIN, 1024):
        pass
    alone = os.getpgrp() != os.getpid()  # another process leads the group
    os.kill(os.getpid() if alone else 0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(run())
