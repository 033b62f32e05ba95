"""The boundary where errors become messages and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import CoercionError, CycloptsError, ValidationError

from minga.cli.app import build_app
from minga.console import show_error, talk
from minga.errors import INTERRUPTED, Hint, MingaError, RunFailed, UsageError
from minga.settings.environment import drop_empty


def run(argv: Sequence[str] | None) -> int:
    """Run the command of ``argv`` (None: of this process) and return the exit status."""
    if argv is None:
        _speak_utf8()
    drop_empty(os.environ)
    try:
        status = build_app()(argv)
    except CycloptsError as error:
        return _fail(_as_usage_error(error))
    except MingaError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _fail(_as_system_error(error) or _as_crash(error))
    except Exception as error:
        return _fail(_as_crash(error))
    return status if isinstance(status, int) else 0


def _speak_utf8() -> None:
    """Restart in Python's UTF-8 mode on a PC whose locale has another encoding.

    Else class names with accents would differ between PCs. Python does this automatically
    for the C locale, unless disabled.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _fail(error: MingaError) -> int:
    show_error(error)
    return error.exit_status


def _as_usage_error(error: CycloptsError) -> UsageError:
    wrong_value = isinstance(error, CoercionError | ValidationError)
    command = " ".join(("minga", *(error.command_chain or ())))
    return UsageError(
        str(error),
        code="config-value" if wrong_value else "usage",
        hints=(Hint("what exists?", f"{command} --help"),),
    )


def _as_system_error(error: OSError) -> MingaError | None:
    """Return a system error as one of minga's, or None if the user cannot fix it."""
    where = f": {error.filename}" if error.filename else ""
    folder = Path(error.filename).parent if isinstance(error.filename, str) else Path()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(
            f"{error.strerror}{where}",
            code="disk-full",
            hints=(
                Hint("how much space is free?", f"df -h {folder}"),
                Hint("then start again", "a ps resumes from its last checkpoint"),
            ),
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(
            f"{error.strerror}{where}",
            code="no-access",
            hints=(
                Hint("who may?", f"ls -ld {folder}"),
                Hint("write elsewhere?", "MINGA_RUNS=~/minga/runs MINGA_STATE=~/minga/state"),
            ),
        )
    return None


def _as_crash(error: Exception) -> RunFailed:
    """Write the traceback to a file of the state folder and return a sentence that names it."""
    folder = Path(os.environ.get("MINGA_STATE", ".minga"))
    log = folder / time.strftime("crash-%Y%m%d-%H%M%S.log")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        talk().print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
        log = Path("above")
    return RunFailed(
        f"{type(error).__name__}: {error} (a bug in minga; traceback: {log})", code="crash"
    )
