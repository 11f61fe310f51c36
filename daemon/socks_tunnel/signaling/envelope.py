"""Signed envelopes: how an offer, an answer or a bye travels, whoever carries it. Sans-IO.

An envelope is a msgpack map, and so is the body inside it::

    envelope  { "body": bin, "signature": bin 64 }        Ed25519 over exactly the body's bytes
    body      { "kind": "offer" | "answer" | "bye",
                "from": bin 32, "to": bin 32,             Ed25519 public keys
                "session": bin 16,                        chosen by the gateway
                "nonce": bin 16,                          never used twice by one sender
                "in_reply_to": bin 16 | nil,              the nonce of the offer that is answered
                "expires": int,                           Unix seconds
                "sdp": str }                              whole SDP, all candidates; "" in a bye

Unknown keys are ignored. The DTLS fingerprints inside the signed SDP pin the peer connection to the
signer's identity, so the carrier needs no trust: it can lose an envelope, but neither read anything
that helps it nor change or repeat anything.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.signaling.identity import (
    PUBLIC_KEY_SIZE,
    SIGNATURE_SIZE,
    PrivateIdentity,
    public_key_text,
    verify,
)
from socks_tunnel.signaling.nonces import NonceFile

ENVELOPE_MAX: Final = 65_536
"""Longest envelope in bytes."""

SDP_MAX: Final = 32_768
"""Longest SDP in bytes (UTF-8)."""

NONCE_SIZE: Final = 16
SESSION_SIZE: Final = 16

LIFETIME: Final = 60
"""Seconds for which an envelope is valid, unless its maker chooses another time."""

LIFETIME_MAX: Final = 300
"""Latest expiry that is accepted, in seconds from now. A nonce must be remembered that long."""

NONCES_PER_PEER: Final = 1024
"""Unexpired nonces of one peer that are remembered. With more, the peer has to wait."""

_U64_MAX: Final = (1 << 64) - 1

_ENVELOPE_BOUNDS: Final = bounded.Bounds(size=ENVELOPE_MAX, binary=ENVELOPE_MAX)
_BODY_BOUNDS: Final = bounded.Bounds(size=ENVELOPE_MAX, text=SDP_MAX)

KINDS: Final = frozenset({"offer", "answer", "bye"})


@dataclass(frozen=True, slots=True)
class Body:
    """The content of an envelope. `sender` is the field "from", which is a keyword in Python."""

    kind: str
    sender: bytes
    to: bytes
    session: bytes
    nonce: bytes
    in_reply_to: bytes | None
    expires: int
    sdp: str = ""


def new_body(
    kind: str,
    identity: PrivateIdentity,
    to: bytes,
    *,
    session: bytes,
    now: float,
    sdp: str = "",
    in_reply_to: bytes | None = None,
    lifetime: int = LIFETIME,
) -> Body:
    """Returns a body with a fresh nonce, valid for `lifetime` seconds from `now` (Unix time)."""
    return Body(
        kind=kind,
        sender=identity.public,
        to=to,
        session=session,
        nonce=secrets.token_bytes(NONCE_SIZE),
        in_reply_to=in_reply_to,
        expires=int(now) + lifetime,
        sdp=sdp,
    )


def seal(identity: PrivateIdentity, body: Body) -> bytes:
    """Returns the envelope of `body`, signed.

    Raises :class:`ValueError` if the result would be over :data:`ENVELOPE_MAX`.
    """
    packed: bytes = msgpack.packb(
        {
            "kind": body.kind,
            "from": body.sender,
            "to": body.to,
            "session": body.session,
            "nonce": body.nonce,
            "in_reply_to": body.in_reply_to,
            "expires": body.expires,
            "sdp": body.sdp,
        }
    )
    envelope: bytes = msgpack.packb({"body": packed, "signature": identity.sign(packed)})
    if len(envelope) > ENVELOPE_MAX:
        raise ValueError(f"the envelope is {len(envelope)} bytes long; at most {ENVELOPE_MAX} fit")
    return envelope


class EnvelopeRejected(Exception):  # noqa: N818 - it is a verdict on a message, not a fault of ours
    """An envelope that must not be acted upon.

    `reason_code` is a short constant for metrics, `sentence` is for the log, `peer_name` the
    configured peer that it came from: None unless its signature proved that, except that a bad
    signature names the peer that it claims to be from. Nothing of it goes to the sender.
    """

    def __init__(self, reason_code: str, sentence: str, peer_name: str | None = None) -> None:
        super().__init__(sentence)
        self.reason_code = reason_code
        self.sentence = sentence
        self.peer_name = peer_name


class Verifier:
    """Opens envelopes that are addressed to one identity and come from the configured peers.

    `peers` maps raw public keys to peer names. Time comes in as `now`, in Unix seconds. Nonces are
    remembered until their envelopes expire, :data:`NONCES_PER_PEER` for each peer, so that no peer
    can crowd out another. With :meth:`keep_in` they are remembered over a restart too.
    """

    def __init__(self, own_public: bytes, peers: Mapping[bytes, str]) -> None:
        self._own_public = own_public
        self._peers = dict(peers)
        self._seen: dict[bytes, dict[bytes, int]] = {}
        self._file: NonceFile | None = None
        self._forgotten = 0
        """Latest expiry of a forgotten nonce. The clock may have been set back to before it."""

    def keep_in(self, file: NonceFile, now: float | None) -> None:
        """Loads the nonces that an earlier process accepted, and stores all later ones.

        `now` is as in :meth:`NonceFile.load`.
        """
        for sender, nonce, expires in file.load(now):
            self._seen.setdefault(sender, {})[nonce] = expires
        self._file = file
        self._forgotten = file.forgotten

    def renew(self, own_public: bytes) -> None:
        """Replaces our own key. Envelopes to the old one are refused from now on."""
        self._own_public = own_public

    def update_peers(self, peers: Mapping[bytes, str]) -> None:
        """Replaces the configured peers. Nonces of removed peers stay known until they expire."""
        self._peers = dict(peers)

    def open(
        self,
        envelope: bytes,
        now: float,
        *,
        kinds: Collection[str] = KINDS,
        in_reply_to: bytes | None = None,
    ) -> tuple[Body, str]:
        """Returns the body and the name of the peer that signed it.

        `kinds` are the kinds that the caller accepts. `in_reply_to` is the nonce of the offer whose
        answer it waits for (None: it waits for no answer). Raises :class:`EnvelopeRejected` with
        one of the reason codes malformed, unknown-peer, bad-signature, wrong-addressee, expired,
        too-far-ahead, wrong-kind, unexpected-reply, replayed, too-many.
        """
        packed, signature, body = _decode(envelope)
        name = self._peers.get(body.sender)
        if name is None:
            raise EnvelopeRejected(
                "unknown-peer",
                f"no configured peer has the public key {public_key_text(body.sender)}",
            )
        if not verify(body.sender, signature, packed):
            raise EnvelopeRejected(
                "bad-signature", f"the signature is not that of the peer {name}", name
            )
        if body.to != self._own_public:
            raise EnvelopeRejected(
                "wrong-addressee",
                f"the peer {name} addressed it to the public key {public_key_text(body.to)}, "
                "which is not ours",
                name,
            )
        if body.expires <= now:
            raise EnvelopeRejected(
                "expired",
                f"the envelope of the peer {name} expired {now - body.expires:.0f} s ago; "
                "if that is not a delayed one, a clock is wrong",
                name,
            )
        if body.expires <= self._forgotten:
            raise EnvelopeRejected(
                "expired",
                f"the envelope of the peer {name} had expired before the clock here went back, "
                "and is as old as others that are not remembered any more",
                name,
            )
        if body.expires > now + LIFETIME_MAX:
            raise EnvelopeRejected(
                "too-far-ahead",
                f"the envelope of the peer {name} expires in {body.expires - now:.0f} s, at most "
                f"{LIFETIME_MAX} s are accepted; a clock is wrong",
                name,
            )
        if body.kind not in kinds:
            raise EnvelopeRejected(
                "wrong-kind", f"the peer {name} sent {body.kind!r}, which has no place here", name
            )
        if body.kind == "answer" and (in_reply_to is None or body.in_reply_to != in_reply_to):
            raise EnvelopeRejected(
                "unexpected-reply", f"the peer {name} answered an offer that is not ours", name
            )
        self._remember(body, name, now)
        return body, name

    def _remember(self, body: Body, name: str, now: float) -> None:
        seen = self._seen.setdefault(body.sender, {})
        if seen.get(body.nonce, 0) > now:
            raise EnvelopeRejected(
                "replayed", f"this envelope of the peer {name} came before", name
            )
        if len(seen) >= NONCES_PER_PEER:
            self._prune(now)
            seen = self._seen.setdefault(body.sender, {})
            if len(seen) >= NONCES_PER_PEER:
                raise EnvelopeRejected(
                    "too-many",
                    f"the peer {name} sent {NONCES_PER_PEER} envelopes within {LIFETIME_MAX} s",
                    name,
                )
        seen[body.nonce] = body.expires
        if self._file is not None:
            live = self._live(now) if self._file.full else []
            self._file.add(body.sender, body.nonce, body.expires, live)

    def _live(self, now: float) -> list[tuple[bytes, bytes, int]]:
        self._prune(now)
        return [
            (sender, nonce, expires)
            for sender, seen in self._seen.items()
            for nonce, expires in seen.items()
        ]

    def _prune(self, now: float) -> None:
        """Forgets nonces that have expired: their envelopes are refused for that from now on."""
        expiries = (expires for seen in self._seen.values() for expires in seen.values())
        gone = max((expires for expires in expiries if expires <= now), default=0)
        self._forgotten = max(self._forgotten, gone)
        pruned = {
            sender: {nonce: expires for nonce, expires in seen.items() if expires > now}
            for sender, seen in self._seen.items()
        }
        self._seen = {sender: seen for sender, seen in pruned.items() if seen}

    @property
    def remembered(self) -> int:
        """The number of nonces that are remembered."""
        return sum(map(len, self._seen.values()))


def _decode(envelope: bytes) -> tuple[bytes, bytes, Body]:
    """Returns the packed body, the signature and the body. None of it is trusted yet."""
    try:
        outer = bounded.unpack_map(envelope, _ENVELOPE_BOUNDS)
        packed = bounded.binary(outer, "body")
        signature = bounded.binary(outer, "signature", SIGNATURE_SIZE)
    except bounded.Malformed as error:
        raise EnvelopeRejected("malformed", f"the envelope: {error}") from None
    try:
        return packed, signature, _body(bounded.unpack_map(packed, _BODY_BOUNDS))
    except bounded.Malformed as error:
        raise EnvelopeRejected("malformed", f"the body: {error}") from None


def _body(fields: Mapping[str, Any]) -> Body:
    """Returns the body in a map. Raises :class:`bounded.Malformed`."""
    kind = bounded.text(fields, "kind")
    if kind not in KINDS:
        raise bounded.unusable(fields, "kind")
    sdp = bounded.text(fields, "sdp", "")
    if (kind != "bye") != bool(sdp):
        raise bounded.Malformed(f"'sdp' is {'not empty' if sdp else 'empty'} in this kind: {kind}")
    in_reply_to = None
    if fields.get("in_reply_to") is not None:
        in_reply_to = bounded.binary(fields, "in_reply_to", NONCE_SIZE)
    if kind == "answer" and in_reply_to is None:
        raise bounded.Malformed("an answer does not name the offer that it answers")
    return Body(
        kind=kind,
        sender=bounded.binary(fields, "from", PUBLIC_KEY_SIZE),
        to=bounded.binary(fields, "to", PUBLIC_KEY_SIZE),
        session=bounded.binary(fields, "session", SESSION_SIZE),
        nonce=bounded.binary(fields, "nonce", NONCE_SIZE),
        in_reply_to=in_reply_to,
        expires=bounded.integer(fields, "expires", 0, _U64_MAX),
        sdp=sdp,
    )
