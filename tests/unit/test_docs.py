"""What the pages say is there: error codes, links, files, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
CODE = re.compile(r"""(?:code=|"code": )"([a-z]+(?:-[a-z]+)*)\"""")


def _headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_error_code_has_its_paragraph_and_no_paragraph_is_left_over() -> None:
    page = ROOT / "docs" / "troubleshooting.md"
    paragraphs = set(re.findall(r"^### (\S+)$", page.read_text(), flags=re.MULTILINE))
    usage = {"usage"}  # chosen beside config-value, so not after a plain `code=`
    assert set(CODE.findall(SOURCES)) | usage == paragraphs


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        assert "://" not in target or target.startswith("https://"), target
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in _headings(there), f"{page.name} links to {target}"


def test_the_link_rule_sees_anchors() -> None:
    assert "ps-unreachable" in _headings(ROOT / "docs" / "troubleshooting.md")
