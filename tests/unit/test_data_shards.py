"""Shards: written the same each time, read back whole, and damage of each kind noticed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minga.data.dataset import ImageData, open_data
from minga.data.shards import MANIFEST, write_shards
from minga.data.split import Split
from minga.errors import DataError
from minga.settings.schema import DataConfig

CLASSES = ("cat", "dog", "owl")
TRAIN, VAL, PER_SHARD = 23, 7, 8
HEADER = tarfile.BLOCKSIZE


def folders(root: Path) -> ImageData:
    """Write class folders of noise, so that no two images are the same."""
    rng = np.random.default_rng(0)
    for half, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            path = root / half / CLASSES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return open_data(DataConfig(path=str(root)))


def write(data: ImageData, root: Path) -> list[Path]:
    """Pack both halves; return the training shards."""
    write_shards(data.val, root / "val", prefix="val", classes=data.classes)
    return write_shards(
        data.train, root / "train", prefix="train", classes=data.classes, per_shard=PER_SHARD
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def shards(source: ImageData, tmp_path: Path) -> list[Path]:
    return write(source, tmp_path)


def opened(path: str | Path, **settings: Any) -> ImageData:
    return open_data(DataConfig(path=str(path), **settings))


def multiset(split: Split) -> Counter[tuple[bytes, int]]:
    images, labels = split.read(np.arange(len(split)))
    pairs = zip(images, labels, strict=True)
    return Counter((image.tobytes(), int(label)) for image, label in pairs)


def without_manifest(shards: list[Path]) -> None:
    """Leave the shards as foreign ones are: with a list of classes at most."""
    for half in ("train", "val"):
        (shards[0].parents[1] / half / MANIFEST).unlink()
    (shards[0].parents[1] / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def members(shard: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(shard) as tar:
        return tar.getmembers()


# -- writing


def test_writing_again_gives_the_same_bytes(source: ImageData, tmp_path: Path) -> None:
    one, other = write(source, tmp_path / "one"), write(source, tmp_path / "other")

    assert [path.name for path in one] == [f"train-{number:06d}.tar" for number in range(3)]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    manifests = [(paths[0].parent / MANIFEST).read_bytes() for paths in (one, other)]
    assert manifests[0] == manifests[1]
    assert not list(tmp_path.rglob("*.part"))
    # control: the other half has other bytes
    other_half = write_shards(source.val, tmp_path / "val", prefix="train", classes=CLASSES)
    assert other_half[0].name == one[0].name
    assert other_half[0].read_bytes() != one[0].read_bytes()


def test_shards_hold_the_same_multiset_as_the_folders(
    source: ImageData, shards: list[Path]
) -> None:
    data = opened(shards[0].parents[1])

    assert data.facts == source.facts
    assert data.classes == CLASSES
    assert multiset(data.train) == multiset(source.train)
    assert multiset(data.val) == multiset(source.val)
    assert len(multiset(data.train)) == TRAIN  # control: a repeated image would show


def test_samples_are_shuffled_across_shards(shards: list[Path]) -> None:
    labels = opened(shards[0].parents[1]).train.labels

    assert labels.tolist() != sorted(labels)
    assert len(set(labels[:PER_SHARD])) == 3


def test_the_manifest_says_what_is_there(shards: list[Path]) -> None:
    manifest = json.loads((shards[0].parent / MANIFEST).read_text())

    assert manifest["classes"] == list(CLASSES)
    assert [each["samples"] for each in manifest["shards"]] == [8, 8, 7]
    for path, said in zip(shards, manifest["shards"], strict=True):
        content = path.read_bytes()
        assert said["name"] == path.name
        assert said["bytes"] == len(content)
        assert said["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_read_is_not_packed_in_silence(tmp_path: Path) -> None:
    data = folders(tmp_path / "folders")
    gone = tmp_path / "folders" / "train" / "dog" / "4.png"
    gone.unlink()

    with pytest.raises(DataError, match=f"{gone} is damaged"):
        write(data, tmp_path / "shards")

    assert not list(tmp_path.glob("shards/train/*.tar"))
    assert not (tmp_path / "shards" / "train" / MANIFEST).exists()


# -- where they are


@pytest.mark.parametrize(
    "pattern",
    [
        "train-{000000..000002}.tar",
        "train-*.tar",
        "train-00000[012].tar",
        "train-{000000,00000[12]}.tar",
    ],
)
def test_shards_are_found_by_pattern(source: ImageData, shards: list[Path], pattern: str) -> None:
    folder = shards[0].parent
    data = opened(folder / pattern, val_path=str(folder.parent / "val"))

    assert multiset(data.train) == multiset(source.train)
    assert multiset(data.val) == multiset(source.val)


def test_a_part_of_the_shards_may_be_asked_for(shards: list[Path]) -> None:
    folder = shards[0].parent
    part = opened(folder / "train-{000000..000001}.tar", val_path=str(folder.parent / "val"))
    assert len(part.train) == 2 * PER_SHARD


def test_shards_of_several_folders_are_held_to_their_own_manifests(
    source: ImageData, tmp_path: Path
) -> None:
    write_shards(source.train, tmp_path / "a", prefix="x", classes=CLASSES, per_shard=TRAIN)
    write_shards(source.val, tmp_path / "b", prefix="x", classes=CLASSES)
    pattern, val = str(tmp_path / "{a,b}" / "x-000000.tar"), str(tmp_path / "b")

    data = opened(pattern, val_path=val)

    assert multiset(data.train) == multiset(source.train) + multiset(source.val)
    spoil(tmp_path / "b" / "x-000000.tar", DAMAGES["cut between members"])  # control
    with pytest.raises(DataError, match=r"b/x-000000\.tar is damaged"):
        opened(pattern, val_path=val)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train-{000000..000003}.tar", "Shard not found: {0}/train-000003.tar"),
        ("train-000009.tar", "Shard not found: {0}/train-000009.tar"),
        ("train-{000000..000003.tar", "Shard not found: {0}/train-{{000000..000003.tar"),
        ("nothing", "Dataset directory not found: {0}/nothing"),
        ("other-*.tar", "no images in {0}"),
    ],
)
def test_a_shard_that_is_not_there_is_named(shards: list[Path], name: str, said: str) -> None:
    folder = shards[0].parent
    with pytest.raises(DataError) as raised:
        opened(folder / name, format="webdataset", val_path=str(folder.parent / "val"))
    assert said.format(folder) in raised.value.what
    assert raised.value.code == ("data-empty" if "other" in name else "data-not-found")


def test_a_shard_of_the_manifest_that_is_not_there_is_named(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(DataError, match=f"Shard not found: {shards[1]}"):
        opened(shards[0].parents[1])


def test_shards_without_validation_are_refused(shards: list[Path]) -> None:
    with pytest.raises(DataError, match="no validation data") as raised:
        opened(shards[0].parent)
    assert raised.value.code == "data-no-validation"


# -- damage


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def blocks(content: bytes) -> int:
    return -(-len(content) // HEADER) * HEADER


Damage = Callable[[bytes, tarfile.TarInfo], bytes]
DAMAGES: dict[str, Damage] = {  # of a shard's content, given its seventh member
    "cut inside a member": lambda content, at: content[: at.offset_data + 20],
    "cut between members": lambda content, at: content[: at.offset],
    "cut inside a header": lambda content, at: content[: at.offset + 100],
    "cut before the end mark": lambda content, at: content[: blocks(content.rstrip(b"\0"))],
    "a header damaged": lambda content, at: flipped(content, at.offset + 10),
    "the first header damaged": lambda content, at: flipped(content, 10),
    "empty": lambda content, at: b"",
    "an error page": lambda content, at: b"<html>404 not found</html>" * 100,
}
ZEROS: dict[str, Damage] = {
    "tail": lambda content, at: content[: at.offset].ljust(len(content), b"\0"),
    "all": lambda content, at: bytes(len(content)),
}


def spoil(shard: Path, damage: Damage) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(damage(whole, members(shard)[6]))
    assert shard.read_bytes() != whole


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_before_training(
    shards: list[Path], damage: str, with_manifest: bool
) -> None:
    if not with_manifest:
        without_manifest(shards)
    root = shards[0].parents[1]
    assert len(opened(root).train) == TRAIN  # control: whole so far

    spoil(shards[1], DAMAGES[damage])

    with pytest.raises(DataError, match=f"{shards[1]} is damaged") as raised:
        opened(root)
    assert raised.value.code == "data-corrupt"


@pytest.mark.parametrize("damage", ZEROS)
def test_zeros_over_samples_are_noticed_by_the_manifest_only(
    shards: list[Path], damage: str
) -> None:
    spoil(shards[1], ZEROS[damage])
    with pytest.raises(DataError, match=r"train-000001.tar is damaged: \d samples, not 8"):
        opened(shards[0].parents[1])

    without_manifest(shards)  # control: to tar such a file is whole
    assert len(opened(shards[0].parents[1]).train) < TRAIN


def test_a_damaged_image_in_a_whole_shard_is_replaced_and_named(shards: list[Path]) -> None:
    image = next(each for each in members(shards[1]) if each.name.endswith(".png"))
    content = bytearray(shards[1].read_bytes())
    content[image.offset_data : image.offset_data + 8] = b"no image"
    shards[1].write_bytes(content)

    train = opened(shards[0].parents[1]).train
    train.read(np.arange(TRAIN))

    assert list(train.bad) == [f"{shards[1]}/{image.name}"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"shards": [{"samples": 8}], "classes": []}',
        '{"shards": [{"name": "train-000000.tar"}], "classes": []}',
        '{"shards": ["train-000000.tar"], "classes": []}',
        '{"shards": [{"name": "train-000000.tar", "bytes": "many", "samples": 8}], "classes": []}',
        "\xff",
    ],
)
def test_a_damaged_manifest_is_named(shards: list[Path], text: str) -> None:
    manifest = shards[0].parent / MANIFEST
    manifest.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=f"{manifest} is damaged: not a manifest") as raised:
        opened(shards[0].parents[1])
    assert raised.value.code == "data-corrupt"


# -- classes and samples


def pack(shard: Path, *files: tuple[str, bytes]) -> None:
    """Write a foreign shard."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_foreign_shards_are_read_by_key(tmp_path: Path) -> None:
    """Members in any order, in folders, with more than an image and a class."""
    train = tmp_path / "train" / "0.tar"
    pack(
        train,
        ("a/1.cls", b"1\n"),
        ("a/1.PNG", png(11)),
        ("b/1.png", png(22)),
        ("b/1.json", b"{}"),
        ("b/1.cls", b"0"),
        ("._b/.1.png", b"macOS"),
    )
    pack(tmp_path / "val" / "0.tar", ("1.png", png(33)), ("1.cls", b"1"))

    data = opened(tmp_path)

    images, labels = data.train.read(np.arange(2))
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([11, 22], [1, 0])
    assert data.classes == ("0", "1")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ([("1.png", png(1))], "sample /1 has .png, not an image and .cls"),
        ([("1.cls", b"0")], "sample /1 has .cls, not an image and .cls"),
        ([("1.png", png(1)), ("1.cls", b"cat")], "class b'cat' of sample /1 is not a number"),
        ([("1.png", png(1)), ("1.cls", b"-%d" % 10**25)], "of sample /1 is not from 0 to 99999"),
        ([("1.png", png(1)), ("1.cls", b"-1")], "class -1 of 2 classes"),
        ([("1.png", png(1)), ("1.cls", b"2")], "class 2 of 2 classes"),
    ],
)
def test_a_sample_without_image_or_valid_class_is_named(
    tmp_path: Path, files: list[tuple[str, bytes]], why: str
) -> None:
    good = [("0.png", png(0)), ("0.cls", b"1")]
    for half in ("train", "val"):
        pack(tmp_path / half / "0.tar", *good)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert opened(tmp_path).classes == ("cat", "dog")  # control

    pack(tmp_path / "val" / "0.tar", *good, *files)

    with pytest.raises(DataError) as raised:
        opened(tmp_path)
    assert why in raised.value.what
    assert str(tmp_path / "val" / "0.tar") in raised.value.what
    assert raised.value.code == "data-corrupt"


def test_halves_that_name_other_classes_are_refused(source: ImageData, shards: list[Path]) -> None:
    folder = shards[0].parents[1] / "val"
    write_shards(source.val, folder, prefix="val", classes=("ape", "bee", "cat"))
    with pytest.raises(DataError, match=f"shards of {folder.parent} name other classes") as raised:
        opened(folder.parent)
    assert raised.value.code == "data-classes-differ"


def test_rank_and_world_size_in_the_environment_change_nothing(
    source: ImageData, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened(shards[0].parents[1])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    again = write(source, shards[0].parents[1] / "again")
    data = opened(shards[0].parents[1])

    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]
    assert data.train.labels.tolist() == before.train.labels.tolist()
    assert multiset(data.train) == multiset(source.train)
    # control: webdataset's own reader does look
    from webdataset import WebDataset

    with pytest.raises(ValueError, match="nodesplitter"):
        next(iter(WebDataset([str(path) for path in shards], shardshuffle=False)))
