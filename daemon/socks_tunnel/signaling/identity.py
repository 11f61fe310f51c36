"""Ed25519 identities (RFC 8032): who a gateway or an endpoint is.

A private key is kept as PEM (PKCS #8, unencrypted; the file's mode protects it). A public key is
written as the base64 of its 32 raw bytes, 44 characters.
"""

import base64
import binascii
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from socks_tunnel.ops.files import read_whole

PUBLIC_KEY_SIZE = 32
"""Length of a raw public key in bytes."""

SIGNATURE_SIZE = 64
"""Length of a signature in bytes."""


class PrivateIdentity:
    """A private key and what is derived from it. Never shows the key in `repr`."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        """The public key: 32 raw bytes."""

    def __repr__(self) -> str:
        return f"<PrivateIdentity of {self.public_text}>"

    @classmethod
    def generate(cls) -> Self:
        """Makes a new identity from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a PEM file. Raises :class:`OSError`, or :class:`ValueError` as :meth:`from_pem`."""
        return cls.from_pem(read_whole(path))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Reads a PEM text. Raises :class:`ValueError` with a sentence, never with key material."""
        try:
            key = load_pem_private_key(pem, password=None)
        except TypeError:
            raise ValueError("the private key is encrypted; an unencrypted one is needed") from None
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("this is no private key in PEM form (PKCS #8)") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(  # noqa: TRY004 - the file's content is wrong, not an argument's type
                "this private key is of another kind; an Ed25519 key is needed"
            )
        return cls(key)

    def to_pem(self) -> bytes:
        """Returns the private key as PEM (PKCS #8).

        The caller must protect the file by its mode.
        """
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_text(self) -> str:
        """The public key as configurations name it: base64 of the 32 raw bytes."""
        return public_key_text(self.public)

    def sign(self, data: bytes) -> bytes:
        """Returns the 64-byte signature over exactly `data`."""
        return self._key.sign(data)

    def derive(self, purpose: bytes) -> bytes:
        """Returns 32 secret bytes for another use of this identity (HKDF, RFC 5869).

        The same purpose gives the same bytes. They reveal nothing about those of another purpose.
        """
        return HKDF(SHA256(), 32, salt=None, info=purpose).derive(self._key.private_bytes_raw())


def public_key_text(public: bytes) -> str:
    """Returns the base64 form of a raw public key."""
    return base64.b64encode(public).decode("ascii")


def parse_public_key(text: str) -> bytes:
    """Returns the 32 raw bytes of a public key in base64.

    Raises :class:`ValueError` with a sentence about what is wrong with it.
    """
    try:
        public = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ValueError("the public key is not base64") from None
    if len(public) != PUBLIC_KEY_SIZE:
        raise ValueError(
            f"the public key is {len(public)} bytes long; an Ed25519 key has {PUBLIC_KEY_SIZE}"
        )
    return public


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Returns whether `signature` is that of the owner of `public` over exactly `data`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):  # ValueError: not a public key
        return False
    return True
