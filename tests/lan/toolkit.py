"""A signed apt repository of NVIDIA's container toolkit, as far as a PC without a card goes.

The packages have the real ones' names, version and place in the repository; `nvidia-ctk` does to
Docker's settings what the real one does, and `nvidia-container-runtime` is runc by another name.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from lan.network import CONTROL
from lan.shell import sh

PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
"""Each needs the one before."""

NVIDIA_CTK = """\
#!/usr/bin/env python3
import json, pathlib, sys
assert sys.argv[1:4] == ["runtime", "configure", "--runtime=docker"], sys.argv
path = pathlib.Path(sys.argv[4].partition("--config=")[2])
config = json.loads(path.read_text())
runtime = {"args": [], "path": "nvidia-container-runtime"}
config.setdefault("runtimes", {})["nvidia"] = runtime
path.write_text(json.dumps(config, indent=4, sort_keys=True))
"""


def make_repository(folder: Path, version: str, *, forged: bool = False) -> Path:
    """Build packages, index, signature, laid out as NVIDIA's; *forged*: not of the shown key."""
    architecture = sh("dpkg", "--print-architecture").stdout.strip()
    place = folder / "stable" / "deb" / architecture
    place.mkdir(parents=True)
    for name, needed in zip(PACKAGES, (None, *PACKAGES), strict=False):
        _package(place, name, version, architecture, needed)
    index = (place / "Packages").read_bytes()
    now = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    digest = hashlib.sha256(index).hexdigest()
    release = (
        f"Date: {now}\nArchitectures: {architecture}\nSHA256:\n {digest} {len(index)} Packages\n"
    )
    (place / "Release").write_text(release)
    signer = _key(folder.with_name(f"{folder.name}-keys"))
    shown = _key(folder.with_name(f"{folder.name}-other-keys")) if forged else signer
    _gpg(signer, "--clearsign", "--output", str(place / "InRelease"), str(place / "Release"))
    _gpg(shown, "--armor", "--output", str(folder / "gpgkey"), "--export")
    return folder


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to the LAN, from the control PC; give its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer((CONTROL[0], 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{CONTROL[0]}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _package(place: Path, name: str, version: str, architecture: str, needed: str | None) -> None:
    root = place / name
    (root / "DEBIAN").mkdir(parents=True)
    control = f"""\
        Package: {name}
        Version: {version}
        Architecture: {architecture}
        Maintainer: nobody <nobody@invalid>
        Description: what a test needs of {name}
        """
    control = textwrap.dedent(control)
    if needed:
        control += f"Depends: {needed} (= {version})\n"
    (root / "DEBIAN" / "control").write_text(control)
    if name == "nvidia-container-toolkit-base":
        programs = root / "usr" / "bin"
        programs.mkdir(parents=True)
        (programs / "nvidia-ctk").write_text(NVIDIA_CTK)
        (programs / "nvidia-ctk").chmod(0o755)
        (programs / "nvidia-container-runtime").symlink_to("/usr/bin/runc")
    if name == "nvidia-container-toolkit":
        (root / "usr" / "bin").mkdir(parents=True)
        hook = root / "usr" / "bin" / "nvidia-container-runtime-hook"
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
    file = place / f"{name}.deb"
    sh("dpkg-deb", "--root-owner-group", "--build", str(root), str(file))
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with (place / "Packages").open("a") as index:
        index.write(f"{control}Filename: ./{file.name}\nSize: {len(content)}\nSHA256: {digest}\n\n")


def _key(home: Path) -> Path:
    """Make a throw-away key in a folder of its own."""
    home.mkdir(mode=0o700)
    _gpg(
        home, "--passphrase", "", "--quick-generate-key", "test@invalid", "rsa3072", "sign", "never"
    )
    return home


def _gpg(home: Path, *words: str) -> None:
    """Run gpg without the agent staying behind."""
    options = ("--batch", "--yes", "--quiet", "--digest-algo", "SHA512", "--homedir", str(home))
    sh("gpg", *options, *words)
    sh("gpgconf", "--homedir", str(home), "--kill", "all", check=False)
