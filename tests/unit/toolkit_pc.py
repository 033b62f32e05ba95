#!/usr/bin/env -S python3 -IS
"""What a PC's commands are for toolkit.sh and purge.sh: one script under all their names.

Its folder holds ``state.json``; ``docker``'s engine behaves as dockerd does: a reload leaves the
runtimes of a file that says nothing of them.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
STATE = HERE / "state.json"
KEY = b"\x99the repository's key"
ARMOURED = f"""-----BEGIN PGP PUBLIC KEY BLOCK-----
Comment: a key

{base64.b64encode(KEY).decode()}
=AbCd
-----END PGP PUBLIC KEY BLOCK-----
"""

State = dict[str, Any]


def read_settings(path: Path = ROOT / "etc/docker/daemon.json") -> dict[str, Any]:
    text = path.read_text() if path.exists() else ""
    found: dict[str, Any] = json.loads(text) if text.strip() else {}
    return found


def docker(state: State, words: list[str]) -> int:
    if words[0] == "info":
        known: dict[str, Any] = {name: {} for name in ["runc", *state["runtimes"]]}
        print(json.dumps(known, separators=(",", ":")))
    elif words[:3] == ["container", "ls", "-q"]:
        print("\n".join(state["running"]))
    elif words[:2] == ["container", "ls"]:
        found = [name for name in state["containers"] if "--filter" not in words]
        print("\n".join(found))
    elif words[:2] == ["container", "inspect"]:
        print("\n".join(f"/{name} {state['containers'][name]}" for name in words[4:]))
    return 0


def systemctl(state: State, words: list[str]) -> int:
    state["asked"].append(words[0])
    if words[0] == "show":
        print("7")
    if words[0] == "reload" and not state["deaf"] and "runtimes" in read_settings():
        state["runtimes"] = sorted(read_settings()["runtimes"])
    if words[0] == "restart":
        if "nvidia" in read_settings().get("runtimes", {}) and state["breaks"]:
            return 1
        state["runtimes"] = sorted(read_settings().get("runtimes", {}))
    return 0


def nvidia_ctk(state: State, words: list[str]) -> int:
    path = Path(words[-1].partition("=")[2])
    found = read_settings(path)
    runtimes = found.setdefault("runtimes", {})
    runtimes["nvidia"] = {"args": [], "path": "nvidia-container-runtime"}
    found.update(state["more"])
    path.write_text(json.dumps(found, indent=4, sort_keys=True))
    return 0


def dockerd(state: State, words: list[str]) -> int:
    if words == ["--help"]:
        print("      --validate    Validate daemon configuration and exit" * state["validates"])
    elif state["invalid"]:
        print("unable to configure the Docker daemon", file=sys.stderr)
        return 1
    return 0


def apt_get(state: State, words: list[str]) -> int:
    if state["offline"]:
        print("W: Some words\nE: Failed to fetch it\nE: Some more", file=sys.stderr)
        return 100
    if "install" in words:
        assert Path(ROOT / "usr/share/keyrings/nvidia-container-toolkit-keyring.gpg").exists()
        wanted = words[words.index("install") + 1 :]
        state["installed"] += [word.partition("=")[0] for word in wanted]
        state["versions"] = sorted({word.partition("=")[2] for word in wanted})
        (HERE / "nvidia-ctk").symlink_to(__file__)
    return 0


def apt_helper(state: State, words: list[str]) -> int:
    if state["offline"]:
        print("E: Failed to fetch the key\nE: Download Failed", file=sys.stderr)
        return 100
    Path(words[-1]).write_text(ARMOURED)
    return 0


def dpkg_query(state: State, words: list[str]) -> int:
    print("\n".join(f"ii  {name}" for name in state["installed"]))
    return 0


def dpkg(state: State, words: list[str]) -> int:
    state["installed"] = [name for name in state["installed"] if name not in words]
    if not any(name.startswith("nvidia") for name in state["installed"]):
        (HERE / "nvidia-ctk").unlink(missing_ok=True)
    return 0


def main() -> int:
    """Be the command of this name."""
    state = json.loads(STATE.read_text())
    ended: int = globals()[Path(sys.argv[0]).name.replace("-", "_")](state, sys.argv[1:])
    STATE.write_text(json.dumps(state))
    return ended


if __name__ == "__main__":
    sys.exit(main())
