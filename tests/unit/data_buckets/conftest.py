"""Shards, a service of each kind that has them, and an empty cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from buckets import KINDS, NAMES, Service, service, use
from minga.data import fetching
from minga.data.dataset import open_data
from minga.data.shards import write_shards
from minga.settings.schema import DataConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves as shards, of noise, so that no two images are the same."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for half, count in (("train", 23), ("val", 7)):
        for number in range(count):
            path = root / half / NAMES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    images, packed = open_data(DataConfig(path=str(root))), tmp_path_factory.mktemp("shards")
    for half in ("train", "val"):
        split = getattr(images, half)
        write_shards(split, packed / half, prefix="part", classes=NAMES, per_shard=8)
    return packed


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("web")
        yield {kind: stack.enter_context(service(kind, folder)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def there(
    request: pytest.FixtureRequest,
    services: dict[str, Service],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Service:
    """A service of each kind that this process finds, and an empty cache; nothing waits."""
    made = services[request.param]
    made.tap.reset()
    use(monkeypatch, made, tmp_path / "cache")
    monkeypatch.setattr(fetching, "PAUSES_S", (0.0,) * 4)
    return made


@pytest.fixture
def put(there: Service, shards: Path, tmp_path: Path) -> str:
    """The shards' address; no test sees another's."""
    there.put_all(shards, tmp_path.name)
    return f"{there.address}/{tmp_path.name}"
