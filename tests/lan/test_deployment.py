"""`make deploy`, `make train`, `make collect` on three fresh PCs; each test goes on from the last.

The figures go to ``build/lan-test.json``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lan.ahead import ControlPc
from lan.control import ControlDocker
from lan.deployment import (
    EPOCHS,
    FIGURES,
    PORT,
    TRAIN,
    Deployment,
    changed,
    containers,
    note,
)
from lan.limits import disk_bytes_per_s, processor_s, wire_bytes_per_s
from lan.network import FULL_RATE, Listener, control_cable
from lan.pc import PcSpec, VirtualPc
from lan.shell import wait_for
from lan.virtual import VirtualLan

from minga.ps.audit import audit
from support import ROOT

pytestmark = [pytest.mark.lan, pytest.mark.timeout(1800)]

COUNT = int(os.environ.get("MINGA_LAN_PCS", "3"))
PCS = (PcSpec("pc1", 11, "ps"), *(PcSpec(f"pc{n}", 10 + n) for n in range(2, COUNT + 1)))
CUT_S = 60.0
SLOW = "50mbit"
"""A worker's cable in mid-run: 3.6 s for a window of two steps, however fast its processor is."""
CABLE_MBIT_PER_S = int(os.environ.get("MINGA_LAN_CABLE", "1000"))
"""The control PC's; with a slower one, what two processors do for five PCs counts for less."""
INTRUDER = """
import sys
from minga.errors import Refused
from minga.messages import Hello
from minga.transport.dial import Join
from minga.transport.identity import TOKEN_BYTES, Secret
address, pin = sys.argv[1], Secret.parse(sys.argv[2]).pin
hello = Hello(protocol=0, uuid="")
try:
    with Join((address, int(sys.argv[3])), Secret(bytes(TOKEN_BYTES), pin), hello):
        print("in")
except Refused as refused:
    print(refused.code)
"""


