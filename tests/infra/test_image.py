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
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from support import ROOT

pytest.importorskip("zstandard", reason="make lint installs it")
pytest.importorskip("docker.errors", reason="make lint installs it")

import zstandard
from docker import errors

from minga.deploy import docker_save, image
from minga.deploy.inventory import hosts_of
from minga.deploy.layers import missing_layers, shared_prefix
from minga.deploy.staging import Staging
from minga.deploy.variants import VARIANTS
from minga.errors import UsageError

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


def test_a_layer_that_comes_twice_is_sent_with_each_of_its_chains() -> None:
    assert missing_layers([["a", "e"]], ["a", "e", "b", "e"]) == ("b", "e")


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


def _unpacked(folder: Path, number: int) -> dict[str, bytes]:
    """What ``cat folder/<number>.* | zstd -dc | docker load`` reads."""
    pieces = sorted(folder.glob(f"{number:03}.*"))
    joined = io.BytesIO(b"".join(path.read_bytes() for path in pieces))
    with zstandard.ZstdDecompressor().stream_reader(joined, read_across_frames=True) as reader:
        plain = reader.read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def _layers_in(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the blobs that are neither configuration nor manifest."""
    return {
        name: content
        for name, content in files.items()
        if name.startswith("blobs/") and not content.startswith(b"{")
    }


@pytest.mark.parametrize("saved", [_saved_by_20, _saved_by_29])
def test_pieces_join_to_an_archive_that_names_all_layers_and_holds_the_topmost(
    saved: object, tmp_path: Path
) -> None:
    staging = Staging(tmp_path)
    small = staging.take(saved(), CHAIN)
    config = small[json.loads(small["manifest.json"])[0]["Config"]]
    assert config == CONFIG
    assert not staging.misses(CHAIN)

    parcel = staging.parcel(CHAIN[2:], config, "minga:1")

    files = _unpacked(parcel.folder, 2)
    manifest = json.loads(files["manifest.json"])[0]
    assert manifest["RepoTags"] == ["minga:1"]
    assert manifest["Layers"] == [
        f"blobs/sha256/{layer.removeprefix('sha256:')}" for layer in CHAIN
    ]
    assert files[manifest["Config"]] == CONFIG
    assert _layers_in(files) == {manifest["Layers"][2]: LAYERS["code"]}, "unzipped, if it was"
    assert (parcel.first, parcel.end) == (2, 3)
    assert parcel.name == hashlib.sha256(config).hexdigest()[:12]
    assert parcel.size_bytes == sum(path.stat().st_size for path in parcel.folder.iterdir())


def test_each_layer_comes_in_the_archive_of_an_image_that_ends_with_it(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    config = json.dumps({**json.loads(CONFIG), "history": [{}], "config": {"Labels": {"a": "b"}}})
    parcel = staging.parcel(CHAIN[1:], config.encode(), "minga:1")
    assert len(list(parcel.folder.iterdir())) == 3 * (parcel.end - parcel.first) == 6
    files = _unpacked(parcel.folder, 1)
    manifest = json.loads(files["manifest.json"])[0]
    assert manifest["RepoTags"] == [f"minga:part-{parcel.name}-1"]
    assert files[manifest["Layers"][1]] == LAYERS["stack"]
    assert _layers_in(files).keys() == {manifest["Layers"][1]}
    part = json.loads(files[manifest["Config"]])
    assert part["rootfs"]["diff_ids"] == CHAIN[:2]
    assert part["config"] == {"Labels": {"a": "b"}}, "by its label it is found to be ours"
    assert "history" not in part, "which would tell of three layers"
    last = json.loads(_unpacked(parcel.folder, 2)["manifest.json"])[0]
    assert last["RepoTags"] == ["minga:1"]


def test_containerd_s_store_finds_its_manifest_by_digest_and_size(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    files = _unpacked(staging.parcel(CHAIN[2:], CONFIG, "minga:1").folder, 2)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (indexed,) = json.loads(files["index.json"])["manifests"]
    assert indexed["annotations"] == {
        "io.containerd.image.name": "docker.io/library/minga:1",
        "org.opencontainers.image.ref.name": "1",
    }

    def blob(described: dict[str, Any]) -> bytes:
        content = files[f"blobs/{described['digest'].replace(':', '/')}"]
        assert (_digest(content), len(content)) == (described["digest"], described["size"])
        return content

    manifest = json.loads(blob(indexed))
    assert blob(manifest["config"]) == CONFIG
    assert [(layer["digest"], layer["size"]) for layer in manifest["layers"]] == [
        (digest, len(content)) for digest, content in zip(CHAIN, LAYERS.values(), strict=True)
    ]
    assert blob(manifest["layers"][2]) == LAYERS["code"]


def test_the_same_parcel_is_laid_out_once(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    first = staging.parcel(CHAIN, CONFIG, "minga:1")
    made = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert staging.parcel(CHAIN, CONFIG, "minga:1") == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == made
    assert staging.parcel(CHAIN[1:], CONFIG, "minga:1").folder != first.folder


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
    assert staging.misses(chain)
    staging.take(_tar(saved), chain, skip_staged=False)
    assert not staging.misses(chain)


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
    code = {"a.py": b"a = 1\n" * 300, "of_it.py": b"# opt/minga/venv/\0"}
    files = {f"opt/minga/src/minga/{name}": content for name, content in code.items()}
    whole = _tar({**files, "opt/minga/venv/\0": b"", "opt/minga/venv/x": bytes(9000)}).getvalue()
    return whole[: whole.rindex(b"opt/minga/venv/\0")] + bytes(1024), whole


def test_the_code_s_layer_is_copied_out_of_a_container(tmp_path: Path) -> None:
    layer, copied = _code_and_stack()
    chain, engine = [*CHAIN[:2], _digest(layer)], _Engine(copied)
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    staging.take(docker_save.topmost(engine, "minga:2"), chain)
    assert not staging.misses(chain)
    assert engine.containers == 0
    attrs = {"Created": "now", "Config": {"Labels": {"minga.build": "2"}}}
    config = json.loads(image.next_config(CONFIG, chain, attrs))
    assert (config["rootfs"]["diff_ids"], config["config"]) == (chain, attrs["Config"])
    parcel = staging.parcel(chain[2:], json.dumps(config).encode(), "minga:2")
    assert layer in _unpacked(parcel.folder, 2).values()


def test_a_copy_that_is_no_layer_is_not_taken_for_one(tmp_path: Path) -> None:
    layer, copied = _code_and_stack()
    chain = [*CHAIN[:2], _digest(layer)]
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    staging.take(docker_save.topmost(_Engine(copied[512:]), "minga:2"), chain)
    assert staging.misses(chain)


def test_pruning_keeps_the_layers_of_the_image(tmp_path: Path) -> None:
    staging = Staging(tmp_path)
    staging.take(_saved_by_20(), CHAIN)
    folder = staging.parcel(CHAIN, CONFIG, "minga:1").folder
    staging.prune(CHAIN[:2])
    assert not staging.misses(CHAIN[:2])
    assert staging.misses(CHAIN)
    assert not folder.exists()


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


class _Builder:
    """A Docker client that notes what it is asked to build; stands for its own parts."""

    def __init__(self) -> None:
        self.api = self.images = self
        self.asked: dict[str, Any] = {}

    def get(self, tag: str) -> Any:
        if tag != self.asked.get("tag"):
            raise errors.ImageNotFound(tag)
        return SimpleNamespace(id="i", attrs={"RootFS": {"Layers": ["a"]}, "Size": 1})

    def build(self, **asked: Any) -> Iterator[dict[str, str]]:
        self.asked = asked
        return iter([{"stream": "Step 1\n"}])


def _asked(variant: str) -> dict[str, Any]:
    builder = _Builder()
    image._built(builder, variant, "https://wheels.example/whl/")
    return builder.asked


def test_each_variant_is_built_with_its_own_torch_and_tells_what_it_needs() -> None:
    told = {variant: _asked(variant) for variant in VARIANTS}
    arguments = {variant: asked["buildargs"] for variant, asked in told.items()}
    assert {a["CUDA"] for a in arguments.values()} == {"13.2", "12.6", "none"}
    assert arguments["cu126"]["MIN_DRIVER"] == "525"
    assert "WHEELS" not in arguments["default"]
    assert arguments["cpu"]["WHEELS"] == "https://wheels.example/whl/cpu"
    assert len({a["TORCH"] for a in arguments.values()}) == 1
    assert len({asked["tag"] for asked in told.values()}) == len(VARIANTS)
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for name in arguments["cpu"].keys() - set(image._PROXIES):
        assert f"\nARG {name}" in dockerfile
    assert f"ARG CUDA={VARIANTS['default'].cuda}" in dockerfile, "docker build by hand"


def test_the_inventory_says_which_images_there_are_to_be(tmp_path: Path) -> None:
    path = tmp_path / "lan.ini"
    path.write_text(
        "[ps]\na\n[workers]\nb cuda=cpu\nc cuda=odd\n[all:vars]\nwheels=https://w/whl\n"
    )
    assert image.wanted_of(hosts_of(path)) == (["default", "cpu"], "https://w/whl")
    path.write_text("[ps]\na cuda=cpu\n[workers]\na\n")
    with pytest.raises(UsageError, match=r"^a has cuda=cpu: ") as raised:
        image.wanted_of(hosts_of(path))
    assert raised.value.code == "wheels-unknown"
    assert image.wanted_of(hosts_of(tmp_path / "nowhere.ini")) == (["default"], "")
    common = yaml.safe_load((ROOT / "ansible" / "group_vars" / "all.yml").read_text())
    assert common["minga_variants"] == list(VARIANTS)


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
    assert io.BufferedReader(docker_save.Chunks(chunks), 4).read() == b"abcdefgh"


def test_the_tools_do_not_import_torch() -> None:
    code = "import sys, minga.deploy.image, minga.deploy.identity, minga.deploy.status as s\n"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", timeout=60, check=True)
