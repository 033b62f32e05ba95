"""A ps or a worker that cannot start says why, with its status, and changes nothing."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.harness import Cluster, cluster, free_port, wait_until
from minga import __version__
from minga.cli import main
from minga.messages import Hello
from minga.transport.dial import Join, NoAnswer
from minga.transport.identity import Secret
from support import RunMinga

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
]


def files(folder: Path) -> dict[str, bytes]:
    """Return what every file below a folder holds, and where every link leads."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def refused(ended: subprocess.CompletedProcess[str], status: int, code: str, *words: str) -> None:
    """Assert that a command ended with an error of ours, and nothing but that."""
    assert ended.returncode == status, ended.stderr
    assert f"error[{code}]: " in ended.stderr
    assert f"docs/troubleshooting.md#{code}" in ended.stderr
    for word in words:
        assert word in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def listens(port: int) -> bool:
    """Whether somebody takes connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def minga(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[RunMinga]:
    """Run ``minga ...`` in an empty folder and in this process: importing torch takes seconds.

    For commands that end before they start another process, or a session.
    """
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    folder = tmp_path / "empty"
    folder.mkdir()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(
        *arguments: str, cwd: Path = folder, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        status = main(arguments)
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


# -- the ps


@pytest.mark.parametrize(
    ("setting", "code", "word"),
    [
        ("--model.name=resnet81", "model-unknown", "resnet18"),
        ("--model.name=vgg11 --model.stem=small", "stem-unsupported", "vgg11"),
        ("--run-id=../elsewhere", "config-value", "../elsewhere"),
        ("--host=203.0.113.7", "port-unavailable", "203.0.113.7"),
    ],
)
def test_a_ps_that_may_not_start_leaves_no_trace(
    minga: RunMinga, tmp_path: Path, setting: str, code: str, word: str
) -> None:
    ended = minga("ps", f"--port={free_port()}", "--config=none", *setting.split())
    refused(ended, 2, code, word)
    assert files(tmp_path) == {}


def test_a_port_in_use_is_refused_with_its_holders_name(minga: RunMinga, tmp_path: Path) -> None:
    port = free_port()
    holder = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind=127.0.0.1"],
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: listens(port), "the HTTP server")
    ended = minga("ps", f"--port={port}", "--host=127.0.0.1", "--config=none")
    holder.kill()
    holder.wait()
    refused(ended, 2, "port-unavailable", str(port), f"process {holder.pid}", "python")
    assert files(tmp_path) == {}, "neither a run nor links to it"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Cluster:
    """A run that was stopped in the middle, with a measured best.pth."""
    with cluster(tmp_path_factory.mktemp("stopped"), digits, train__epochs=3000) as lan:
        lan.start_ps("--run-id=half", world_size=2)
        lan.start_worker(1)
        lan.wait_for("evaluation")
        lan.kill("ps", signal.SIGINT)
        assert lan.finish("ps") == 130
    return lan


def start(lan: Cluster, minga: RunMinga, *flags: str) -> subprocess.CompletedProcess[str]:
    """Start the run's ps again with other flags; it must end by itself and change nothing."""
    changed = {flag.partition("=")[0] for flag in flags}
    usual = [flag for flag in lan.ps_flags() if flag.partition("=")[0] not in changed]
    before = files(lan.folder)
    ended = minga("ps", *usual, *flags, cwd=lan.folder)
    assert files(lan.folder) == before
    return ended


def test_another_configuration_is_refused_with_all_differences(
    stopped: Cluster, minga: RunMinga
) -> None:
    ended = start(stopped, minga, "--model.name=resnet18", "--optimizer.lr=0.2")
    model, lr = "model.name is 'resnet18', was 'small-cnn'", "optimizer.lr is 0.2, was 0.1"
    refused(ended, 5, "config-changed", model, lr)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_and_kept(
    stopped: Cluster, minga: RunMinga, tmp_path: Path, share: float
) -> None:
    whole = (stopped.run / "checkpoints" / "last.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole[: int(share * len(whole))])
    refused(start(stopped, minga, f"--resume={cut}"), 5, "checkpoint-corrupt", str(cut))
    assert cut.stat().st_size == int(share * len(whole))


def test_a_checkpoint_of_something_else_is_refused(
    stopped: Cluster, minga: RunMinga, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), foreign)
    refused(start(stopped, minga, f"--resume={foreign}"), 5, "checkpoint-format", str(foreign))
    best = stopped.run / "checkpoints" / "best.pth"
    refused(start(stopped, minga, f"--resume={best}"), 5, "checkpoint-format", "last.pth")
    newer = torch.load(stopped.run / "checkpoints" / "last.pth", weights_only=True)
    newer["settings"]["optimizer"]["cleverness"] = 1
    newer["minga"] = "9.9"
    torch.save(newer, foreign)
    ended = start(stopped, minga, f"--resume={foreign}")
    refused(ended, 5, "checkpoint-format", "minga 9.9", "cleverness")


def test_a_checkpoint_that_is_not_there_is_refused(
    stopped: Cluster, minga: RunMinga, tmp_path: Path
) -> None:
    missing = tmp_path / "no.pth"
    refused(start(stopped, minga, f"--resume={missing}"), 5, "checkpoint-missing", str(missing))


def test_a_new_run_does_not_take_an_unfinished_ones_folder(
    stopped: Cluster, minga: RunMinga
) -> None:
    ended = start(stopped, minga, "--run-id=half", "--resume=none")
    refused(ended, 2, "run-exists", "half")


