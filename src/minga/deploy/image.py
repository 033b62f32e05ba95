"""``python -m minga.deploy.image``: build the images, and stage the layers that a host is missing.

``build`` writes ``build/image/<variant>/current.json`` for the playbooks; ``export`` reads from
stdin the layers of the images on a host, and prints the paths of the pieces for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclopts import App
from docker.client import DockerClient  # not docker.from_env: this project has a docker/, too
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils.build import exclude_paths

from minga import __version__
from minga.console import print_result, results, talk
from minga.deploy.docker_save import saved, topmost
from minga.deploy.inventory import hosts_of
from minga.deploy.layers import chain, missing_layers
from minga.deploy.paths import CONFIG, CURRENT, ROOT, STAGED, described, run
from minga.deploy.staging import Staging
from minga.deploy.variants import DEFAULT, VARIANTS, build_arguments
from minga.errors import Hint, RunFailed, Unreachable, UsageError

_DOCKERFILE = "docker/Dockerfile"
_NAME = "minga"
_TIMEOUT_S = 3600.0
"""Between two messages of the engine; committing a layer of gigabytes takes minutes."""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

app = App(name="minga.deploy.image", help="The image of ps and workers.")


@dataclass(frozen=True, slots=True)
class Image:
    """The description of the image, for the playbooks."""

    tag: str
    build: str
    image_id: str
    layers: list[str]
    version: str
    size_bytes: int


@app.command
def build(*, inventory: Path | None = None) -> None:
    """Build the images whose files changed, and stage their layers for the hosts.

    Args:
        inventory: its PCs select the images (``cuda=``); None builds the default alone.
    """
    client = _engine()
    wanted, wheels = wanted_of(hosts_of(inventory) if inventory else {})
    built = {variant: _built(client, variant, wheels) for variant in wanted}
    stale = [variant for variant, (image, _) in built.items() if not _is_staged(variant, image)]
    if stale:
        Staging(STAGED).prune(layer for image, _ in built.values() for layer in image.layers)
    for variant in stale:
        _stage(client, variant, *built[variant])
    for image, _ in built.values():
        results().print(f"{image.tag}  {image.size_bytes / 1e9:.2f} GB, {len(image.layers)} layers")


@app.command
def export(*, variant: str = DEFAULT) -> None:
    """Stage the pieces that a host is missing; print their paths as JSON.

    Stdin: a JSON list with the layers (``RootFS.Layers``) of each image that the host has.

    Args:
        variant: of the host.
    """
    current, config = described(variant)
    layers = missing_layers(json.load(sys.stdin), current["layers"])
    parcel = Staging(STAGED).parcel(layers, config, current["tag"])
    print_result(json.dumps(asdict(parcel), default=str))


def wanted_of(hosts: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], str]:
    """Return the variants that these PCs' variables select, and the address of the wheels.

    An unknown ``cuda=`` is left to the playbook, which refuses it by name.

    Raises:
        UsageError: ``wheels-unknown``: an image needs PyTorch's own wheels, and the inventory does
            not name their address.
    """
    asked = {str(each.get("cuda", DEFAULT)): name for name, each in hosts.items()}
    wanted = [name for name in VARIANTS if name in asked] or [DEFAULT]
    wheels = next((str(each["wheels"]) for each in hosts.values() if "wheels" in each), "")
    if wanted != [DEFAULT] and not wheels:
        special = next(name for name in wanted if name != DEFAULT)
        raise UsageError(
            f"{asked[special]} has cuda={special}: its image takes torch from PyTorch's own "
            "wheels, and the inventory does not say where they are",
            code="wheels-unknown",
            hints=(
                Hint("under [all:vars], as pytorch.org prints it", "wheels=https://.../whl"),
                Hint("or the default image", f"remove cuda={special} from {asked[special]}"),
            ),
        )
    return wanted, wheels


def build_digest(root: Path) -> str:
    """Return a digest of all files that the image is built from; it names the build."""
    ignored = [
        line
        for line in (root / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    digest = hashlib.sha256()
    for name in sorted({*exclude_paths(str(root), ignored), _DOCKERFILE}):
        if (path := root / name).is_file():
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def torch_pin(constraints: str) -> str:
    """Return the version of torch that the image gets."""
    return next(
        line.partition("==")[2] for line in constraints.splitlines() if line.startswith("torch==")
    )


def _engine() -> Any:
    try:
        client = DockerClient.from_env(timeout=_TIMEOUT_S)
        client.ping()
    except DockerException as error:
        raise Unreachable(
            f"no Docker engine answers on this PC: {error}",
            code="no-docker",
            hints=(
                Hint("is it running, may you use it?", "docker version"),
                Hint("not installed? Debian 13", "sudo apt install docker.io docker-cli"),
                Hint("permission denied?", "sudo usermod -aG docker $USER, then log in again"),
            ),
        ) from error
    return client


def _built(client: Any, variant: str, wheels: str) -> tuple[Image, dict[str, Any]]:
    """Return an image, built if necessary, and the engine's description of it."""
    digest = build_digest(ROOT)
    tag = f"{_NAME}:{__version__}-{digest}" + (f"-{variant}" if variant != DEFAULT else "")
    try:
        found = client.images.get(tag)
    except ImageNotFound:
        _build(client, tag, {"BUILD": digest, **build_arguments(variant, wheels)})
        found = client.images.get(tag)
    image = Image(
        tag=tag,
        build=digest,
        image_id=found.id,
        layers=found.attrs["RootFS"]["Layers"],
        version=__version__,
        size_bytes=found.attrs["Size"],
    )
    return image, found.attrs


