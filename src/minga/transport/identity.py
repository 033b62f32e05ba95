"""Identity of the ps, and the right to join: certificate, token, and one string with both.

The ps creates a self-signed certificate and a random token at its first start. A worker is
given ``secret = token + SHA-256(certificate)``: it pins the certificate, so no machine can
intercept, and proves the token with an HMAC, so the token itself never crosses the wire.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from minga.errors import Hint, Refused, UsageError

TOKEN_BYTES = 15
ID_CHARS = 8
TOKENS = "tokens"
"""The folder of PCs' tokens, in a ps's state folder."""
_PIN_BYTES = hashlib.sha256().digest_size
_VALID_FOR = datetime.timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Secret:
    """The join token and the SHA-256 of the ps's certificate (DER)."""

    token: bytes
    pin: bytes

    def __str__(self) -> str:
        """Return the string that users copy: URL-safe base64, 63 characters."""
        return base64.urlsafe_b64encode(self.token + self.pin).decode().rstrip("=")

    @property
    def id(self) -> str:
        """The token's public name, 8 hexadecimal digits: a worker says which one it proves."""
        return hashlib.sha256(b"minga token id" + self.token).hexdigest()[:ID_CHARS]

    def __repr__(self) -> str:
        """Mask the token: a repr may get into a log."""
        return "Secret(token=***)"

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Parse ``str(secret)``. Raises UsageError ``token-malformed``."""
        text = text.strip()
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        if len(raw) != TOKEN_BYTES + _PIN_BYTES:
            raise UsageError(
                f"the token has {len(text)} characters and is not a token of a ps",
                code="token-malformed",
                hints=(Hint("copy it again", "the ps's terminal shows it, 63 characters"),),
            )
        return cls(raw[:TOKEN_BYTES], raw[TOKEN_BYTES:])

    @classmethod
    def read(cls, path: Path) -> Secret:
        """Parse a file. Raises UsageError ``token-malformed`` or ``worker-needs-token``."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise missing_token(f"cannot read the token file {path}: {error}") from error
        return cls.parse(text)

    def proof(self, nonce: bytes) -> bytes:
        """HMAC-SHA256 of the ps's nonce and the certificate's hash, keyed by the token."""
        return hmac.digest(self.token, nonce + self.pin, "sha256")


@dataclass(frozen=True, slots=True)
class Identity:
    """The ps's own side: secret, certificate and key files (0600)."""

    secret: Secret
    certificate: Path
    key: Path
    tokens: Path
    """Folder of the tokens of PCs; see :mod:`minga.transport.tokens`."""

    @classmethod
    def load_or_create(cls, state: Path, token_file: Path | None = None) -> Identity:
        """Return the identity in ``state``; create one if missing.

        A restarted ps keeps its identity, so its workers can rejoin.

        Args:
            state: folder of certificate and key, and of the token unless it is elsewhere.
            token_file: path of the token, existing or not.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate, key = state / "ps.crt", state / "ps.key"
        token = token_file or state / "token"
        if not token.exists():
            _write_certificate(certificate, key)
            pin = hashlib.sha256(_der(certificate)).digest()
            write_private(token, str(Secret(secrets.token_bytes(TOKEN_BYTES), pin)).encode())
        secret = Secret.parse(token.read_text())
        if not certificate.exists() or hashlib.sha256(_der(certificate)).digest() != secret.pin:
            raise Refused(
                f"{token} does not belong to {certificate}",
                code="identity-mixed",
                hints=(
                    Hint("create a new identity (workers need the new token)", f"rm -r {state}"),
                ),
            )
        return cls(secret, certificate, key, state / TOKENS)

    def server_context(self) -> ssl.SSLContext:
        """TLS 1.3 with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        context.num_tickets = 0  # streams are never resumed
        return context


def missing_token(what: str) -> UsageError:
    """Return the error of a worker without a token."""
    return UsageError(
        what,
        code="worker-needs-token",
        hints=(
            Hint("where is it?", "the ps's terminal shows it, after MINGA_TOKEN="),
            Hint("then", "MINGA_TOKEN=... ./start_worker.sh"),
        ),
    )


def client_context() -> ssl.SSLContext:
    """TLS 1.3; :func:`check_pin` checks the certificate, not an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_pin(stream: ssl.SSLSocket, secret: Secret) -> None:
    """Raise Refused ``certificate-differs`` unless the peer holds the pinned certificate."""
    presented = stream.getpeercert(binary_form=True) or b""
    if not hmac.compare_digest(hashlib.sha256(presented).digest(), secret.pin):
        host = stream.getpeername()[0]
        raise Refused(
            f"{host} answers with another certificate than the one in the token",
            code="certificate-differs",
            hints=(Hint("use the token that this ps prints", "it changes with the ps's state"),),
        )


def _der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def _write_certificate(certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "minga ps")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _VALID_FOR)
        .sign(private, hashes.SHA256())
    )
    write_private(
        key,
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    write_private(certificate, signed.public_bytes(serialization.Encoding.PEM))


def write_private(path: Path, content: bytes) -> None:
    """Write a 0600 file atomically."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
