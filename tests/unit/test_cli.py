"""The command line: exit statuses, error shape, help, and the frozen names."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cyclopts import App

from minga.cli import main
from minga.cli.app import build_app
from minga.errors import DataError, Hint, MingaError, Refused, RunFailed, Unreachable, UsageError
from minga.settings.environment import known_variables
from minga.settings.options import PsOptions, WorkerOptions
from minga.settings.sources import Resolved, resolve_settings
from support import RunMinga

GOLDEN = Path(__file__).parent / "golden"


def _commands(app: App, path: str = "minga") -> Iterator[tuple[str, App]]:
    yield path, app
    for name in app:
        if not name.startswith("-"):
            yield from _commands(app[name], f"{path} {name}")


def _flags() -> str:
    """Every command with its arguments and flags, one a line."""
    lines = []
    for path, app in _commands(build_app()):
        lines.append(path)
        if app.default_command:
            shown = [a for a in app.assemble_argument_collection() if a.show]
            lines += sorted(f"  {' '.join(argument.names)}" for argument in shown)
    return "\n".join(lines) + "\n"


def _variables() -> str:
    return "\n".join(sorted(known_variables())) + "\n"


@pytest.mark.parametrize(
    ("name", "now"),
    [("flags.txt", _flags), ("environment.txt", _variables)],
)
def test_names_that_users_type_are_frozen(
    name: str, now: Callable[[], str], tmp_path: Path
) -> None:
    new = tmp_path / name
    new.write_text(now())
    assert new.read_text() == (GOLDEN / name).read_text(), (
        f"if this change is meant, copy {new} to {GOLDEN / name} and say so in CHANGELOG.md"
    )


@pytest.mark.parametrize(
    ("arguments", "env", "status", "code", "words"),
    [
        (["pss"], {}, 2, "usage", 'Did you mean "ps"?'),
        (["ps", "--prot", "1"], {}, 2, "usage", "Did you mean --port?"),
        (["ps", "--optimizer.rl", "1"], {}, 2, "usage", "Did you mean --optimizer.lr?"),
        (["ps", "--port"], {}, 2, "usage", "--port requires an argument"),
        (["ps", "surplus"], {}, 2, "usage", "surplus"),
        (["ps", "--port", "0"], {}, 2, "config-value", '"0" for --port'),
        (["ps", "--port", "65536"], {}, 2, "config-value", '"65536" for --port'),
        (["ps"], {"MASTER_PORT": "x"}, 2, "config-value", "MASTER_PORT"),
        (["ps", "--train.epochs", "0"], {}, 2, "config-value", "flag --train.epochs"),
        (["ps"], {"EPOCHS": "few"}, 2, "config-value", 'train.epochs is "few" (env EPOCHS)'),
        (["ps", "--config", "no.yaml"], {}, 2, "config-file", "no.yaml"),
        (["ps"], {"MINGA_PROT": "1"}, 2, "config-unknown-variable", "mean MINGA_PORT?"),
        (["worker"], {"MINGA_PROT": "1"}, 2, "config-unknown-variable", "mean MINGA_PORT?"),
        (["worker"], {}, 2, "worker-needs-address", "address"),
        (["worker"], {"MASTER_ADDR": ""}, 2, "worker-needs-address", "address"),
        (["worker"], {"MASTER_ADDR": "ps"}, 2, "worker-needs-token", "token"),
        (["worker", "--address=ps", "--token-file=no"], {}, 2, "worker-needs-token", "no"),
        (["worker", "--rank", "0"], {}, 2, "config-value", '"0" for --rank'),
        (["worker"], {"WORLD_SIZE": "1"}, 2, "config-value", "WORLD_SIZE"),
        (["demo", "--workers", "0"], {}, 2, "config-value", "--workers"),
        (["eval"], {}, 2, "usage", "checkpoint"),
        (["plan", "--pcs", "many"], {}, 2, "plan-pcs", "'many' is not a list of PCs"),
        (["plan", "--pcs", "0x1000"], {}, 2, "plan-pcs", "contains a 0"),
        (["plan", "--pcs=4x1000,"], {}, 2, "plan-pcs", "'' is not a list of PCs"),
        (["plan", "--pcs=500x1,20x2"], {}, 2, "plan-pcs", "520 PCs; a plan is for 1 to 512"),
        (["plan", "--scale=4,x"], {}, 2, "plan-pcs", "'4,x' is not a list"),
        (["plan", "--scale=0"], {}, 2, "plan-pcs", "0 PCs"),
        (["plan", "--ps-link", "0"], {}, 2, "config-value", "--ps-link"),
        (["plan", "--codec", "int7"], {}, 2, "config-value", "int8"),
        (["plan", "--model", "resnet5"], {}, 2, "model-unknown", "'resnet5'"),
    ],
)
def test_a_wrong_command_line_ends_with_its_code_and_status(
    run_minga: RunMinga,
    arguments: list[str],
    env: dict[str, str],
    status: int,
    code: str,
    words: str,
) -> None:
    ended = run_minga(*arguments, env=env)
    assert ended.returncode == status
    first, *rest = ended.stderr.splitlines()
    assert first.startswith(f"error[{code}]: ")
    assert words.lower() in first.lower()
    assert re.search(rf"^  more +docs/troubleshooting\.md#{code}$", rest[-1])
    assert ended.stdout == ""


def _run_main(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Run ``minga`` with a command that raises ``error``."""

    def fail() -> None:
        raise error

    def build() -> App:
        app = build_app()
        app.command(fail)
        return app

    monkeypatch.setattr("minga.cli.boundary.build_app", build)
    return main(["fail"])


