"""Image variants, one per value of the inventory's ``cuda=``. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DEFAULT = "default"
"""The image of a PC without ``cuda=``."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The CUDA build of an image's torch.

    Attributes:
        cuda: its version, empty for none.
        driver: the oldest NVIDIA driver that runs it.
        oldest: compute capability of the oldest supported cards.
        newest: of the newest ones.
    """

    cuda: str
    driver: int = 0
    oldest: tuple[int, int] = (0, 0)
    newest: tuple[int, int] = (99, 0)

    def suits(self, card: Mapping[str, str]) -> bool:
        """Return whether a card and its driver can train with it; True without CUDA."""
        generation = numbers(card["capability"]) or self.oldest
        driver = numbers(card["driver"])
        fits = driver[:1] >= (self.driver,) and self.oldest <= generation <= self.newest
        return fits or not self.cuda


VARIANTS: Mapping[str, Variant] = {
    DEFAULT: Variant("13.2", 580, (7, 5)),
    "cu126": Variant("12.6", 525, (5, 0), (9, 0)),
    "cpu": Variant(""),
}
"""In the order of preference. All have the same version of torch."""


def build_arguments(name: str, wheels: str) -> dict[str, str]:
    """Return the Dockerfile's arguments that make this image.

    Args:
        name: of the variant.
        wheels: address of PyTorch's own wheels, with a folder per variant; the default uses the
            normal index.
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
    """Return the first of these ``cuda=`` that all cards can train with; empty if none."""
    for name in variants:
        variant = VARIANTS[name]
        if all(variant.suits(card) for card in cards):
            return name
    return ""
