"""How a host becomes a peer of an endpoint: invitation, request and answer. Sans-IO.

An invitation is a text that the endpoint makes and an administrator passes on. It contains the
endpoint's key, so that a joining host can verify the answer, and a secret::

    token     "st1_" base64url( ENDPOINT KEY 32 | ID 8 | SECRET 16 )

The host makes a key of its own, and sends this by any carrier::

    request   { "body": bin, "signature": bin 64 }        Ed25519 by the key that joins
    body      { "kind": "join", "from": bin 32, "to": bin 32, "nonce": bin 16, "expires": int,
                "name": str, "invitation": bin 8, "proof": bin 32 }

    answer    { "body": bin, "signature": bin 64 }        Ed25519 by the endpoint
    body      { "kind": "joined", "from": bin 32, "to": bin 32, "in_reply_to": bin 16,
                "name": str, "tag": str, "until": int, "enrolment": bin }
              { "kind": "not-joined", "from", "to", "in_reply_to", "reason": str }

The proof is HMAC-SHA256 (RFC 2104) with the secret over everything that a carrier could change::

    "socks-tunnel join" 0x00 | FROM 32 | TO 32 | NONCE 16 | EXPIRES 8 | NAME (UTF-8, the rest)

So a carrier sees neither the secret nor anything with which another key could join. Repeating the
request changes nothing, because the same key is a peer already. Times are Unix seconds; `until` is
0 for an enrolment without an end. A request without a valid proof gets no answer at all.

With a token of the company's identity provider in place of an invitation, the request is that of
:mod:`socks_tunnel.signaling.joining_jwt`.

A host that has joined replaces its key by a request with the new key, which the old key signs too::

    body      { "kind": "renew", "from": bin 32, "to": bin 32, "nonce": bin 16, "expires": int,
                "old": bin 32, "old_signature": bin 64 }
    signed    "socks-tunnel renew" 0x00 | FROM 32 | TO 32 | NONCE 16 | EXPIRES 8

The enrolment in the answer is what a rendezvous service accepts in place of a listed key
(:func:`enrolment_for`)::

    enrolment { "by": bin 32, "until": int, "signature": bin 64 }
    signed    "socks-tunnel enrolment" 0x00 | KEY 32 | UNTIL 8
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.signaling.identity import (
    PUBLIC_KEY_SIZE,
    SIGNATURE_SIZE,
    PrivateIdentity,
    verify,
)

TOKEN_PREFIX: Final = "st1_"  # noqa: S105 - it marks the kind of text, and is no secret
ID_SIZE: Final = 8
SECRET_SIZE: Final = 16
NONCE_SIZE: Final = 16
PROOF_SIZE: Final = 32

REQUEST_MAX: Final = 1024
"""Longest request or answer in bytes."""

JWT_MAX: Final = 16_384
"""Longest token of an identity provider in bytes. With many roles, tokens of Keycloak reach 8
KiB."""

SEALED_MAX: Final = JWT_MAX + 48
"""Longest such token in bytes once it is encrypted, with a key of 32 and a tag of 16 bytes."""

ENROLMENT_MAX: Final = 256
"""Longest enrolment in bytes."""

TEXT_MAX: Final = 200
"""Longest name, tag or reason in bytes."""

LIFETIME: Final = 60
"""Seconds for which a request is valid."""

LIFETIME_MAX: Final = 300
"""Latest expiry of a request that is accepted, in seconds from now."""

_U64_MAX: Final = (1 << 64) - 1
_BOUNDS: Final = bounded.Bounds(
    size=REQUEST_MAX, text=TEXT_MAX, binary=REQUEST_MAX, entries=16, items=64, depth=1
)
_JWT_BOUNDS: Final = bounded.Bounds(
    size=SEALED_MAX + REQUEST_MAX,
    text=TEXT_MAX,
    binary=SEALED_MAX + REQUEST_MAX,
    entries=16,
    items=64,
    depth=1,
)
"""The fields of a request that may contain a token."""


class JoinRejected(Exception):  # noqa: N818 - it is a verdict on a message, not a fault of ours
    """A request or an answer that must not be acted upon; the text is a sentence for the log."""


def bytes_in(text: str, prefix: str, size: int, *, a: str, what: str) -> bytes:
    """Returns the `size` bytes that follow a prefix, in base64 for URLs, with or without padding.

    Raises :class:`ValueError` with a sentence that calls the text `what`, with the article `a`.
    """
    text = text.strip()
    if not text.startswith(prefix):
        raise ValueError(f"{a} {what} begins with {prefix}")
    coded = text.removeprefix(prefix)
    try:
        raw = base64.b64decode(coded + "=" * (-len(coded) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the {what} is damaged: it is not base64") from None
    if len(raw) != size:
        raise ValueError(f"the {what} is damaged: its length is wrong")
    return raw


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation as it is passed on."""

    endpoint: bytes
    id: bytes
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        raw = self.endpoint + self.id + self.secret
        return TOKEN_PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the invitation in a text. Raises :class:`ValueError` with a sentence."""
        size = PUBLIC_KEY_SIZE + ID_SIZE + SECRET_SIZE
        raw = bytes_in(text, TOKEN_PREFIX, size, a="a", what="token")
        end = PUBLIC_KEY_SIZE + ID_SIZE
        return cls(raw[:PUBLIC_KEY_SIZE], raw[PUBLIC_KEY_SIZE:end], raw[end:])


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A host wants to be a peer. `sender` is its key, which has signed this."""

    sender: bytes
    to: bytes
    nonce: bytes
    expires: int
    name: str
    invitation: bytes
    proof: bytes

    def proves(self, secret: bytes) -> bool:
        """Returns whether the sender of the request knows the secret of the invitation."""
        return hmac.compare_digest(self.proof, _proof(secret, self))


