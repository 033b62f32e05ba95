"""The image's tool: which layers a host lacks, pieces that load, what makes a new build."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

zstandard = pytest.importorskip("zstandard", reason="make lint installs it")
pytest.importorskip("docker", reason="make lint installs it")

from minga.deploy import check, image, saving, status  # noqa: E402  (they import what may be missing)
from minga.deploy.layers import head, missing_layers, shared_prefix  # noqa: E402
from minga.deploy.staging import Staging  # noqa: E402
from minga.errors import Unreachable  # noqa: E402

# -- which layers


@pytest.mark.parametrize(
    ("have", "want", "count"),
    [("", "abc", 0), ("abc", "abc", 3), ("abd", "abc", 2), ("ab", "abc", 2), ("xbc", "abc", 0)],
)
def test_layers_are_shared_up_to_the_first_difference(have: str, want: str, count: int) -> None:
    assert shared_prefix(have, want) == count


def test_a_host_is_sent_what_follows_its_longest_common_chain() -> None:
    assert missing_layers([], ["a", "b", "c"]) == ("a", "b", "c")
    assert missing_layers([["x"], ["a", "b", "o"], ["a"]], ["a", "b", "c"]) == ("c",)
    assert missing_layers([["a", "b", "c"]], ["a", "b", "c"]) == ()


def test_a_layer_found_under_another_chain_is_sent_all_the_same() -> None:
    assert missing_layers([["x", "c"]], ["a", "b", "c"]) == ("a", "b", "c")


def test_a_layer_that_comes_twice_is_sent_once() -> None:
    assert missing_layers([], ["a", "e", "b", "e"]) == ("a", "e", "b")
    assert missing_layers([["a", "e"]], ["a", "e", "b", "e"]) == ("b",)


# -- pieces

LAYERS = {name: name.encode() * size for name, size in (("os", 700), ("stack", 9001), ("code", 5))}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


CHAIN = [_digest(content) for content in LAYERS.values()]
CONFIG = json.dumps({"rootfs": {"type": "layers", "diff_ids": CHAIN}}).encode()


def _tar(files: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    file.seek(0)
    return file


def _saved_by_20() -> io.BytesIO:
    """As Docker 20 to 24 save: a folder per layer, in the order of names that tell nothing."""
    files = {f"{name}/layer.tar": content for name, content in sorted(LAYERS.items())}
    manifest = [{"Config": "c.json", "Layers": [f"{name}/layer.tar" for name in LAYERS]}]
    return _tar({**files, "c.json": CONFIG, "manifest.json": json.dumps(manifest).encode()})


def _saved_by_29() -> io.BytesIO:
    """As containerd's store saves: blobs by digest, layers zipped."""
    zipped = {f"blobs/sha256/{n}": gzip.compress(content) for n, content in LAYERS.items()}
    manifest = [{"Config": "blobs/sha256/c", "Layers": list(zipped)}]
    head = {"manifest.json": json.dumps(manifest).encode(), "blobs/sha256/c": CONFIG}
    return _tar({**head, **zipped})


def _unpacked(folder: Path) -> dict[str, bytes]:
    """What ``cat folder/* | docker load`` reads."""
    joined = io.BytesIO(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))
    if joined.getvalue().startswith(b"\x1f\x8b"):
        plain = gzip.decompress(joined.getvalue())
    else:
        with zstandard.ZstdDecompressor().stream_reader(joined, read_across_frames=True) as reader:
            plain = reader.read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


@pytest.mark.parametrize("saved", [_saved_by_20, _saved_by_29])
@pytest.mark.parametrize("compression", ["zst", "gz"])
def test_pieces_join_to_an_archive_that_names_all_layers_and_holds_the_missing(
    saved: object, compression: str, tmp_path: Path
) -> None:
    staging = Staging(tmp_path)
    small = staging.take(saved(), CHAIN)
    config = small[json.loads(small["manifest.json"])[0]["Config"]]
    assert config == CONFIG
    assert not staging.lacks(CHAIN)

    parcel = staging.parcel(CHAIN[2:], config, "minga:1", compression)

    files = _unpacked(parcel.folder)
    manifest = json.loads(files["manifest.json"])[0]
    assert manifest["RepoTags"] == ["minga:1"]
    assert manifest["Layers"] == [f"{layer.removeprefix('sha256:')}.tar" for layer in CHAIN]
    assert files[manifest["Config"]] == CONFIG
    assert files.keys() == {"manifest.json", manifest["Config"], manifest["Layers"][2]}
    content = files[manifest["Layers"][2]]
    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    assert plain == LAYERS["code"]
    assert parcel.size_bytes == sum(path.stat().st_size for path in parcel.folder.iterdir())


