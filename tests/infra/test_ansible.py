"""Playbooks without a PC: syntax, what a wrong inventory is told, the files each PC gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from minga.settings.environment import known_variables
from support import ROOT, needs, play

needs("ansible")

PLAYBOOKS = sorted((ROOT / "ansible").glob("*.yml"))
HERE = Path(__file__).parent


def _inventory(folder: Path, workers: int, *, ps: str = "desk-a ansible_host=10.0.0.10") -> Path:
    lines = [f"desk-{n} ansible_host=10.0.0.{10 + n}" for n in range(1, workers + 1)]
    path = folder / "inventory.ini"
    path.write_text("\n".join(["[ps]", ps, "[workers]", *lines]) + "\n")
    return path


def test_every_playbook_has_valid_syntax() -> None:
    ended = play(ROOT / "inventory.ini", "--syntax-check", *PLAYBOOKS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("playbook:") == len(PLAYBOOKS) >= 7


A = "[ps]\na ansible_host=10.0.0.1\n[workers]\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "0 PCs under [ps] and 0 under [workers]"),
        ("[ps]\na ansible_host=10.0.0.1\n", "1 PCs under [ps] and 0 under [workers]"),
        ("[ps]\na ansible_host=10.0.0.1\nb ansible_host=10.0.0.2\n[workers]\nc\n", "2 PCs under"),
        (A + "b\n", "b: INVENTORY gives no IP address"),
        (
            "[ps]\na ansible_host=127.0.0.1\n[workers]\nb ansible_host=10.0.0.2\n",
            "a: INVENTORY gives an address that means another PC on each PC",
        ),
        (
            "[ps]\nlocalhost\n[workers]\nb ansible_host=10.0.0.2\n",
            "localhost: INVENTORY gives an a",
        ),
        (
            A + "b ansible_host=x.invalid minga_address=10.0.0.2\n",
            "INVENTORY: cannot resolve x.invalid (getent ahosts x.invalid)",
        ),
        (
            A + "b ansible_host=10.0.0.2 minga_adress=10.0.0.3\n",
            "b: INVENTORY says minga_adress, which is unknown to minga (minga_address?)",
        ),
        (
            A + "b ansible_host=10.0.0.2\n[all:vars]\ncud=cpu\n",
            "a, b: INVENTORY says cud, which is unknown to minga (cuda?)",
        ),
        (
            A + "b ansible_host=10.0.0.2 cuda=cu12\n",
            "b: INVENTORY says cuda=cu12, which is not an image of minga. Write one of",
        ),
        (
            A + "b ansible_host=10.0.0.2\n",
            "The folder FOLDER does not exist on this PC. Name the data: make deploy DATASET=",
        ),
        (
            A + "b ansible_host=10.0.0.1\n",
            "a, b: one address for several PCs",
        ),
        (
            A + "b ansible_host=10.0.0.2 bucket_key=/nowhere/key.json\n",
            "INVENTORY: bucket_key=/nowhere/key.json is no file of this PC. Name the key file",
        ),
        ("[ps]\na ansible_host=192.0.2.10\n[workers]\nb ansible_host=10.0.0.2\n", "the example's"),
    ],
)
def test_a_wrong_inventory_is_told_before_any_pc_is_asked(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET", str(tmp_path / "nowhere"))
    path = tmp_path / "lan.ini"
    path.write_text(text)
    ended = play(path, ROOT / "ansible" / "deploy.yml")
    assert ended.returncode != 0
    told = told.replace("INVENTORY", str(path)).replace("FOLDER", str(tmp_path / "nowhere"))
    assert told in " ".join(ended.stdout.split())
    assert "unreachable=1" not in ended.stdout


def test_the_example_inventory_is_right_but_for_its_addresses() -> None:
    ended = play(ROOT / "inventory.ini", ROOT / "ansible" / "inventory.yml")
    assert "still has the example's addresses" in " ".join(ended.stdout.split())
    assert ended.stdout.count("FAILED!") == 1


def test_a_right_inventory_passes_also_with_one_pc_in_both_groups_and_ipv6(tmp_path: Path) -> None:
    path = tmp_path / "lan.ini"
    path.write_text(
        "[ps]\na ansible_host=fd00::1\n[workers]\na ansible_host=fd00::1\nb ansible_host=10.0.0.2\n"
    )
    ended = play(path, ROOT / "ansible" / "inventory.yml")
    assert ended.returncode == 0, ended.stdout


def test_every_known_variable_is_taken_and_data_of_its_own_need_none_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET", str(tmp_path / "nowhere"))
    known = yaml.safe_load((ROOT / "ansible/roles/inventory/vars/main.yml").read_text())
    values = {"cuda": "default", "minga_address": "10.0.0.2", "minga_address6": "fd00::2"}
    values["bucket_key"] = __file__
    said = [f"{name}={values.get(name, 1)}" for name in known["inventory_variables"]]
    path = tmp_path / "lan.ini"
    pc = f"b ansible_host=localhost ansible_port=2222 {' '.join(said)}"
    path.write_text(f"[ps]\na ansible_host=10.0.0.1\n[workers]\n{pc}\n")
    needs_data = ("-e", "{inventory_needs_data: true}")
    ended = play(path, ROOT / "ansible" / "inventory.yml", *needs_data)
    assert ended.returncode == 0, ended.stdout
    path.write_text(path.read_text().replace("data_folder=1", ""))
    ended = play(path, ROOT / "ansible" / "inventory.yml", *needs_data)
    assert "does not exist on this PC" in ended.stdout, "control: a PC that is to be sent them"


# -- rendered files


def _render(inventory: Path, out: Path, *words: str) -> dict[str, str]:
    """Return every rendered file by ``<PC>-<file>``."""
    variables = inventory.parent / "group_vars"
    if not variables.exists():
        variables.symlink_to(ROOT / "ansible" / "group_vars")
    out.mkdir()
    ended = play(inventory, HERE / "render.yml", "-e", f"out={out}", *words)
    assert ended.returncode == 0, ended.stdout
    return {path.name: path.read_text() for path in out.iterdir()}


def _variables(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_each_worker_is_told_its_rank_and_all_are_told_the_same_ps(
    workers: int, tmp_path: Path
) -> None:
    files = _render(_inventory(tmp_path, workers), tmp_path / "out")
    for rank in range(1, workers + 1):
        told = _variables(files[f"desk-{rank}-worker.env"])
        assert told["RANK"] == str(rank)
        assert told["WORLD_SIZE"] == str(workers + 1)
        assert told["MASTER_ADDR"] == "10.0.0.10"
        assert told["MASTER_PORT"] == "30005"
        assert told["MINGA_NAME"] == f"desk-{rank}"
    assert _variables(files["desk-a-ps.env"])["RANK"] == "0"
    assert "desk-a-worker.env" not in files


def test_what_the_inventory_says_of_all_pcs_or_of_one_reaches_them(tmp_path: Path) -> None:
    inventory = _inventory(tmp_path, 2)
    own = inventory.read_text().replace("10.0.0.12", "10.0.0.12 device=cpu minga_threads=3")
    inventory.write_text(f"{own}[all:vars]\nminga_threads=2\nbatch_size=8\n")
    files = _render(inventory, tmp_path / "out")
    first, second = (_variables(files[f"desk-{rank}-worker.env"]) for rank in (1, 2))
    assert (first["OMP_NUM_THREADS"], second["OMP_NUM_THREADS"]) == ("2", "3")
    assert (first["MINGA_DEVICE"], second["MINGA_DEVICE"]) == ("", "cpu")
    assert first["MINGA_TRAIN_BATCH_SIZE"] == second["MINGA_TRAIN_BATCH_SIZE"] == "8"


def test_a_pc_with_two_workers_moves_the_later_ranks_and_has_a_compose_service_more(
    tmp_path: Path,
) -> None:
    inventory = _inventory(tmp_path, 3)
    own = inventory.read_text().replace("10.0.0.12", "10.0.0.12 workers_per_host=2")
    inventory.write_text(own)
    files = _render(inventory, tmp_path / "out", "-e", "gpu=1")
    told = {name: _variables(text) for name, text in files.items() if name.endswith(".env")}
    ranks = {name: int(each["RANK"]) for name, each in told.items() if "worker" in name}
    assert ranks == {
        "desk-1-worker.env": 1,
        "desk-2-worker.env": 2,
        "desk-2-worker2.env": 3,
        "desk-3-worker.env": 4,
    }
    assert {each["WORLD_SIZE"] for each in told.values() if "WORLD_SIZE" in each} == {"5"}
    first, other = told["desk-2-worker.env"], told["desk-2-worker2.env"]
    assert (first["MINGA_DEVICE"], other["MINGA_DEVICE"]) == ("cuda:0", "cuda:1")
    assert (first["MINGA_NAME"], other["MINGA_NAME"]) == ("desk-2", "desk-2-2")
    assert told["desk-1-worker.env"]["MINGA_DEVICE"] == "", "one worker chooses by itself"
    assert "compose.workers.yml" in told["desk-2-compose.env"]["COMPOSE_FILE"]
    assert "container_name: minga-worker2" in files["desk-2-compose.workers.yml"]
    second = yaml.safe_load(files["desk-2-compose.workers.yml"])["services"]["worker2"]
    of_first = yaml.safe_load((ROOT / "docker" / "compose.gpu.yml").read_text())["services"]
    assert {key: second[key] for key in of_first["worker"]} == of_first["worker"]
    assert "desk-1-compose.workers.yml" not in files


@pytest.mark.parametrize(
    ("kind", "key", "endpoint"),
    [
        ("s3", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"),
    ],
)
def test_workers_fetch_from_a_bucket_with_its_key_and_the_ps_has_none(
    kind: str, key: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET", f"{kind}://lab/tiny/train")
    monkeypatch.setenv("VAL_DATASET", f"{kind}://lab/tiny/val")
    monkeypatch.setenv("https_proxy", "http://10.0.0.9:3128")
    path = tmp_path / "lan.ini"
    said = f"bucket_key={__file__} bucket_endpoint=http://10.0.0.9:9000"
    path.write_text(f"[ps]\na ansible_host=10.0.0.1\n[workers]\nb ansible_host=10.0.0.2 {said}\n")
    rendered = _render(path, tmp_path / "out")
    worker, ps = (_variables(rendered[name]) for name in ("b-worker.env", "a-ps.env"))
    assert worker["DATASET_URL"] == f"{kind}://lab/tiny/train"
    assert worker["VAL_DATASET_URL"] == f"{kind}://lab/tiny/val"
    assert (worker[key], worker[endpoint]) == ("/secrets/bucket", "http://10.0.0.9:9000")
    assert worker["https_proxy"] == "http://10.0.0.9:3128"
    assert worker["MINGA_CACHE"].startswith("/var/lib/minga/"), "all else is read-only"
    assert key not in ps
    assert "https_proxy" not in ps


def test_the_data_of_a_pc_that_has_its_own_are_mounted_from_there(tmp_path: Path) -> None:
    inventory = _inventory(tmp_path, 2)
    own = inventory.read_text().replace("10.0.0.12", "10.0.0.12 data_folder=/mnt/flowers")
    inventory.write_text(own)
    files = _render(inventory, tmp_path / "out")
    assert _variables(files["desk-2-compose.env"])["MINGA_DATA"] == "/mnt/flowers"
    assert _variables(files["desk-2-worker.env"])["DATASET_URL"] == "/data/"
    assert "MINGA_DATA" not in files["desk-1-compose.env"]


def test_a_pc_in_both_groups_gets_both_roles(tmp_path: Path) -> None:
    path = tmp_path / "lan.ini"
    path.write_text("[ps]\na ansible_host=10.0.0.1\n[workers]\na\nb ansible_host=10.0.0.2\n")
    files = _render(path, tmp_path / "out")
    assert _variables(files["a-ps.env"])["RANK"] == "0"
    assert _variables(files["a-worker.env"])["RANK"] == "1"
    composed = _variables(files["a-compose.env"])["COMPOSE_FILE"]
    assert composed == "/opt/minga/compose.ps.yml:/opt/minga/compose.worker.yml"


def test_ranks_stay_when_only_one_pc_is_deployed(tmp_path: Path) -> None:
    files = _render(_inventory(tmp_path, 3), tmp_path / "out", "--limit", "desk-3")
    assert _variables(files["desk-3-worker.env"])["RANK"] == "3"
    assert {name.rsplit("-", 1)[0] for name in files if name.endswith("worker.env")} == {"desk-3"}


def test_minga_knows_every_variable_that_is_told_and_none_is_a_secret(tmp_path: Path) -> None:
    files = _render(_inventory(tmp_path, 1), tmp_path / "out")
    told = _variables(files["desk-a-ps.env"]) | _variables(files["desk-1-worker.env"])
    assert {name for name in told if name.startswith("MINGA_")} <= known_variables().keys()
    assert told.keys() >= {"DATASET_URL", "VAL_DATASET_URL", "MINGA_TOKEN_FILE", "MINGA_RUNS"}
    assert "MINGA_TOKEN" not in told


def test_the_data_are_named_by_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET", "some/where/flowers/")
    files = _render(_inventory(tmp_path, 1), tmp_path / "out")
    assert _variables(files["desk-1-worker.env"])["DATASET_URL"] == "/data/flowers"


def test_a_pack_has_the_name_of_the_data_and_both_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET", "some/where/flowers/")
    monkeypatch.setenv("VAL_DATASET", "/else/where/more")
    root = ("-e", f"minga_root={tmp_path}")

    def urls(out: str) -> tuple[str, str]:
        files = _render(_inventory(tmp_path, 1), tmp_path / out, *root)
        told = _variables(files["desk-1-worker.env"])
        return told["DATASET_URL"], told["VAL_DATASET_URL"]

    pack = tmp_path / "build" / "data" / "flowers"
    pack.mkdir(parents=True)
    assert urls("two") == ("/data/flowers", "/data/more")
    (pack / "packed.json").touch()
    assert urls("one") == ("/data/flowers", "")


def test_compose_takes_the_gpu_file_only_where_there_is_a_gpu(tmp_path: Path) -> None:
    inventory = _inventory(tmp_path, 1)
    without = _variables(_render(inventory, tmp_path / "out")["desk-1-compose.env"])
    assert without["COMPOSE_FILE"] == "/opt/minga/compose.worker.yml"
    assert without["MINGA_IMAGE"] == "minga:1"
    having = _variables(_render(inventory, tmp_path / "gpu", "-e", "gpu=1")["desk-1-compose.env"])
    assert having["COMPOSE_FILE"] == "/opt/minga/compose.worker.yml:/opt/minga/compose.gpu.yml"


def _decide(folder: Path, worker: str, *words: str) -> str:
    """Play role gpu for a ps and a worker with a GPU; return what was said, in one line."""
    inventory = folder / "inventory.ini"
    inventory.write_text(f"[ps]\na ansible_host=10.0.0.1\n[workers]\n{worker}\n")
    (folder / "group_vars").symlink_to(ROOT / "ansible" / "group_vars")
    ended = play(inventory, HERE / "gpu.yml", *words)
    assert ended.returncode == 0, ended.stdout
    return " ".join(ended.stdout.replace("''", "'").split())  # quoted as YAML does


@pytest.mark.parametrize(
    ("worker", "words", "given", "told"),
    [
        ("b ansible_host=10.0.0.2", (), True, True),
        ("b ansible_host=10.0.0.2", ("-e", '{"runtimes": "{\\"nvidia\\":{}}"}'), True, False),
        ("b ansible_host=10.0.0.2 device=cpu", (), False, False),
        ("b ansible_host=10.0.0.2 cuda=cpu", (), False, False),
        ("b ansible_host=10.0.0.2", ("-e", "card="), False, False),
    ],
)
def test_a_gpu_is_handed_out_where_a_worker_is_to_use_it_and_check_only_tells(
    worker: str, words: tuple[str, ...], given: bool, told: bool, tmp_path: Path
) -> None:
    said = _decide(tmp_path, worker, "--check", *words)
    assert f"b given={given} from=https://nvidia.github.io/libnvidia-container" in said
    assert "a given=False" in said, "a ps computes nothing"
    assert ("b has Some Card, 580.65: it would get NVIDIA's container toolkit" in said) is told
    assert said.count("changed=1") == told


@pytest.mark.parametrize(
    ("status", "why", "command"),
    [
        (3, "containers run there", "on it: sudo systemctl restart docker. Then: make deploy"),
        (4, "cannot be installed (E: no way)", "curl -I http://mirror/nvidia/gpgkey must answer"),
        (5, "configured for NVIDIA's container toolkit (E: no way)", "sudo nvidia-ctk runtime"),
        (127, "configured for NVIDIA's container toolkit (E: no way)", "make deploy LIMIT=b"),
        (0, "", ""),
    ],
)
def test_a_gpu_that_stays_idle_fails_no_pc_and_deploy_says_why(
    status: int, why: str, command: str, tmp_path: Path
) -> None:
    brought = {"rc": status, "stdout_lines": ["added x"], "stderr_lines": ["y", "E: no way"]}
    last = ("--start-at-task", "Note whether the worker gets a GPU")
    worker = "b ansible_host=10.0.0.2 toolkit=http://mirror/nvidia/"
    said = _decide(tmp_path, worker, *last, "-e", json.dumps({"gpu_brought": brought}))
    assert f"b given={status == 0} from=http://mirror/nvidia" in said
    assert ("b has Some Card, 580.65, but trains on its CPU:" in said) is (status != 0)
    assert why in said
    assert command in said


def test_the_guard_names_every_peer_and_nobody_else(tmp_path: Path) -> None:
    inventory = _inventory(tmp_path, 2, ps="desk-a ansible_host=10.0.0.10 minga_address6=fd00::10")
    guard = _render(inventory, tmp_path / "out")["desk-a-firewall.nft"]
    assert "elements = { 10.0.0.10, 10.0.0.11, 10.0.0.12 }" in guard
    assert "elements = { fd00::10 }" in guard
    assert "tcp dport 30005 jump peers_only" in guard
    alone = _render(_inventory(tmp_path, 1), tmp_path / "two")["desk-a-firewall.nft"]
    assert alone.count("elements") == 1, "an empty set has no elements line"
