"""Object stores and a web server on loopback, and a tap before each: what went through it, and
what it lets through."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from minga.data.dataset import ImageData, open_data
from minga.errors import DataError
from minga.settings.schema import DataConfig

BUCKET = "bucket"
NAMES = ("cat", "dog", "owl")
SHARDS = ("part-000000.tar", "part-000001.tar", "part-000002.tar")
"""Of the training half; those of the validation half have the same names."""
KINDS = ("gs", "s3", "http")


class Tap:
    """A reverse proxy before a service.

    ``fetched`` counts the bytes of objects, by path without its query; ``signed`` has what the
    visitors showed as theirs (``Authorization``). ``refuse`` answers
    every request with a status. Of the next bodies of shards, so many are ``cut`` half-way and so
    many are ``spoiled`` in one byte. While ``open`` is not set, bodies of shards wait; ``held``
    counts those that do.
    """

    def __init__(self, target: str, address: str = "127.0.0.1") -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.fetched: dict[str, int] = {}
        self.signed: set[str] = set()
        self.refuse: int | None = None
        self.cut = 0
        self.spoiled = 0
        self.open = threading.Event()
        self.open.set()
        self.held = 0
        self._target = target.removeprefix("http://")
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def shards(self) -> dict[str, int]:
        """Return the bytes that were given of each shard."""
        names = {path: path.rpartition("/")[2].rpartition("%2F")[2] for path in self.fetched}
        found: dict[str, int] = {}
        for path, count in self.fetched.items():
            if names[path].endswith(".tar"):
                found[names[path]] = found.get(names[path], 0) + count
        return found

    def reset(self) -> None:
        """Let all through, and count from nothing."""
        self.requests.clear()
        self.fetched.clear()
        self.refuse, self.cut, self.spoiled = None, 0, 0
        self.open.set()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        tap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                tap._pass_on(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _wait_until_open(self) -> None:
        with self._lock:
            self.held += 1
        self.open.wait(120)
        with self._lock:
            self.held -= 1

    def _pass_on(self, visitor: BaseHTTPRequestHandler) -> None:
        path = urlsplit(visitor.path).path
        with self._lock:
            self.requests.append((visitor.command, path, visitor.headers.get("Range")))
            self.signed.add(visitor.headers.get("Authorization") or "")
        if self.refuse is not None:
            visitor.send_response(self.refuse)
            visitor.send_header("Content-Length", "0")
            visitor.end_headers()
            return
        with contextlib.closing(http.client.HTTPConnection(self._target, timeout=30)) as behind:
            behind.request(visitor.command, visitor.path, headers=dict(visitor.headers))
            answer = behind.getresponse()
            body = answer.read()
        visitor.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                visitor.send_header(name, value)
        length = answer.getheader("Content-Length") if visitor.command == "HEAD" else len(body)
        visitor.send_header("Content-Length", str(length))
        visitor.end_headers()
        of_shard = path.endswith(".tar") and len(body) > 1 and _is_body(visitor)
        if of_shard:
            self._wait_until_open()
        with self._lock:
            if of_shard and self.cut > 0:
                self.cut -= 1
                body = body[: len(body) // 2]
            if of_shard and self.spoiled > 0:
                self.spoiled -= 1
                body = body[:-1] + bytes([body[-1] ^ 1])
            if _is_body(visitor):
                self.fetched[path] = self.fetched.get(path, 0) + len(body)
        with contextlib.suppress(OSError):
            visitor.wfile.write(body)


def _is_body(visitor: BaseHTTPRequestHandler) -> bool:
    """Whether it is an object's content that is asked for, not what is said of it."""
    return visitor.command == "GET" and ("/o/" not in visitor.path or "alt=media" in visitor.path)