@dataclass(frozen=True, slots=True)
class JwtRequest:
    """A host wants to be a peer, and presents a token of an identity provider, encrypted.

    `sender` is its key, which has signed this. See :mod:`socks_tunnel.signaling.joining_jwt`.
    """

    sender: bytes
    to: bytes
    nonce: bytes
    expires: int
    name: str
    sealed: bytes


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """A host that has joined wants the key `sender` in place of `old`. Both have signed this."""

    sender: bytes
    to: bytes
    nonce: bytes
    expires: int
    old: bytes


Request: TypeAlias = JoinRequest | JwtRequest | RenewRequest


@dataclass(frozen=True, slots=True)
class Joined:
    """The host is a peer now, with this name and this tag."""

    name: str
    tag: str
    until: int
    enrolment: bytes


@dataclass(frozen=True, slots=True)
class NotJoined:
    """The invitation was valid, but the host did not become a peer; `reason` says why."""

    reason: str


def new_request(
    identity: PrivateIdentity, token: Token, name: str, now: float
) -> tuple[bytes, JoinRequest]:
    """Returns a signed request with a fresh nonce, and its content.

    Raises :class:`ValueError` for a name that is too long.
    """
    if len(name.encode()) > TEXT_MAX:
        raise ValueError(f"a name has at most {TEXT_MAX} bytes")
    bare = JoinRequest(
        sender=identity.public,
        to=token.endpoint,
        nonce=secrets.token_bytes(NONCE_SIZE),
        expires=int(now) + LIFETIME,
        name=name,
        invitation=token.id,
        proof=b"",
    )
    proof = _proof(token.secret, bare)
    body = {
        "kind": "join",
        "from": bare.sender,
        "to": bare.to,
        "nonce": bare.nonce,
        "expires": bare.expires,
        "name": name,
        "invitation": bare.invitation,
        "proof": proof,
    }
    return seal(identity, body), bare


