"""``minga data``: prepare, pack and verify what workers train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from minga.console import results

app = App(name="data", help="Prepare, pack and verify training data.", sort_key=4)
prepare = App(name="prepare", help="Make a data set that needs no download.")
app.command(prepare)

_Count = Annotated[int, Parameter(validator=Number(gte=1))]


@prepare.command
def digits(*, out: Path = Path("data/digits")) -> None:
    """Write scikit-learn's 1,797 real handwritten digits as image folders.

    Args:
        out: The folder to write.
    """
    from minga.data.digits import prepare_digits

    _tell(prepare_digits(out))


def _tell(path: Path) -> None:
    results().print(str(path), markup=False, soft_wrap=True)