@pytest.mark.parametrize(
    ("kind", "status"),
    [(RunFailed, 1), (UsageError, 2), (Unreachable, 3), (DataError, 4), (Refused, 5)],
)
def test_our_errors_become_code_hints_and_status(
    kind: type[MingaError],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = kind(
        "no parameter server at [fe80::1]:30005",
        code="ps-unreachable",
        hints=(Hint("is it running?", "make status"), Hint("firewall?", "make check")),
    )
    assert _run_main(monkeypatch, error) == status
    assert capsys.readouterr().err == (
        "error[ps-unreachable]: no parameter server at [fe80::1]:30005\n"
        "  is it running?   make status\n"
        "  firewall?        make check\n"
        "  more             docs/troubleshooting.md#ps-unreachable\n"
    )


def test_ctrl_c_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run_main(monkeypatch, KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_leaves_its_traceback_in_a_file_that_the_message_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run_main(monkeypatch, ZeroDivisionError("oops")) == 1
    said = capsys.readouterr().err
    (log,) = Path(".minga").glob("crash-*.log")
    assert "error[crash]: ZeroDivisionError: oops" in said
    assert str(log) in said
    assert "Traceback" not in said
    assert "in fail" in log.read_text()


def test_a_bug_where_no_file_can_be_written_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINGA_STATE", str(tmp_path / "file" / "state"))
    assert _run_main(monkeypatch, ZeroDivisionError("oops")) == 1
    assert "in fail" in capsys.readouterr().err


@pytest.mark.parametrize("path", [path for path, _ in _commands(build_app())])
def test_every_command_explains_itself(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path.split()[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: {path}" in shown
    assert "Exit status:" in shown


def test_config_show_gives_each_value_with_its_source(run_minga: RunMinga, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("train:\n  epochs: 3\n  seed: 4\n")
    ended = run_minga(
        *("config", "show", "--json", "--train.seed", "5", "--exchange.max-staleness=none"),
        env={"EPOCHS": "6", "MINGA_OPTIMIZER_LR": "0.5"},
    )
    assert ended.returncode == 0
    shown = json.loads(ended.stdout)
    assert shown["train.epochs"] == {"value": 6, "source": "env EPOCHS"}
    assert shown["train.seed"] == {"value": 5, "source": "flag --train.seed"}
    assert shown["optimizer.lr"] == {"value": 0.5, "source": "env MINGA_OPTIMIZER_LR"}
    assert shown["exchange.max_staleness"]["value"] is None
    assert shown["model.name"] == {"value": "resnet18", "source": "default"}


def test_train_yaml_is_read_where_it_is_and_config_none_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "show"]) == 0
    assert "train.yaml" not in capsys.readouterr().out
    (tmp_path / "train.yaml").write_text("train:\n  epochs: 3\n")
    assert main(["config", "show"]) == 0
    assert re.search(r"train\.epochs +3 +train\.yaml", capsys.readouterr().out)
    assert main(["config", "show", "--config", "none"]) == 0
    assert re.search(r"train\.epochs +30 +default", capsys.readouterr().out)


def test_config_env_lists_every_variable(run_minga: RunMinga) -> None:
    shown = run_minga("config", "env").stdout
    assert {row.split()[0] for row in shown.splitlines()[1:] if row[:1] != " "} == set(
        known_variables()
    )


class _Roles:
    """Stands where run_ps and run_worker are, and keeps what they are called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resolved: Resolved | None = None
        self.ps: PsOptions | None = None
        self.worker: WorkerOptions | None = None
        monkeypatch.delenv("MINGA_ALLOW_ROOT")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        for name in ("ps", "worker"):
            fake = ModuleType(f"minga.{name}.run")
            vars(fake)[f"run_{name}"] = getattr(self, f"_run_{name}")
            monkeypatch.setitem(sys.modules, f"minga.{name}.run", fake)

    def _run_ps(self, resolved: Resolved, options: PsOptions) -> int:
        self.resolved, self.ps = resolved, options
        return 0

    def _run_worker(self, options: WorkerOptions) -> int:
        self.worker = options
        return 5


@pytest.fixture
def roles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Roles:
    monkeypatch.chdir(tmp_path)
    return _Roles(monkeypatch)


def test_ps_gets_defaults_where_nothing_is_said(roles: _Roles) -> None:
    assert main(["ps"]) == 0
    assert roles.ps == PsOptions()
    assert roles.resolved == resolve_settings(None, {}, {})


def test_a_role_ends_with_the_status_it_returns(roles: _Roles) -> None:
    assert main(["worker", "--address", "a", "--token", "t"]) == 5


def test_ps_takes_flags_before_minga_variables_before_the_guides(
    roles: _Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1111")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")  # what the ps's env file says
    assert main(["ps", "--train.epochs=4"]) == 0
    assert roles.ps == PsOptions(port=1111, world_size=3)
    assert roles.resolved is not None
    assert roles.resolved.settings.train.epochs == 4

    monkeypatch.setenv("MINGA_PORT", "2222")
    main(["ps"])
    assert roles.ps == PsOptions(port=2222, world_size=3)

    main(["ps", "--port", "3333", "--world-size", "none", "--resume=none", "--runs", "r"])
    assert roles.ps == PsOptions(port=3333, resume="none", runs=Path("r"))


def test_none_switches_an_option_of_the_ps_off(roles: _Roles) -> None:
    main(["ps", "--host=none", "--run-id=none", "--token-file=none", "--world-size=none"])
    assert roles.ps == PsOptions()


def test_none_switches_an_option_of_a_worker_off(
    roles: _Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NAME", "DEVICE", "RANK", "DATA_PATH", "DATA_FORMAT", "TRAIN_BATCH_SIZE"):
        monkeypatch.setenv(f"MINGA_{name}", "none")
    monkeypatch.setenv("MINGA_TOKEN_FILE", "none")
    main(["worker", "--address=a", "--token=t"])
    assert roles.worker == WorkerOptions(address="a", token="t")


def test_worker_understands_the_guides_names(
    roles: _Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = {
        "MASTER_ADDR": "192.168.1.100",
        "MASTER_PORT": "1111",
        "WORKER_RANK": "2",
        "WORLD_SIZE": "3",
        "EPOCHS": "4",
        "DATASET_URL": "/data/train",
        "VAL_DATASET_URL": "/data/val",
        "USE_WEBDATASET": "true",
        "MINGA_TOKEN": "secret",
        "MINGA_NAME": "",
    }
    for name, text in guide.items():
        monkeypatch.setenv(name, text)
    main(["worker"])
    assert roles.worker == WorkerOptions(
        address="192.168.1.100",
        port=1111,
        rank=2,
        world_size=3,
        epochs=4,
        data="/data/train",
        val_data="/data/val",
        data_format="webdataset",
        token="secret",
    )


@pytest.mark.parametrize("as_flag", [True, False])
def test_worker_reads_its_token_from_a_file(
    as_flag: bool, roles: _Roles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    if not as_flag:
        monkeypatch.setenv("MINGA_TOKEN_FILE", str(file))
    main(["worker", "--address=a", *(["--token-file", str(file)] if as_flag else [])])
    assert roles.worker is not None
    assert roles.worker.token_file == file


def test_a_token_and_a_token_file_together_are_refused(
    roles: _Roles, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "--address=a", "--token=t", "--token-file=f"]) == 2
    assert "; give one" in capsys.readouterr().err
    assert roles.worker is None


def test_a_token_is_not_shown_by_the_options_that_hold_it() -> None:
    assert "secret" not in repr(WorkerOptions(address="a", token="secret"))
