"""Shards in buckets and on the web: the same as on disk, fetched once, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from buckets import BUCKET, KINDS, Service, service, use
from cluster.harness import free_port, wait_until
from minga.config import DataConfig
from minga.data import cache, fetching
from minga.data.dataset import ImageData, open_data
from minga.data.shards import CLASSES, MANIFEST, write_shards
from minga.errors import DataError
from support import ROOT, RunMinga

NAMES = ("cat", "dog", "owl")
SHARDS = ("part-000000.tar", "part-000001.tar", "part-000002.tar")
"""Of the training half; those of the validation half have the same names."""
LISTED = tuple(kind for kind in KINDS if kind != "http")


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


def opened(path: str | Path, **settings: Any) -> ImageData:
    return open_data(DataConfig(path=str(path), **settings))


def refused(path: str, code: str, **settings: Any) -> str:
    """Open what cannot be opened; return what is said."""
    with pytest.raises(DataError) as raised:
        opened(path, **settings)
    assert raised.value.code == code, raised.value.what
    assert raised.value.hints
    return raised.value.what


def same(one: ImageData, other: ImageData) -> bool:
    """Whether two hold the same samples in the same order."""
    return one.fingerprint() == other.fingerprint() and all(
        len(ours) == len(theirs)
        and all(ours.source.encoded(i) == theirs.source.encoded(i) for i in range(len(ours)))
        and ours.labels.tolist() == theirs.labels.tolist()
        for ours, theirs in ((one.train, other.train), (one.val, other.val))
    )


def kept(tmp_path: Path, pattern: str) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(pattern))


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.tar")}


def total(shards: Path) -> int:
    return sum(path.stat().st_size for path in shards.rglob("*.tar"))


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
    for log in logs:
        with log.open("w") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "minga", "data", "verify", put],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    said = "Waiting for another worker of this PC, which fetches "
    wait_until(lambda: any(said in log.read_text() for log in logs), "one to wait", 60)
    there.tap.open.set()
    assert [process.wait(60) for process in processes] == [0, 0], logs[0].read_text()

    assert sum(there.tap.shards().values()) == total(shards)
    for log in logs:
        assert log.read_text().splitlines()[-4:-2] == ["train            23", "val              7"]


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
    assert "arrives damaged" in refused(put, "data-corrupt")
    assert not kept(tmp_path, "*.tar")


def test_whoever_leaves_does_not_finish_fetching(
    put: str, there: Service, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_data(DataConfig(path=put), leaving=lambda: bool(there.tap.shards()))
    assert len(kept(tmp_path, "*.tar")) < 4
    assert same(opened(put), opened(shards))  # control


# -- what can go wrong


def test_what_is_not_there_is_said(put: str, there: Service, tmp_path: Path) -> None:
    nothing = f"{put}/train/nothing.tar"
    assert f"not found: {nothing}" in refused(nothing, "data-not-found", val_path=put)
    assert "nowhere" in refused(put, "data-not-found", val_path=f"{put}/nowhere-{{0..1}}.tar")
    assert "val/" in refused(f"{put}/train/{SHARDS[0]}", "data-no-validation")
    if there.kind == "http":
        return
    assert "not found" in refused(f"{put}/nowhere", "data-not-found", val_path=put)
    assert "not found" in refused(f"{put}/no*.tar", "data-not-found", val_path=put)
    elsewhere = put.replace(BUCKET, "no-such-bucket", 1)
    assert "no-such-bucket" in refused(elsewhere, "data-not-found")
    there.remove(f"{tmp_path.name}/train/{SHARDS[0]}")
    assert SHARDS[0] in refused(put, "data-not-found")  # the manifest names it


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_read_is_told_so(put: str, there: Service, status: int) -> None:
    there.tap.refuse = status
    shard = f"{put}/train/{SHARDS[0]}"
    what = refused(shard, "data-remote-denied", val_path=put)
    assert shard in what
    assert str(status) in what or "this PC has no credentials" in what


def test_a_service_that_stays_down_is_out_of_reach_after_five_tries(
    put: str, there: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    there.tap.refuse = 503
    shard = f"{put}/train/{SHARDS[0]}"
    what = refused(shard, "data-remote-unreachable", val_path=put)
    assert "503" in what
    assert capsys.readouterr().err.count(f"waiting_for={shard}") == 4
    tries = [path for _, path, _ in there.tap.requests if path.endswith(SHARDS[0])]
    assert len(tries) == 5


def test_nobody_there_is_out_of_reach(
    put: str, there: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    shard = f"{put}/train/{SHARDS[0]}".replace(there.tap.url, nobody)
    monkeypatch.setattr(there.tap, "url", nobody)
    for name, value in there.variables().items():
        monkeypatch.setenv(name, value)
    what = refused(shard, "data-remote-unreachable", val_path=shard)
    assert f"{shard} cannot be reached" in what


def test_an_error_ends_the_command_with_a_sentence_and_no_traceback(
    put: str, run_minga: RunMinga
) -> None:
    ended = run_minga(
        "data", "verify", f"{put}/no.tar", env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert ended.returncode == 4
    assert "error[data-not-found]:" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_in_another_language_is_refused() -> None:
    assert "not ftp" in refused("ftp://host/x", "data-remote-unsupported")
    what = refused("gs://bucket/x", "data-remote-unsupported", format="folders")
    assert "only WebDataset shards" in what


@pytest.mark.parametrize("there", ["http"], indirect=True)
def test_a_disk_without_room_is_said_before_and_while_data_are_fetched(
    put: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
        assert "MiB to fetch, 0 MiB free" in refused(put, "disk-full")
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(cache.Part, "write", full)
        assert "No space left" in refused(put, "disk-full")
    opened(put)  # control


@pytest.mark.parametrize("there", ["http"], indirect=True)
def test_a_cache_that_may_not_be_written_is_said(
    put: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", closed)
    assert str(tmp_path / "cache") in refused(put, "no-access")


# -- the cache and the clients


def test_the_cache_is_the_named_one_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of-user")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_root() == Path("/home/of-user/.cache/minga")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.cache_root() == Path("/caches/minga")
    monkeypatch.setenv("MINGA_CACHE", str(tmp_path))
    assert cache.cache_root() == tmp_path
    assert cache.folder_of("gs://b/train") != cache.folder_of("gs://b/val")


def test_an_address_that_is_signed_is_shown_without_its_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetching, "PAUSES_S", (0.0,))
    address = f"http://127.0.0.1:{free_port()}/a.tar"
    what = refused(f"{address}?signature=secret", "data-remote-unreachable")
    said = capsys.readouterr().err
    assert address in what
    assert address in said
    assert "secret" not in what + said


CLIENTS = {"google.cloud.storage", "boto3", "botocore"}


@pytest.mark.parametrize("there", LISTED, indirect=True)
def test_only_who_names_a_bucket_loads_a_client(put: str, there: Service, shards: Path) -> None:
    def loaded(path: str) -> set[str]:
        code = (
            "import sys; from minga.cli import main; main(['data', 'verify', sys.argv[1]]);"
            "print(*sys.modules)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, path],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return CLIENTS & set(ended.stdout.splitlines()[-1].split())

    assert loaded(str(shards)) == set()
    wanted = {"gs": {"google.cloud.storage"}, "s3": {"boto3", "botocore"}}[there.kind]
    assert loaded(put) == wanted
