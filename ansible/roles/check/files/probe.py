"""The probe of `make check`, run by a PC's own Python: `python3 - facts|listen|dial|summary JSON`.

Reads and measures; writes no file. The answer is one line of JSON on stdout. Needs Python 3.8 only:
the PC may have no packages.
"""

import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

ANSWER_S = 20
CONNECT_S = 5.0
SEND_S = 1.0
SEND_BYTES = 16 << 20
TRANSFER_S = 5.0
SAMPLED_FILES = 1000
SAMPLED_BYTES = 1 << 16
NVIDIA = "0x10de"
DISPLAY = "0x03"


def run(*words):
    """Run a command; return its exit status, its output, and its last line if it fails."""
    try:
        ended = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ANSWER_S,
            check=False,
        )
    except FileNotFoundError:
        return 127, "", f"{words[0]}: not found"
    except subprocess.TimeoutExpired:
        return 124, "", f"{words[0]}: no answer in {ANSWER_S} s"
    except OSError as error:
        return 126, "", f"{words[0]}: {error.strerror}"
    out = ended.stdout.decode(errors="replace").strip()
    words_of_error = ended.stderr.decode(errors="replace").strip() or out
    return ended.returncode, out, " ".join(words_of_error.split())[:300]


def text_of(path):
    """Return a file's text, or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# -- facts


def facts(asked):
    """Return the facts of a PC."""
    docker = docker_facts()
    return {
        "late_s": time.time() - asked["sent_s"],
        "machine": platform.machine(),
        "root": os.geteuid() == 0,
        "system": system(),
        "docker": docker,
        "gpu": gpu_facts(),
        "disks": {
            "docker": disk(docker["folder"] or "/var/lib/docker"),
            "minga": disk(asked["minga"]),
        },
        "holder": holder(asked["port"]),
        "firewall": firewall(),
        "guard": guard(),
        "data": {name: summary(folder) for name, folder in asked["data"].items()},
    }


def system():
    """Return the distribution's names, version and title."""
    lines = re.findall(r'^([A-Z_]+)="?(.*?)"?$', text_of("/etc/os-release"), re.M)
    found = dict(lines)
    return {
        "names": [found.get("ID", ""), *found.get("ID_LIKE", "").split()],
        "version": found.get("VERSION_ID", ""),
        "title": found.get("PRETTY_NAME", "an unknown system"),
    }


def docker_facts():
    """Return the engine's answer, or its last line; and the layers of minga's images."""
    found = {"there": shutil.which("dockerd") is not None, "version": "", "error": "", "folder": ""}
    found.update(runtimes=[], images=[], compose="", compose_file="")
    _, said, found["error"] = run("docker", "info", "--format", "{{json .}}")
    try:
        info = json.loads(said)
    except ValueError:
        info = {}
    if info.get("ServerVersion"):
        found.update(there=True, version=info["ServerVersion"], error="")
        found.update(folder=info.get("DockerRootDir", ""))
        found.update(runtimes=sorted(info.get("Runtimes") or ()), images=image_layers())
    elif info.get("ServerErrors"):
        found["error"] = info["ServerErrors"][0]
    rc, said, _ = run("docker", "compose", "version", "--short")
    found["compose"] = said if rc == 0 else ""
    for plugin in (info.get("ClientInfo") or {}).get("Plugins") or ():
        if plugin.get("Name") == "compose":
            found["compose_file"] = plugin.get("Path", "")
    return found


def image_layers():
    """Return the layers of each of minga's images."""
    _, said, _ = run("docker", "image", "ls", "-q", "--no-trunc", "--filter", "label=minga.build")
    ids = sorted(set(said.split()))
    if not ids:
        return []
    rc, said, _ = run("docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", *ids)
    return [json.loads(line) for line in said.splitlines()] if rc == 0 else []


