"""The image in parts: a folder is shared out over layers, and each is loaded once it is there."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lan.shell import wait_for

from support import ROOT, needs, play

LOAD = ROOT / "ansible" / "roles" / "image" / "files" / "load.sh"
SPLIT = ROOT / "docker" / "split.py"
LIMIT_S = 60.0
_DOCKER = """#!/bin/sh
case "$*" in
  "image load --quiet")
    said=$(cat) && touch "$IMAGES/$said" && echo "loaded $said" >> "$LOG" && [ "$said" != bad ] ;;
  "image inspect "*) [ -e "$IMAGES/$3" ] ;;
  "image ls "*) ls "$IMAGES" | grep part || true ;;
  "image rm --force "*) shift 3; echo "removed $*" >> "$LOG"; cd "$IMAGES" && rm "$@" ;;
esac
"""
_ZSTD = "#!/bin/sh\nexec cat\n"
_SLEEP = '#!/bin/sh\necho >> "$LOG.looks"\nexec /bin/sleep 0.05\n'
"""load.sh's, between two looks."""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Where rsync would bring the image to; beside it the log of what docker was told."""
    folder = tmp_path / "image" / "abc"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def start(tmp_path: Path, inbox: Path) -> Iterator[Start]:
    """Start load.sh, with programs of the test's own for docker and zstd."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("docker", _DOCKER), ("zstd", _ZSTD), ("sleep", _SLEEP)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    images = tmp_path / "images"
    images.mkdir()
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "IMAGES": str(images),
    }
    with contextlib.ExitStack() as running:

        def run(*numbers: int) -> subprocess.Popen[str]:
            words = ["bash", str(LOAD), str(inbox), *map(str, numbers)]
            process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
            running.enter_context(process)
            running.callback(process.kill)
            return process

        yield run


def arrives(inbox: Path, number: int, image: str) -> None:
    """Put the pieces of a layer there in rsync's order."""
    third = len(image) // 3
    for piece, content in enumerate((image[:third], image[third : 2 * third], image[2 * third :])):
        (inbox / f"{number:03}.{piece}.zst").write_text(content)


def part(number: int) -> str:
    """Return what the image is called that ends with a layer."""
    return f"minga:part-abc-{number}"


def told(inbox: Path) -> list[str]:
    """Return what docker was told so far."""
    log = inbox.parent.parent / "log"
    return log.read_text().splitlines() if log.exists() else []


def looks(inbox: Path) -> int:
    """Return how often load.sh has looked for a layer in vain."""
    log = inbox.parent.parent / "log.looks"
    return len(log.read_text()) if log.exists() else 0


def test_a_layer_is_loaded_while_the_next_is_on_its_way(inbox: Path, start: Start) -> None:
    early = start(1, 4, 1)
    arrives(inbox, 1, part(1))
    wait_for("the first layer", lambda: told(inbox) == [f"loaded {part(1)}"], LIMIT_S)
    arrives(inbox, 2, part(2))
    arrives(inbox, 3, "minga:2")
    assert early.wait(LIMIT_S) == 0
    assert told(inbox)[1:] == [f"loaded {part(2)}"], "the last one is the other call's"
    assert start(1, 4).wait(LIMIT_S) == 0
    assert told(inbox)[2:] == ["loaded minga:2", f"removed {part(1)} {part(2)}"]


def test_the_call_after_rsync_goes_on_where_the_early_one_is(inbox: Path, start: Start) -> None:
    early = start(0, 3, 1)
    arrives(inbox, 0, part(0))
    wait_for("the first layer", lambda: told(inbox) == [f"loaded {part(0)}"], LIMIT_S)
    for piece in range(2):
        (inbox / f"001.{piece}.zst").touch()
    before = looks(inbox)
    wait_for("two looks", lambda: looks(inbox) > before + 2, LIMIT_S)
    assert early.poll() is None
    assert len(told(inbox)) == 1, "two pieces of three are no layer"
    incomplete = start(0, 3)
    assert incomplete.wait(LIMIT_S) == 1
    assert incomplete.stderr
    assert "without layer 1" in incomplete.stderr.read()
    assert early.wait(LIMIT_S) == 0, "it has made way"
    arrives(inbox, 1, part(1))
    arrives(inbox, 2, "minga:2")
    assert start(0, 3).wait(LIMIT_S) == 0
    assert told(inbox)[1:3] == [f"loaded {part(1)}", "loaded minga:2"], "none twice"


