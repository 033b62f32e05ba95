"""The images that there are, one per value of the inventory's ``cuda=``. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEFAULT = "default"
"""The image of a PC whose line says nothing."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What an image's torch is built for.

    Attributes:
        cuda: its version, empty for none.
        driver: the oldest of NVIDIA's that runs it.
        oldest: compute capability of the oldest cards that it has code for.
        newest: of the newest.
    """

    cuda: str
    driver: int = 0
    oldest: tuple[int, int] = (0, 0)
    newest: tuple[int, int] = (99, 0)

    def suits(self, card: Mapping[str, str]) -> bool:
        """Tell whether a card with its driver can train with it, or is not asked to."""
        generation = numbers(card["capability"]) or self.oldest
        driver = numbers(card["driver"])
        fits = driver[:1] >= (self.driver,) and self.oldest <= generation <= self.newest
        return fits or not self.cuda


VARIANTS: Mapping[str, Variant] = {
    DEFAULT: Variant("13.2", 580, (7, 5)),
    "cu126": Variant("12.6", 525, (5, 0), (9, 0)),
    "cpu": Variant(""),
}
"""In the order in which they are proposed. All have the same version of torch."""


def build_arguments(name: str, wheels: str) -> dict[str, str]:
    """Return the Dockerfile's arguments that make this image.

    Args:
        name: of the variant.
        wheels: where PyTorch's own wheels are, a folder per variant; the default has those of
            everybody's index.
    """
    variant = VARIANTS[name]
    arguments = {"CUDA": variant.cuda or "none", "MIN_DRIVER": str(variant.driver)}
    if name != DEFAULT:
        arguments["WHEELS"] = f"{wheels.rstrip('/')}/{name}"
    return arguments


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (26, 1, 5) for ``26.1.5+dfsg1``."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(map(int, found[1].split("."))) if found else ()


def suitable(cards: Sequence[Mapping[str, str]], variants: Sequence[str]) -> str:
    """Return the first of these ``cuda=`` that all cards can train with; nothing if none is."""
    for name in variants:
        variant = VARIANTS[name]
        if all(variant.suits(card) for card in cards):
            return name
    return ""
