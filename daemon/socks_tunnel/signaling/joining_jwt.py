"""How a host presents a token of an identity provider (JWT, RFC 7519) to an endpoint. Sans-IO.

Anybody who has such a token can use it, and the request passes a service that is not trusted, or
plain HTTP. So the token is encrypted for the endpoint. The address to join is a text that the
endpoint prints. It contains no secret::

    address   "sj1_" base64url( ENDPOINT KEY 32 | BOX KEY 32 )

The box key is X25519 (RFC 7748). Its private half is derived from the endpoint's identity, so that
no other file is needed. The request is like the one of :mod:`socks_tunnel.signaling.joining`,
signed by the key that joins, with another body::

    body      { "kind": "join-jwt", "from": bin 32, "to": bin 32, "nonce": bin 16, "expires": int,
                "name": str, "sealed": bin }

`sealed` is the token by HPKE (RFC 9180) in base mode, with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256
and ChaCha20Poly1305. Its `info` binds it to the rest of the request::

    "socks-tunnel join jwt" 0x00 | FROM 32 | TO 32 | NONCE 16 | EXPIRES 8 | NAME (UTF-8, the rest)

So the carrier of the request cannot read the token. It cannot put the sealed token into a request
of another key either, because it cannot be opened there. Repeating the request changes nothing,
because the same key is a peer already, and a token is good for one key.
"""

import base64
import secrets
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from socks_tunnel.signaling.identity import PUBLIC_KEY_SIZE, PrivateIdentity
from socks_tunnel.signaling.joining import (
    JWT_MAX,
    LIFETIME,
    NONCE_SIZE,
    SEALED_MAX,
    TEXT_MAX,
    JoinRejected,
    JwtRequest,
    bytes_in,
    seal,
)

ADDRESS_PREFIX: Final = "sj1_"
BOX_KEY_SIZE: Final = 32

_PURPOSE: Final = b"socks-tunnel join box"
SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
"""How data is encrypted that the carrier of a request must not read (RFC 9180)."""


@dataclass(frozen=True, slots=True)
class JoinAddress:
    """The address to join: the endpoint's key, and the key for encryption."""

    endpoint: bytes
    box: bytes

    def __str__(self) -> str:
        return ADDRESS_PREFIX + base64.urlsafe_b64encode(self.endpoint + self.box).decode()

    @classmethod
    def of(cls, identity: PrivateIdentity) -> Self:
        """Returns the address of an endpoint."""
        return cls(identity.public, _box_key(identity).public_key().public_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the address in a text. Raises :class:`ValueError` with a sentence."""
        size = PUBLIC_KEY_SIZE + BOX_KEY_SIZE
        raw = bytes_in(text, ADDRESS_PREFIX, size, a="an", what="address to join")
        return cls(raw[:PUBLIC_KEY_SIZE], raw[PUBLIC_KEY_SIZE:])


def new_jwt_request(
    identity: PrivateIdentity, address: JoinAddress, name: str, token: str, now: float
) -> tuple[bytes, JwtRequest]:
    """Returns a signed request with a fresh nonce, and its content.

    Raises :class:`ValueError` if the name or the token is too long, or if nothing can be encrypted
    to the box key of the address.
    """
    if len(name.encode()) > TEXT_MAX:
        raise ValueError(f"a name has at most {TEXT_MAX} bytes")
    if not token.isascii() or not 1 <= len(token) <= JWT_MAX:
        raise ValueError(f"a JWT has 1 to {JWT_MAX} ASCII characters")
    bare = JwtRequest(
        sender=identity.public,
        to=address.endpoint,
        nonce=secrets.token_bytes(NONCE_SIZE),
        expires=int(now) + LIFETIME,
        name=name,
        sealed=b"",
    )
    box = X25519PublicKey.from_public_bytes(address.box)
    sealed: bytes = SUITE.encrypt(token.encode("ascii"), box, _info(bare))
    assert len(sealed) <= SEALED_MAX, "HPKE adds the encapsulated key and a tag"
    body = {
        "kind": "join-jwt",
        "from": bare.sender,
        "to": bare.to,
        "nonce": bare.nonce,
        "expires": bare.expires,
        "name": name,
        "sealed": sealed,
    }
    return seal(identity, body), bare


def unseal(request: JwtRequest, identity: PrivateIdentity) -> str:
    """Returns the token in a request that is addressed to `identity`.

    Raises :class:`JoinRejected` if it was encrypted for another key or another request.
    """
    try:
        opened: bytes = SUITE.decrypt(request.sealed, _box_key(identity), _info(request))
    except (InvalidTag, ValueError):
        raise JoinRejected("the token was sealed for another endpoint or another key") from None
    # A text that is not ASCII is no JWT. The check of tokens reports that.
    return opened.decode("latin-1")


def _box_key(identity: PrivateIdentity) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(identity.derive(_PURPOSE))


def _info(request: JwtRequest) -> bytes:
    return (
        b"socks-tunnel join jwt\0"
        + request.sender
        + request.to
        + request.nonce
        + request.expires.to_bytes(8, "big")
        + request.name.encode()
    )
