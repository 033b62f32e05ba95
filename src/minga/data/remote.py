"""What lies elsewhere, and what can go wrong on the way to it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from minga.errors import DataError, Hint


class Remote(NamedTuple):
    """An object somewhere else."""

    url: str
    folder: str
    """Its address without the name: what is beside it has the same."""
    name: str
    size_bytes: int
    tag: str
    """Another content, another tag; empty where the service gives none."""


class Unsteady(Exception):
    """The network or the service failed in a way that may pass."""


class Spoiled(Exception):
    """What came is not what is there."""


class Sink(Protocol):
    """Where the bytes of one object go."""

    @property
    def at(self) -> int:
        """Bytes that are there already."""

    def write(self, data: bytes, /) -> int:
        """Append. Raises OSError."""

    def rewind(self) -> None:
        """Drop what is there: the service begins at the beginning."""


class Store(Protocol):
    """One kind of address. Calls may come from several threads."""

    def list(self, prefix: str, *, deep: bool = False) -> list[Remote]:
        """Return the objects whose address begins so; ``deep``: those in folders below, too.

        Raises:
            DataError, Unsteady.
        """

    def stat(self, url: str) -> Remote:
        """Look at one object. Raises DataError or Unsteady."""

    def fetch(self, remote: Remote, sink: Sink) -> str | None:
        """Give a sink the bytes that it lacks; return their digest (``md5:...``) where it is known.

        Raises:
            DataError, Unsteady, Spoiled, and OSError of the sink.
        """


def shown(url: str) -> str:
    """Return an address without what signs it."""
    return url.partition("?")[0] if url.lower().startswith("http") else url


def unsupported(what: str) -> DataError:
    """Return the error for an address that says too little, or in another language."""
    return DataError(
        what,
        code="data-remote-unsupported",
        hints=(Hint("or copy them to this PC", "minga worker --data FOLDER"),),
    )


def missing(url: str) -> DataError:
    """Return the error for what is not there."""
    folder = shown(url).rpartition("/")[0]
    command = {"gs": f"gcloud storage ls {folder}/", "s3": f"aws s3 ls {folder}/"}
    return DataError(
        f"not found: {shown(url)}",
        code="data-not-found",
        hints=(Hint("what is there?", command.get(url[:2].lower(), f"curl -I {shown(url)}")),),
    )


def denied(url: str, why: object) -> DataError:
    """Return the error for what this PC may not read."""
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
    """Return the error for a network or a service that stayed down."""
    return DataError(
        f"{shown(url)} cannot be reached: {words(why)}",
        code="data-remote-unreachable",
        hints=(Hint("start again: what has come is kept", "./start_worker.sh"),),
    )


def changed(url: str) -> DataError:
    """Return the error for an object that is another one than a moment ago."""
    return DataError(
        f"{shown(url)} was replaced while it was fetched",
        code="data-corrupt",
        hints=(Hint("is it complete now? start again", "./start_worker.sh"),),
    )


def refusal(status: int, url: str, why: object) -> Exception:
    """Return what an HTTP status means."""
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
