"""What the drills share: a cluster with a ResNet-18's payload, and faults for its processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drills.training import SETTINGS, STEP_S, Faulty

from cluster.conftest import _starter  # noqa: F401 - a fixture
from cluster.harness import Cluster, cluster
from cluster.steps import Steps

_FAULTS = Path(__file__).parent / "faults"


@pytest.fixture
def lan(tmp_path: Path, digits: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of the drills' settings, and of those that a test passes by ``indirect``."""
    chosen = {**SETTINGS, **getattr(request, "param", {})}
    with cluster(tmp_path, digits, entry=Steps(STEP_S).entry, **chosen) as lan:
        yield lan


@pytest.fixture
def faults(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return the variables of a process that strikes at these points, or does mischief."""
    struck = tmp_path / "struck"
    struck.mkdir()

    def variables(*names: str, mischief: str = "") -> dict[str, str]:
        return {
            "FAULTS": ",".join(names),
            "FAULTS_FOLDER": str(struck),
            "MISCHIEF": mischief,
            "PYTHONPATH": os.pathsep.join([str(_FAULTS), os.environ.get("PYTHONPATH", "")]),
        }

    return variables


@pytest.fixture
def faulty(faults: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """Start something with these faults in it."""

    def prepare(start: Callable[[], None], *names: str, mischief: str = "") -> None:
        with monkeypatch.context() as patch:
            for name, value in faults(*names, mischief=mischief).items():
                patch.setenv(name, value)
            start()

    return prepare