def test_the_same_parcel_is_laid_out_once(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    first = staging.parcel(CHAIN, CONFIG, "minga:1", "zst")
    made = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert staging.parcel(CHAIN, CONFIG, "minga:1", "zst") == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == made
    assert staging.parcel(CHAIN[1:], CONFIG, "minga:1", "zst").folder != first.folder


def test_a_big_layer_that_is_staged_is_not_compressed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minga.deploy.staging._METADATA_BYTES", 1000)
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*.zst")}
    staging.take(_saved_by_20(), CHAIN)
    again = {path for path in before if path.stat().st_ino != before[path]}
    assert {path.name.partition("-")[2] for path in again} == {"20.zst"}, "os and stack are big"


def test_layers_of_one_size_are_found_when_nothing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minga.deploy.staging._METADATA_BYTES", 10)
    first, second = b"1" * 1000, b"2" * 1000
    chain = [_digest(first), _digest(second)]
    staging = Staging(tmp_path)
    staging.take(_tar({"a/layer.tar": first}), chain)
    saved = {"a/layer.tar": first, "b/layer.tar": second}
    staging.take(_tar(saved), chain)
    assert staging.lacks(chain)
    staging.take(_tar(saved), chain, skip_staged=False)
    assert not staging.lacks(chain)


class _Engine:
    """A Docker client whose containers hold this tar below /opt; stands for its own ``api``."""

    def __init__(self, content: bytes) -> None:
        self.api = self
        self.containers = 0
        self._content = content

    def create_container(self, tag: str) -> dict[str, str]:
        self.containers += 1
        return {"Id": tag}

    def get_archive(self, container: str, folder: str) -> tuple[Iterator[bytes], object]:
        assert folder == "/opt"
        size = 700
        return (self._content[at : at + size] for at in range(0, len(self._content), size)), None

    def remove_container(self, container: str) -> None:
        self.containers -= 1


def _code_and_stack() -> tuple[bytes, bytes]:
    """Return a layer of code, and how a container with it and a venv is copied."""
    code = {"opt/minga/src/minga/a.py": b"a = 1\n" * 300, "opt/minga/src/minga/b.py": b"b\n"}
    whole = _tar({**code, "opt/minga/venv/\0": b"", "opt/minga/venv/x": bytes(9000)}).getvalue()
    return whole.partition(b"opt/minga/venv/")[0] + bytes(1024), whole


def test_the_code_s_layer_is_copied_out_of_a_container(tmp_path: Path) -> None:
    layer, copied = _code_and_stack()
    chain, engine = [*CHAIN[:2], _digest(layer)], _Engine(copied)
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    staging.take(saving.topmost(engine, "minga:2"), chain)
    assert not staging.lacks(chain)
    assert engine.containers == 0
    attrs = {"Created": "now", "Config": {"Labels": {"minga.build": "2"}}}
    config = json.loads(image.next_config(CONFIG, chain, attrs))
    assert (config["rootfs"]["diff_ids"], config["config"]) == (chain, attrs["Config"])
    parcel = staging.parcel(chain[2:], json.dumps(config).encode(), "minga:2", "zst")
    assert layer in _unpacked(parcel.folder).values()


def test_a_copy_that_is_no_layer_is_not_taken_for_one(tmp_path: Path) -> None:
    layer, copied = _code_and_stack()
    chain = [*CHAIN[:2], _digest(layer)]
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    staging.take(saving.topmost(_Engine(copied[512:]), "minga:2"), chain)
    assert staging.lacks(chain)


def test_pruning_keeps_the_layers_of_the_image(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    folder = staging.parcel(CHAIN, CONFIG, "minga:1", "zst").folder
    staging.prune(CHAIN[:2])
    assert not staging.lacks(CHAIN[:2])
    assert staging.lacks(CHAIN)
    assert not folder.exists()


def test_the_head_ends_the_archive(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(head(CONFIG, "minga:1"))) as archive:
        assert [member.name for member in archive] == [
            f"{hashlib.sha256(CONFIG).hexdigest()}.json",
            "manifest.json",
        ]


# -- builds


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with all that the image is built from."""
    for name in (".dockerignore", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    shutil.copytree(ROOT / "src", tmp_path / "src")
    return tmp_path


def test_a_build_is_new_when_something_changes_that_is_in_it(sources: Path) -> None:
    before = image.build_digest(sources)
    assert image.build_digest(sources) == before
    for name in ("src/minga/cli/app.py", "docker/Dockerfile", "docker/slim.sh", "constraints.txt"):
        with (sources / name).open("a") as file:
            file.write("# changed\n")
        assert image.build_digest(sources) != before, name
        before = image.build_digest(sources)


def test_a_build_is_the_same_when_something_else_changes(sources: Path) -> None:
    before = image.build_digest(sources)
    for name in (
        "train.yaml",
        "src/minga/__pycache__/x.pyc",
        "data/x.png",
        "docker/compose.gpu.yml",
    ):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text("changed")
    assert image.build_digest(sources) == before


def test_the_image_gets_the_pins_of_what_runs_and_of_nothing_else() -> None:
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    shown = subprocess.run(
        [sys.executable, ROOT / "docker" / "pins.py", *files],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pins = dict(line.split("==") for line in shown.stdout.splitlines())
    assert pins["torch"] == image.torch_pin((ROOT / "constraints.txt").read_text())
    assert {"webdataset", "scikit-learn", "cyclopts", "tensorboard"} <= pins.keys()
    assert not pins.keys() & {"pytest", "ruff", "ansible", "docker"}


def test_the_engines_stream_reads_as_a_file() -> None:
    chunks = iter([b"abc", b"", b"defgh"])
    assert io.BufferedReader(saving.Chunks(chunks), 4).read() == b"abcdefgh"


def test_the_tools_do_not_import_torch() -> None:
    code = "import sys, minga.deploy.image, minga.deploy.identity, minga.deploy.status as s\n"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", timeout=60, check=True)


# -- status


def test_the_status_says_of_every_pc_what_it_does_or_why_nothing() -> None:
    line = "minga-ps minga:1 Up 2 minutes"
    assert list(status.rows_of("a", {"rc": 0, "stdout_lines": [line]})) == [
        ("a", "minga-ps", "Up 2 minutes", "minga:1")
    ]
    for answer, state in (
        ({"unreachable": True}, "unreachable"),
        ({}, "not asked"),
        ({"rc": 2, "stderr": "permission denied"}, "permission denied"),
        ({"rc": 0, "stdout_lines": []}, "none: make deploy, make train"),
    ):
        assert [row[2] for row in status.rows_of("a", answer)] == [state]


# -- check


def _answers(**pc: object) -> dict[str, object]:
    facts = {"rc": 2, "msg": "Missing sudo password"}
    asked = {"address": "10.0.0.2", "user": "ana", "roles": ["worker"], "facts": facts, **pc}
    here = {"machine": "x86_64", "data": {}}
    return {"port": "30005", "ps": "a", "variants": ["default"], "here": here, "pcs": {"b": asked}}


def test_the_check_shows_rows_and_commands_and_names_who_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "CURRENT", tmp_path / "none")
    answers = _answers(ssh={"stdout": "python=Python 3.13.5\n"})
    monkeypatch.setattr(check, "read_answers", lambda _: answers)
    with pytest.raises(Unreachable, match=r"^not ready: b$"):
        check.check()
    shown = capsys.readouterr().out
    assert "  PASS  python        3.13.5\n  FAIL  sudo " in shown
    assert "on b:  echo 'ana ALL=(ALL) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/minga\n" in shown
    with pytest.raises(Unreachable):
        check.check(json_=True)
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [row["state"] for row in told["pcs"]["b"]] == ["PASS", "PASS", "FAIL"]


def test_deploy_is_told_what_it_cannot_mend_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "CURRENT", tmp_path / "none")
    answers = _answers(ssh={"stdout": "python=Python 3.6\n"})
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(answers)))
    check.require()
    assert capsys.readouterr().out.startswith("Python 3.6 is too old: 3.8 or newer is needed. on b")
    answers["pcs"]["b"]["ssh"] = {"unreachable": True, "msg": "No route to host"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(answers)))
    check.require()
    assert capsys.readouterr().out == "", "Ansible says so itself"
