"""The tokens that let workers join: one per PC, and one that anybody may be given.

``<state>/tokens/<name>.<id>`` has a PC's token, ``<state>/token`` the shared one. A running ps
rereads the folder when it changes: a new token is valid at once, a removed one is revoked.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from minga.errors import Hint, UsageError
from minga.transport.identity import TOKEN_BYTES, Identity, Secret, write_private

SHARED = "shared"
"""The name of the token without a PC."""

_SETTLED_NS = 2 * 10**9
"""A folder that changed more recently is reread: two changes may have one time."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token and the PC that it was made for.

    Attributes:
        made_s: seconds since 1970.
    """

    name: str
    secret: Secret
    made_s: float

    @property
    def id(self) -> str:
        """The public name of the token: 8 hexadecimal digits."""
        return self.secret.id

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{self.id}"


class Tokens:
    """The valid tokens of a ps, by id; rereads their folder when it changed."""

    def __init__(self, identity: Identity) -> None:
        self._shared = Token(SHARED, identity.secret, 0.0)
        self._folder = identity.tokens
        self._read_at: int | None = None
        self._valid: dict[str, Token] = {}

    def find(self, token_id: str) -> Token | None:
        """Return the token with this id; the shared one for an empty id."""
        return self.valid().get(token_id or self._shared.id)

    def valid(self) -> dict[str, Token]:
        """Return all valid tokens by id; those of before while the folder cannot be read."""
        with contextlib.suppress(PermissionError):
            changed_at = _changed_at(self._folder)
            if changed_at != self._read_at:
                settled = time.time_ns() - changed_at > _SETTLED_NS
                self._valid = {each.id: each for each in (self._shared, *listed(self._folder))}
                self._read_at = changed_at if settled else None
        return self._valid


def listed(folder: Path) -> list[Token]:
    """Return the tokens of PCs in a folder, oldest first; none if there is no folder."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            name, _, token_id = path.name.rpartition(".")
            with contextlib.suppress(UsageError, FileNotFoundError):
                secret = Secret.read(path)
                if secret.id == token_id and _NAME.fullmatch(name):
                    found.append(Token(name, secret, path.stat().st_mtime))
    return sorted(found, key=lambda each: (each.made_s, each.id))


def create(identity: Identity, name: str) -> Token:
    """Create a token for a PC; its earlier ones stay valid until they are revoked.

    Raises:
        UsageError: ``token-name``.
    """
    if not _NAME.fullmatch(name) or name == SHARED:
        raise UsageError(
            f"{name!r} cannot name a token: letters, digits, '.', ':', '_' and '-', not '{SHARED}'",
            code="token-name",
            hints=(Hint("the PC's name, for example", "minga token new desk-3"),),
        )
    identity.tokens.mkdir(mode=0o700, exist_ok=True)
    secret = Secret(secrets.token_bytes(TOKEN_BYTES), identity.secret.pin)
    made = Token(name, secret, time.time())
    write_private(identity.tokens / made.file, str(secret).encode())
    return made


def revoke(identity: Identity, which: str) -> list[Token]:
    """Revoke the tokens with this name or id; return them.

    Raises:
        UsageError: ``token-unknown``.
    """
    revoked = [each for each in listed(identity.tokens) if which in (each.name, each.id)]
    if not revoked:
        raise UsageError(
            f"no token has the name or the id {which!r}",
            code="token-unknown",
            hints=(Hint("which are there?", "minga token list"),),
        )
    for each in revoked:
        (identity.tokens / each.file).unlink(missing_ok=True)
    return revoked


def _changed_at(folder: Path) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0
