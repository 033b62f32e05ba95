"""Opening a data set: which layout it has, its classes, its two halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minga.data.buckets import fetched_shards, is_remote
from minga.data.facts import DataFacts, hash_of_classes
from minga.data.folders import FileSource, open_folders
from minga.data.shards import are_shards, local_shards, open_shards
from minga.data.split import Split, natural_size
from minga.errors import DataError, Hint
from minga.settings.schema import DataConfig


@dataclass(frozen=True, slots=True)
class ImageData:
    """A data set, ready to be read.

    Args:
        classes: names; the position is the label.
        train, val: the halves; one that was not asked for has no samples.
        image_size: side in pixels of what both give.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    image_size: int

    @property
    def facts(self) -> DataFacts:
        """Sizes and classes, as the ps compares them between workers."""
        return DataFacts(
            train=len(self.train),
            val=len(self.val),
            classes=len(self.classes),
            class_hash=hash_of_classes(self.classes),
            image_size=self.image_size,
        )


def open_data(
    config: DataConfig,
    *,
    needs: tuple[str, ...] = ("train", "val"),
    leaving: Callable[[], bool] = lambda: False,
) -> ImageData:
    """Find a data set's samples and classes; no image but the first is read.

    Shards that are not on this PC are fetched first, into its cache, and read there.

    Args:
        config: where it is; ``format`` ``auto`` looks for shards, else takes folders.
        needs: the halves that must be there.
        leaving: asked while data are fetched; once true, KeyboardInterrupt is raised.

    Raises:
        DataError: the data are missing (``data-not-found``, ``data-no-validation``,
            ``data-empty``), may not be read (``data-unreadable``), are damaged
            (``data-corrupt``), contradict themselves (``data-classes-differ``); those that are
            not local may not be read (``data-remote-denied``), are out of reach
            (``data-remote-unreachable``), in no way that minga knows
            (``data-remote-unsupported``), or cannot be kept (``disk-full``, ``no-access``).
    """
    try:
        return _open(config, needs, leaving)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or config.path}: {error.strerror or error}",
            code="data-unreadable",
            hints=(Hint("who may?", f"ls -ld {error.filename or config.path}"),),
        ) from error


def _open(config: DataConfig, needs: tuple[str, ...], leaving: Callable[[], bool]) -> ImageData:
    places = {half: (half == "val" and config.val_path) or config.path for half in needs}
    remote = {half for half, place in places.items() if is_remote(place)}
    if remote or config.format == "webdataset" or (config.format == "auto" and are_shards(config)):
        paths = {
            half: fetched_shards(config, half, leaving)
            if half in remote
            else local_shards(config, half)
            for half in needs
        }
        classes, found = open_shards(config.path, paths)
    else:
        classes, found = open_folders(config, needs)
    train, val = (found.get(half, FileSource([])) for half in ("train", "val"))
    size = config.image_size or natural_size(found[needs[0]])
    return ImageData(classes, Split(train, size), Split(val, size), size)
