"""Remote objects, and the errors of fetching them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from minga.errors import DataError, Hint


class Remote(NamedTuple):
    """A remote object."""

    url: str
    folder: str
    """Its address without the name; objects beside it have the same."""
    name: str
    size_bytes: int
    tag: str
    """Changes with the content; empty if the service gives none."""


class Unsteady(Exception):
    """A temporary failure of the network or the service."""


class Spoiled(Exception):
    """The received bytes are not those of the object."""


class Sink(Protocol):
    """A destination for the bytes of one object."""

    @property
    def at(self) -> int:
        """Bytes received so far."""

    def write(self, data: bytes, /) -> int:
        """Append. Raises OSError."""

    def rewind(self) -> None:
        """Discard the bytes so far: the service starts from the beginning."""


class Store(Protocol):
    """One kind of address. Calls may come from several threads."""

    def list(self, prefix: str, *, deep: bool = False) -> list[Remote]:
        """Return the objects below an address; ``deep`` includes subfolders.

        Raises:
            DataError, Unsteady.
        """

    def stat(self, url: str) -> Remote:
        """Look at one object. Raises DataError or Unsteady."""

    def fetch(self, remote: Remote, sink: Sink) -> str | None:
        """Write the missing bytes to a sink; return the object's digest (``md5:...``) if known.

        Raises:
            DataError, Unsteady, Spoiled, and OSError of the sink.
        """


def shown(url: str) -> str:
    """Return an address without its signature."""
    return url.partition("?")[0] if url.lower().startswith("http") else url


def unsupported(what: str) -> DataError:
    """Return the error for an address that minga cannot use."""
    return DataError(
        what,
        code="data-remote-unsupported",
        hints=(Hint("or copy them to this PC", "minga worker --data FOLDER"),),
    )


def missing(url: str) -> DataError:
    """Return the error for a missing object."""
    folder = shown(url).rpartition("/")[0]
    command = {"gs": f"gcloud storage ls {folder}/", "s3": f"aws s3 ls {folder}/"}
    return DataError(
        f"not found: {shown(url)}",
        code="data-not-found",
        hints=(Hint("what exists?", command.get(url[:2].lower(), f"curl -I {shown(url)}")),),
    )


def denied(url: str, why: object) -> DataError:
    """Return the error for an object that this PC may not read."""
    keys = {
        "gs": "GOOGLE_APPLICATION_CREDENTIALS=/path/to/key.json ./start_worker.sh",
        "s3": "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... ./start_worker.sh",
    }
    return DataError(
        f"{shown(url)} may not be read: {words(why)}",
        code="data-remote-denied",
        hints=(Hint("whose key is it?", keys.get(url[:2].lower(), f"curl -I {shown(url)}")),),
    )


def unreachable(url: str, why: object) -> DataError:
    """Return the error for a network or service that stayed down."""
    return DataError(
        f"{shown(url)} cannot be reached: {words(why)}",
        code="data-remote-unreachable",
        hints=(Hint("start again: received bytes are kept", "./start_worker.sh"),),
    )


def changed(url: str) -> DataError:
    """Return the error for an object that was replaced meanwhile."""
    return DataError(
        f"{shown(url)} was replaced while it was fetched",
        code="data-corrupt",
        hints=(Hint("is it complete now? start again", "./start_worker.sh"),),
    )


def refusal(status: int, url: str, why: object) -> Exception:
    """Return the error for an HTTP status."""
    if status in (404, 410):
        return missing(url)
    if status in (412, 416):
        return changed(url)
    if status in (408, 429) or status >= 500:
        return Unsteady(f"status {status}, {words(why)}")
    return denied(url, f"status {status}, {words(why)}")


def words(reason: object) -> str:
    """Return a reason as one line of bounded length."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
