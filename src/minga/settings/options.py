"""The options of one process, apart from the run's settings: addresses, folders, names.

Precedence: flags, variables in the order listed, defaults. ``MINGA_*`` come
before the names in the start scripts and the env files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from minga.protocol import DEFAULT_PORT
from minga.settings.fields import NONE
from minga.settings.schema import DataFormat

_Kind = TypeVar("_Kind", str, Path)


def _none_or(kind: type[_Kind], tokens: Sequence[Token]) -> _Kind | None:
    text = tokens[0].value
    return None if text == NONE else kind(text)


def optional(*variables: str) -> Parameter:
    """Return the parameter of an optional text or path: cyclopts would take ``none`` for a name."""
    return Parameter(env_var=variables, converter=_none_or)


PORT = Parameter(env_var=("MINGA_PORT", "MASTER_PORT"), validator=Number(gte=1, lte=65535))
WORLD_SIZE = Parameter(env_var=("MINGA_WORLD_SIZE", "WORLD_SIZE"), validator=Number(gte=2))
RUNS = Parameter(env_var="MINGA_RUNS")
STATE = Parameter(env_var="MINGA_STATE")
ALLOW_ROOT = Parameter(env_var="MINGA_ALLOW_ROOT", negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class PsOptions:
    """Options of a ps."""

    port: Annotated[int, PORT] = DEFAULT_PORT
    """The one port of the ps."""
    host: Annotated[str | None, optional("MINGA_HOST")] = None
    """Address to listen on; none takes all addresses of this PC."""
    world_size: Annotated[int | None, WORLD_SIZE] = None
    """Expected processes, including the ps; the start does not wait for them, and more may join."""
    resume: Annotated[str, Parameter(env_var="MINGA_RESUME")] = "auto"
    """Resume from a checkpoint: auto (the newest unfinished run), none, or a file."""
    run_id: Annotated[str | None, optional("MINGA_RUN_ID")] = None
    """Name of the run; none derives one from the time."""
    runs: Annotated[Path, RUNS] = Path("runs")
    """Folder of all runs."""
    token_file: Annotated[Path | None, optional("MINGA_TOKEN_FILE")] = None
    """File with the join token; none creates one in the state folder."""
    state: Annotated[Path, STATE] = Path(".minga")
    """Folder of certificate, token and crash logs."""
    allow_root: Annotated[bool, ALLOW_ROOT] = False
    """Start as root: every token holder can then read all files of this PC."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """Options of a worker; in :mod:`minga.worker` it has an address, and one of the two tokens."""

    address: Annotated[
        str, Parameter(env_var=("MINGA_ADDRESS", "MASTER_ADDR"), show_default=False)
    ] = ""
    """Address of the ps, as printed by the ps."""
    port: Annotated[int, PORT] = DEFAULT_PORT
    """The one port of the ps."""
    token: Annotated[str, Parameter(env_var="MINGA_TOKEN", show_default=False)] = field(
        default="", repr=False
    )
    """The ps's join token; as a flag it is visible to this PC's users."""
    token_file: Annotated[Path | None, optional("MINGA_TOKEN_FILE")] = None
    """File with the join token instead; read at each join."""
    rank: Annotated[
        int | None,
        Parameter(env_var=("MINGA_RANK", "RANK", "WORKER_RANK"), validator=Number(gte=1)),
    ] = None
    """1, 2, 3 ...; none takes the lowest free one."""
    name: Annotated[str | None, optional("MINGA_NAME")] = None
    """Name in tables and statistics; none takes the PC's."""
    device: Annotated[str | None, optional("MINGA_DEVICE")] = None
    """cpu, cuda, cuda:1, mps; none takes the best available."""
    data: Annotated[str | None, optional("MINGA_DATA_PATH", "DATASET_URL")] = None
    """Training data on this PC; none takes the ps's data.path."""
    val_data: Annotated[str | None, optional("MINGA_DATA_VAL_PATH", "VAL_DATASET_URL")] = None
    """Validation data on this PC; none takes the ps's data.val_path."""
    data_format: Annotated[DataFormat | None, Parameter(env_var="MINGA_DATA_FORMAT")] = None
    """Layout of the data on this PC; none takes the ps's data.format."""
    batch_size: Annotated[
        int | None, Parameter(env_var="MINGA_TRAIN_BATCH_SIZE", validator=Number(gte=1))
    ] = None
    """Images per local step on this PC; none takes the ps's train.batch_size."""
    epochs: Annotated[
        int | None, Parameter(env_var=("MINGA_TRAIN_EPOCHS", "EPOCHS"), validator=Number(gte=1))
    ] = None
    """Expected here; the ps's value wins, with a warning."""
    world_size: Annotated[int | None, WORLD_SIZE] = None
    """Expected here; the ps's value wins, with a warning."""
    runs: Annotated[Path, RUNS] = Path("runs")
    """Folder of all runs, for this worker's statistics."""
    wait_s: Annotated[float, Parameter(env_var="MINGA_WAIT_S", validator=Number(gte=0))] = 600.0
    """Seconds to wait for an unreachable ps."""
    allow_root: Annotated[bool, ALLOW_ROOT] = False
    """Start as root: the ps and the users of this PC can then read all of its files."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """Options of the demo."""

    workers: Annotated[int, Parameter(validator=Number(gte=1, lte=16))] = 2
    """Workers on this PC."""
    epochs: Annotated[int, Parameter(validator=Number(gte=1))] = 12
    """Passes over the digits."""
    runs: Annotated[Path, RUNS] = Path("runs")
    """Folder of all runs."""
