"""Shards in buckets and on the web: the same as on disk, fetched once, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from buckets import NAMES, SHARDS, Service, kept, opened, refused, same, sizes, total
from cluster.harness import TIMEOUT_S, wait_until
from minga.data import cache, fetching
from minga.data.dataset import open_data
from minga.data.shards import CLASSES, MANIFEST
from minga.settings.schema import DataConfig

# -- what an address means


@pytest.mark.parametrize("settings", [{}, {"format": "webdataset"}])
def test_a_folder_with_both_halves_is_the_same_as_on_disk(
    put: str, there: Service, shards: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert same(opened(put, **settings), opened(shards))
    assert len(kept(tmp_path, "*.tar")) == 4  # the halves' shards have the same names
    assert sum(there.tap.shards().values()) == total(shards)


@pytest.mark.parametrize(
    "train", ["train", "train/", "train/part-{000000..000002}.tar", "train/part-*.tar", "tr*/*.tar"]
)
def test_each_half_may_be_named(put: str, there: Service, shards: Path, train: str) -> None:
    if there.kind == "http" and "*" in train:
        what = refused(f"{put}/{train}", "data-remote-unsupported", val_path=f"{put}/val")
        assert "cannot be listed" in what
        return
    assert same(opened(f"{put}/{train}", val_path=f"{put}/val"), opened(shards))


def test_one_shard_is_one_shard(put: str, shards: Path) -> None:
    name = f"train/{SHARDS[1]}"
    data = opened(f"{put}/{name}", val_path=f"{put}/val")
    assert same(data, opened(shards / name, val_path=str(shards / "val")))
    assert len(data.train) == 8  # control: of 23


def test_one_half_may_be_here_and_the_other_there(put: str, shards: Path) -> None:
    assert same(opened(shards / "train", val_path=f"{put}/val"), opened(shards))


def test_only_the_half_that_is_needed_is_fetched(put: str, there: Service, shards: Path) -> None:
    open_data(DataConfig(path=put), needs=("val",))
    assert there.tap.shards() == sizes(shards / "val")


def test_without_a_manifest_the_listing_and_the_list_of_classes_count(
    there: Service, shards: Path, tmp_path: Path
) -> None:
    for half in ("train", "val"):
        for path in (shards / half).glob("*.tar"):
            there.put(f"{tmp_path.name}/{half}/{path.name}", path.read_bytes())
    there.put(f"{tmp_path.name}/{CLASSES}", "".join(f"{name}\n" for name in NAMES).encode())
    address = f"{there.address}/{tmp_path.name}"
    if there.kind == "http":
        assert "manifest.json" in refused(address, "data-remote-unsupported")
        address += "/train/part-{000000..000002}.tar"
        data = opened(address, val_path=address.replace("train", "val").replace("2}", "0}"))
    else:
        data = opened(address)
    assert same(data, opened(shards))
    there.remove(f"{tmp_path.name}/{CLASSES}")
    if there.kind != "http":
        assert opened(address).classes == ("0", "1", "2")  # what is gone there is gone here


def test_a_manifest_that_leads_elsewhere_is_refused(
    put: str, there: Service, shards: Path, tmp_path: Path
) -> None:
    manifest = json.loads((shards / "train" / MANIFEST).read_text())
    manifest["shards"][0]["name"] = "../outside.tar"
    there.put(f"{tmp_path.name}/train/{MANIFEST}", json.dumps(manifest).encode())
    assert "'../outside.tar' is no shard's name" in refused(put, "data-corrupt")
    assert not kept(tmp_path, "outside*")


# -- fetched once


def test_a_second_open_fetches_no_shard(put: str, there: Service, shards: Path) -> None:
    first = opened(put)
    assert sum(there.tap.shards().values()) == total(shards)  # control
    there.tap.reset()

    assert same(opened(put), first)

    assert there.tap.requests
    assert there.tap.shards() == {}


def test_a_shard_that_changed_is_fetched_again(
    there: Service, shards: Path, tmp_path: Path
) -> None:
    for name in SHARDS[:2]:
        content = (shards / "train" / name).read_bytes()
        there.put(f"{tmp_path.name}/{name}", content)
    address = f"{there.address}/{tmp_path.name}/part-{{000000..000001}}.tar"
    before = opened(address, val_path=address)
    there.tap.reset()
    there.put(f"{tmp_path.name}/{SHARDS[0]}", content)  # the other's, which is as long

    after = opened(address, val_path=address)

    assert there.tap.shards() == {SHARDS[0]: len(content)}  # control: the other was not
    assert not same(before, after)
    assert after.train.source.encoded(0) == after.train.source.encoded(8)


def test_two_processes_fetch_each_shard_once_between_them(
    put: str, there: Service, shards: Path, tmp_path: Path
) -> None:
    there.tap.open.clear()
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    processes = []
    for log in logs:  # the other starts when this one fetches all: two at once share the work
        with log.open("w") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "minga", "data", "verify", put],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        wait_until(lambda: there.tap.held == len(SHARDS), "the training half to be asked for")
    said = "Waiting for another worker of this PC, which fetches "
    wait_until(lambda: any(said in log.read_text() for log in logs), "one to wait")
    there.tap.open.set()
    assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0], logs[0].read_text()

    assert sum(there.tap.shards().values()) == total(shards)
    for log in logs:
        assert log.read_text().splitlines()[-5:-3] == ["train            23", "val              7"]


def test_another_worker_that_fetches_nothing_is_not_waited_for_without_end(
    put: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(put)
    shard, lock = (kept(tmp_path, f"{SHARDS[2]}{end}")[0] for end in ("", ".lock"))
    shard.unlink()
    monkeypatch.setattr(fetching, "SILENT_S", 0.0)
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another worker of this PC" in refused(put, "data-remote-unreachable")
    opened(put)  # control: once it is gone


# -- whole or not at all


def test_a_download_that_breaks_off_goes_on(
    put: str, there: Service, shards: Path, tmp_path: Path
) -> None:
    there.tap.cut = 1

    data = opened(put)

    assert there.tap.cut == 0
    assert same(data, opened(shards))
    assert not kept(tmp_path, "*.part*")
    again = sum(there.tap.shards().values()) - total(shards)
    ranges = [asked for _, _, asked in there.tap.requests if asked]
    assert len(ranges) == 1
    if there.kind == "http":  # Python's own server knows no ranges: from the beginning
        assert again > 0
    else:
        assert again == 0


def test_what_is_not_whole_has_no_name_and_is_gone_on_with_later(
    put: str, there: Service, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PAUSES_S", ())
    there.tap.cut = 100

    what = refused(f"{put}/train/{SHARDS[0]}", "data-remote-unreachable", val_path=put)

    size = sizes(shards / "train")[SHARDS[0]]
    assert there.kind != "http" or f"it ended after {size // 2} of {size} bytes" in what
    path = cache.folder_of(f"{put}/train") / SHARDS[0]
    assert not path.exists()
    assert path.with_name(f"{path.name}.part").stat().st_size == size // 2
    there.tap.reset()
    open_data(DataConfig(path=f"{put}/train/{SHARDS[0]}"), needs=("train",))
    assert path.read_bytes() == (shards / "train" / SHARDS[0]).read_bytes()
    assert there.tap.shards()[SHARDS[0]] == (size if there.kind == "http" else size - size // 2)


def test_a_part_of_an_older_content_is_not_gone_on_with(
    there: Service, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, address = f"{tmp_path.name}/x.tar", f"{there.address}/{tmp_path.name}/x.tar"
    older, newer = ((shards / "train" / name).read_bytes() for name in SHARDS[:2])
    there.put(key, older)
    monkeypatch.setattr(fetching, "PAUSES_S", ())
    there.tap.cut = 100
    refused(address, "data-remote-unreachable", val_path=address)
    assert kept(tmp_path, "x.tar.part")
    there.tap.reset()
    there.put(key, newer)

    opened(address, val_path=address)

    assert kept(tmp_path, "x.tar")[0].read_bytes() == newer


def test_a_shard_that_arrives_damaged_is_fetched_once_more(
    put: str, there: Service, shards: Path, tmp_path: Path
) -> None:
    there.tap.spoiled = 1
    assert same(opened(put), opened(shards))
    assert there.tap.spoiled == 0

    shutil.rmtree(tmp_path / "cache")
    there.tap.spoiled = 100
    assert "arrived damaged" in refused(put, "data-corrupt")
    assert not kept(tmp_path, "*.tar")


def test_whoever_leaves_does_not_finish_fetching(
    put: str, there: Service, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_data(DataConfig(path=put), leaving=lambda: bool(there.tap.shards()))
    assert len(kept(tmp_path, "*.tar")) < 4
    assert same(opened(put), opened(shards))  # control
