"""TLS of signalling: an endpoint's certificate and key, and the CAs that a gateway trusts.

This module describes mistakes in these files in words. OpenSSL does the rest.
"""

import datetime as dt
import os
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from socks_tunnel.ops.files import open_regular, read_whole

TLS_FILE_MAX: Final = 4 * 1_048_576
"""Longest file with certificates or a key, in bytes. All CA certificates of a system take 250
kB."""

_OTHERS: Final = 0o037
"""Mode bits that the file of a TLS key must not have. The group may read it, because Debian shares
such keys in that way (group ssl-cert). A file of root that the daemon cannot change is better than
a file that it owns."""

Key: TypeAlias = Literal["tls_certificate", "tls_key"]

_REASONS: Final[dict[str | None, tuple[Key, str]]] = {
    "KEY_VALUES_MISMATCH": (
        "tls_key",
        "is not the key of the first certificate; the host's own must come first, then its issuers",
    ),
    "NO_CERTIFICATE_ASSIGNED": (
        "tls_key",
        "is not the key of the first certificate, but one of another kind (RSA, ECDSA)",
    ),
    "EE_KEY_TOO_SMALL": ("tls_certificate", "has a key that is too short to be safe"),
    "CA_KEY_TOO_SMALL": ("tls_certificate", "has an issuer whose key is too short to be safe"),
    "CA_MD_TOO_WEAK": ("tls_certificate", "is signed with a digest that is too weak to be safe"),
}
"""OpenSSL's reasons for refusing a pair of files: for each the setting, and the rest of a sentence
that begins with the file."""


class TlsFileError(Exception):
    """A certificate or key cannot be used. `key` is the setting, and the text stands after it."""

    def __init__(self, key: Key, message: str) -> None:
        super().__init__(message)
        self.key: Key = key


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate with its key, ready to serve, and the facts about it for an operator."""

    path: Path
    context: ssl.SSLContext
    names: tuple[str, ...]
    """Names and addresses for which it is valid."""
    not_before: dt.datetime
    not_after: dt.datetime
    fingerprint: str
    """SHA-256 of the certificate, in hex."""

    def complaint(self, now: dt.datetime) -> str | None:
        """Returns why gateways will refuse it now; None if no reason is known."""
        if now > self.not_after:
            return f"expired at {_moment(self.not_after)}"
        if now < self.not_before:
            return f"is not valid before {_moment(self.not_before)}"
        return None

    def __str__(self) -> str:
        names = ", ".join(self.names) or "no name"
        return f"{self.path}, for {names}, until {_moment(self.not_after)}"


def read_server_certificate(certificate: Path, key: Path | None) -> ServerCertificate:
    """Reads a chain (the host's own certificate first) and its key: PEM, in one file or two.

    A new context is made each time, and no context is ever changed: a context that has served an
    RSA key would keep serving it beside an ECDSA key. Raises :class:`TlsFileError`.
    """
    pem, mode = _read("tls_certificate", certificate)
    own = _first_certificate(certificate, pem)
    if key is None:
        if b"PRIVATE KEY-----" not in pem:
            raise TlsFileError("tls_key", f"is missing, and {certificate} holds no private key")
        key_file: Path = certificate
    else:
        key_file = key
        pem, mode = _read("tls_key", key)
        if b"PRIVATE KEY-----" not in pem:
            raise TlsFileError("tls_key", f"{key} holds no private key in PEM form")
    if mode & _OTHERS:
        raise TlsFileError(
            "tls_key" if key else "tls_certificate",
            f"{key_file} has mode {mode:04o}: others may use the key; `chmod 640` keeps them out",
        )
    return ServerCertificate(
        path=certificate,
        context=_server_context(certificate, key_file),
        names=_names(own),
        not_before=own.not_valid_before_utc,
        not_after=own.not_valid_after_utc,
        fingerprint=own.fingerprint(SHA256()).hex(),
    )


def client_context(ca: Path | None) -> ssl.SSLContext:
    """Returns a context that trusts the system's CAs, or only those in the file `ca`.

    Every certificate in that file is trusted as it is, also one that is not a root. This is the
    same on every Python: by itself, 3.13 would refuse private CAs whose certificates lack an
    extension, unlike the other programs on the host. Raises :class:`OSError`, of which
    :class:`ssl.SSLError` is one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is None:
        context.load_default_certs()
    else:
        read_whole(ca, TLS_FILE_MAX)  # OpenSSL has no limit, and waits for the writer of a FIFO
        context.load_verify_locations(ca)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def check_authorities(ca: Path) -> str | None:
    """Returns what is wrong with a file of CA certificates; None if it can be used."""
    try:
        client_context(ca)
    except ssl.SSLError:
        return f"{ca} holds no certificate in PEM form, or one that cannot be read"
    except OSError as error:
        return f"{ca} cannot be read: {error.strerror}"
    return None


def _read(key: Key, path: Path) -> tuple[bytes, int]:
    """Returns the content of a file, and its permission bits."""
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(TLS_FILE_MAX + 1)
    except OSError as error:
        raise TlsFileError(key, f"{path} cannot be read: {error.strerror}") from None
    if len(content) > TLS_FILE_MAX:
        raise TlsFileError(key, f"{path} is longer than {TLS_FILE_MAX} bytes")
    return content, stat.S_IMODE(mode)


def _first_certificate(path: Path, pem: bytes) -> x509.Certificate:
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise TlsFileError("tls_certificate", f"{path} holds no certificate in PEM form")
    try:
        own: x509.Certificate = x509.load_pem_x509_certificates(pem)[0]
        _names(own)
    except ValueError:
        raise TlsFileError(
            "tls_certificate", f"{path} holds a certificate that cannot be read"
        ) from None
    return own


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    names: Sequence[object] = (
        *extension.value.get_values_for_type(x509.DNSName),
        *extension.value.get_values_for_type(x509.IPAddress),
    )
    return tuple(map(str, names))


class _KeyIsEncryptedError(Exception):
    pass


def _no_password() -> str:
    # Without this, OpenSSL would ask for it on the terminal.
    raise _KeyIsEncryptedError


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Each request has a connection of its own, minutes apart: resumption saves nobody anything, and
    # ticket keys that live as long as the process would take forward secrecy from what is resumed.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, _no_password)
    except _KeyIsEncryptedError:
        raise TlsFileError(
            "tls_key", f"{key} is encrypted, and there is nobody to ask for the password"
        ) from None
    except ssl.SSLError as error:
        unknown: tuple[Key, str] = ("tls_key", "holds a private key that cannot be read")
        setting, message = _REASONS.get(error.reason, unknown)
        file = key if setting == "tls_key" else certificate
        raise TlsFileError(setting, f"{file} {message}") from None
    except OSError as error:  # the file was removed meanwhile
        message = f"{certificate} or {key} cannot be read: {error.strerror}"
        raise TlsFileError("tls_certificate", message) from None
    return context


def _moment(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
