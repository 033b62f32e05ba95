"""The tests' own tools: a skip for a missing package really skips."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, needs

HIDDEN = {"ansible": "ansible", "docker": "docker", "zstandard": "zstandard"}
"""Distributions of the `deploy` extra, and the packages in them."""

WITHOUT = f"""
import sys
from importlib import metadata
import pytest
installed = metadata.version
def version(name):
    if name in {list(HIDDEN)}:
        raise metadata.PackageNotFoundError(name)
    return installed(name)
metadata.version = version
for name in ("ansible.constants", "docker.client", "docker.errors", "zstandard"):
    sys.modules[name] = None  # importing it raises ImportError, as where it is not installed
sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", *sys.argv[1:]]))
"""


def _users_of_deploy() -> list[Path]:
    """Test files that skip without the `deploy` extra."""
    files = sorted((ROOT / "tests").glob("[ui]n*/test_*.py"))
    words = ('needs("', "importorskip(")
    return [each for each in files if any(word in each.read_text() for word in words)]


def test_without_the_deploy_extra_its_tests_skip_and_say_why() -> None:
    files = [str(each) for each in _users_of_deploy() if each != Path(__file__)]
    assert len(files) >= 5, "the control: there are files to skip"
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, "-rs", "--collect-only", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "error" not in ended.stdout.lower(), ended.stdout
    skipped = re.findall(r"SKIPPED \[(\d+)\] .*make lint installs it", ended.stdout)
    within = 1  # a file of which one test skips, when it runs
    assert sum(map(int, skipped)) == len(files) - within, ended.stdout


def test_a_package_that_is_there_skips_nothing() -> None:
    needs("pytest")
    with pytest.raises(pytest.skip.Exception, match="needs no-such-package: make lint"):
        needs("no-such-package")