def gpu_facts():
    """Return NVIDIA's functions on the PCI bus, and the driver's answer about them."""
    bus, devices = 0, "/sys/bus/pci/devices"
    for name in os.listdir(devices) if os.path.isdir(devices) else ():
        of = os.path.join(devices, name)
        kind, vendor = text_of(of + "/class"), text_of(of + "/vendor").strip()
        bus += kind.startswith(DISPLAY) and vendor == NVIDIA
    rc, said, error = run(
        "nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"
    )
    rows = [[field.strip() for field in line.split(",")] for line in said.splitlines()]
    cards = [
        {"name": row[0], "driver": row[1], "capability": row[2]}
        for row in rows
        if rc == 0 and len(row) == 3
    ]
    return {"bus": bus, "cards": cards, "error": "" if cards else error}


def disk(folder):
    """Return the free space for an existing or future folder, and its file system."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return {
        "folder": folder,
        "free_bytes": shutil.disk_usage(folder).free,
        "device": os.stat(folder).st_dev,
    }


def firewall():
    """Return the name of the owner's firewall if it is active; starts no service."""
    if re.search(r"^ENABLED=yes", text_of("/etc/ufw/ufw.conf"), re.M):
        return "ufw"
    if run("systemctl", "is-active", "firewalld.service")[0] == 0:
        return "firewalld"
    rc, said, _ = run("nft", "--json", "list", "ruleset")
    return shutting(json.loads(said)["nftables"]) if rc == 0 and said else ""


def shutting(ruleset):
    """Return which input chains may drop: nftables, which deploy can open, or iptables."""
    rules = [each["rule"] for each in ruleset if "rule" in each]
    drops = {(rule["family"], rule["table"]) for rule in rules if may_drop(rule)}
    found = set()
    for chain in (each["chain"] for each in ruleset if "chain" in each):
        table = (chain["family"], chain["table"])
        if chain.get("hook") != "input" or table == ("inet", "minga"):
            continue
        if chain.get("policy") == "drop" or table in drops:
            iptables = (chain["table"], chain["name"]) == ("filter", "INPUT")
            found.add("iptables" if iptables else "nftables")
    return max(found, default="")


def may_drop(rule):
    """Return whether a rule blocks a client."""
    return any(word in each for each in rule.get("expr", ()) for word in ("drop", "reject"))


def guard():
    """Return the addresses that minga's own table accepts; None before the first deploy."""
    rc, said, _ = run("nft", "list", "table", "inet", "minga")
    if rc != 0:
        return None
    sets = re.findall(r"elements = \{([^}]*)\}", said)
    return sorted({word.strip() for words in sets for word in words.split(",")})


