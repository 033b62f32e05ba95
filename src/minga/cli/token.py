"""``minga token``: the tokens that let PCs join."""

from __future__ import annotations

import json as json_format
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from minga.console import print_result, talk
from minga.settings.options import STATE, PsOptions
from minga.transport import tokens
from minga.transport.identity import TOKENS, Identity

app = App(name="token", help="Make, list and revoke the tokens of PCs, on the ps's PC.", sort_key=9)

_STATE = PsOptions().state
State = Annotated[Path, STATE]


@app.command
def new(name: str, /, *, state: State = _STATE) -> None:
    """Make a token for a PC and print it; a running ps takes it at once.

    Args:
        name: The PC's. A second token for it replaces the first once that is revoked.
        state: The ps's folder of certificate and tokens.
    """
    print_result(str(tokens.create(Identity.load_or_create(state), name).secret))


@app.command(name="list")
def show(*, state: State = _STATE, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """List the tokens of PCs: name, id, when it was made.

    Args:
        state: The ps's folder of certificate and tokens.
        json: One JSON object instead of lines.
    """
    found = tokens.listed(state / TOKENS)
    rows = [{"name": each.name, "id": each.id, "made": _utc(each.made_s)} for each in found]
    if json:
        print_result(json_format.dumps(rows, indent=2))
        return
    for row in rows:
        print_result(f"{row['name']:24} {row['id']}  {row['made']}")
    if not rows:
        talk().print("no PC has a token of its own: minga token new NAME")


@app.command
def revoke(which: str, /, *, state: State = _STATE) -> None:
    """Revoke a PC's tokens; a running ps ends their sessions within seconds.

    Args:
        which: The PC's name, for all of its tokens, or the id of one.
        state: The ps's folder of certificate and tokens.
    """
    for each in tokens.revoke(Identity.load_or_create(state), which):
        print_result(f"revoked {each.name} {each.id}")


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
