"""Data that need no download: generated images in Tiny-ImageNet's layout, and digits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minga.data.dataset import ImageData, open_data
from minga.data.digits import prepare_digits
from minga.data.generated import Recipe, generate
from minga.data.split import Split
from minga.errors import UsageError
from minga.settings.schema import DataConfig

SMALL: dict[str, Any] = {"classes": 3, "train_per_class": 4, "val_per_class": 2, "size": 16}


def opened(folder: Path) -> ImageData:
    return open_data(DataConfig(path=str(folder)))


def files(folder: Path) -> dict[str, str]:
    """Return each file's path in the folder and a digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def everything(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.read(np.arange(len(split)))


def nearest_class_mean(data: ImageData) -> float:
    """Return the validation accuracy of the class means of the training images."""
    images, labels = everything(data.train)
    flat = images.reshape(len(images), -1).astype(np.float64)
    means = np.stack([flat[labels == label].mean(0) for label in range(len(data.classes))])
    images, labels = everything(data.val)
    flat = images.reshape(len(images), 1, -1).astype(np.float64)
    return float((((flat - means) ** 2).sum(2).argmin(1) == labels).mean())


# -- generated


def test_the_layout_is_the_published_one(tmp_path: Path) -> None:
    folder = generate(tmp_path / "set", **SMALL)
    wnids = (folder / "wnids.txt").read_text().splitlines()

    train = {f"train/{w}/images/{w}_{n}.JPEG" for w in wnids for n in range(4)}
    boxes = {f"train/{w}/{w}_boxes.txt" for w in wnids}
    val = {f"val/images/val_{n}.JPEG" for n in range(6)} | {"val/val_annotations.txt"}
    test = {f"test/images/test_{n}.JPEG" for n in range(20)}
    lists = {"wnids.txt", "words.txt", "generated.json"}
    assert set(files(folder)) == train | boxes | val | test | lists
    assert len(wnids) == 3
    assert all(len(wnid) == 9 and wnid.startswith("n") for wnid in wnids)

    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [f"val_{n}.JPEG" for n in range(6)]
    assert Counter(line.split("\t")[1] for line in lines) == dict.fromkeys(wnids, 2)
    assert all(line.split("\t")[2:] == ["0", "0", "15", "15"] for line in lines)
    box = (folder / "train" / wnids[0] / f"{wnids[0]}_boxes.txt").read_text().splitlines()
    assert box[0] == f"{wnids[0]}_0.JPEG\t0\t0\t15\t15"
    for name in (*train, *val, *test):
        if name.endswith(".JPEG"):
            with Image.open(folder / name) as image:
                assert (image.format, image.size) == ("JPEG", (16, 16))


def test_wnids_are_not_sorted_as_in_the_original(tmp_path: Path) -> None:
    folder = generate(tmp_path / "set", classes=9, train_per_class=1, val_per_class=1, size=8)
    wnids = (folder / "wnids.txt").read_text().splitlines()

    assert wnids != sorted(wnids)
    assert opened(folder).classes == tuple(sorted(wnids))