def _build(client: Any, tag: str, own: Mapping[str, str]) -> None:
    """Build, and print the engine's output."""
    started_s = time.monotonic()
    arguments = {
        "TORCH": torch_pin((ROOT / "constraints.txt").read_text()),
        "VERSION": __version__,
        **own,
    }
    proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    words = client.api.build(
        path=str(ROOT),
        dockerfile=_DOCKERFILE,
        tag=tag,
        buildargs=arguments | proxies,
        network_mode="host",
        rm=True,
        decode=True,
    )
    try:
        for word in words:
            if text := word.get("stream", "").rstrip():
                talk().print(text, markup=False, soft_wrap=True)
            if "error" in word:
                raise RunFailed(
                    f"the image cannot be built: {word['error'].strip()}",
                    code="image-build",
                    hints=(Hint("again, with all output", "make image"),),
                )
    except APIError as error:
        raise RunFailed(f"the image cannot be built: {error}", code="image-build") from error
    talk().print(f"built in {time.monotonic() - started_s:.0f} s")


def _is_staged(variant: str, image: Image) -> bool:
    note = STAGED / variant / CURRENT
    known = json.loads(note.read_text()) if note.exists() else None
    return known == asdict(image) and not Staging(STAGED).misses(image.layers)


def _stage(client: Any, variant: str, image: Image, attrs: Mapping[str, Any]) -> None:
    """Compress the layers that are not staged yet, and write the image's description."""
    staging, folder = Staging(STAGED), STAGED / variant
    folder.mkdir(exist_ok=True)
    note, kept = folder / CURRENT, folder / CONFIG
    note.unlink(missing_ok=True)
    started_s = time.monotonic()
    before = kept.read_bytes() if kept.exists() else None
    if before and len(chain(before)) == len(image.layers) and not staging.misses(image.layers[:-1]):
        with contextlib.suppress(DockerException):
            staging.take(topmost(client, image.tag), image.layers)
    if before is None or staging.misses(image.layers):
        talk().print("Staging the layers (torch's takes a minute, once)")
        config = _take_all(staging, client, image)
    else:
        config = next_config(before, image.layers, attrs)
    kept.write_bytes(config)
    note.write_text(json.dumps(asdict(image), indent=2) + "\n")
    talk().print(f"staged in {time.monotonic() - started_s:.0f} s")


def _take_all(staging: Staging, client: Any, image: Image) -> bytes:
    """Stage what ``docker save`` writes; return the image's configuration."""
    small = staging.take(saved(client, image.tag), image.layers)
    if staging.misses(image.layers):
        small = staging.take(saved(client, image.tag), image.layers, skip_staged=False)
    if staging.misses(image.layers):
        raise RunFailed(
            f"docker save {image.tag} does not contain the layers that docker inspect lists",
            code="image-save",
            hints=(Hint("which engine?", "docker version"),),
        )
    return small[json.loads(small["manifest.json"])[0]["Config"]]


def next_config(before: bytes, layers: Sequence[str], attrs: Mapping[str, Any]) -> bytes:
    """Return the configuration of an image with other code, from the previous image's.

    Its id differs from that of this PC's engine, so hosts are compared by layers.

    Args:
        before: a configuration with the same number of layers.
        layers: digests of the image's layers, lowest first.
        attrs: the engine's description of the image (``docker image inspect``).
    """
    config = json.loads(before)
    for past in ("container", "container_config"):
        config.pop(past, None)
    rootfs = {"type": "layers", "diff_ids": list(layers)}
    config |= {"created": attrs["Created"], "config": attrs["Config"], "rootfs": rootfs}
    return json.dumps(config).encode()


if __name__ == "__main__":
    sys.exit(run(lambda: app(result_action="return_value")))
