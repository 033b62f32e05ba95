"""A LAN of virtual PCs: switch, PCs, a stranger; up in a ``with``, gone after it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from lan import places
from lan.network import CONTROL, Plug, make_bridge
from lan.pc import KEY, KNOWN_HOSTS, PcSpec, VirtualPc
from lan.prepare import USER
from lan.shell import sh

PS_AND_TWO_WORKERS = (PcSpec("pc1", 11, "ps"), PcSpec("pc2", 12), PcSpec("pc3", 13))
STRANGER_NUMBER = 99


class VirtualLan:
    """The LAN; ``pcs`` by name, the host itself is the control PC at 10.77.0.1.

    Entering removes what a killed run left and fails where a LAN is up already. SIGTERM ends the
    ``with`` as Ctrl-C does.
    """

    def __init__(
        self,
        specs: Sequence[PcSpec] = PS_AND_TWO_WORKERS,
        turn: Callable[[], AbstractContextManager[None]] = places.alone,
    ) -> None:
        self.pcs = {spec.name: VirtualPc(spec) for spec in specs}
        self.stranger = Plug("stranger", STRANGER_NUMBER, gateway=False)
        self.control_address, self.control_address6 = CONTROL
        self.key, self.known_hosts = KEY, KNOWN_HOSTS
        self.boot_s = 0.0
        self._turn = turn
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Boot all PCs, side by side, and wait until each is ready."""
        self._open.enter_context(sigterm_as_ctrl_c())
        try:
            self._open.enter_context(self._turn())
            start = time.monotonic()
            self._build()
            for pc in self.pcs.values():
                pc.power_on(wait=False)
            for pc in self.pcs.values():
                pc.wait_until_ready()
            self.boot_s = time.monotonic() - start
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Take everything away."""
        self._tear_down()

    @property
    def ps(self) -> VirtualPc:
        """The PC of the group ``ps``."""
        return next(pc for pc in self.pcs.values() if pc.spec.group == "ps")

    @property
    def workers(self) -> list[VirtualPc]:
        """The PCs of the group ``workers``."""
        return [pc for pc in self.pcs.values() if pc.spec.group == "workers"]

    def inventory(self, path: Path, **variables: str) -> Path:
        """Write an ``inventory.ini`` of these PCs; ``variables`` go to ``[all:vars]``."""
        lines = []
        for group in ("ps", "workers"):
            lines.append(f"[{group}]")
            lines += [
                f"{pc.name} ansible_host={pc.address}"
                for pc in self.pcs.values()
                if pc.spec.group == group
            ]
            lines.append("")
        settings = {"ansible_user": USER, "ansible_ssh_private_key_file": str(KEY), **variables}
        lines += ["[all:vars]", *(f"{name}={value}" for name, value in settings.items())]
        path.write_text("\n".join(lines) + "\n")
        return path

    def _build(self) -> None:
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "virtual LAN", "-f", str(KEY))
        make_bridge()
        places.let_the_pcs_out()
        self.stranger.plug_in()
        for pc in self.pcs.values():
            others = [f"{other.address} {other.name}" for other in self.pcs.values()]
            others.remove(f"{pc.address} {pc.name}")
            pc.make_disk("\n".join([*others, f"{self.control_address} control", ""]))

    def _tear_down(self) -> None:
        with _no_interruption():
            self._open.close()


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """A stopped CI job ends as Ctrl-C does: with the tear-down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _no_interruption() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave half a LAN behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