class Service:
    """A service on loopback with a tap before it; ``address`` is where its objects are."""

    def __init__(self, kind: str, target: str) -> None:
        self.kind, self.target = kind, target
        self.tap = Tap(target)
        self.address = f"{self.tap.url}/{BUCKET}" if kind == "http" else f"{kind}://{BUCKET}"

    def variables(self) -> dict[str, str]:
        """Return the environment in which a client finds the service."""
        if self.kind == "gs":
            return {"STORAGE_EMULATOR_HOST": self.tap.url}
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.tap.url, **keys} if self.kind == "s3" else {}

    def put(self, key: str, content: bytes) -> None:
        """Store an object, past the tap."""
        raise NotImplementedError

    def remove(self, key: str) -> None:
        """Remove an object, past the tap."""
        raise NotImplementedError

    def put_all(self, folder: Path, below: str) -> None:
        """Store all files of a folder."""
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            self.put(f"{below}/{file.relative_to(folder).as_posix()}", file.read_bytes())


class Google(Service):
    def put(self, key: str, content: bytes) -> None:
        self._bucket().blob(key).upload_from_string(content)

    def remove(self, key: str) -> None:
        self._bucket().blob(key).delete()

    def _bucket(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        client = storage.Client(
            project="<none>",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.target},
        )
        return client.bucket(BUCKET)


class S3(Service):
    def __init__(self, target: str) -> None:
        import boto3

        super().__init__("s3", target)
        self._client = boto3.client(
            "s3",
            endpoint_url=target,
            region_name="us-east-1",
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)


class Static(Service):
    def __init__(self, target: str, folder: Path) -> None:
        super().__init__("http", target)
        self._folder = folder
        self._clock_s = 1e9

    def put(self, key: str, content: bytes) -> None:
        path = self._folder / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._clock_s += 1.0  # its time is all by which a plain server tells contents apart
        os.utime(path, (self._clock_s, self._clock_s))

    def remove(self, key: str) -> None:
        (self._folder / BUCKET / key).unlink()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def service(kind: str, folder: Path) -> Iterator[Service]:
    """Give a service of a kind; gs and s3 are emulators, http is Python's own server."""
    with contextlib.ExitStack() as stack:
        made: Service
        if kind == "gs":
            from gcp_storage_emulator.server import create_server

            emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
            emulator.start()
            stack.callback(emulator.stop)
            port = emulator._api._httpd.socket.getsockname()[1]
            made = Google("gs", f"http://127.0.0.1:{port}")
        elif kind == "s3":
            from moto.server import ThreadedMotoServer

            moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            moto.start()
            stack.callback(moto.stop)
            made = S3("http://{}:{}".format(*moto.get_host_and_port()))
        else:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            made = Static(f"http://127.0.0.1:{server.server_port}", folder)
        stack.callback(made.tap.close)
        yield made


def use(monkeypatch: pytest.MonkeyPatch, made: Service, cache: Path) -> None:
    """Let this process and its children find a service, and keep what they fetch there."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_PROFILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINGA_CACHE", str(cache))


def opened(path: str | Path, **settings: Any) -> ImageData:
    return open_data(DataConfig(path=str(path), **settings))


def refused(path: str, code: str, **settings: Any) -> str:
    """Open what cannot be opened; return what is said."""
    with pytest.raises(DataError) as raised:
        opened(path, **settings)
    assert raised.value.code == code, raised.value.what
    assert raised.value.hints
    return raised.value.what


def same(one: ImageData, other: ImageData) -> bool:
    """Whether two hold the same samples in the same order."""
    return one.facts == other.facts and all(
        len(ours) == len(theirs)
        and all(ours.source.encoded(i) == theirs.source.encoded(i) for i in range(len(ours)))
        and ours.labels.tolist() == theirs.labels.tolist()
        for ours, theirs in ((one.train, other.train), (one.val, other.val))
    )


def kept(tmp_path: Path, pattern: str) -> list[Path]:
    return sorted((tmp_path / "cache").rglob(pattern))


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.tar")}


def total(shards: Path) -> int:
    return sum(path.stat().st_size for path in shards.rglob("*.tar"))
