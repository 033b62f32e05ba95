"""Clients of object stores and web servers: list, size, bytes.

They keep nothing and retry nothing: a temporary failure is an Unsteady, any other
failure a DataError. A client's package is imported when an address of its kind is used.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from minga import __version__
from minga.data.remote import (
    Remote,
    Sink,
    Spoiled,
    Store,
    Unsteady,
    changed,
    denied,
    missing,
    refusal,
    shown,
    unsupported,
    words,
)

_CONNECT_S = 20.0
_READ_S = 60.0
"""A connection that is silent for so long counts as dead."""
_CHUNK_BYTES = 1 << 20
_MD5 = re.compile(r'"([0-9a-f]{32})"')
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


def open_store(url: str) -> Store:
    """Return the client for an address. Raises DataError (``data-remote-unsupported``)."""
    scheme = url.partition("://")[0].lower()
    if scheme == "gs":
        return GoogleStore(url)
    if scheme == "s3":
        return S3Store(url)
    if scheme in ("http", "https"):
        return Web()
    raise unsupported(f"{shown(url)}: minga reads gs://, s3://, http:// and https://, not {scheme}")


# -- gs://


class GoogleStore:
    """Google Cloud Storage; without credentials, public objects only."""

    def __init__(self, url: str) -> None:
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage

        with _google_troubles(url):
            try:
                self._client = storage.Client(project="<none>")  # only matters for creating buckets
            except DefaultCredentialsError:
                if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
                    raise
                self._client = storage.Client.create_anonymous_client()

    def list(self, prefix: str, *, deep: bool = False) -> list[Remote]:
        """See :class:`Store`."""
        bucket, key = _bucket_and_key(prefix)
        options: dict[str, Any] = {"retry": None, "timeout": (_CONNECT_S, _READ_S)}
        if not deep:
            options["delimiter"] = "/"
        with _google_troubles(prefix):
            blobs = list(self._client.list_blobs(bucket, prefix=key, **options))
        return [_of_blob(bucket, blob) for blob in blobs if not blob.name.endswith("/")]

    def stat(self, url: str) -> Remote:
        """See :class:`Store`."""
        bucket, key = _bucket_and_key(url)
        blob = self._client.bucket(bucket).blob(key)
        with _google_troubles(url):
            blob.reload(retry=None, timeout=(_CONNECT_S, _READ_S))
        return _of_blob(bucket, blob)

    def fetch(self, remote: Remote, sink: Sink) -> str | None:
        """See :class:`Store`."""
        bucket, key = _bucket_and_key(remote.url)
        generation, _, crc32c = remote.tag.partition("/")
        with _google_troubles(remote.url):
            self._client.bucket(bucket).blob(key).download_to_file(
                sink,
                start=sink.at or None,
                raw_download=True,  # as stored, regardless of its Content-Encoding
                checksum=None,  # a part has no digest; minga checks the whole
                if_generation_match=int(generation),
                retry=None,
                timeout=(_CONNECT_S, _READ_S),
            )
        return f"crc32c:{crc32c}" if crc32c else None


def _of_blob(bucket: str, blob: Any) -> Remote:
    tag = f"{blob.generation}/{blob.crc32c or ''}"
    return _in_bucket("gs", bucket, blob.name, int(blob.size), tag)


@contextlib.contextmanager
def _google_troubles(url: str) -> Iterator[None]:
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, InvalidOperation, TransportError
    from requests import RequestException  # the client's own errors pass unchanged
    from urllib3.exceptions import HTTPError

    try:
        yield
    except GoogleAPICallError as error:
        raise refusal(int(error.code or 500), url, error.message) from error
    except (TransportError, RequestException, HTTPError, ConnectionError) as error:
        raise Unsteady(words(error)) from error
    except InvalidOperation as error:  # anonymous credentials cannot be refreshed
        raise denied(url, "it is not public, and this PC has no credentials") from error
    except GoogleAuthError as error:
        raise denied(url, error) from error


# -- s3://


class S3Store:
    """S3 and compatible services (``AWS_ENDPOINT_URL``); unsigned without a key."""

    def __init__(self, url: str) -> None:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        with _s3_troubles(url):
            session = boto3.Session()
            config = Config(
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                retries={"total_max_attempts": 1},
                signature_version=None if session.get_credentials() else UNSIGNED,
            )
            self._client = session.client("s3", config=config)

    def list(self, prefix: str, *, deep: bool = False) -> list[Remote]:
        """See :class:`Store`."""
        bucket, key = _bucket_and_key(prefix)
        options = {} if deep else {"Delimiter": "/"}
        with _s3_troubles(prefix):
            pages = list(
                self._client.get_paginator("list_objects_v2").paginate(
                    Bucket=bucket, Prefix=key, **options
                )
            )
        return [
            _in_bucket("s3", bucket, each["Key"], int(each["Size"]), each["ETag"])
            for page in pages
            for each in page.get("Contents", ())
            if not each["Key"].endswith("/")
        ]

    def stat(self, url: str) -> Remote:
        """See :class:`Store`."""
        bucket, key = _bucket_and_key(url)
        with _s3_troubles(url):
            head = self._client.head_object(Bucket=bucket, Key=key)
        return _in_bucket("s3", bucket, key, int(head["ContentLength"]), head["ETag"])

    def fetch(self, remote: Remote, sink: Sink) -> str | None:
        """See :class:`Store`."""
        bucket, key = _bucket_and_key(remote.url)
        options = {"Range": f"bytes={sink.at}-"} if sink.at else {}
        with _s3_troubles(remote.url):
            answer = self._client.get_object(Bucket=bucket, Key=key, IfMatch=remote.tag, **options)
        with contextlib.closing(answer["Body"]) as body:
            while True:
                with _s3_troubles(remote.url):
                    data = body.read(_CHUNK_BYTES)
                if not data:
                    break
                sink.write(data)
        # not an MD5 with a KMS or customer key, or in several parts
        plain = answer.get("ServerSideEncryption", "AES256") == "AES256"
        md5 = _MD5.fullmatch(remote.tag)
        return f"md5:{md5[1]}" if md5 and plain and "SSECustomerAlgorithm" not in answer else None


@contextlib.contextmanager
def _s3_troubles(url: str) -> Iterator[None]:
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        said = error.response
        status = int(said.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        told = said.get("Error", {})
        why = f"{told.get('Code', '')} {told.get('Message', '')}"
        raise refusal(status, url, why) from error
    except exceptions.ParamValidationError as error:  # not a valid bucket name
        raise missing(url) from error
    except (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
    ) as error:
        raise Unsteady(words(error)) from error
    except (exceptions.ChecksumError, exceptions.FlexibleChecksumError) as error:
        raise Spoiled(words(error)) from error
    except exceptions.BotoCoreError as error:
        raise denied(url, error) from error


# -- http://, https://


class Web:
    """Any web server: no listing, and ranges are optional."""

    def list(self, prefix: str, *, deep: bool = False) -> list[Remote]:
        """Raise DataError: a web server has no listing."""
        raise unsupported(
            f"{shown(prefix)} cannot be listed: name .tar files (train-{{000000..000099}}.tar), "
            "or put the manifest.json beside them that minga writes"
        )

    def stat(self, url: str) -> Remote:
        """See :class:`Store`."""
        with _web_troubles(url):
            try:
                answer = _request(url, "HEAD")
            except urllib.error.HTTPError as error:
                if error.code not in (403, 405, 501):
                    raise
                error.close()
                answer = _request(url, "GET", 0, 0)  # the address may be signed for GET only
            with answer:
                headers = answer.headers
        length = headers.get("Content-Range", headers.get("Content-Length", "")).rpartition("/")[2]
        if not length.isdigit():
            raise unsupported(f"{shown(url)}: the server does not say how long it is")
        folder, _, _ = shown(url).rpartition("/")
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        return Remote(url, folder, name, int(length), _tag(headers))

    def fetch(self, remote: Remote, sink: Sink) -> str | None:
        """See :class:`Store`."""
        with _web_troubles(remote.url):
            answer = _request(remote.url, "GET", sink.at)
        with answer:
            if _tag(answer.headers) != remote.tag:
                raise changed(remote.url)
            if sink.at and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                sink.rewind()
            while True:
                with _web_troubles(remote.url):
                    data = answer.read(_CHUNK_BYTES)
                if not data:  # or truncated: minga checks the length
                    return None
                sink.write(data)


def _request(url: str, method: str, start: int = 0, last: int | None = None) -> Any:
    headers = {"User-Agent": f"minga/{__version__}"}
    if start or last is not None:
        headers["Range"] = f"bytes={start}-{'' if last is None else last}"
    request = urllib.request.Request(quote(url, safe=_URL_SAFE), headers=headers, method=method)
    return urllib.request.urlopen(request, timeout=_READ_S)


def _tag(headers: http.client.HTTPMessage) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


@contextlib.contextmanager
def _web_troubles(url: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            raise refusal(error.code, url, error.reason) from error
    except urllib.error.URLError as error:
        raise Unsteady(words(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unsteady(words(error)) from error


def _bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


def _in_bucket(scheme: str, bucket: str, key: str, size_bytes: int, tag: str) -> Remote:
    url = f"{scheme}://{bucket}/{key}"
    folder, _, name = url.rpartition("/")
    return Remote(url, folder, name, size_bytes, tag)
