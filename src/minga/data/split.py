"""One half of a data set: samples by index, decoded, resized and, up to 64 px, kept in RAM."""

from __future__ import annotations

import io
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from minga.data.augment import Draws, Images, flip, padded_crop, random_box
from minga.errors import DataError, Hint

SMALL = 64
"""Images up to this side keep their size and stay in RAM once decoded."""

_CACHE_BYTES = 2 << 30
MOST_THREADS = 4
"""More threads take the GIL from the training thread: 8 and 16 slowed a GPU worker down."""
_BAD_SHARE = 0.01
_BAD_ALWAYS_ALLOWED = 3
_MARGIN = 256 / 224
_NO_NAME = re.compile(r" <_io\.BytesIO[^>]*>")
"""Pillow's name for an image that it reads from bytes."""
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow raises it for a broken PNG
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)

Labels = npt.NDArray[np.int64]


class Source(Protocol):
    """Encoded images by index; ``labels`` is int64 [n]. Calls come from several threads."""

    labels: Labels

    def name(self, index: int) -> str:
        """Return a sample's name for messages; it ends in the image's extension."""

    def encoded(self, index: int) -> bytes:
        """Return the image file's bytes. Raises OSError."""


class Split:
    """The training or the validation half of a data set.

    A sample that cannot be decoded is replaced by the next readable one, image and label,
    and is listed in ``bad`` with the reason.

    Args:
        source: the encoded images.
        size: side in pixels of the images that :meth:`read` returns.
    """

    def __init__(self, source: Source, size: int) -> None:
        self.source = source
        self.size = size
        self.bad: dict[str, str] = {}
        self._stand_in = np.arange(len(self))
        self._cache: Images | None = None
        if size <= SMALL and len(self) * size * size * 3 <= _CACHE_BYTES:
            self._cache = np.zeros((len(self), size, size, 3), dtype=np.uint8)
        self._cached = np.zeros(len(self), dtype=np.bool_)
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "minga-decode")

    def __len__(self) -> int:
        return len(self.source.labels)

    @property
    def labels(self) -> Labels:
        """Class index of each sample: int64 [n]."""
        return self.source.labels

    def read(
        self, indices: npt.NDArray[np.int64], numbers: Draws | None = None
    ) -> tuple[Images, Labels]:
        """Return images uint8 [B, size, size, 3] and labels int64 [B].

        Args:
            indices: int64 [B].
            numbers: [B, 5] of :func:`minga.data.augment.draws` to augment;
                None for the plain image.

        Raises:
            DataError: more than 1 % of the split (and more than 3 images) are unreadable.
        """
        if self.size > SMALL:
            images = self._large(indices, numbers)
        else:
            images = self._small(indices)
            if numbers is not None:
                images = flip(padded_crop(images, numbers), numbers)
        return images, self.labels[self._stand_in[indices]]

    def close(self) -> None:
        """Abort the read in progress, and read no more; the waiting caller gets an exception.

        Thousands of large images take long, and a thread inside torch while Python exits
        aborts the process.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _large(self, indices: npt.NDArray[np.int64], numbers: Draws | None) -> Images:
        """Decode, crop and mirror in parallel: in one thread it takes longer than a GPU's step."""
        images = np.empty((len(indices), self.size, self.size, 3), dtype=np.uint8)

        def fill(row: int) -> None:
            if numbers is None:
                images[row] = self._view(indices[row])
            else:
                images[row] = self._view(indices[row], numbers[row])
                flip(images[row : row + 1], numbers[row : row + 1])

        for _ in self._pool.map(fill, range(len(indices))):
            continue
        return images

    def _small(self, indices: npt.NDArray[np.int64]) -> Images:
        if self._cache is None:
            return np.stack(list(self._pool.map(self._view, indices)))
        missing = np.unique(indices[~self._cached[indices]])
        for index, image in zip(missing, self._pool.map(self._view, missing), strict=True):
            self._cache[index] = image
        self._cached[missing] = True
        return self._cache[indices]

    def _view(self, index: int, numbers: Draws | None = None) -> Images:
        """Return one image, or the next readable one."""
        first = int(self._stand_in[index])
        for step in range(len(self)):
            at = (first + step) % len(self)
            try:
                image = decode(self.source.encoded(at))
            except _UNREADABLE as error:
                self._note_bad(at, error)
                continue
            self._stand_in[index] = at
            return plain_view(image, self.size) if numbers is None else self._part(image, numbers)
        raise self._corrupt()

    def _part(self, image: Image.Image, numbers: Draws) -> Images:
        box = random_box(*image.size, numbers)
        side = (self.size, self.size)
        return np.asarray(image.resize(side, Image.Resampling.BILINEAR, box))

    def _note_bad(self, index: int, error: Exception) -> None:
        why = _NO_NAME.sub("", str(error)) or type(error).__name__
        self.bad[self.source.name(index)] = why
        if len(self.bad) > max(_BAD_ALWAYS_ALLOWED, _BAD_SHARE * len(self)):
            raise self._corrupt()

    def _corrupt(self) -> DataError:
        first = ", ".join(f"{name} ({why})" for name, why in [*self.bad.items()][:3])
        return DataError(
            f"{len(self.bad)} of {len(self)} images cannot be read, first {first}",
            code="data-corrupt",
            hints=(Hint("was the copy cut short? deploy the data again", "make deploy"),),
        )


def decode(encoded: bytes) -> Image.Image:
    """Return an RGB image from any format and colour mode that Pillow reads."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.info.pop("transparency", None)  # not kept; for a palette's, Pillow would warn
        return image.convert("RGB")


def plain_view(image: Image.Image, size: int) -> Images:
    """Return the centre of an image as uint8 [size, size, 3].

    Up to 64 px that is the largest square; above, shorter side to 8/7 of ``size``, then
    the centre (256 and 224, He et al. 2015, arXiv:1512.03385).
    """
    if image.size == (size, size) and size <= SMALL:
        return np.asarray(image)
    side = size if size <= SMALL else round(size * _MARGIN)
    square = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    edge = (side - size) // 2
    return np.asarray(square)[edge : edge + size, edge : edge + size]


def natural_size(source: Source) -> int:
    """Return the side to use: the first image's up to 64 px, 224 above.

    Raises:
        DataError: none of the first images can be read.
    """
    tries = min(len(source.labels), 100)
    for index in range(tries):
        try:
            side = max(decode(source.encoded(index)).size)
        except _UNREADABLE:
            continue
        return side if side <= SMALL else 224
    raise DataError(
        f"none of the first {tries} images can be read, first {source.name(0)}",
        code="data-corrupt",
        hints=(Hint("are these images?", f"file {source.name(0)}"),),
    )
