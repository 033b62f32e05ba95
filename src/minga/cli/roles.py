"""``minga ps``, ``minga worker``, ``minga demo``."""

from __future__ import annotations

import os
from dataclasses import replace

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
from minga.settings.options import DemoOptions, PsOptions, WorkerOptions
from minga.settings.sources import resolve_settings
from minga.transport.identity import missing_token

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


def worker(*, options: WorkerOptions = _WORKER) -> int:
    """Start a worker: it trains on this PC's data for the ps at ADDRESS.

    Args:
        options: of this process; the rest comes from the ps.
    """
    check_variables(os.environ)
    require_ordinary_user("worker", allow_root=options.allow_root)
    options = _complete(options)
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


def _complete(options: WorkerOptions) -> WorkerOptions:
    """Return the options with the data format; raise UsageError if a needed one is missing."""
    if not options.address:
        raise UsageError(
            "the address of the ps is missing",
            code="worker-needs-address",
            hints=(
                Hint("where is it?", "the ps's terminal shows it, beside `address`"),
                Hint("then", "MASTER_ADDR=192.168.1.100 ./start_worker.sh"),
            ),
        )
    if options.token and options.token_file:
        raise missing_token("both a token and a token file are given; give one")
    if not options.token and not options.token_file:
        raise missing_token("the join token is missing")
    if options.data_format is None and webdataset_wanted(os.environ):
        options = replace(options, data_format="webdataset")
    return options