def test_it_opens_as_tiny_imagenet_does(tmp_path: Path) -> None:
    data = opened(generate(tmp_path / "set", **SMALL))

    assert (len(data.train), len(data.val)) == (12, 6)
    assert data.image_size == 16
    assert Counter(data.train.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    assert Counter(data.val.labels.tolist()) == {0: 2, 1: 2, 2: 2}


def test_some_images_are_grey_as_in_the_original(tmp_path: Path) -> None:
    folder = generate(tmp_path / "set", classes=4, train_per_class=100, val_per_class=1, size=8)
    modes = Counter()
    for path in folder.glob("train/*/images/*.JPEG"):
        with Image.open(path) as image:
            modes[image.mode] += 1

    assert set(modes) == {"RGB", "L"}
    assert 1 <= modes["L"] <= 20  # 2 % of 400
    images, _ = everything(opened(folder).train)
    assert images.shape == (400, 8, 8, 3)


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one = files(generate(tmp_path / "one", **SMALL))
    same = files(generate(tmp_path / "same", **SMALL))
    other = files(generate(tmp_path / "other", **SMALL, seed=1))

    assert one == same
    assert one.keys() == other.keys()
    images = [name for name in one if name.endswith(".JPEG")]
    assert not [name for name in images if one[name] == other[name]]


def test_a_complete_folder_is_left_as_it_is(tmp_path: Path) -> None:
    folder = generate(tmp_path / "set", **SMALL)
    (folder / "note.txt").write_text("mine")
    before = files(folder)

    assert generate(folder, **SMALL) == folder
    assert files(folder) == before


@pytest.mark.parametrize("changed", [{"seed": 1}, {"difficulty": 0.6}, {"train_per_class": 5}])
def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    folder = generate(tmp_path / "set", **SMALL)
    before = files(folder)

    with pytest.raises(UsageError, match=f"{folder} already exists") as raised:
        generate(folder, **{**SMALL, **changed})

    assert raised.value.code == "folder-in-use"
    assert files(folder) == before


@pytest.mark.parametrize("content", ["{}", "{", "\xff", "[1]"])
def test_a_foreign_folder_is_refused_and_not_touched(tmp_path: Path, content: str) -> None:
    (tmp_path / "generated.json").write_text(content, encoding="latin-1")

    with pytest.raises(UsageError, match=f"{tmp_path} already exists"):
        generate(tmp_path, **SMALL)

    assert list(files(tmp_path)) == ["generated.json"]


@pytest.mark.parametrize("make", [lambda path: generate(path, **SMALL), prepare_digits])
def test_a_file_in_the_way_is_refused(tmp_path: Path, make: Any) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(UsageError, match="set already exists") as raised:
        make(tmp_path / "set")
    assert raised.value.code == "folder-in-use"
    assert (tmp_path / "set").read_text() == "mine"


def test_what_an_interrupted_writing_left_is_no_data_set_and_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "set.part" / "train").mkdir(parents=True)
    (tmp_path / "set.part" / "train" / "half").write_text("")

    folder = generate(tmp_path / "set", **SMALL)

    assert not (tmp_path / "set.part").exists()
    assert not (folder / "train" / "half").exists()


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="colours"):
        generate(tmp_path / "set", colours=3)
    assert not (tmp_path / "set").exists()


def test_difficulty_changes_how_well_the_classes_are_told_apart(tmp_path: Path) -> None:
    choices = {"classes": 10, "train_per_class": 30, "val_per_class": 20, "size": 16}
    accuracy = {
        difficulty: nearest_class_mean(
            opened(generate(tmp_path / str(difficulty), **choices, difficulty=difficulty))
        )
        for difficulty in (0.1, 0.5, 0.9)
    }

    assert accuracy[0.1] > 0.95
    assert accuracy[0.1] > accuracy[0.5] + 0.05 > accuracy[0.9] + 0.1
    assert accuracy[0.9] > 2 / 10  # twice chance: hard, but there is something to learn


def test_the_recipe_stands_beside_the_data(tmp_path: Path) -> None:
    folder = generate(tmp_path / "set", **SMALL, difficulty=0.25, seed=7)
    assert Recipe(**json.loads((folder / "generated.json").read_text())) == Recipe(
        **SMALL, difficulty=0.25, seed=7
    )


# -- digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_digits(tmp_path_factory.mktemp("digits") / "digits")


def test_digits_are_1442_to_train_on_and_355_to_validate_on(digits: Path) -> None:
    data = opened(digits)

    assert (len(data.train), len(data.val), data.image_size) == (1442, 355, 8)
    assert data.classes == tuple("0123456789")
    shares = [np.bincount(each.labels) / len(each) for each in (data.train, data.val)]
    assert np.abs(shares[0] - shares[1]).max() < 0.005


def test_digits_are_what_scikit_learn_has_each_image_once(digits: Path) -> None:
    from sklearn.datasets import load_digits

    names = sorted(path.stem for path in digits.glob("*/*/*.png"))
    assert names == [f"{number:04d}" for number in range(1797)]
    theirs = load_digits()
    for path in [*digits.glob("*/*/*.png")][::50]:
        with Image.open(path) as image:
            shown = np.asarray(image) / (255 / 16)
        assert np.abs(shown - theirs.images[int(path.stem)]).max() < 0.05
        assert path.parent.name == str(theirs.target[int(path.stem)])


def test_digits_can_be_learned(digits: Path) -> None:
    assert nearest_class_mean(opened(digits)) > 0.85


def test_preparing_digits_again_changes_nothing(digits: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}

    assert prepare_digits(digits) == digits
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
    elsewhere = prepare_digits(tmp_path / "digits")
    assert elsewhere != digits
    assert files(elsewhere) == files(digits)


def test_digits_refuse_a_foreign_folder_and_an_incomplete_one(digits: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    prepare_digits(foreign)  # empty: nobody's
    next(foreign.glob("train/3/*.png")).unlink()
    before = files(foreign)
    assert len(before) == 1796

    with pytest.raises(UsageError, match=f"{foreign} already exists") as raised:
        prepare_digits(foreign)

    assert raised.value.code == "folder-in-use"
    assert files(foreign) == before
