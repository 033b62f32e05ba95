"""Fixtures of the virtual LAN: prepared host, a LAN per file, the control PC's docker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lan.ahead import ControlPc
from lan.clock import clock
from lan.control import ControlDocker
from lan.disks import mount, mount_new
from lan.places import IMAGES, IMAGES_BYTES, IMAGES_DISK, empty_images
from lan.prepare import Prepared, prepare
from lan.virtual import PS_AND_TWO_WORKERS, VirtualLan


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lan: boots virtual PCs (root; make lan-test)")
    config.addinivalue_line("markers", "long: make lan-test-long; CI has no time for it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Boot PCs only for who asked for it; first those that need no image, which is built then."""
    if "lan" in str(config.getoption("markexpr")):
        used: dict[Path, set[str]] = {}
        for item in items:
            used.setdefault(item.path, set()).update(_fixtures(item))
        items.sort(key=lambda item: [name in used[item.path] for name in ("own_turn", "control")])
        return
    not_asked_for = pytest.mark.skip(reason="virtual PCs: make lan-test, or pytest -m lan")
    for item in items:
        if item.get_closest_marker("lan"):
            item.add_marker(not_asked_for)


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """At the end of ``.ci/run``, before pytest's last line, say what each of its parts took."""
    notes = os.environ.get("CI_CLOCK")
    if notes:
        terminalreporter.section("what each part took")
        for line in clock(Path(notes).read_text(), time.time()):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def prepared() -> Prepared:
    """The host with all that the virtual LAN needs."""
    return prepare()


@pytest.fixture(scope="session")
def images() -> Iterator[Path]:
    """Where the image stays that several test files deploy; MINGA_LAN_KEEP=1: also after them."""
    keep = bool(os.environ.get("MINGA_LAN_KEEP"))
    if not keep:
        empty_images()
    if not IMAGES_DISK.exists():
        mount_new(IMAGES_DISK, IMAGES, IMAGES_BYTES)
    elif not IMAGES.is_mount():
        mount(IMAGES_DISK, IMAGES)
    yield IMAGES
    if not keep:
        empty_images()


@pytest.fixture(scope="session")
def control_pc(
    prepared: Prepared,
    images: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ControlPc]:
    """The control PC; it builds the image from now on if a test deploys it."""
    control_pc = ControlPc(tmp_path_factory.mktemp("ahead"), images)
    if any({"control", "project"} <= _fixtures(item) for item in request.session.items):
        control_pc.build_ahead()
    yield control_pc
    control_pc.release()


@pytest.fixture(scope="module")
def own_turn(control_pc: ControlPc) -> None:
    """The machine's one LAN for the test itself, and for processes that it starts."""
    control_pc.release()


@pytest.fixture(scope="module")
def lan(control_pc: ControlPc, request: pytest.FixtureRequest) -> Iterator[VirtualLan]:
    """A LAN of fresh PCs, booted; the test file's ``PCS`` says which, if it has one."""
    specs = getattr(request.module, "PCS", PS_AND_TWO_WORKERS)
    with VirtualLan(specs, control_pc.turn) as lan:
        yield lan


@pytest.fixture(scope="module")
def control(lan: VirtualLan, control_pc: ControlPc) -> ControlDocker:
    """The control PC's docker, with the image that the Dockerfile starts from."""
    return control_pc.docker()
