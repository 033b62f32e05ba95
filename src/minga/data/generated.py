"""Made-up images in Tiny-ImageNet's exact layout: learnable, any size, no download.

A class is a canvas of smooth colours with a few shapes on it. A sample is a window of that
canvas, shifted, zoomed and lit at random, with a texture over it, a hidden patch and
noise; a higher difficulty means more of each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from minga.data.folders import require_unused

_RECIPE = "generated.json"
_GREY_SHARE = 0.02
_JPEG_QUALITY = 90
_TEST_IMAGES = 20
_CLASS_STREAM, _ORDER_STREAM, _TEST_STREAM = range(3)

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Parameters of a generated data set; the same recipe gives the same files.

    Args:
        classes: how many.
        train_per_class: training images of each.
        val_per_class: validation images of each.
        size: side in pixels.
        difficulty: from 0, classes are distinct at a glance, to 1, hardly distinguishable.
        seed: another seed gives other images.
    """

    classes: int = 200
    train_per_class: int = 50
    val_per_class: int = 10
    size: int = 64
    difficulty: float = 0.5
    seed: int = 0


def generate(folder: Path, **choices: Any) -> Path:
    """Write a data set in Tiny-ImageNet's layout; return its folder.

    A folder of the same recipe is left unchanged. The folder gets its name once it is complete.

    Args:
        folder: the folder to write.
        choices: fields of :class:`Recipe`.

    Raises:
        UsageError: the folder exists with other content.
        TypeError: a choice is not a field of :class:`Recipe`.
    """
    recipe = Recipe(**choices)
    if _recipe_of(folder) == asdict(recipe):
        return folder
    require_unused(folder, "these")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write(part, recipe)
    (part / _RECIPE).write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    part.rename(folder)
    return folder


def _recipe_of(folder: Path) -> Any:
    """Return the recipe in a folder; None if missing or not minga's."""
    try:
        return json.loads((folder / _RECIPE).read_text())
    except (OSError, ValueError):
        return None


def _write(folder: Path, recipe: Recipe) -> None:
    order = np.random.default_rng([recipe.seed, _ORDER_STREAM])
    wnids = [f"n{17 + 13 * number:08d}" for number in range(recipe.classes)]
    unsorted = [wnids[index] for index in order.permutation(recipe.classes)]
    _write_lines(folder / "wnids.txt", unsorted)
    _write_lines(folder / "words.txt", [f"{wnid}\tsynthetic {wnid}" for wnid in wnids])
    flat = folder / "val" / "images"
    flat.mkdir(parents=True)
    numbers = order.permutation(recipe.classes * recipe.val_per_class)
    annotations: dict[int, str] = {}
    for index, wnid in enumerate(wnids):
        rng = np.random.default_rng([recipe.seed, _CLASS_STREAM, index])
        canvas = _canvas(rng, 2 * recipe.size)
        _write_class(folder / "train" / wnid, wnid, _samples(canvas, rng, recipe, train=True))
        mine = numbers[index * recipe.val_per_class : (index + 1) * recipe.val_per_class]
        for number, image in zip(mine, _samples(canvas, rng, recipe, train=False), strict=True):
            _save(image, flat / f"val_{number}.JPEG")
            annotations[int(number)] = f"val_{number}.JPEG\t{wnid}\t{_box(image)}"
    _write_lines(flat.parent / "val_annotations.txt", [annotations[n] for n in sorted(annotations)])
    _write_test(folder / "test" / "images", recipe)


def _write_class(folder: Path, wnid: str, images: Iterable[Image.Image]) -> None:
    (folder / "images").mkdir(parents=True)
    boxes = []
    for number, image in enumerate(images):
        name = f"{wnid}_{number}.JPEG"
        _save(image, folder / "images" / name)
        boxes.append(f"{name}\t{_box(image)}")
    _write_lines(folder / f"{wnid}_boxes.txt", boxes)


def _write_test(folder: Path, recipe: Recipe) -> None:
    """Write some images without labels, as in Tiny-ImageNet's test/."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([recipe.seed, _TEST_STREAM])
    for number in range(_TEST_IMAGES):
        _save(_sample(_canvas(rng, 2 * recipe.size), rng, recipe), folder / f"test_{number}.JPEG")


def _samples(
    canvas: Image.Image, rng: np.random.Generator, recipe: Recipe, *, train: bool
) -> Iterable[Image.Image]:
    count = recipe.train_per_class if train else recipe.val_per_class
    return (_sample(canvas, rng, recipe) for _ in range(count))


def _canvas(rng: np.random.Generator, side: int) -> Image.Image:
    """Return the canvas of a class: smooth random colours and three shapes."""
    canvas = _texture(rng, side)
    draw = ImageDraw.Draw(canvas)
    for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
        left, top = rng.uniform(0.15, 0.6, 2) * side
        width, height = rng.uniform(0.1, 0.35, 2) * side
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        shape((left, top, left + width, top + height), fill=colour)
    return canvas


def _texture(rng: np.random.Generator, side: int) -> Image.Image:
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def _sample(canvas: Image.Image, rng: np.random.Generator, recipe: Recipe) -> Image.Image:
    """Return one image: the middle half of the canvas, distorted according to the difficulty."""
    hard, size = recipe.difficulty, recipe.size
    window = size * (1 + hard * rng.uniform(-0.4, 0.6))
    left, top = (canvas.width - window) / 2 * (1 + hard * rng.uniform(-1, 1, 2))
    box = (left, top, left + window, top + window)
    seen = _pixels(canvas.resize((size, size), Image.Resampling.BILINEAR, box))
    light, contrast = hard * rng.uniform(-60, 60), 1 + hard * rng.uniform(-0.6, 0.4)
    cover = hard * rng.uniform(0.3, 0.9)
    seen = (1 - cover) * (seen * contrast + light) + cover * _pixels(_texture(rng, size))
    hidden = int(size * hard * rng.uniform(0, 0.7))
    y, x = rng.integers(0, size - hidden + 1, 2)
    seen[y : y + hidden, x : x + hidden] = rng.integers(0, 256, 3)
    seen += (5 + 60 * hard) * rng.standard_normal(seen.shape, dtype=np.float32)
    image = Image.fromarray(seen.clip(0, 255).astype(np.uint8))
    return image.convert("L") if rng.random() < _GREY_SHARE else image


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32)


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, "JPEG", quality=_JPEG_QUALITY)


def _box(image: Image.Image) -> str:
    return f"0\t0\t{image.width - 1}\t{image.height - 1}"


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