def new_renewal(
    old: PrivateIdentity, new: PrivateIdentity, endpoint: bytes, now: float
) -> tuple[bytes, RenewRequest]:
    """Returns a request for another key, signed by both keys, and its content."""
    request = RenewRequest(
        sender=new.public,
        to=endpoint,
        nonce=secrets.token_bytes(NONCE_SIZE),
        expires=int(now) + LIFETIME,
        old=old.public,
    )
    body = {
        "kind": "renew",
        "from": request.sender,
        "to": request.to,
        "nonce": request.nonce,
        "expires": request.expires,
        "old": request.old,
        "old_signature": old.sign(_renewal_text(request)),
    }
    return seal(new, body), request


def open_request(data: bytes, own: bytes, now: float) -> Request:
    """Returns a request that is addressed to our key `own`, signed and not expired.

    Raises :class:`JoinRejected`. The caller has to check the proof of a
    :class:`JoinRequest`, the token of a :class:`JwtRequest`, and whether the old key of a
    :class:`RenewRequest` is that of a member.
    """
    fields = open_signed(data, bounds=_JWT_BOUNDS)
    request: Request
    try:
        common = {
            "sender": bounded.binary(fields, "from", PUBLIC_KEY_SIZE),
            "to": bounded.binary(fields, "to", PUBLIC_KEY_SIZE),
            "nonce": bounded.binary(fields, "nonce", NONCE_SIZE),
        }
        expires = bounded.integer(fields, "expires", 0, _U64_MAX)
        match bounded.text(fields, "kind"):
            case "join":
                request = JoinRequest(
                    **common,
                    expires=expires,
                    name=bounded.text(fields, "name"),
                    invitation=bounded.binary(fields, "invitation", ID_SIZE),
                    proof=bounded.binary(fields, "proof", PROOF_SIZE),
                )
            case "join-jwt":
                request = JwtRequest(
                    **common,
                    expires=expires,
                    name=bounded.text(fields, "name"),
                    sealed=bounded.binary(fields, "sealed"),
                )
            case "renew":
                old = bounded.binary(fields, "old", PUBLIC_KEY_SIZE)
                request = RenewRequest(**common, expires=expires, old=old)
                signature = bounded.binary(fields, "old_signature", SIGNATURE_SIZE)
                if not verify(old, signature, _renewal_text(request)):
                    raise JoinRejected("the old key has not signed the request")
            case _:
                raise bounded.unusable(fields, "kind")
    except bounded.Malformed as error:
        raise JoinRejected(f"the request: {error}") from None
    if request.to != own:
        raise JoinRejected("the request is addressed to another key")
    if request.expires <= now:
        raise JoinRejected(
            f"the request expired {now - request.expires:.0f} s ago; is a clock wrong?"
        )
    if request.expires > now + LIFETIME_MAX:
        raise JoinRejected(
            f"the request expires in {request.expires - now:.0f} s; a clock is wrong"
        )
    return request


def answer_to(identity: PrivateIdentity, request: Request, decided: Joined | NotJoined) -> bytes:
    """Returns the signed answer to a request."""
    body: dict[str, Any] = {
        "from": identity.public,
        "to": request.sender,
        "in_reply_to": request.nonce,
    }
    match decided:
        case Joined(name, tag, until, enrolment):
            body |= {"kind": "joined", "name": name, "tag": tag, "until": until}
            body["enrolment"] = enrolment
        case NotJoined(reason):
            body |= {"kind": "not-joined", "reason": bounded.clip(reason, TEXT_MAX)}
    return seal(identity, body)


