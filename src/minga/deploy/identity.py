"""``python -m minga.deploy.identity``: certificate, key and token of all runs, created once."""

from __future__ import annotations

from minga.console import talk
from minga.deploy.paths import ROOT
from minga.transport.identity import Identity

FOLDER = ROOT / ".minga" / "deploy"


def main() -> None:
    """Create them in ``.minga/deploy`` if missing; ``make deploy`` copies them."""
    Identity.load_or_create(FOLDER)
    talk().print(f"identity  {FOLDER}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
