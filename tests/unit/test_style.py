"""The prose of src, docs, ansible and README keeps to the banned phrases of docs/style.md."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

STYLE = ROOT / "docs" / "style.md"
BANNED = [
    re.compile(each.replace("\\|", "|"), re.IGNORECASE)
    for each in re.findall(
        r"^\| `(.+)` \| [^|]+ \|$",
        STYLE.read_text().partition("## Banned phrases")[2],
        flags=re.MULTILINE,
    )
]
PAGES = sorted(
    path
    for path in (
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "ansible").rglob("*"),
        *ROOT.glob("*.md"),
        *ROOT.glob("*.sh"),
        ROOT / "Makefile",
    )
    if path.is_file()
    and path.suffix not in (".png", ".pyc")
    and path not in (STYLE, ROOT / "docs" / "guia-lan.md")
)
"""The Spanish guide is not English."""


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of a Python source's comments, and of its strings with a space."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def _hits(text: str, *, python: bool = False) -> list[str]:
    lines = _prose(text) if python else enumerate(text.splitlines(), start=1)
    return [
        f"line {number}: {found[0]!r} in {line.strip()!r}"
        for number, line in lines
        for banned in BANNED
        if (found := banned.search(line))
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_has_no_banned_phrase(path: Path) -> None:
    assert _hits(path.read_text(), python=path.suffix == ".py") == []


def test_the_rule_sees_what_it_forbids() -> None:
    assert len(BANNED) >= 20
    for bad in (
        "Show what every PC lacks, and the command that mends it",
        "None if there is none, or none of ours",
        "once more to leave at once",
        "The images that there are",
    ):
        assert _hits(bad), bad
    assert _hits('def f():\n    """A stranger is told."""\n', python=True)
    assert not _hits("told = tell(lacks)\n", python=True), "names of code are not prose"
