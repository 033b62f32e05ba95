"""Fixtures of the virtual LAN: prepared host, a LAN per file, the control PC's docker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lan.control import ControlDocker
from lan.places import IMAGES, empty_images
from lan.prepare import Prepared, prepare
from lan.virtual import PS_AND_TWO_WORKERS, VirtualLan


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lan: boots virtual PCs (root; make lan-test)")
    config.addinivalue_line("markers", "long: make lan-test-long; CI has no time for it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Boot PCs only for who asked for it: it installs packages and takes minutes."""
    if "lan" in str(config.getoption("markexpr")):
        return
    not_asked_for = pytest.mark.skip(reason="virtual PCs: make lan-test, or pytest -m lan")
    for item in items:
        if item.get_closest_marker("lan"):
            item.add_marker(not_asked_for)


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
    yield IMAGES
    if not keep:
        empty_images()


@pytest.fixture(scope="module")
def lan(prepared: Prepared, images: Path, request: pytest.FixtureRequest) -> Iterator[VirtualLan]:
    """A LAN of fresh PCs, booted; the test file's ``PCS`` says which, if it has one.

    Old images are removed before, which takes a LAN's turn.
    """
    with VirtualLan(getattr(request.module, "PCS", PS_AND_TWO_WORKERS)) as lan:
        yield lan


@pytest.fixture(scope="module")
def control(lan: VirtualLan, images: Path) -> Iterator[ControlDocker]:
    """The control PC's docker, with the image that the Dockerfile starts from."""
    with ControlDocker(images / "docker") as control:
        yield control