def test_a_finished_run_stays_as_it_is(tmp_path: Path, digits: Path, minga: RunMinga) -> None:
    with cluster(tmp_path / "lan", digits, train__epochs=2, evaluation__every_epochs=2) as lan:
        lan.start_ps("--run-id=whole", world_size=2)
        lan.start_worker(1)
        assert lan.finish("ps") == 0, lan.log("ps")
        lan.finish("worker1")
    for again in ("--run-id=whole", f"--resume={lan.run / 'checkpoints' / 'last.pth'}"):
        ended = start(lan, minga, again)
        assert ended.returncode == 0, ended.stderr
        assert "Run whole is finished" in ended.stderr


# -- a worker


class Silent:
    """Listens on a port, takes connections, says nothing."""

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def join(
    minga: RunMinga, port: int, *flags: str, token: str = ""
) -> subprocess.CompletedProcess[str]:
    """Start a worker that must end by itself."""
    secret = token or str(Secret(bytes(15), bytes(32)))
    where = ["worker", "--address=127.0.0.1", f"--port={port}", "--device=cpu"]
    return minga(*where, *flags, env={"MINGA_TOKEN": secret})


def test_a_worker_gives_up_where_nobody_listens(run_minga: RunMinga) -> None:
    port = free_port()
    ended = join(run_minga, port, "--wait-s=1")
    refused(ended, 3, "ps-unreachable", f"127.0.0.1:{port}", "Connection refused", "./start_ps.sh")
    assert "waiting_for" in ended.stderr


def test_an_http_server_is_no_ps_and_a_worker_says_so_at_once(run_minga: RunMinga) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        ended = join(run_minga, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
    refused(ended, 3, "not-a-ps", f"127.0.0.1:{server.server_port}")


def test_a_silent_listener_is_no_ps_and_a_worker_gives_up(minga: RunMinga) -> None:
    with Silent() as port:
        ended = join(minga, port, "--wait-s=1")
    refused(ended, 3, "not-a-ps", f"127.0.0.1:{port}", "it is silent")


def test_a_listener_that_hangs_up_is_given_time() -> None:
    """A ps that is about to end does so, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with listener.accept()[0] as visitor:
                visitor.shutdown(socket.SHUT_WR)
                while visitor.recv(4096):
                    pass

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(NoAnswer, match="closed the connection") as raised:
            Join(
                listener.getsockname()[:2], Secret(bytes(15), bytes(32)), Hello(protocol=0, uuid="")
            ).__enter__()
        thread.join()
    assert not raised.value.other


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Cluster]:
    """A ps whose first worker has told it of the data, and left."""
    settings = {"train__epochs": 3000, "evaluation__every_epochs": 3000}
    with cluster(tmp_path_factory.mktemp("waiting"), digits, **settings) as lan:
        lan.start_ps()
        lan.start_worker(1)
        lan.wait_for("push")
        lan.kill("worker1", signal.SIGINT)
        assert lan.finish("worker1") == 130
        yield lan


def turned_away(lan: Cluster, words: str) -> None:
    """Assert that the ps tells of it, too, and is there for others."""
    lan.wait_for("turned_away", reason=lambda reason: words in reason)
    assert lan.processes["ps"].poll() is None


def test_a_wrong_token_is_refused(waiting: Cluster, minga: RunMinga) -> None:
    wrong = Secret(bytes(15), waiting.identity.secret.pin)
    refused(join(minga, waiting.port, token=str(wrong)), 5, "token-wrong")
    turned_away(waiting, "wrong token")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("minga.worker.run.PROTOCOL_VERSION", 99, "protocol-differs"),
        ("torch.__version__", "2.99.0+cpu", "torch-differs"),
    ],
)
def test_other_versions_are_refused_with_both_named(
    waiting: Cluster,
    minga: RunMinga,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    code: str,
) -> None:
    here = __version__ if code == "protocol-differs" else str(torch.__version__)
    monkeypatch.setattr(name, value)
    ended = join(minga, waiting.port, token=str(waiting.identity.secret))
    refused(ended, 5, code, here, str(value), "127.0.0.1")
    turned_away(waiting, str(value))


def test_missing_data_are_told_to_both_sides(
    waiting: Cluster, minga: RunMinga, tmp_path: Path
) -> None:
    token, missing = str(waiting.identity.secret), str(tmp_path / "none")
    refused(
        join(minga, waiting.port, f"--data={missing}", token=token), 4, "data-not-found", missing
    )
    turned_away(waiting, missing)


def test_other_data_are_refused_with_the_difference(
    waiting: Cluster, minga: RunMinga, tmp_path: Path, digits: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(digits, other)
    next(other.glob("train/3/*.png")).unlink()
    for half in ("train", "val"):
        (other / half / "9").rename(other / half / "nine")
    ended = join(minga, waiting.port, f"--data={other}", token=str(waiting.identity.secret))
    refused(ended, 5, "data-differs", "train 1441 instead of 1442", "class_hash")
    turned_away(waiting, "1441")


def test_two_ps_cannot_serve_one_run(waiting: Cluster, minga: RunMinga) -> None:
    usual = [flag for flag in waiting.ps_flags() if not flag.startswith("--port")]
    wait_until((waiting.run / "checkpoints" / "last.pth").exists, "a checkpoint")
    ended = minga("ps", *usual, f"--port={free_port()}", cwd=waiting.folder)
    refused(ended, 5, "run-in-use", f"process {waiting.processes['ps'].pid}")


def test_a_build_for_another_device_and_a_patch_release_may_join(waiting: Cluster) -> None:
    major, minor, *_ = str(torch.__version__).split(".")
    pretend = f"import sys, torch; torch.__version__ = '{major}.{minor}.99+cu126'; "
    waiting.start_worker(7, entry=("-c", pretend + "from minga.cli import main; sys.exit(main())"))
    waiting.wait_for("push", rank=7)
