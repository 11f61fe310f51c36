"""Invitations, requests to join, answers and enrolments."""

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.signaling import joining
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import (
    Joined,
    JoinRejected,
    JoinRequest,
    NotJoined,
    RenewRequest,
    Token,
)

NOW = 1_700_000_000.0
SECRET = b"sixteen bytes of"


@pytest.fixture(scope="module")
def endpoint() -> PrivateIdentity:
    return PrivateIdentity.generate()


@pytest.fixture(scope="module")
def host() -> PrivateIdentity:
    return PrivateIdentity.generate()


@pytest.fixture
def token(endpoint: PrivateIdentity) -> Token:
    return Token(endpoint.public, b"invited!", SECRET)


def test_a_token_there_and_back(token: Token) -> None:
    text = str(token)
    assert text.startswith("st1_")
    assert Token.parse(f" {text}\n") == token
    assert "sixteen" not in repr(token)


@pytest.mark.parametrize("text", ["", "st2_abc", "st1_", "st1_ab cd", "st1_é", "st1_" + "A" * 74])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Token.parse(text)


def test_a_request_and_its_answer(
    endpoint: PrivateIdentity, host: PrivateIdentity, token: Token
) -> None:
    sent, asked = joining.new_request(host, token, "laptop-17", NOW)
    assert SECRET not in sent
    request = joining.open_request(sent, endpoint.public, NOW)
    assert isinstance(request, JoinRequest)
    assert (request.sender, request.name, request.invitation) == (
        host.public,
        "laptop-17",
        b"invited!",
    )
    assert request.proves(SECRET)
    assert not request.proves(b"another secret..")
    decided = Joined("laptop-17", "engineering", 0, b"enrolment")
    answer = joining.answer_to(endpoint, request, decided)
    assert joining.open_answer(answer, asked) == decided
    refused = joining.answer_to(endpoint, request, NotJoined("it has ended"))
    assert joining.open_answer(refused, asked) == NotJoined("it has ended")


def test_a_thief_cannot_join_with_another_key(
    endpoint: PrivateIdentity, host: PrivateIdentity, token: Token
) -> None:
    """Whoever carries the request sees the proof, which holds for the key that made it."""
    thief = PrivateIdentity.generate()
    sent, _ = joining.new_request(host, token, "a", NOW)
    body = msgpack.unpackb(msgpack.unpackb(sent)["body"])
    packed = msgpack.packb({**body, "from": thief.public})
    stolen = msgpack.packb({"body": packed, "signature": thief.sign(packed)})
    opened = joining.open_request(stolen, endpoint.public, NOW)
    assert isinstance(opened, JoinRequest)
    assert not opened.proves(SECRET)
    renamed = msgpack.packb({**body, "name": "b"})
    with pytest.raises(JoinRejected, match="signature"):
        joining.open_request(
            msgpack.packb({"body": renamed, "signature": thief.sign(renamed)}),
            endpoint.public,
            NOW,
        )


def changed(sent: bytes, by: PrivateIdentity, **fields: Any) -> bytes:
    body = msgpack.unpackb(msgpack.unpackb(sent)["body"])
    packed = msgpack.packb({**body, **fields})
    sealed: bytes = msgpack.packb({"body": packed, "signature": by.sign(packed)})
    return sealed


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"to": bytes(32)}, "another key"),
        ({"expires": int(NOW)}, "expired 0 s ago"),
        ({"expires": int(NOW) + joining.LIFETIME_MAX + 1}, "a clock is wrong"),
        ({"kind": "joined"}, "kind"),
        ({"name": "n" * (joining.TEXT_MAX + 1)}, "not understood"),
        ({"proof": b""}, "proof"),
        ({"nonce": [[]]}, "not understood"),
    ],
)
def test_requests_that_are_rejected(
    endpoint: PrivateIdentity,
    host: PrivateIdentity,
    token: Token,
    fields: dict[str, Any],
    sentence: str,
) -> None:
    sent, _ = joining.new_request(host, token, "a", NOW)
    joining.open_request(changed(sent, host), endpoint.public, NOW)
    with pytest.raises(JoinRejected, match=sentence):
        joining.open_request(changed(sent, host, **fields), endpoint.public, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_rejected_or_understood(data: bytes) -> None:
    calls: list[Callable[[], object]] = [
        lambda: joining.open_request(data, bytes(32), NOW),
        lambda: joining.open_enrolment(data, bytes(32), NOW),
    ]
    for call in calls:
        with pytest.raises(JoinRejected):
            call()


def test_answers_that_are_rejected(
    endpoint: PrivateIdentity, host: PrivateIdentity, token: Token
) -> None:
    sent, asked = joining.new_request(host, token, "a", NOW)
    request = joining.open_request(sent, endpoint.public, NOW)
    answer = joining.answer_to(endpoint, request, NotJoined("no"))
    _, another = joining.new_request(host, token, "a", NOW)
    cases = [
        (answer, another, "another request"),
        (joining.answer_to(host, request, NotJoined("no")), asked, "not from the endpoint"),
        (changed(answer, host), asked, "signature is wrong"),
        (changed(answer, endpoint, kind="join"), asked, "kind"),
        (changed(answer, endpoint, to=bytes(32)), asked, "another request"),
        (b"", asked, "not understood"),
    ]
    for data, to, sentence in cases:
        with pytest.raises(JoinRejected, match=sentence):
            joining.open_answer(data, to)


def test_a_name_that_is_too_long_is_our_fault(host: PrivateIdentity, token: Token) -> None:
    with pytest.raises(ValueError, match="200 bytes"):
        joining.new_request(host, token, "é" * 101, NOW)


def test_an_enrolment_is_for_one_key_and_ends(
    endpoint: PrivateIdentity, host: PrivateIdentity
) -> None:
    until = int(NOW) + 10
    enrolment = joining.enrolment_for(endpoint, host.public, until)
    assert len(enrolment) <= joining.ENROLMENT_MAX
    assert joining.open_enrolment(enrolment, host.public, NOW).by == endpoint.public
    with pytest.raises(JoinRejected, match="has ended"):
        joining.open_enrolment(enrolment, host.public, until)
    with pytest.raises(JoinRejected, match="not for this key"):
        joining.open_enrolment(enrolment, bytes(32), NOW)
    for_ever = joining.enrolment_for(endpoint, host.public, 0)
    assert joining.open_enrolment(for_ever, host.public, 2 * NOW).by == endpoint.public


def test_another_key_is_signed_by_the_old_one(
    endpoint: PrivateIdentity, host: PrivateIdentity
) -> None:
    new, thief = PrivateIdentity.generate(), PrivateIdentity.generate()
    sent, asked = joining.new_renewal(host, new, endpoint.public, NOW)
    request = joining.open_request(sent, endpoint.public, NOW)
    assert isinstance(request, RenewRequest)
    assert (request.sender, request.old) == (new.public, host.public)
    decided = Joined("laptop", "", 0, b"")
    assert joining.open_answer(joining.answer_to(endpoint, request, decided), asked) == decided
    for stolen in (
        changed(sent, thief, **{"from": thief.public}),
        changed(sent, new, old=thief.public),
        changed(sent, new, expires=int(NOW) + 100),
    ):
        with pytest.raises(JoinRejected, match="the old key has not signed"):
            joining.open_request(stolen, endpoint.public, NOW)