def open_answer(data: bytes, request: Request) -> Joined | NotJoined:
    """Returns the endpoint's decision about `request`. Raises :class:`JoinRejected`."""
    fields = open_signed(data, request.to)
    try:
        if (
            bounded.binary(fields, "to", PUBLIC_KEY_SIZE) != request.sender
            or bounded.binary(fields, "in_reply_to", NONCE_SIZE) != request.nonce
        ):
            raise JoinRejected("the answer is to another request")
        match bounded.text(fields, "kind"):
            case "joined":
                return Joined(
                    name=bounded.text(fields, "name"),
                    tag=bounded.text(fields, "tag"),
                    until=bounded.integer(fields, "until", 0, _U64_MAX),
                    enrolment=bounded.binary(fields, "enrolment"),
                )
            case "not-joined":
                return NotJoined(bounded.clip(bounded.text(fields, "reason")))
            case _:
                raise bounded.unusable(fields, "kind")
    except bounded.Malformed as error:
        raise JoinRejected(f"the answer: {error}") from None


def seal(identity: PrivateIdentity, body: Mapping[str, Any]) -> bytes:
    """Returns a body, signed by `identity`."""
    packed: bytes = msgpack.packb(body)
    sealed: bytes = msgpack.packb({"body": packed, "signature": identity.sign(packed)})
    return sealed


def open_signed(
    data: bytes, sender_wanted: bytes | None = None, bounds: bounded.Bounds = _BOUNDS
) -> dict[str, Any]:
    """Returns a body that its sender (`sender_wanted`, if that is given) has signed.

    Raises :class:`JoinRejected`.
    """
    try:
        outer = bounded.unpack_map(data, bounds)
        packed = bounded.binary(outer, "body")
        signature = bounded.binary(outer, "signature", SIGNATURE_SIZE)
        fields = bounded.unpack_map(packed, bounds)
        sender = bounded.binary(fields, "from", PUBLIC_KEY_SIZE)
    except bounded.Malformed as error:
        raise JoinRejected(f"not understood: {error}") from None
    if sender_wanted is not None and sender != sender_wanted:
        raise JoinRejected("it is not from the endpoint in the token")
    if not verify(sender, signature, packed):
        raise JoinRejected("its signature is wrong")
    return fields


def _renewal_text(request: RenewRequest) -> bytes:
    return (
        b"socks-tunnel renew\0"
        + request.sender
        + request.to
        + request.nonce
        + request.expires.to_bytes(8, "big")
    )


def _proof(secret: bytes, request: JoinRequest) -> bytes:
    text = (
        b"socks-tunnel join\0"
        + request.sender
        + request.to
        + request.nonce
        + request.expires.to_bytes(8, "big")
        + request.name.encode()
    )
    return hmac.new(secret, text, hashlib.sha256).digest()


# --- enrolments -------------------------------------------------------------------------------


def enrolment_for(identity: PrivateIdentity, key: bytes, until: int) -> bytes:
    """Returns the enrolment by which `identity` accepts `key`, until a Unix time or 0."""
    signature = identity.sign(_enrolment_text(key, until))
    packed: bytes = msgpack.packb({"by": identity.public, "until": until, "signature": signature})
    return packed


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The owner of the key `by` has accepted a host, until a Unix time; 0: no limit."""

    by: bytes
    until: int


def open_enrolment(enrolment: bytes, key: bytes, now: float) -> Enrolled:
    """Returns by whom `key` is accepted, and until when. Raises :class:`JoinRejected`."""
    try:
        fields = bounded.unpack_map(enrolment, _BOUNDS)
        by = bounded.binary(fields, "by", PUBLIC_KEY_SIZE)
        until = bounded.integer(fields, "until", 0, _U64_MAX)
        signature = bounded.binary(fields, "signature", SIGNATURE_SIZE)
    except bounded.Malformed as error:
        raise JoinRejected(f"the enrolment: {error}") from None
    if until and until <= now:
        raise JoinRejected("the enrolment has ended")
    if not verify(by, signature, _enrolment_text(key, until)):
        raise JoinRejected("the enrolment is not for this key")
    return Enrolled(by, until)


def _enrolment_text(key: bytes, until: int) -> bytes:
    return b"socks-tunnel enrolment\0" + key + until.to_bytes(8, "big")
