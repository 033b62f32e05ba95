"""Open a data set: find its layout, its classes and its two halves."""

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
        train, val: the halves; one that is not needed has no samples.
        image_size: side in pixels of the images that both return.
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
    """Find a data set's samples and classes; only the first image is read.

    Shards that are not on this PC are fetched first, into its cache, and read there.

    Args:
        config: its place; ``format`` ``auto`` takes shards where there are some, else folders.
        needs: the halves that must exist.
        leaving: polled while data are fetched; KeyboardInterrupt is raised once it is true.

    Raises:
        DataError: the data are missing (``data-not-found``, ``data-no-validation``,
            ``data-empty``), unreadable (``data-unreadable``), damaged
            (``data-corrupt``) or inconsistent (``data-classes-differ``); remote data are
            not readable (``data-remote-denied``), unreachable
            (``data-remote-unreachable``), of an unknown kind
            (``data-remote-unsupported``), or cannot be stored (``disk-full``, ``no-access``).
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
