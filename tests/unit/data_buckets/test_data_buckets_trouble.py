"""What can go wrong with shards elsewhere: one sentence with a stable code; cache and clients."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from buckets import BUCKET, SHARDS, Service, opened, refused
from cluster.harness import free_port
from minga.data import cache, fetching
from support import ROOT, RunMinga


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


@pytest.mark.parametrize("there", ["gs", "s3"], indirect=True)
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
