"""Image folders, Tiny-ImageNet's layout, what is refused, and images that cannot be read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minga.data.dataset import ImageData, open_data
from minga.data.split import Split
from minga.errors import DataError
from minga.settings.schema import DataConfig

WNIDS = ("n300", "n100", "n200")  # as published: not sorted
SIDE = 8


def pixels(shade: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.full((side, side, 3), shade, dtype=np.uint8))


def save(path: Path, shade: int = 0, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels(shade, side).save(path, "PNG")


def class_folders(root: Path, level: str = "", count: int = 2) -> Path:
    """Write ``{train,val}/<class>/<level>``: shade 10 x class + number, 100 more in val."""
    for half, plus in (("train", 0), ("val", 100)):
        for label, name in enumerate(sorted(WNIDS)):
            for number in range(count):
                save(root / half / name / level / f"{number}.png", plus + 10 * label + number)
    return root


def tiny_imagenet(root: Path) -> Path:
    """Write the published layout: ``images`` level, flat val, ``wnids.txt`` unsorted."""
    for label, name in enumerate(sorted(WNIDS)):
        for number in range(2):
            save(root / "train" / name / "images" / f"{name}_{number}.JPEG", 10 * label + number)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for number, name in enumerate(("n200", "n300", "n100", "n200")):
        save(root / "val" / "images" / f"val_{number}.JPEG", 100 + number)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t7\t7\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in WNIDS))
    save(root / "test" / "images" / "test_0.JPEG")
    return root


def opened(root: Path, **settings: Any) -> ImageData:
    return open_data(DataConfig(path=str(root), **settings))


def seen(split: Split) -> list[tuple[int, int]]:
    """Return shade and label of each sample, in order."""
    images, labels = split.read(np.arange(len(split)))
    return list(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


TRAIN = [(0, 0), (1, 0), (10, 1), (11, 1), (20, 2), (21, 2)]


# -- layouts


@pytest.mark.parametrize("level", ["", "images"])
def test_class_folders_are_read_with_and_without_an_images_level(
    tmp_path: Path, level: str
) -> None:
    data = opened(class_folders(tmp_path, level))

    assert data.classes == tuple(sorted(WNIDS))
    assert seen(data.train) == TRAIN
    assert seen(data.val) == [(100 + shade, label) for shade, label in TRAIN]
    assert data.image_size == SIDE


def test_tiny_imagenets_published_layout_is_read_in_place(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    before = sorted(root.rglob("*"))

    data = opened(root)

    assert data.classes == ("n100", "n200", "n300")  # sorted, not the order of wnids.txt
    assert seen(data.train) == TRAIN
    assert seen(data.val) == [(100, 1), (101, 2), (102, 0), (103, 1)]
    assert sorted(root.rglob("*")) == before


def test_labels_are_the_same_with_and_without_wnids_txt(tmp_path: Path) -> None:
    with_list = opened(tiny_imagenet(tmp_path))
    (tmp_path / "wnids.txt").unlink()
    without = opened(tmp_path)

    assert with_list.facts == without.facts
    assert with_list.train.labels.tolist() == without.train.labels.tolist()
    # control: by the file's own order labels would differ
    assert [WNIDS.index(name) for name in with_list.classes] != [0, 1, 2]


@pytest.mark.parametrize("level", ["", "images"])
def test_tiny_imagenet_with_val_already_in_class_folders_is_read(
    tmp_path: Path, level: str
) -> None:
    """People move the images and leave ``val_annotations.txt`` behind."""
    annotations = tiny_imagenet(tmp_path) / "val" / "val_annotations.txt"
    for line in annotations.read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        target = tmp_path / "val" / wnid / level / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / "images" / name).rename(target)
    (tmp_path / "val" / "images").rmdir()

    assert seen(opened(tmp_path).val) == [(102, 0), (100, 1), (103, 1), (101, 2)]


def test_what_macos_leaves_behind_is_no_image_and_no_class(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    clean = opened(root)
    for folder in (root / "train", root / "train" / "n100", root / "val" / "n100"):
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "._0.png").write_bytes(b"\0\5\26\7")
    (root / "train" / ".AppleDouble").mkdir()

    assert opened(root).facts == clean.facts
    save(root / "train" / "n100" / "more.png")  # control: an image does count
    assert opened(root).facts != clean.facts


def test_validation_data_may_be_elsewhere(tmp_path: Path) -> None:
    here, elsewhere = class_folders(tmp_path / "here"), tmp_path / "elsewhere"
    (here / "val").rename(elsewhere)

    assert seen(opened(here, val_path=str(elsewhere)).val)[0] == (100, 0)
    beside = opened(here / "train", val_path=str(elsewhere))  # a path that is train itself
    assert seen(beside.train) == TRAIN


def test_only_the_half_that_is_needed_must_be_there(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    (root / "train").rename(root / "moved")

    data = open_data(DataConfig(path=str(root)), needs=("val",))

    assert (len(data.train), len(data.val), len(data.classes)) == (0, 6, 3)


def test_two_pcs_agree_only_on_the_same_classes(tmp_path: Path) -> None:
    one, same, other = (class_folders(tmp_path / name) for name in ("one", "same", "other"))
    for half in ("train", "val"):
        (other / half / "n300").rename(other / half / "n301")

    assert opened(one).facts == opened(same).facts
    assert opened(one).facts.class_hash != opened(other).facts.class_hash


# -- refusals


def without_train(root: Path) -> Path:
    class_folders(root)
    return (root / "train").rename(root / "moved").with_name("train")


def without_val(root: Path) -> Path:
    return (class_folders(root) / "val").rename(root / "moved").with_name("val")


def without_classes(root: Path) -> Path:
    (root / "train").mkdir()
    (root / "val").mkdir()
    return root / "train"


def class_without_images(root: Path) -> Path:
    folder = class_folders(root) / "train" / "n200"
    for image in folder.iterdir():
        image.rename(image.with_suffix(".txt"))
    return folder


def class_in_train_only(root: Path) -> str:
    save(class_folders(root) / "train" / "n400" / "0.png")
    return f"class n400 is in the classes but not in {root / 'val'}"


def class_in_val_only(root: Path) -> str:
    save(class_folders(root) / "val" / "n400" / "0.png")
    return f"class n400 is in {root / 'val'} but not in the classes"


def class_in_wnids_only(root: Path) -> str:
    with (tiny_imagenet(root) / "wnids.txt").open("a") as listing:
        listing.write("n400\n")
    return f"class n400 is in {root / 'wnids.txt'} but not in {root / 'train'}"


def class_annotated_only(root: Path) -> str:
    file = tiny_imagenet(root) / "val" / "val_annotations.txt"
    file.write_text(file.read_text().replace("n300", "n400"))
    return f"class n300 is in the classes but not in {file}"


def annotated_images_missing(root: Path) -> str:
    (tiny_imagenet(root) / "val" / "images" / "val_2.JPEG").unlink()
    file = root / "val" / "val_annotations.txt"
    return f"{file} names 1 images that are not in {root / 'val' / 'images'}, first val_2.JPEG"


def annotation_without_class(root: Path) -> str:
    file = tiny_imagenet(root) / "val" / "val_annotations.txt"
    file.write_text("val_0.JPEG n200\n")
    return f"{file}: line 1 has no class"


def annotations_not_text(root: Path) -> Path:
    file = tiny_imagenet(root) / "val" / "val_annotations.txt"
    file.write_bytes(b"val_0.JPEG\tn\xff\xfe\n")
    return file


def nothing_readable(root: Path) -> str:
    for image in class_folders(root).glob("train/*/*.png"):
        image.write_bytes(b"no image")
    return f"none of the first 6 images can be read, first {root / 'train' / 'n100' / '0.png'}"


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("data-not-found", lambda root: root / "nothing"),
        ("data-not-found", without_train),
        ("data-no-validation", without_val),
        ("data-empty", without_classes),
        ("data-empty", class_without_images),
        ("data-classes-differ", class_in_train_only),
        ("data-classes-differ", class_in_val_only),
        ("data-classes-differ", class_in_wnids_only),
        ("data-classes-differ", class_annotated_only),
        ("data-corrupt", annotated_images_missing),
        ("data-corrupt", annotation_without_class),
        ("data-corrupt", annotations_not_text),
        ("data-corrupt", nothing_readable),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said_with_its_path(
    tmp_path: Path, code: str, spoil: Callable[[Path], Path | str]
) -> None:
    expected = str(spoil(tmp_path))
    root = tmp_path / "nothing" if expected.endswith("nothing") else tmp_path

    with pytest.raises(DataError) as raised:
        opened(root)

    assert raised.value.code == code
    assert expected in raised.value.what
    assert raised.value.hints
    assert raised.value.exit_status == 4


def test_a_val_path_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found: .*/nowhere") as raised:
        opened(class_folders(tmp_path), val_path=str(tmp_path / "nowhere"))
    assert raised.value.code == "data-not-found"


# -- images


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = {
    "grey.jpg": encoded(pixels(90).convert("L"), "JPEG"),
    "grey.png": encoded(pixels(90).convert("L"), "PNG"),
    "cmyk.jpg": encoded(pixels(90).convert("CMYK"), "JPEG"),
    "palette.png": encoded(pixels(90).quantize(4), "PNG"),
    "palette-alpha.png": encoded(pixels(90).quantize(4), "PNG", transparency=bytes([9, 255])),
    "alpha.png": encoded(pixels(90).convert("RGBA"), "PNG"),
    "a-png.JPEG": encoded(pixels(90), "PNG"),
    "web.webp": encoded(pixels(90), "WEBP", lossless=True),
    "bits.bmp": encoded(pixels(90), "BMP"),
    "upper.JPG": encoded(pixels(90), "JPEG"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_is_read_as_rgb(tmp_path: Path, name: str) -> None:
    root = class_folders(tmp_path)
    (root / "train" / "n100" / f"z-{name}").write_bytes(IMAGES[name])

    train = opened(root).train
    images, labels = train.read(np.array([2]))

    assert images.shape == (1, SIDE, SIDE, 3)
    assert images.dtype == np.uint8
    assert np.abs(images.astype(int) - 90).max() <= 2
    assert labels.tolist() == [0]
    assert not train.bad


@pytest.mark.parametrize(("side", "shown"), [(64, 64), (65, 224), (300, 224)])
def test_images_of_up_to_64_pixels_keep_their_size(tmp_path: Path, side: int, shown: int) -> None:
    for half in ("train", "val"):
        save(tmp_path / half / "one" / "0.png", 7, side)

    data = opened(tmp_path)

    assert data.image_size == shown
    images, _ = data.train.read(np.array([0]), np.full((1, 5), 0.4))
    assert images.shape == (1, shown, shown, 3)
    assert (images == 7).all()


def test_a_set_size_is_what_images_come_in(tmp_path: Path) -> None:
    images, _ = opened(class_folders(tmp_path), image_size=5).train.read(np.arange(6))
    assert images.shape == (6, 5, 5, 3)


def test_unreadable_images_are_replaced_by_the_next_and_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path, count=100)
    whole = encoded(Image.effect_noise((SIDE, SIDE), 90), "PNG")
    cut, other, gone = (root / "train" / "n200" / f"{number}.png" for number in (10, 11, 99))
    train = opened(root).train
    cut.write_bytes(whole[: len(whole) // 2])
    other.write_bytes(b"<html>404</html>")
    gone.unlink()
    names = sorted(f"{number}.png" for number in range(100))
    after, last = 100 + names.index("10.png"), 199  # n200 is the second class; "99.png" its last

    images, labels = train.read(np.array([after, after + 1, last]))

    assert set(train.bad) == {str(cut), str(other), str(gone)}
    assert "truncated" in train.bad[str(cut)]
    assert "cannot identify" in train.bad[str(other)]
    assert images[:2, 0, 0, 0].tolist() == [10 + 12, 10 + 12]  # both: "12.png"
    assert labels.tolist() == [1, 1, 2]  # the last one's next is of the next class: its label
    again, _ = train.read(np.array([after]))
    assert (again == images[:1]).all()


@pytest.mark.parametrize(("spoiled", "fails"), [(4, False), (5, True)])
@pytest.mark.parametrize("size", [None, 70])
def test_more_than_one_per_cent_unreadable_stops_the_run(
    tmp_path: Path, spoiled: int, fails: bool, size: int | None
) -> None:
    root = class_folders(tmp_path, count=134)  # 402 to train on: 1 % is 4.02
    train = opened(root, image_size=size).train
    paths = sorted((root / "train" / "n300").iterdir())[5 : 5 + spoiled]
    for path in paths:
        path.write_bytes(b"no image")

    if not fails:
        train.read(np.arange(402))
        assert set(train.bad) == set(map(str, paths))
        return
    with pytest.raises(DataError, match=f"5 of 402 images cannot be read.*{root}") as raised:
        train.read(np.arange(402))
    assert raised.value.code == "data-corrupt"


def test_three_unreadable_images_are_allowed_however_few_there_are(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    train = opened(root).train
    for name in ("n100/1", "n200/0", "n200/1"):
        (root / "train" / f"{name}.png").write_bytes(b"")

    assert [shade for shade, _ in seen(train)] == [0, 20, 20, 20, 20, 21]
    assert len(train.bad) == 3
    fourth = opened(root).train
    (root / "train" / "n300" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="4 of 6 images"):
        seen(fourth)
