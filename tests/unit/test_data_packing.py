"""Packing: the same samples by number, a second time for nothing, and never half a pack."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from unit.test_data_shards import CLASSES, TRAIN, VAL, folders

from minga.cli import main
from minga.data import packing
from minga.data.dataset import ImageData, open_data
from minga.data.folders import FileSource
from minga.data.packing import NOTE, is_pack, look_at, pack
from minga.data.shards import ShardSource
from minga.data.split import Split
from minga.errors import DataError, RunFailed, UsageError
from minga.settings.schema import DataConfig


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folders(tmp_path / "flowers")
    return tmp_path / "flowers"


def _opened(path: Path, **more: Any) -> ImageData:
    return open_data(DataConfig(path=str(path), **more))


def _pack(path: Path, out: Path, **more: Any) -> bool:
    settings = {"report": lambda done, total: None, **more}
    return pack(DataConfig(path=str(path)), out, **settings)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _by_number(split: Split) -> list[tuple[int, bytes]]:
    labels = split.labels.tolist()
    return [(label, split.source.encoded(number)) for number, label in enumerate(labels)]


@pytest.mark.parametrize("per_shard", [1000, 8])
def test_sample_number_17_is_the_same_in_files_and_in_shards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_shard: int
) -> None:
    monkeypatch.setattr(packing, "_PER_SHARD", per_shard)
    _pack(source, tmp_path / "out")
    files, shards = _opened(source), _opened(tmp_path / "out")
    assert isinstance(files.train.source, FileSource)
    assert isinstance(shards.train.source, ShardSource)
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == -(-TRAIN // per_shard)
    for half in ("train", "val"):
        assert _by_number(getattr(files, half)) == _by_number(getattr(shards, half))
    assert files.facts == shards.facts
    assert files.image_size == shards.image_size

    numbers = np.arange(TRAIN)
    shuffled = packing.write_shards(files.train, tmp_path / "s", prefix="s", classes=CLASSES)
    other = _opened(shuffled[0], val_path=str(tmp_path / "out"))
    assert _by_number(other.train) != _by_number(files.train), "control: order shows"
    assert sorted(_by_number(other.train)) == sorted(_by_number(files.train))
    assert (other.train.read(numbers)[1] != files.train.read(numbers)[1]).any()


def test_a_half_has_so_few_shards_that_make_check_reads_the_note(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_PER_SHARD", 1)
    monkeypatch.setattr(packing, "_MOST_SHARDS", 5)
    _pack(source, tmp_path / "out")
    assert len(list((tmp_path / "out" / "train").glob("*.tar"))) == 5


def test_packing_again_is_free_until_a_file_changes(source: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    assert _pack(source, out, report=lambda done, total: told.append((done, total)))
    assert told == [(done + 1, TRAIN + VAL) for done in range(TRAIN + VAL)]
    before = _contents(out)
    assert not _pack(source, out, report=None), "nothing is told as nothing is read"
    assert _contents(out) == before

    changed = source / "train" / "dog" / "4.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(changed)
    with pytest.raises(UsageError, match="with other data than a pack of"):
        _pack(source, out)
    assert _contents(out) == before
    assert _pack(source, out, replace=True)
    after = _contents(out)
    assert {name for name in after if after[name] != before.get(name)} == {
        NOTE,
        "train/manifest.json",
        "train/train-000000.tar",
    }, "the other half is as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"flowers", "out"}


def test_what_is_in_the_way_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    for replace in (False, True):
        with pytest.raises(UsageError) as raised:
            _pack(source, out, replace=replace)
        assert raised.value.code == "folder-in-use"
        assert _contents(out) == {"letter.txt": b"dear"}
    (out / "letter.txt").unlink()
    assert _pack(source, out), "control: an empty folder is taken"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "no room"), RunFailed)],
)
def test_an_interrupted_packing_leaves_nothing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    write_shards = packing.write_shards

    def interrupted(*words: Any, prefix: str, **more: Any) -> None:
        write_shards(*words, prefix=prefix, **more)
        assert len(list(tmp_path.glob("out.*.part/new/train/*.tar"))) == 1, "control: it had begun"
        if prefix == "val":
            raise error

    monkeypatch.setattr(packing, "write_shards", interrupted)
    with pytest.raises(raised):
        _pack(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["flowers"]


def test_too_small_a_disk_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_BESIDES_BYTES", 10**15)
    with pytest.raises(RunFailed, match=r"GB are free, \d+\.0 GB are needed") as raised:
        _pack(source, tmp_path / "out")
    assert raised.value.code == "disk-full"
    assert [path.name for path in tmp_path.iterdir()] == ["flowers"]


def test_data_that_are_missing_empty_or_damaged_are_told_as_ever(
    source: Path, tmp_path: Path
) -> None:
    def told(path: Path) -> str:
        with pytest.raises(DataError) as raised:
            _pack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return raised.value.code

    assert told(tmp_path / "nowhere") == "data-not-found"
    (source / "val" / "dog").rename(source / "val" / "cow")
    assert told(source) == "data-classes-differ"
    (source / "val").rename(tmp_path / "val")
    assert told(source) == "data-no-validation"
    for path in (source / "train" / "owl").iterdir():
        path.unlink()
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "dog")
    (tmp_path / "val").rename(source / "val")
    assert told(source) == "data-empty"


def test_a_tree_is_its_names_sizes_and_times(source: Path, tmp_path: Path) -> None:
    before = look_at([source])
    assert before.images == TRAIN + VAL
    assert before.image_bytes == sum(path.stat().st_size for path in source.rglob("*.png"))
    (tmp_path / "link").symlink_to(source)
    assert look_at([tmp_path / "link"]) == before, "wherever it lies"
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "inner").symlink_to(source)
    assert look_at([tmp_path / "outer"]).images == before.images, "links are followed"
    (source / "loop").symlink_to(source)
    assert look_at([source]) == before, "but not in circles"
    (source / "nowhere.png").symlink_to("gone")
    assert look_at([source]).images == before.images + 1
    (source / "nowhere.png").unlink()
    assert look_at([source, source]).digest != before.digest
    at = source / "train" / "dog" / "4.png"
    os.utime(at, ns=(at.stat().st_atime_ns, at.stat().st_mtime_ns + 1))
    assert look_at([source]).digest != before.digest


def test_the_command_packs_two_folders_into_one(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = source / "train", source / "val"
    out = tmp_path / "out"
    assert main(["data", "pack", str(train), "--val-path", str(val), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert is_pack(out)
    assert _opened(out).facts == _opened(source).facts
    assert main(["data", "pack", str(train), "--out", str(out)]) == 2
    assert "error[folder-in-use]" in capsys.readouterr().err
