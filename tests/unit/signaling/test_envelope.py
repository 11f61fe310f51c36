"""Envelopes: what is opened, and each reason for which one is not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.signaling.envelope import (
    ENVELOPE_MAX,
    LIFETIME,
    LIFETIME_MAX,
    NONCES_PER_PEER,
    SDP_MAX,
    Body,
    EnvelopeRejected,
    Verifier,
    new_body,
    seal,
)
from socks_tunnel.signaling.identity import PrivateIdentity

NOW = 1_800_000_000.5
GATEWAY = PrivateIdentity(Ed25519PrivateKey.from_private_bytes(b"g" * 32))
ENDPOINT = PrivateIdentity(Ed25519PrivateKey.from_private_bytes(b"e" * 32))
STRANGER = PrivateIdentity(Ed25519PrivateKey.from_private_bytes(b"s" * 32))
SESSION = bytes(range(16))


def offer(**changes: Any) -> Body:
    body = new_body("offer", GATEWAY, ENDPOINT.public, session=SESSION, now=NOW, sdp="v=0\r\n")
    return replace(body, **changes)


def verifier() -> Verifier:
    return Verifier(ENDPOINT.public, {GATEWAY.public: "laptop"})


def rejection(envelope: bytes, now: float = NOW, **options: Any) -> EnvelopeRejected:
    with pytest.raises(EnvelopeRejected) as caught:
        verifier().open(envelope, now, **options)
    return caught.value


def signed(fields: Any, identity: PrivateIdentity = GATEWAY) -> bytes:
    packed: bytes = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    envelope: bytes = msgpack.packb({"body": packed, "signature": identity.sign(packed)})
    return envelope


def fields_of(body: Body) -> dict[str, Any]:
    outer = msgpack.unpackb(seal(GATEWAY, body))
    fields: dict[str, Any] = msgpack.unpackb(outer["body"])
    return fields


def test_what_was_sealed_is_opened() -> None:
    body = offer()
    opened, name = verifier().open(seal(GATEWAY, body), NOW)
    assert opened == body
    assert name == "laptop"
    assert body.expires == int(NOW) + LIFETIME


def test_the_layout_is_the_documented_one() -> None:
    body = offer()
    outer = msgpack.unpackb(seal(GATEWAY, body))
    assert outer.keys() == {"body", "signature"}
    assert outer["signature"] == GATEWAY.sign(outer["body"])
    assert msgpack.unpackb(outer["body"]) == {
        "kind": "offer",
        "from": GATEWAY.public,
        "to": ENDPOINT.public,
        "session": SESSION,
        "nonce": body.nonce,
        "in_reply_to": None,
        "expires": body.expires,
        "sdp": "v=0\r\n",
    }


def test_no_two_bodies_have_the_same_nonce() -> None:
    assert len({offer().nonce for _ in range(100)}) == 100


def test_unknown_keys_are_ignored() -> None:
    fields = fields_of(offer()) | {"later": [1, {"x": b"y"}]}
    assert verifier().open(signed(fields), NOW)[0].session == SESSION


def test_an_unknown_peer_is_rejected_by_its_key() -> None:
    body = new_body("offer", STRANGER, ENDPOINT.public, session=SESSION, now=NOW, sdp="v=0")
    error = rejection(seal(STRANGER, body))
    assert error.reason_code == "unknown-peer"
    assert STRANGER.public_text in str(error)
    assert error.peer_name is None


def test_a_body_signed_by_another_key_is_rejected() -> None:
    error = rejection(signed(fields_of(offer()), STRANGER))
    assert (error.reason_code, error.peer_name) == ("bad-signature", "laptop")


def test_every_changed_bit_of_the_body_is_noticed() -> None:
    outer = msgpack.unpackb(seal(GATEWAY, offer()))
    packed = outer["body"]
    for position in range(len(packed)):
        changed = bytearray(packed)
        changed[position] ^= 1
        envelope = msgpack.packb({"body": bytes(changed), "signature": outer["signature"]})
        assert rejection(envelope).reason_code in {"bad-signature", "malformed", "unknown-peer"}


def test_a_changed_fingerprint_is_a_bad_signature() -> None:
    outer = msgpack.unpackb(seal(GATEWAY, offer(sdp="v=0\na=fingerprint:sha-256 AA:BB")))
    packed = outer["body"].replace(b"AA:BB", b"AA:BC")
    envelope = msgpack.packb({"body": packed, "signature": outer["signature"]})
    assert rejection(envelope).reason_code == "bad-signature"


def test_an_envelope_for_another_is_rejected() -> None:
    error = rejection(seal(GATEWAY, offer(to=STRANGER.public)))
    assert (error.reason_code, error.peer_name) == ("wrong-addressee", "laptop")


@pytest.mark.parametrize(
    ("expires_in", "reason"),
    [
        (-3600, "expired"),
        (0, "expired"),
        (1, None),
        (LIFETIME_MAX, None),
        (LIFETIME_MAX + 1, "too-far-ahead"),
        (2**40, "too-far-ahead"),
    ],
)
def test_expiry_has_both_bounds(expires_in: int, reason: str | None) -> None:
    now = 1_800_000_000.0
    envelope = seal(GATEWAY, offer(expires=int(now) + expires_in))
    if reason is None:
        verifier().open(envelope, now)
    else:
        error = rejection(envelope, now)
        assert error.reason_code == reason
        assert "clock" in error.sentence


def test_the_same_envelope_is_opened_once() -> None:
    envelope = seal(GATEWAY, offer())
    receiver = verifier()
    receiver.open(envelope, NOW)
    for later in (NOW, NOW + LIFETIME - 1.5):
        with pytest.raises(EnvelopeRejected, match="came before") as caught:
            receiver.open(envelope, later)
        assert caught.value.reason_code == "replayed"
    with pytest.raises(EnvelopeRejected) as caught:
        receiver.open(envelope, NOW + LIFETIME)
    assert caught.value.reason_code == "expired"


def test_a_rejected_envelope_leaves_no_nonce_behind() -> None:
    receiver = verifier()
    for envelope in (signed(fields_of(offer()), STRANGER), seal(GATEWAY, offer(expires=0)), b"x"):
        with pytest.raises(EnvelopeRejected):
            receiver.open(envelope, NOW)
    with pytest.raises(EnvelopeRejected):
        receiver.open(seal(GATEWAY, offer()), NOW, kinds={"bye"})
    assert receiver.remembered == 0


def test_what_was_forgotten_stays_refused_when_the_clock_goes_back() -> None:
    receiver = verifier()
    old = seal(GATEWAY, offer())
    receiver.open(old, NOW)
    for number in range(NONCES_PER_PEER):  # so that nonces have to be forgotten
        receiver.open(
            seal(GATEWAY, offer(nonce=number.to_bytes(16), expires=int(NOW) + 200)), NOW + 100
        )
    with pytest.raises(EnvelopeRejected) as caught:
        receiver.open(old, NOW)
    assert caught.value.reason_code == "expired"
    assert "clock here went back" in caught.value.sentence
    fresh = seal(GATEWAY, offer(nonce=b"n" * 16, expires=int(NOW) + LIFETIME + 1))
    with pytest.raises(EnvelopeRejected) as caught:
        receiver.open(fresh, NOW)
    assert caught.value.reason_code == "too-many", "it is not older than what was forgotten"


def test_a_peer_can_fill_only_its_own_memory() -> None:
    other = PrivateIdentity(Ed25519PrivateKey.from_private_bytes(b"o" * 32))
    receiver = Verifier(ENDPOINT.public, {GATEWAY.public: "laptop", other.public: "other"})
    for number in range(NONCES_PER_PEER):
        receiver.open(seal(GATEWAY, offer(nonce=number.to_bytes(16))), NOW)
    with pytest.raises(EnvelopeRejected) as caught:
        receiver.open(seal(GATEWAY, offer()), NOW)
    assert caught.value.reason_code == "too-many"
    theirs = new_body("offer", other, ENDPOINT.public, session=SESSION, now=NOW, sdp="v=0")
    receiver.open(seal(other, theirs), NOW)
    assert receiver.remembered == NONCES_PER_PEER + 1

    later = NOW + LIFETIME + 1
    receiver.open(seal(GATEWAY, offer(expires=int(later) + 10)), later)
    assert receiver.remembered == 1


def test_kinds_that_have_no_place_are_rejected() -> None:
    error = rejection(seal(GATEWAY, offer()), kinds={"answer"})
    assert (error.reason_code, error.peer_name) == ("wrong-kind", "laptop")


def test_an_answer_must_be_to_our_offer() -> None:
    mine, other = bytes(16), bytes([1] * 16)
    answer = offer(kind="answer", in_reply_to=mine)
    assert verifier().open(seal(GATEWAY, answer), NOW, in_reply_to=mine)[0] == answer
    for waiting in (None, other):
        error = rejection(seal(GATEWAY, answer), in_reply_to=waiting)
        assert error.reason_code == "unexpected-reply"


def test_a_bye_has_no_sdp() -> None:
    bye = new_body("bye", GATEWAY, ENDPOINT.public, session=SESSION, now=NOW)
    assert verifier().open(seal(GATEWAY, bye), NOW)[0].kind == "bye"
    assert rejection(seal(GATEWAY, replace(bye, sdp="v=0"))).reason_code == "malformed"


def test_peers_are_replaced_and_their_nonces_kept() -> None:
    receiver = verifier()
    envelope = seal(GATEWAY, offer())
    receiver.open(envelope, NOW)
    receiver.update_peers({})
    with pytest.raises(EnvelopeRejected) as caught:
        receiver.open(seal(GATEWAY, offer()), NOW)
    assert caught.value.reason_code == "unknown-peer"
    receiver.update_peers({GATEWAY.public: "again"})
    assert receiver.open(seal(GATEWAY, offer()), NOW)[1] == "again"
    with pytest.raises(EnvelopeRejected) as caught:
        receiver.open(envelope, NOW)
    assert caught.value.reason_code == "replayed"


CHANGES: list[Mapping[str, Any]] = [
    {"kind": None},
    {"kind": 7},
    {"kind": "whisper"},
    {"kind": b"offer"},
    {"kind": "answer"},  # in_reply_to is nil
    {"from": None},
    {"from": b"short"},
    {"from": "x" * 32},
    {"to": b""},
    {"session": bytes(15)},
    {"session": None},
    {"nonce": bytes(17)},
    {"nonce": "n" * 16},
    {"in_reply_to": b"x"},
    {"in_reply_to": "x" * 16},
    {"expires": "soon"},
    {"expires": True},
    {"expires": 1.5e9},
    {"expires": None},
    {"sdp": b"v=0"},
    {"sdp": ""},
    {"sdp": None},
    {"sdp": "x" * (SDP_MAX + 1)},
    {"sdp": "ä" * (SDP_MAX // 2 + 1)},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_field_of_the_wrong_form_is_malformed(changes: Mapping[str, Any]) -> None:
    assert rejection(signed({**fields_of(offer()), **changes})).reason_code == "malformed"


@pytest.mark.parametrize("key", ["kind", "from", "to", "session", "nonce", "expires", "sdp"])
def test_a_missing_field_is_malformed(key: str) -> None:
    fields = fields_of(offer())
    del fields[key]
    assert rejection(signed(fields)).reason_code == "malformed"


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\xc1",
        b"\xff" * 100,
        msgpack.packb(None),
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb({"body": b"", "signature": bytes(64)}),
        msgpack.packb({"body": "text", "signature": bytes(64)}),
        msgpack.packb({"body": b"\x80", "signature": bytes(63)}),
        msgpack.packb({1: 2}),
        signed([]),
        signed(b"\x81"),
        signed(b"\x91" * 5000),
        seal(GATEWAY, offer()) + b"\0",
        bytes(ENVELOPE_MAX + 1),
    ],
)
def test_what_is_no_envelope_is_malformed(envelope: bytes) -> None:
    assert rejection(envelope).reason_code == "malformed"


def test_the_longest_sdp_fits_and_more_is_not_sealed() -> None:
    longest = offer(sdp="x" * SDP_MAX)
    assert verifier().open(seal(GATEWAY, longest), NOW)[0] == longest
    with pytest.raises(ValueError, match="at most"):
        seal(GATEWAY, offer(sdp="x" * ENVELOPE_MAX))


@given(st.binary(max_size=400))
def test_any_bytes_are_opened_or_rejected(data: bytes) -> None:
    with pytest.raises(EnvelopeRejected):
        verifier().open(data, NOW)


@given(
    st.dictionaries(
        st.sampled_from(sorted(fields_of(offer()))),
        st.one_of(st.none(), st.integers(0, 2**63), st.binary(max_size=40), st.text(max_size=9)),
    )
)
def test_any_signed_fields_are_opened_or_rejected(changes: dict[str, Any]) -> None:
    envelope = signed({**fields_of(offer()), **changes})
    try:
        body, _ = verifier().open(envelope, NOW)
    except EnvelopeRejected:
        return
    assert body.to == ENDPOINT.public
    assert NOW < body.expires <= NOW + LIFETIME_MAX
