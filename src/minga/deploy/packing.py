"""``python -m minga.deploy.packing``: pack the data to send, if that is faster.

`make deploy` sends ``build/data/<name>/`` then, instead of ``DATASET`` and ``VAL_DATASET``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from minga.console import Counting, talk
from minga.data.dataset import open_data
from minga.data.packing import Tree, is_pack, look_at, pack
from minga.data.shards import are_shards
from minga.deploy.inventory import workers_of
from minga.deploy.paths import ROOT, run
from minga.settings.schema import DataConfig

PACKED = ROOT / "build" / "data"
SMALL_BYTES = 64 << 10
"""Files of this size are sent one by one as fast as in shards, at 1 Gbit/s."""

_DATASET = "data/tiny-imagenet-200"

app = App(name="minga.deploy.packing", help="The data to send.")


@app.default
def main(*, inventory: Path) -> None:
    """Pack the data unless no worker needs them, or their files are large.

    Args:
        inventory: its workers receive the data.
    """
    if not sent_to_any(workers_of(inventory)):
        return
    config = config_of(os.environ)
    folders = [Path(each) for each in (config.path, config.val_path) if each]
    if not all(folder.is_dir() for folder in folders):
        return  # the inventory's check reports it
    PACKED.mkdir(parents=True, exist_ok=True)
    with (PACKED / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also after a kill
        _pack(config, folders, PACKED / Path(config.path).name)


def config_of(environ: Mapping[str, str]) -> DataConfig:
    """Return the paths of the data on this PC, from ``DATASET`` and ``VAL_DATASET``. No I/O.

    The rules are those of ``ansible/group_vars/all.yml``.
    """
    path = (environ.get("DATASET") or _DATASET).rstrip("/")
    val_path = environ.get("VAL_DATASET", "").rstrip("/")
    return DataConfig(path=str(ROOT / path), val_path=str(ROOT / val_path) if val_path else None)


def sent_to_any(workers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether one of these workers has no data of its own. No I/O."""
    return any("data_folder" not in each for each in workers.values())


def pays(tree: Tree) -> bool:
    """Return whether files are so small that their number costs more than their bytes. No I/O.

    Packing larger ones would only take their disk space twice.
    """
    return tree.image_bytes < SMALL_BYTES * tree.images


def _pack(config: DataConfig, folders: list[Path], out: Path) -> None:
    for left in PACKED.glob("*.part"):  # left by a killed process
        shutil.rmtree(left)
    tree = None if are_shards(config) else look_at(folders)
    if tree and not tree.images:
        open_data(config)  # reports what is wrong
    if tree is None or not pays(tree):
        if is_pack(out):  # of earlier data
            shutil.rmtree(out.rename(out.with_name(f"{out.name}.old.part")))
        return
    with Counting(f"packing {out.name}") as counting:
        if pack(config, out, tree=tree, replace=True, report=counting):
            said = f"packed {tree.images:,} images into {out}"
            talk().print(said, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run(lambda: app(result_action="return_value")))
