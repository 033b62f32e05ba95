"""NVIDIA's container toolkit on a PC: what toolkit.sh adds, purge.sh takes away; nothing else.

The scripts are run as they are, but for their paths; the PC's commands are `toolkit_pc.py`'s.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

ROLES = ROOT / "ansible" / "roles"
REPOSITORY, VERSION = "http://10.0.0.1/nvidia", "1.20.0-1"
FAKES = ("apt-get", "apt-helper", "docker", "dockerd", "dpkg", "dpkg-query", "systemctl")
TOOLS = (
    *("cat", "chmod", "cmp", "comm", "cp", "cut", "dirname", "env", "grep", "head", "install"),
    *("mkdir", "mktemp", "mv", "readlink", "rm", "rmdir", "sed", "sh", "sha256sum"),
    *("sort", "tail", "touch", "tr", "true", "xargs"),
)
STATE: dict[str, Any] = {
    "runtimes": [],
    "running": [],
    "containers": {},
    "asked": [],
    "installed": ["libc6"],
    "versions": [],
    "more": {},
    "offline": False,
    "deaf": False,
    "breaks": False,
    "invalid": False,
    "validates": True,
}
OWNERS = '{"log-opts": {"max-size": "7m"},\n "runtimes": {"kata": {"path": "kata"}}}\n'


class Pc:
    """A PC in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.settings = folder / "etc" / "docker" / "daemon.json"
        self.added = folder / "opt" / "minga" / "added"
        self.bin = folder / "bin"
        for name in ("bin", "etc/docker", "etc/apt/sources.list.d", "usr/share/keyrings", "proc/7"):
            (folder / name).mkdir(parents=True)
        (folder / "proc" / "7" / "cmdline").write_bytes(b"dockerd\0-H\0fd://\0")
        commands = self.bin / "toolkit_pc.py"
        shutil.copy(Path(__file__).with_name("toolkit_pc.py"), commands)
        commands.chmod(0o755)
        for name in FAKES:
            (self.bin / name).symlink_to(commands)
        for name in TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        (self.bin / "python3").symlink_to(Path(sys.executable).resolve())
        (self.bin / "sleep").symlink_to(self.bin / "true")
        (self.bin / "state.json").write_text(json.dumps(STATE))

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bin / "state.json").read_text())
        return found

    def change(self, **values: Any) -> None:
        (self.bin / "state.json").write_text(json.dumps({**self.state, **values}))

    def add(self, expected: int = 0) -> tuple[list[str], str]:
        """Run `toolkit.sh add`; return what it printed and its last words."""
        ended = self._run("gpu/files/toolkit.sh", "add", str(self.added), REPOSITORY, VERSION)
        assert ended.returncode == expected, ended.stderr
        return ended.stdout.splitlines(), ended.stderr.strip()

    def purge(self) -> list[str]:
        ended = self._run("purge/files/purge.sh", str(self.added.parent), "-30005")
        assert ended.stderr == ""
        return ended.stdout.splitlines()

    def tree(self) -> dict[str, bytes]:
        """Return every file of the PC but its commands, and every folder."""
        paths = [path for path in self.root.rglob("*") if self.bin not in (path, *path.parents)]
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}

    def _run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        text = (ROLES / script).read_text().replace("/usr/lib/apt/apt-helper", "apt-helper")
        for place in ("/etc/", "/usr/", "/var/", "/opt/", "/proc/"):
            text = text.replace(f" {place}", f" {self.root}{place}")
            text = text.replace(f"={place}", f"={self.root}{place}")
            text = text.replace(f'"{place}', f'"{self.root}{place}')
        path = self.root / "script.sh"
        path.write_text(text)
        try:
            return subprocess.run(
                [str(self.bin / "sh"), str(path), *words],
                env={"PATH": str(self.bin), "TMPDIR": str(self.bin)},
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )
        finally:
            path.unlink()


@pytest.fixture
def pc(tmp_path: Path) -> Pc:
    return Pc(tmp_path)


