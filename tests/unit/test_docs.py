"""What the pages say is there: error codes, links, files, commands."""

from __future__ import annotations

import re
from collections.abc import Callable
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


def _targets(page: Path) -> set[Path]:
    """Return the files of this project that a page links to."""
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
    return {(page.parent / link).resolve() for link in links if "://" not in link}


def _reached(start: Path, targets: Callable[[Path], set[Path]] = _targets) -> set[Path]:
    """Return the pages that links lead to from ``start``, itself included."""
    reached, ways = {start}, [start]
    while ways:
        for target in targets(ways.pop()):
            if target.suffix == ".md" and target not in reached:
                reached.add(target)
                ways.append(target)
    return reached


NAMED = re.compile(r"`(test_\w+)`")
TESTS = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))


def _missing_tests(text: str) -> set[str]:
    """Return the tests that a page names and that do not exist."""
    return set(NAMED.findall(text)) - set(re.findall(r"^def (test_\w+)", TESTS, flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    assert not _missing_tests(page.read_text())


@pytest.mark.parametrize("name", ["security.md", "reliability.md"])
def test_every_line_about_a_fault_names_its_test(name: str) -> None:
    rows = re.findall(
        r"^\| (?!what|fault|---).*$", (ROOT / "docs" / name).read_text(), re.MULTILINE
    )
    assert len(rows) > 5
    assert not [row for row in rows if not NAMED.search(row)]


def test_a_test_that_does_not_exist_would_be_seen() -> None:
    assert _missing_tests("`test_nobody_wrote_this`") == {"test_nobody_wrote_this"}


def test_every_page_is_reached_from_the_readme() -> None:
    assert {page.name for page in set(PAGES) - _reached(ROOT / "README.md")} == set()


def test_a_page_without_a_link_is_not_reached() -> None:
    one, two, three = (Path(f"{name}.md") for name in ("one", "two", "three"))
    links = {one: {two}, two: {one, Path("picture.png")}, three: {one}}
    assert _reached(one, links.__getitem__) == {one, two}


GUIDES = [ROOT / "docs" / name for name in ("lan.md", "guia-lan.md")]


def _shape(page: str) -> list[str]:
    """Return the order of headings (by level) and code blocks (by their commands) of a guide.

    Comments and words that are translated on purpose do not count.
    """
    shape = []
    for text, block in re.findall(r"^(#+) [^\n]*$|^```\n(.*?)^```$", page, flags=re.M | re.DOTALL):
        if text:
            shape.append(text)
            continue
        lines = [re.sub(r" +#.*| +\(.*", "", line) for line in block.splitlines()]
        shape.append("\n".join(re.sub(r", last\.pth.*", "", line).strip() for line in lines))
    return shape


def test_both_guides_have_the_same_headings_and_code_blocks() -> None:
    english, spanish = (_shape(guide.read_text()) for guide in GUIDES)
    assert english == spanish
    assert len(english) > 30


def test_the_guides_rule_sees_a_missing_block_a_heading_and_another_command() -> None:
    text = GUIDES[0].read_text()
    blocks = re.findall(r"^```\n.*?^```\n", text, flags=re.MULTILINE | re.DOTALL)
    for wrong in (
        text.replace(blocks[3], "", 1),
        text.replace("## 2. Check", "### 2. Check"),
        text.replace("make collect\n```", "make purge\n```", 1),
    ):
        assert wrong != text
        assert _shape(wrong) != _shape(text)


def test_every_decision_has_a_date_a_status_and_alternatives() -> None:
    for page in (ROOT / "docs" / "adr").glob("0*.md"):
        text = page.read_text()
        assert re.search(r"^\*20\d\d-\d\d-\d\d, (accepted|superseded).*\.\*$", text, flags=re.M), (
            page
        )
        for part in ("Decision", "Reason", "Alternatives", "Measured"):
            assert f"**{part}" in text, f"{page.name} has no {part}"


def test_the_link_rule_sees_anchors() -> None:
    assert "ps-unreachable" in _headings(ROOT / "docs" / "troubleshooting.md")
