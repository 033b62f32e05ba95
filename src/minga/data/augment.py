"""Training augmentation on whole batches of uint8 images, from random numbers made beforehand.

A row of :func:`draws` decides the augmentation of one position of one epoch. It depends on seed,
epoch and position only: the same pixels come out whichever worker holds the lease, and
however the positions are cut into leases and batches.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]

_STREAM = 2
_BLOCK = 1024  # a generator costs 25 us: one serves so many positions
_FLIP, _X, _Y, _AREA, _RATIO = range(5)
_SMALLEST_AREA = 0.08
_WIDEST_RATIO = 4 / 3


def draws(seed: int, epoch: int, start: int, stop: int) -> Draws:
    """Return the random numbers of positions ``start`` to ``stop``: float64 [n, 5] in [0, 1)."""
    first, last = start // _BLOCK, (stop - 1) // _BLOCK
    blocks = [
        np.random.default_rng([seed, _STREAM, epoch, block]).random((_BLOCK, 5))
        for block in range(first, last + 1)
    ]
    return np.concatenate(blocks)[start - first * _BLOCK : stop - first * _BLOCK]


def padded_crop(images: Images, numbers: Draws) -> Images:
    """Shift each image by up to an eighth of its side, mirroring at the borders.

    Args:
        images: uint8 [B, side, side, 3].
        numbers: [B, 5] of :func:`draws`.

    Returns:
        uint8 [B, side, side, 3], a copy.
    """
    side = images.shape[1]
    pad = side // 8
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    top, left = (numbers[:, (_Y, _X)] * (2 * pad + 1)).astype(np.int64).T
    cropped: Images = windows[np.arange(len(images)), top, left]
    return cropped.transpose(0, 2, 3, 1)


def flip(images: Images, numbers: Draws) -> Images:
    """Mirror half of the images left to right, in place; return them."""
    chosen = numbers[:, _FLIP] < 0.5
    images[chosen] = images[chosen][:, :, ::-1]
    return images


def random_box(width: int, height: int, row: Draws) -> tuple[float, float, float, float]:
    """Return the crop (left, top, right, bottom) of a large image.

    8 to 100 % of the area at a side ratio of 3:4 to 4:3, as in Szegedy et al. 2015
    (arXiv:1409.4842); a box that sticks out is cut to the image.
    """
    area = width * height * (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * row[_AREA])
    ratio = math.exp((2 * row[_RATIO] - 1) * math.log(_WIDEST_RATIO))
    box_width = min(float(width), math.sqrt(area * ratio))
    box_height = min(float(height), math.sqrt(area / ratio))
    left, top = row[_X] * (width - box_width), row[_Y] * (height - box_height)
    return left, top, left + box_width, top + box_height
