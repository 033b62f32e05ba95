"""Images in folders: one folder per class, or Tiny-ImageNet's layout.

Tiny-ImageNet differs in two ways, and users often undo one of them: the images of a class lie one
level deeper (``train/<class>/images/``), and the validation images all lie in ``val/images``
with their classes in ``val/val_annotations.txt``. Both are taken as found; nothing on disk is
changed. Order is by class, then file name, so that every PC gives a sample the same index.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minga.data.split import Source
from minga.errors import DataError, Hint, UsageError
from minga.settings.schema import DataConfig

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANNOTATIONS = "val_annotations.txt"


class FileSource:
    """Image files with their class indices.

    Args:
        samples: path and class index of each.
    """

    def __init__(self, samples: list[tuple[str, int]]) -> None:
        self._paths = [path for path, _ in samples]
        self.labels = np.array([label for _, label in samples], dtype=np.int64)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return self._paths[index]

    def encoded(self, index: int) -> bytes:
        """Return the file's bytes. Raises OSError."""
        return Path(self._paths[index]).read_bytes()


def open_folders(
    config: DataConfig, needs: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Return the class names and the needed halves.

    Raises:
        DataError: see :func:`minga.data.dataset.open_data`.
    """
    root = Path(config.path)
    train, val = root / "train", root / "val"
    if config.val_path:
        val = Path(config.val_path)
        train = train if train.is_dir() else root
        val = val / "val" if (val / "val").is_dir() else val
    for folder in (root, *([train] if "train" in needs else [])):
        if not folder.is_dir():
            raise not_found(folder)
    if "val" in needs and not val.is_dir():
        raise not_found(val) if config.val_path else no_validation(root)
    classes = _class_names(root, train if train.is_dir() else None, val)
    found: dict[str, Source] = {}
    if "train" in needs:
        found["train"] = _class_source(train, classes)
    if "val" in needs:
        found["val"] = _val_source(val, classes)
    return classes, found


def not_found(folder: Path) -> DataError:
    """Return the error for missing data."""
    return DataError(
        f"Dataset directory not found: {folder}",
        code="data-not-found",
        hints=(
            Hint("what exists?", f"ls -la {folder.parent}"),
            Hint("a data set that needs no download:", "minga data prepare digits"),
        ),
    )


def no_validation(root: Path) -> DataError:
    """Return the error for a data set without validation images."""
    return DataError(
        f"no validation data: there is no {root / 'val'}, and data.val_path is not set",
        code="data-no-validation",
        hints=(Hint("what exists?", f"ls -la {root}"),),
    )


def empty(folder: Path) -> DataError:
    """Return the error for a folder without images."""
    return DataError(
        f"no images in {folder}",
        code="data-empty",
        hints=(Hint("what exists?", f"ls -la {folder}"),),
    )


def require_unused(folder: Path, wanted: str) -> None:
    """Raise UsageError ``folder-in-use`` unless the folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} already exists with other data than {wanted}",
            code="folder-in-use",
            hints=(Hint("name another folder, or remove this one", f"ls -la {folder}"),),
        )


def text_of(file: Path) -> str:
    """Return the text of a list file. Raises DataError ``data-corrupt`` if it is not text."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is damaged: not text ({error.reason} at byte {error.start})",
            code="data-corrupt",
            hints=(Hint("what is in it?", f"head {file}"),),
        ) from error


def _class_names(root: Path, train: Path | None, val: Path) -> tuple[str, ...]:
    """Return the sorted class names of a data set.

    They come from ``wnids.txt``, else from the folders of the training data; only without either
    from the validation data.

    Args:
        root: the data set's folder.
        train: the training half, or None.
        val: the validation half.

    Raises:
        DataError: ``wnids.txt`` and the training folders do not name the same classes, or
            there are none.
    """
    folders = _folders(train) if train else None
    if (listing := root / "wnids.txt").is_file():
        names = text_of(listing).split()
        if folders is not None:
            _require_same(names, folders, str(listing), str(train))
    elif folders is not None:
        names = folders
    else:
        annotated = (val / ANNOTATIONS).is_file()
        names = [name for _, name in _annotations(val)] if annotated else _folders(val)
    if not names:
        raise empty(train or val)
    return tuple(sorted(set(names)))


def _class_source(folder: Path, classes: tuple[str, ...]) -> FileSource:
    """Return the images of ``folder/<class>/`` and ``folder/<class>/images/``.

    Raises:
        DataError: a class has no folder or no image, or a folder is not a class.
    """
    _require_same(classes, _folders(folder), "the classes", str(folder))
    samples: list[tuple[str, int]] = []
    for index, name in enumerate(classes):
        found = _images(folder / name) + _images(folder / name / "images")
        if not found:
            raise empty(folder / name)
        samples += [(path, index) for path in found]
    return FileSource(samples)


def _val_source(folder: Path, classes: tuple[str, ...]) -> FileSource:
    """Return the validation images, labelled by annotations if there are any, else by class folder.

    Raises:
        DataError: classes differ from the training data's, or images are missing.
    """
    flat = folder / "images"
    if not (folder / ANNOTATIONS).is_file() or not flat.is_dir():
        return _class_source(folder, classes)
    annotations = _annotations(folder)
    annotated = {name for _, name in annotations}
    _require_same(classes, annotated, "the classes", str(folder / ANNOTATIONS))
    present = set(os.listdir(flat))
    if missing := [name for name, _ in annotations if name not in present]:
        raise DataError(
            f"{folder / ANNOTATIONS} names {len(missing)} images that are not in {flat}, "
            f"first {missing[0]}",
            code="data-corrupt",
            hints=(Hint("was the archive unpacked completely?", f"ls {flat} | wc -l"),),
        )
    index = {name: position for position, name in enumerate(classes)}
    return FileSource([(str(flat / name), index[of]) for name, of in sorted(annotations)])


def _annotations(folder: Path) -> list[tuple[str, str]]:
    """Return file name and class of each line."""
    lines = text_of(folder / ANNOTATIONS).splitlines()
    fields = [line.split("\t") for line in lines if line.strip()]
    for number, each in enumerate(fields, 1):
        if len(each) < 2:
            raise DataError(
                f"{folder / ANNOTATIONS}: line {number} has no class",
                code="data-corrupt",
                hints=(Hint("what is in it?", f"head {folder / ANNOTATIONS}"),),
            )
    return [(each[0], each[1]) for each in fields]


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def _images(folder: Path) -> list[str]:
    """Return the image files of a folder, without the ``.DS_Store`` and ``._*`` of macOS."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [
        str(folder / name)
        for name in sorted(names)
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    ]


def _require_same(one: Iterable[str], other: Iterable[str], here: str, there: str) -> None:
    """Raise DataError naming a class that only one side has."""
    first, second = set(one), set(other)
    if first == second:
        return
    odd = min(first ^ second)
    where, lacking = (here, there) if odd in first else (there, here)
    raise DataError(
        f"class {odd} is in {where} but not in {lacking} "
        f"({len(first)} and {len(second)} classes, {len(first ^ second)} on one side only)",
        code="data-classes-differ",
        hints=(Hint("is the copy complete on this PC?", "minga data verify"),),
    )
