"""``PYTHONPATH=tests python -m lan``: a LAN to look around in, until Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import signal
from pathlib import Path

from lan.control import ControlDocker
from lan.places import STATE
from lan.prepare import prepare
from lan.virtual import VirtualLan


def main() -> None:
    """Boot the PCs, say how to reach them, and wait."""
    prepare()
    with contextlib.suppress(KeyboardInterrupt), VirtualLan() as lan, ControlDocker() as control:
        for pc in lan.pcs.values():
            print(shlex.join(pc.ssh_words()))
        print("inventory:", lan.inventory(Path(STATE, "inventory.ini")))
        print(*(f"export {name}={value}" for name, value in control.env.items()), sep="\n")
        print("Ctrl-C takes it all away", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
