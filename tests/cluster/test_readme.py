"""Every command of README.md, run in a copy of the project as a stranger would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.harness import TIMEOUT_S, wait_until
from support import ROOT, copy_project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line and not line.startswith("#")
]
SERVES = "./start_ps.sh"
"""Runs until it is stopped."""
ELSEWHERE = {"make check", "make deploy", "make train", "make status", "make stop", "make collect"}
"""Needs a LAN: run by `make lan-test`."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in a folder of its own, as a stranger has it after `make setup`."""
    return copy_project(tmp_path_factory.mktemp("a stranger's") / "minga")


def run(command: str, folder: Path) -> str:
    """Run a command of the page as it stands there; return what it printed."""
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_the_page_has_commands_for_each_part() -> None:
    assert {"make demo", SERVES, ".venv/bin/minga config show"} <= set(COMMANDS)


def test_the_demo_ends_as_the_page_shows_and_the_commands_after_it_work(copy: Path) -> None:
    printed = run("make demo", copy)
    expected = README.partition("ends like this:")[2].partition("```")[2].partition("```")[0]
    shapes = [_shape(line) for line in expected.strip().splitlines()]
    assert [_shape(line) for line in printed.strip().splitlines()[-len(shapes) :]] == shapes
    accuracy = re.search(r"validation accuracy ([\d.]+) %", printed)
    assert accuracy
    assert float(accuracy[1]) >= 97
    for command in COMMANDS:
        if command not in {"make demo", SERVES} | ELSEWHERE:
            assert run(command, copy).strip(), command


def test_the_ps_starts_as_the_page_shows_and_stops_on_ctrl_c(copy: Path) -> None:
    log = copy / "ps.log"
    with log.open("wb") as out:
        ps = subprocess.Popen(
            ["bash", "-c", f"exec {SERVES}"], cwd=copy, stdout=out, stderr=subprocess.STDOUT
        )
    wait_until(lambda: "Parameter Server is running..." in log.read_text(), log.read_text())
    ps.send_signal(signal.SIGINT)
    assert ps.wait(TIMEOUT_S) == 130
    expected = README.partition("exact command for the other PCs:")[2]
    for line in expected.partition("```")[2].partition("```")[0].strip().splitlines():
        assert _shape(line) in map(_shape, log.read_text().splitlines())


def _shape(line: str) -> str:
    """Return a line without what differs from run to run: numbers, names of runs, tokens."""
    line = re.sub(r"MINGA_TOKEN=\S+", "MINGA_TOKEN=", line)
    line = re.sub(r"(address +)\S.*", r"\1", line)
    return re.sub(r"\d[\d.]*", "0", re.sub(r" +", " ", line)).strip()
