"""``python -m minga.deploy.identity``: certificate and tokens, and which of them each PC gets."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from cyclopts import App

from minga.console import talk
from minga.deploy.inventory import groups_of
from minga.deploy.paths import ROOT
from minga.transport import tokens
from minga.transport.identity import TOKENS, Identity

FOLDER = ROOT / ".minga" / "deploy"
OWN = "pc-token"

app = App(name="minga.deploy.identity", help="Certificate and tokens of all PCs.")


@app.default
def main(*, inventory: Path) -> None:
    """Create what is missing in ``.minga/deploy``; lay out each PC's part, which deploy sends.

    Args:
        inventory: each of its workers gets a token of its own.
    """
    groups = groups_of(inventory)
    hand_out(FOLDER, groups["ps"], groups["workers"])
    talk().print(f"identity  {FOLDER}", markup=False, soft_wrap=True)


def hand_out(folder: Path, ps: Iterable[str], workers: Iterable[str]) -> None:
    """Lay out ``folder/pcs/<PC>``: a worker gets its own token, the ps its key and all tokens."""
    identity = Identity.load_or_create(folder)
    have = {each.name for each in tokens.listed(identity.tokens)}
    for name in sorted({*workers} - have):
        tokens.create(identity, name)
    parts = folder / "pcs"
    shutil.rmtree(parts, ignore_errors=True)
    for name in {*ps, *workers}:
        (parts / name).mkdir(mode=0o700, parents=True)
    newest = {each.name: each for each in tokens.listed(identity.tokens)}
    for name in workers:
        shutil.copy2(identity.tokens / newest[name].file, parts / name / OWN)
    for name in ps:
        for each in (identity.certificate, identity.key, folder / "token"):
            shutil.copy2(each, parts / name)
        shutil.copytree(identity.tokens, parts / name / TOKENS)


if __name__ == "__main__":
    app()