@pytest.fixture(scope="module")
def project(
    lan: VirtualLan, control: ControlDocker, tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    FIGURES.unlink(missing_ok=True)
    return Deployment(tmp_path_factory.mktemp("control"), lan, control)


def ours(pc: VirtualPc) -> list[Listener]:
    """Return what minga's processes listen on."""
    return [each for each in pc.listening() if each.process.startswith(("python", "minga"))]


def test_deploy_provisions_pcs_that_have_nothing_but_docker(
    project: Deployment, lan: VirtualLan, control_pc: ControlPc
) -> None:
    project.make("image")  # built ahead, of the same files
    build_s = control_pc.build_s
    staged = project.folder / "build" / "image" / "default"
    image = json.loads((staged / "current.json").read_text())
    pcs = list(lan.pcs.values())
    with control_cable(CABLE_MBIT_PER_S):
        wire, disk = wire_bytes_per_s(pcs), disk_bytes_per_s(pcs)
        busy_before_s, idle_before_s = processor_s()
        deploy_s, deploy_bytes, printed = project.timed("deploy")
        busy_s, idle_s = processor_s()
    assert set(changed(printed)) == set(lan.pcs)
    assert re.search(r"^pc\d  image  [\d.]+ of 2\.\d+ GB  [\d.]+ MB/s  ", printed, re.M)
    busy_s, idle_s = busy_s - busy_before_s, idle_s - idle_before_s
    limit_s = max(deploy_bytes / wire, len(pcs) * image["size_bytes"] / disk)
    note(
        hosts=len(pcs),
        image_bytes=image["size_bytes"],
        image_build_s=build_s,
        deploy_s=round(deploy_s, 1),
        deploy_bytes=deploy_bytes,
        deploy_wire_mb_per_s=round(wire / 1e6, 1),
        deploy_disk_mb_per_s=round(disk / 1e6, 1),
        deploy_limit_s=round(limit_s, 1),
        deploy_limits=round(deploy_s / limit_s, 2),
        deploy_processors_busy=round(busy_s / (busy_s + idle_s), 2),
    )
    for pc in pcs:
        pc.sudo("cd /opt/minga && docker compose config --quiet")
        secrets = pc.sudo("cd /opt/minga/secrets && stat -c '%n %a %u' *").stdout.splitlines()
        own = ["pc-token"] if pc in lan.workers else ["ps.crt", "ps.key", "token", "tokens"]
        modes = {name: "700" if name == "tokens" else "600" for name in own}
        assert secrets == [f"{name} {modes[name]} 10001" for name in own]
    for worker in lan.workers:
        there = worker.file(f"/opt/minga/data/{project.data.name}")
        kinds = {path.suffix for path in there.rglob("*") if path.is_file()}
        assert kinds == {".tar", ".json"}, "so small images come packed"


def test_a_second_deploy_changes_nothing(project: Deployment, lan: VirtualLan) -> None:
    seconds, _, printed = project.timed("deploy")
    assert changed(printed) == dict.fromkeys(lan.pcs, 0)
    note(second_deploy_changed=sum(changed(printed).values()), second_deploy_s=round(seconds, 1))


def test_a_code_change_sends_little(project: Deployment, lan: VirtualLan) -> None:
    with (project.folder / "src" / "minga" / "export.py").open("a") as file:
        file.write("\n# another version\n")
    before = project.bytes_in()
    seconds, _, printed = project.timed("deploy")
    most = max(now - then for now, then in zip(project.bytes_in(), before, strict=True))
    note(redeploy_bytes=most, redeploy_s=round(seconds, 1))
    assert all(count > 0 for count in changed(printed).values()), "control: it was a change"
    assert most < 5_000_000


def test_train_starts_the_ps_and_all_workers(project: Deployment, lan: VirtualLan) -> None:
    for worker in lan.workers:
        worker.plug.shape(SLOW)  # the run is not over before what the tests do to it
    project.make("train")
    for rank in range(1, COUNT):
        project.await_events("push", 1, rank=rank)
    assert containers(lan.ps) == {"minga-ps": "running 0"}
    for worker in lan.workers:
        assert containers(worker) == {"minga-worker": "running 0"}
    status = project.make("status")
    assert project.run_id in status
    assert all(name in status for name in lan.pcs)
    assert "Parameter Server is running..." in project.make("logs")


def test_a_stranger_finds_no_open_port(project: Deployment, lan: VirtualLan) -> None:
    listeners = {pc.name: ours(pc) for pc in lan.pcs.values()}
    assert all(listeners.values()), "every PC listens on something, if only on loopback"
    assert {each.port for each in listeners["pc1"] if each.address == "*"} == {PORT}

    def scan() -> list[tuple[str, int]]:
        return [
            (address, port)
            for pc in lan.pcs.values()
            for port in sorted({each.port for each in listeners[pc.name]} | {PORT})
            for address in (pc.address, pc.address6)
            if lan.stranger.scan(address, port) == "open"
        ]

    found = scan()
    note(
        stranger_open_ports=len(found),
        stranger_scanned_ports=sum(len(each) for each in listeners.values()),
    )
    assert found == []

    lan.ps.sudo("nft delete table inet minga")
    try:
        found = scan()
        token = (project.folder / ".minga" / "deploy" / "token").read_text()
        words = ("env", f"PYTHONPATH={ROOT / 'src'}", sys.executable, "-c", INTRUDER)
        said = lan.stranger.exec(*words, lan.ps.address, token, str(PORT), timeout_s=60)
    finally:
        lan.ps.sudo("systemctl restart minga-firewall")
    note(stranger_open_ports_without_rules=len(found))
    assert found == [(lan.ps.address, PORT), (lan.ps.address6, PORT)]
    assert said.split() == ["token-wrong"], "and gets no further than the token"
    assert scan() == []
    project.still_pushes()


def test_a_pc_cut_off_for_a_minute_costs_its_own_share_and_one_without_power_comes_back(
    project: Deployment, lan: VirtualLan
) -> None:
    """The second within the first one's minute: with three PCs, no worker is left for a while."""
    switched, cut = lan.workers[0], lan.workers[1]
    cut.cut()
    until_s = time.monotonic() + CUT_S
    project.await_events("worker_lost", 1, rank=2)
    project.still_pushes()

    joins = len(project.events("worker_join"))
    switched.power_off()
    project.await_events("worker_lost", 1, rank=1)
    switched.power_on()
    assert project.await_events("worker_join", joins + 1)["rank"] == 1
    project.still_pushes()

    wait_for("the cut to be over", lambda: time.monotonic() > until_s, CUT_S)
    cut.mend()
    assert project.await_events("worker_join", joins + 2)["rank"] == 2


def test_the_ps_pc_powered_off_and_on_resumes(project: Deployment, lan: VirtualLan) -> None:
    lan.ps.power_off()
    lan.ps.power_on()
    project.await_events("resume", 1)
    project.still_pushes()


def test_stop_in_mid_epoch_and_train_goes_on(project: Deployment, lan: VirtualLan) -> None:
    run_id, counted = project.run_id, project.events("push")[-1]["samples_done"]
    assert counted < TRAIN * EPOCHS, "the run is not over yet"
    project.make("stop")
    assert all("running" not in state for pc in lan.pcs.values() for state in containers(pc))
    assert (project.run / "checkpoints" / "last.pth").exists()
    resumes = len(project.events("resume"))
    project.make("train")
    assert project.run_id == run_id
    resumed = project.await_events("resume", resumes + 1)
    assert resumed["samples_done"] >= counted, "not from the beginning"
    assert resumed["repeated_pushes"] == 0, "stopped, not killed: nothing is repeated"


def test_a_pc_whose_token_is_revoked_is_out_until_deploy_gives_it_another(
    project: Deployment, lan: VirtualLan
) -> None:
    revoked = lan.workers[1]
    before = revoked.file("/opt/minga/secrets/pc-token").read_text()
    command = [sys.executable, "-m", "minga", "token", "revoke", revoked.name]
    state = project.folder / ".minga" / "deploy"
    subprocess.run([*command, f"--state={state}"], check=True, timeout=60)
    lost = len([each for each in project.events("worker_lost") if each["rank"] == 2])
    joins = len([each for each in project.events("worker_join") if each["rank"] == 2])
    project.make("deploy", f"LIMIT={lan.ps.name}")
    project.await_events("worker_lost", lost + 1, rank=2)
    project.still_pushes()
    project.make("deploy", f"LIMIT={revoked.name}")
    assert revoked.file("/opt/minga/secrets/pc-token").read_text() != before
    # it is still there: Docker has started it again and again
    assert project.await_events("worker_join", joins + 1, rank=2)["token"] == revoked.name


def test_the_run_ends_and_stays_ended(project: Deployment, lan: VirtualLan) -> None:
    for worker in lan.workers:
        worker.plug.shape(FULL_RATE)
    wait_for("the end of the run", lambda: (project.run / "summary.json").exists(), 900)
    for pc in lan.pcs.values():
        ended = f"{pc.name} to be done"
        wait_for(ended, lambda pc=pc: set(containers(pc).values()) == {"exited 0"}, 60)
    assert "is finished" in project.make("train")
    lan.workers[0].power_off()
    lan.workers[0].power_on()
    assert set(containers(lan.workers[0]).values()) == {"exited 0"}


def test_collect_brings_checkpoints_and_statistics_home(
    project: Deployment, lan: VirtualLan
) -> None:
    project.make("collect")
    project.make("collect")  # again does no harm
    run = project.folder / "runs" / project.run_id
    assert {"best.pth", "last.pth", "previous.pth"} == {
        each.name for each in (run / "checkpoints").iterdir()
    }
    roles = {
        re.sub(r"^(.*)_(ps|worker\d)_.*$", r"\1 \2", each.name)
        for each in (run / "stats").iterdir()
    }
    assert roles == {"pc1 ps", *(f"pc{rank + 1} worker{rank}" for rank in range(1, COUNT))}
    summary = json.loads((run / "summary.json").read_text())
    lines = (run / "journal.jsonl").read_text().splitlines()
    found = audit(lines, seed=0, samples=TRAIN, epochs=EPOCHS)
    note(accuracy=summary["best_val_accuracy"], ledger_exact=found.exact)
    assert found.exact, found.problems
    assert _audited(run) == 0
    (run / "journal.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert _audited(run) == 1, "control: one push is missing"
    (run / "journal.jsonl").write_text("\n".join(lines) + "\n")
    assert summary["best_val_accuracy"] > 0.4

    best = run / "checkpoints" / "best.pth"
    command = [sys.executable, "-m", "minga", "eval", best, "--data", project.data, "--json"]
    words = list(map(str, command))
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    measured = json.loads(ended.stdout)
    assert measured["accuracy"] == measured["reported_accuracy"] == summary["best_val_accuracy"]


def _audited(run: Path) -> int:
    """Run `minga audit` on a collected run; return its exit status."""
    command = [sys.executable, "-m", "minga", "audit", str(run)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode


def test_nothing_of_the_secret_is_in_what_docker_shows(
    lan: VirtualLan, project: Deployment
) -> None:
    deployed = project.folder / ".minga" / "deploy"
    tokens = [each.read_text() for each in (deployed / "token", *deployed.glob("tokens/*"))]
    assert len(tokens) == COUNT
    for pc in lan.pcs.values():
        shown = pc.sudo("docker container ls -aq | xargs docker container inspect").stdout
        said = pc.sudo("for c in $(docker container ls -aq); do docker logs $c 2>&1; done").stdout
        assert "minga" in shown
        assert "MASTER_ADDR" in said or pc is not lan.ps, "control: the ps tells how to join"
        assert not [token for token in tokens if token.strip() in shown + said]


def test_the_figures_are_all_there() -> None:
    figures = json.loads(Path(FIGURES).read_text())
    assert figures.keys() >= {
        "hosts",
        "deploy_s",
        "deploy_bytes",
        "deploy_limits",
        "second_deploy_changed",
        "redeploy_bytes",
        "accuracy",
        "stranger_open_ports",
        "stranger_open_ports_without_rules",
        "ledger_exact",
    }