def test_a_layer_that_cannot_be_loaded_ends_it(inbox: Path, start: Start) -> None:
    arrives(inbox, 0, "bad")
    arrives(inbox, 1, "minga:2")
    assert start(0, 2).wait(LIMIT_S) == 1
    assert told(inbox) == ["loaded bad"]


def test_to_send_all_is_to_take_nothing_for_granted(
    inbox: Path, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "images" / part(0)).touch()
    other = inbox.with_name("other")
    other.mkdir()
    arrives(other, 0, "of another image")
    arrives(inbox, 0, part(0))
    assert start(0, 2, 1).wait(LIMIT_S) == 0
    assert told(inbox) == [f"removed {part(0)}", f"loaded {part(0)}"]
    assert not other.exists()


# -- docker/split.py


def test_a_folder_is_shared_out_over_parts_of_one_size_large_files_first(tmp_path: Path) -> None:
    folder, parts = tmp_path / "venv", tmp_path / "parts"
    sizes = {"lib/big.so": 500, "lib/a/mid.so": 300, "lib/a/next.so": 200, "bin/x": 90, "cfg": 10}
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    (folder / "lib64").symlink_to("lib")
    subprocess.run([sys.executable, str(SPLIT), str(folder), str(parts), "3"], check=True)
    found = {
        path.relative_to(parts / number / folder.relative_to("/")): int(number)
        for number in ("1", "2", "3")
        for path in (parts / number).rglob("*")
        if path.is_symlink() or path.is_file()
    }
    assert {str(name): number for name, number in found.items()} == {
        "lib/big.so": 1,
        "lib/a/mid.so": 2,
        "lib/a/next.so": 3,
        "bin/x": 3,
        "cfg": 3,
        "lib64": 3,
    }
    assert os.readlink(next(parts.glob("3/**/lib64"))) == "lib"
    assert not [path for path in folder.rglob("*") if path.is_file()], "moved, not copied"


def test_the_image_takes_every_part() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    made = re.search(r"split\.py \S+ /parts (\d+)", dockerfile)
    assert made
    taken = re.findall(r"^COPY --from=stack /parts/(\d+) /$", dockerfile, re.M)
    assert taken == [str(number + 1) for number in range(int(made[1]))]


# -- what is removed of what a PC has

_REMOVABLE = """
- name: Ask the role
  hosts: all
  connection: local
  gather_facts: false
  vars:
    image_wanted: {tag: "minga:a"}
    image_found:
      - {RepoTags: ["minga:a"], Created: "2026-01-01T00:00:00Z"}
      - {RepoTags: ["minga:b"], Created: "2026-01-02T00:00:00Z"}
      - {RepoTags: ["minga:c"], Created: "2026-01-03T00:00:00Z"}
      - {RepoTags: ["minga:part-x-1"], Created: "2026-01-04T00:00:00Z"}
  tasks:
    - name: Take the role's defaults
      ansible.builtin.include_vars: {file: "DEFAULTS"}
    - name: Tell
      ansible.builtin.debug: {msg: "removable={{ image_removable | join(',') }}."}
"""


def test_a_step_back_to_older_code_keeps_its_image(tmp_path: Path) -> None:
    needs("ansible")
    playbook, inventory = tmp_path / "ask.yml", tmp_path / "lan.ini"
    defaults = ROOT / "ansible" / "roles" / "image" / "defaults" / "main.yml"
    playbook.write_text(_REMOVABLE.replace("DEFAULTS", str(defaults)))
    inventory.write_text("a\n")
    assert "removable=minga:part-x-1,minga:b." in play(inventory, playbook).stdout
