"""``minga ps``, ``minga worker``, ``minga demo``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from minga.cli.root import WHY, is_root, require_ordinary_user
from minga.cli.settings_flags import (
    DEFAULT_CONFIG,
    ConfigPath,
    SettingsFlags,
    config_file,
    given_flags,
)
from minga.console import Console
from minga.errors import Hint, UsageError
from minga.settings.environment import check_variables, webdataset_wanted
from minga.settings.options import DemoOptions, PsOptions, WorkerOptions, optional
from minga.settings.sources import resolve_settings

_PS = PsOptions()
_WORKER = WorkerOptions()
_DEMO = DemoOptions()


def ps(
    *,
    options: PsOptions = _PS,
    config: ConfigPath = DEFAULT_CONFIG,
    settings: SettingsFlags = None,
) -> int:
    """Start the parameter server: it owns the weights; workers come and go.

    Args:
        options: of this process.
        config: YAML file of settings, or none; the default may be missing.
        settings: of the run.
    """
    require_ordinary_user("ps", allow_root=options.allow_root)
    resolved = resolve_settings(config_file(config), given_flags(settings), os.environ)
    _quiet_torch()
    from minga.ps.run import run_ps

    return run_ps(resolved, options)


def worker(
    *,
    options: WorkerOptions = _WORKER,
    token_file: Annotated[Path | None, optional("MINGA_TOKEN_FILE")] = None,
) -> int:
    """Start a worker: it trains on this PC's data for the ps at ADDRESS.

    Args:
        options: of this process; the rest comes from the ps.
        token_file: File with the ps's join token, instead of the token itself.
    """
    check_variables(os.environ)
    require_ordinary_user("worker", allow_root=options.allow_root)
    options = _complete(options, token_file)
    _quiet_torch()
    from minga.worker.run import run_worker

    return run_worker(options)


def demo(*, options: DemoOptions = _DEMO) -> int:
    """Train on this PC alone: a ps and workers, real digits, under a minute."""
    check_variables(os.environ)
    if is_root():
        Console("demo").warn(f"this is root: {WHY} (docs/security.md)")
        os.environ["MINGA_ALLOW_ROOT"] = "1"  # for the ps and the workers that it starts
    from minga.demo import run_demo

    return run_demo(options)


def _quiet_torch() -> None:
    """Silence TensorPipe's warning for every closed connection; read when torch loads."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _complete(options: WorkerOptions, token_file: Path | None) -> WorkerOptions:
    """Return the options with token and data format; raise UsageError if one is missing."""
    if not options.address:
        raise UsageError(
            "the address of the ps is missing",
            code="worker-needs-address",
            hints=(
                Hint("where is it?", "the ps's terminal shows it, beside `address`"),
                Hint("then", "MASTER_ADDR=192.168.1.100 ./start_worker.sh"),
            ),
        )
    if options.token and token_file:
        raise _token_error("both a token and a token file are given; give one")
    token = _read_token(token_file) if token_file else options.token
    if not token:
        raise _token_error("the join token is missing")
    if options.data_format is None and webdataset_wanted(os.environ):
        options = replace(options, data_format="webdataset")
    return replace(options, token=token)


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise _token_error(f"cannot read the token file {path}: {error}") from error


def _token_error(what: str) -> UsageError:
    return UsageError(
        what,
        code="worker-needs-token",
        hints=(
            Hint("where is it?", "the ps's terminal shows it, after MINGA_TOKEN="),
            Hint("then", "MINGA_TOKEN=... ./start_worker.sh"),
        ),
    )