def summary(folder):
    """Return count, bytes and a digest of a folder's files: all names and sizes, some contents."""
    if not os.path.isdir(folder):
        return None
    paths = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        paths += [os.path.join(root, name) for name in names]
    paths.sort()
    digest, size_bytes, every = hashlib.sha256(), 0, max(1, len(paths) // SAMPLED_FILES)
    for number, path in enumerate(paths):
        of = os.stat(path).st_size if os.path.exists(path) else 0  # else a broken link
        size_bytes += of
        named = f"{os.path.relpath(path, folder)}\0{of}\n"
        digest.update(named.encode(errors="surrogateescape"))
        if of and number % every == 0:
            with open(path, "rb") as file:
                digest.update(file.read(SAMPLED_BYTES))
    return {"files": len(paths), "size_bytes": size_bytes, "digest": digest.hexdigest()}


# -- the process that holds the port


def holder(port):
    """Return the process that listens on a port, or None."""
    inodes = listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if wanted & set(open_files(pid)):
            words = text_of(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            name = text_of(f"/proc/{pid}/comm").strip()
            found = {"pid": pid, "name": name, "command": words[:200]}
            found.update(keeper(pid, name, port))
            return found
    return {"pid": 0, "name": "", "command": "", "container": "", "unit": ""}


def listening_inodes(port):
    """Return the sockets that listen on a port, v4 and v6."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in text_of(table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes


def open_files(pid):
    """Yield the open files of a process; nothing if it is gone or not readable."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(os.path.join(folder, name))
        except OSError:
            continue


def keeper(pid, name, port):
    """Return the container or the system service of a process, if any."""
    groups = text_of(f"/proc/{pid}/cgroup")
    container = re.search(r"[0-9a-f]{64}", groups)
    words, form = (), "{{.Names}}"
    if container:
        words, form = ("container", "inspect", container.group()), "{{.Name}}"
    elif name == "docker-proxy":
        words = ("container", "ls", "--filter", f"publish={port}")
    rc, said, _ = run("docker", *words, "--format", form) if words else (1, "", "")
    found = re.search(r"/system\.slice/(?:.*/)?([^/\n]+\.service)$", groups, re.M)
    unit = found.group(1) if found else ""
    # Not every process started from one: a command by SSH may belong to ssh.service.
    main = run("systemctl", "show", "--property=MainPID", "--value", unit)[1] if unit else ""
    return {
        "container": said.split("\n")[0].lstrip("/") if rc == 0 else "",
        "unit": unit if main == str(pid) else "",
    }


# -- the connection between worker and ps


def listen(asked):
    """Listen on the port for the other PCs, in a separate process with a time limit."""
    try:
        server = listener(asked["port"])
    except OSError as error:
        return {"pid": 0, "holder": holder(asked["port"]), "error": error.strerror}
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        server.close()
        return {"pid": int(os.read(read_end, 20)), "holder": None, "error": ""}
    os.setsid()
    if child := os.fork():
        os.write(write_end, b"%d" % child)
        os._exit(0)
    signal.alarm(asked["limit_s"])
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(write_end)
    serve(server, asked["nonce"].encode())
    os._exit(0)


def listener(port):
    """Return a listening socket for v4 and v6, or for v4 alone without v6."""
    if socket.has_ipv6:
        try:
            server = socket.socket(socket.AF_INET6)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind(("::", port))
            server.listen(128)
        except OSError:
            server.close()
        else:
            return server
    server = socket.socket(socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))
    server.listen(128)
    return server


def serve(server, nonce):
    """Greet each client in turn, and report the rate of its bytes; one measures at a time."""
    while True:
        peer, _ = server.accept()
        with peer:
            try:
                peer.settimeout(TRANSFER_S)
                peer.sendall(nonce)
                answer = json.dumps(receive(peer)).encode()
                peer.sendall(answer)
            except OSError:
                continue


def receive(peer):
    """Count the received bytes until the peer ends, at most some seconds."""
    received, started_s, now_s = 0, 0.0, 0.0
    while chunk := peer.recv(1 << 18):
        now_s = time.monotonic()
        started_s = started_s or now_s
        received += len(chunk)
        if now_s - started_s > TRANSFER_S:
            break
    return {"received_bytes": received, "received_s": now_s - started_s}


def dial(asked):
    """Connect to the ps like a worker; send some megabytes to minga's listener."""
    found = {"state": "open", "error": "", "received_bytes": 0, "received_s": 0.0}
    try:
        peer = socket.create_connection((asked["address"], asked["port"]), timeout=CONNECT_S)
    except ConnectionRefusedError:
        return dict(found, state="refused")
    except OSError as error:
        return dict(found, state="silent", error=error.strerror or str(error))
    with peer:
        if asked["nonce"]:
            try:
                measure(peer, asked, found)
            except OSError as error:
                found.update(state="broken", error=error.strerror or str(error))
    return found


def measure(peer, asked, found):
    """Wait for this PC's turn, then send for a second."""
    peer.settimeout(asked["limit_s"])
    nonce = asked["nonce"].encode()
    if read(peer, len(nonce)) != nonce:
        found["state"] = "stranger"
        return
    chunk, ends_s, left = bytes(1 << 16), time.monotonic() + SEND_S, SEND_BYTES
    while left > 0 and time.monotonic() < ends_s:
        if select.select((), (peer,), (), 0.1)[1]:
            left -= peer.send(chunk)
    peer.shutdown(socket.SHUT_WR)
    found.update(json.loads(read(peer, 1 << 10) or b"{}"))


def read(peer, count):
    """Receive until the count or the end."""
    content = b""
    while len(content) < count and (chunk := peer.recv(count - len(content))):
        content += chunk
    return content


if __name__ == "__main__":
    commands = {"facts": facts, "listen": listen, "dial": dial, "summary": summary}
    command = commands[sys.argv[1]]
    sys.stdout.write(json.dumps(command(json.loads(sys.argv[2]))) + "\n")