@pytest.mark.parametrize("owners", [None, "", OWNERS])
def test_what_came_goes_again_byte_for_byte(pc: Pc, owners: str | None) -> None:
    if owners is None:
        pc.settings.parent.rmdir()
    else:
        pc.settings.write_text(owners)
        pc.settings.chmod(0o640)
    (pc.root / "opt").mkdir()
    before = pc.tree()
    printed, _ = pc.add()
    assert printed == [
        f"added NVIDIA's container toolkit {VERSION}",
        f"added the runtime nvidia to {pc.settings}",
    ]
    found = json.loads(pc.settings.read_text())
    assert found.pop("runtimes").pop("nvidia")["path"] == "nvidia-container-runtime"
    if owners:
        assert found == {"log-opts": {"max-size": "7m"}}
        assert pc.settings.stat().st_mode & 0o777 == 0o640
    assert pc.state["versions"] == [VERSION]
    assert len(pc.state["installed"]) == 5
    assert "restart" not in pc.state["asked"]
    assert "nvidia" in pc.state["runtimes"]
    source = pc.root / "etc/apt/sources.list.d/nvidia-container-toolkit.list"
    key = pc.root / "usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"
    assert source.read_text() == f"deb [signed-by={key}] {REPOSITORY}/stable/deb/$(ARCH) /\n"
    assert key.read_bytes() == b"\x99the repository's key", "without its armour"
    assert pc.tree() != before, "control"
    taken = pc.purge()
    assert "package nvidia-container-toolkit-base" in taken
    assert not [line for line in taken if line.startswith("kept")]
    assert pc.tree() == before
    assert (pc.state["installed"], "nvidia" in pc.state["runtimes"]) == (["libc6"], False)
    assert "restart" not in pc.state["asked"]


def test_a_second_time_changes_nothing(pc: Pc) -> None:
    pc.add()
    before = pc.tree()
    assert pc.add()[0] == []
    assert pc.tree() == before


def test_a_toolkit_and_settings_of_the_owners_stay_theirs(pc: Pc) -> None:
    (pc.bin / "nvidia-ctk").symlink_to(pc.bin / "toolkit_pc.py")
    pc.settings.write_text('{"runtimes": {"nvidia": {"path": "own"}}}')
    (pc.root / "opt").mkdir()
    before = pc.tree()
    assert pc.add()[0] == [], "it was only not read yet"
    assert pc.state["runtimes"] == ["nvidia"]
    pc.change(containers={"theirs": "nvidia null"})
    assert pc.purge() == [f"folder {pc.added.parent}"]
    assert pc.tree() == before


@pytest.mark.parametrize("only", [False, True])
def test_without_a_way_to_the_repository_nothing_stays(pc: Pc, only: bool) -> None:
    if only:  # the key comes, the packages do not
        (pc.bin / "apt-get").unlink()
        (pc.bin / "apt-get").write_text("#!/bin/sh\necho 'E: Failed to fetch it' >&2\nexit 100\n")
        (pc.bin / "apt-get").chmod(0o755)
    else:
        pc.change(offline=True)
    (pc.root / "opt").mkdir()
    before = pc.tree()
    printed, said = pc.add(expected=4)
    assert (printed, said.splitlines()[-1]) == (
        [],
        "E: Failed to fetch it" if only else f"{REPOSITORY}/gpgkey: E: Failed to fetch the key",
    )
    pc.purge()
    assert pc.tree() == before


def test_an_older_toolkit_of_the_owners_is_not_replaced(pc: Pc) -> None:
    pc.change(installed=["libc6", "nvidia-container-toolkit"])
    assert "too old" in pc.add(expected=5)[1]
    assert pc.state["versions"] == []


def test_a_system_without_apt_and_dnf_is_told(pc: Pc) -> None:
    (pc.bin / "apt-get").unlink()
    assert pc.add(expected=4)[1] == "neither apt nor dnf is there"


def test_docker_is_restarted_only_where_a_reload_did_not_do_and_nothing_runs(pc: Pc) -> None:
    pc.change(deaf=True, running=["web"])
    assert pc.add(expected=3)[0] != []
    assert "restart" not in pc.state["asked"]
    pc.change(running=[])
    assert pc.add()[0] == [], "it was all there"
    assert pc.state["asked"].count("restart") == 1
    assert pc.state["runtimes"] == ["nvidia"]


def test_a_docker_that_does_not_start_with_it_gets_its_settings_back(pc: Pc) -> None:
    pc.settings.write_text(OWNERS)
    pc.change(deaf=True, breaks=True)
    assert "Docker did not start with it" in pc.add(expected=5)[1]
    assert pc.settings.read_text() == OWNERS
    assert pc.state["runtimes"] == ["kata"], "it runs again"


