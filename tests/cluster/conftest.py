"""What the cluster tests share: a process that the others are forks of."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from cluster.starter import Starter, running


@pytest.fixture(scope="session", autouse=True)
def _starter() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    running.append(Starter())
    yield
    running.pop().close()
