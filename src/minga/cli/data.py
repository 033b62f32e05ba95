"""``minga data``: prepare, pack and verify training data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from minga.console import Counting, print_result
from minga.settings.schema import DataConfig, DataFormat

app = App(name="data", help="Prepare, pack and verify training data.", sort_key=4)
prepare = App(name="prepare", help="Make a data set that needs no download.")
app.command(prepare)

_Count = Annotated[int, Parameter(validator=Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedOptions:
    """Options of generated images."""

    classes: Annotated[int, Parameter(validator=Number(gte=2))] = 10
    """Classes."""
    train_per_class: _Count = 200
    """Training images of each class."""
    val_per_class: _Count = 50
    """Validation images of each class."""
    size: Annotated[int, Parameter(validator=Number(gte=8))] = 64
    """Side in pixels."""
    difficulty: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.5
    """0: easy to distinguish; 1: hardly distinguishable."""
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0
    """Another seed gives other images."""


_GENERATED = GeneratedOptions()


@prepare.command
def digits(*, out: Path = Path("data/digits")) -> None:
    """Write scikit-learn's 1,797 real handwritten digits as image folders.

    Args:
        out: The folder to write.
    """
    from minga.data.digits import prepare_digits

    print_result(prepare_digits(out))


@prepare.command
def generated(
    *, out: Path = Path("data/generated"), options: GeneratedOptions = _GENERATED
) -> None:
    """Write generated images as image folders: any size, the same on every PC.

    Args:
        out: The folder to write.
        options: of the images.
    """
    from minga.data.generated import generate

    generate(out, **asdict(options))
    print_result(out)


@app.command
def pack(folder: str, /, *, out: Path, val_path: str | None = None) -> None:
    """Write image folders as WebDataset shards, in the same order: a few files instead of many.

    Args:
        folder: The data.
        out: The folder to write: train/, val/, and a manifest in each.
        val_path: The validation data, if they are elsewhere.
    """
    from minga.data.packing import pack as write_pack

    with Counting("packing") as counting:
        write_pack(DataConfig(path=folder, val_path=val_path), out, report=counting)
    print_result(out)


@app.command
def verify(
    path: str = DataConfig().path,
    /,
    *,
    val_path: str | None = None,
    format: DataFormat = "auto",
) -> None:
    """Open data like a worker, and print the facts that the ps compares between PCs.

    Args:
        path: The data.
        val_path: The validation data, if they are elsewhere.
        format: Their layout; auto detects it.
    """
    from minga.data.dataset import open_data

    data = open_data(DataConfig(path=path, val_path=val_path, format=format))
    for name, value in data.facts.to_dict().items():
        print_result(f"{name:16} {value}")