@pytest.mark.parametrize(
    ("state", "owners", "why"),
    [
        ({"invalid": True}, OWNERS, "would not do: unable to configure"),
        ({"more": {"default-runtime": "nvidia"}}, OWNERS, "more would change than the runtime"),
        ({"more": {"log-opts": {}}}, OWNERS, "more would change than the runtime"),
        ({}, "{not json", "Expecting property name"),
        ({}, "[1]", "not what Docker expects"),
    ],
)
def test_settings_that_would_not_be_right_are_not_written(
    pc: Pc, state: dict[str, Any], owners: str, why: str
) -> None:
    pc.settings.write_text(owners)
    pc.change(**state)
    assert why in pc.add(expected=5)[1]
    assert pc.settings.read_text() == owners
    assert "reload" not in pc.state["asked"]


def test_an_engine_before_docker_23_is_not_asked_to_validate(pc: Pc) -> None:
    pc.change(invalid=True, validates=False)
    pc.add()


def test_an_engine_with_other_settings_is_left_alone(pc: Pc) -> None:
    (pc.root / "proc" / "7" / "cmdline").write_bytes(b"dockerd\0--config-file=/own.json\0")
    assert "reads another file" in pc.add(expected=5)[1]
    assert not pc.settings.exists()


def test_of_settings_that_changed_since_only_the_runtime_goes(pc: Pc) -> None:
    pc.settings.write_text(OWNERS)
    pc.add()
    found = json.loads(pc.settings.read_text())
    pc.settings.write_text(json.dumps({**found, "debug": True}))
    pc.purge()
    assert json.loads(pc.settings.read_text()) == {**json.loads(OWNERS), "debug": True}
    assert pc.state["runtimes"] == ["kata"]


def test_settings_that_the_owner_took_away_stay_away(pc: Pc) -> None:
    pc.settings.write_text(OWNERS)
    pc.add()
    pc.settings.unlink()
    pc.purge()
    assert not pc.settings.exists()
    assert pc.state["runtimes"] == [], "Docker does not remember it either"


@pytest.mark.parametrize("how", ["nvidia null", 'runc [{"Capabilities":[["gpu"]]}]', "default"])
def test_a_toolkit_that_somebody_else_uses_stays_as_a_whole(pc: Pc, how: str) -> None:
    pc.add()
    if how == "default":
        found = json.loads(pc.settings.read_text())
        pc.settings.write_text(json.dumps({**found, "default-runtime": "nvidia"}))
        why = f"{pc.settings} has it as the default runtime"
    else:
        pc.change(containers={"plain": "runc null", "theirs": how})
        why = "the container theirs uses it"
    before = pc.settings.read_text()
    assert pc.purge()[0] == f"kept NVIDIA's container toolkit: {why}"
    assert pc.settings.read_text() == before
    assert len(pc.state["installed"]) == 5
    assert (pc.root / "etc/apt/sources.list.d/nvidia-container-toolkit.list").exists()


def test_docker_that_cannot_be_told_keeps_the_toolkit_and_purge_says_so(pc: Pc) -> None:
    pc.add()
    (pc.added / "toolkit.sh").write_text("exit 1\n")
    assert "kept NVIDIA's container toolkit: Docker does not drop it" in pc.purge()
    assert len(pc.state["installed"]) == 5


def test_a_source_that_the_owner_changed_stays(pc: Pc) -> None:
    pc.add()
    source = pc.root / "etc/apt/sources.list.d/nvidia-container-toolkit.list"
    source.write_text("deb http://own /\n")
    assert f"kept {source}: it was changed since" in pc.purge()
    assert source.exists()


def test_a_source_of_the_owners_is_used_and_stays(pc: Pc) -> None:
    source = pc.root / "etc/apt/sources.list.d/own.list"
    source.write_text(f"deb {REPOSITORY}/stable/deb/amd64 /\n")
    (pc.root / "usr/share/keyrings/nvidia-container-toolkit-keyring.gpg").touch()
    pc.add()
    assert not (source.parent / "nvidia-container-toolkit.list").exists()
    pc.purge()
    assert source.exists()
