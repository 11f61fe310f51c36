"""Tokens on their way: only the endpoint reads them, and only in the request of who has sealed them."""

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socks_tunnel.signaling import joining
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import JWT_MAX, TEXT_MAX, JoinRejected, JwtRequest
from socks_tunnel.signaling.joining_jwt import JoinAddress, new_jwt_request, unseal

NOW = 1_700_000_000.0
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
ENDPOINT = PrivateIdentity.generate()
HOST = PrivateIdentity.generate()
ADDRESS = JoinAddress.of(ENDPOINT)


def opened(sent: bytes) -> JwtRequest:
    request = joining.open_request(sent, ENDPOINT.public, NOW)
    assert isinstance(request, JwtRequest)
    return request


def test_an_address_there_and_back_and_the_same_after_a_restart() -> None:
    again = PrivateIdentity.from_pem(ENDPOINT.to_pem())
    assert JoinAddress.of(again) == ADDRESS
    assert str(ADDRESS).startswith("sj1_")
    assert JoinAddress.parse(f" {ADDRESS}\n") == ADDRESS
    assert JoinAddress.of(HOST).box != ADDRESS.box


@pytest.mark.parametrize("text", ["", "st1_abc", "sj1_", "sj1_ab cd", "sj1_é", "sj1_" + "A" * 74])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address to join"):
        JoinAddress.parse(text)


def test_a_token_arrives_and_the_request_does_not_show_it() -> None:
    sent, asked = new_jwt_request(HOST, ADDRESS, "laptop-17", TOKEN, NOW)
    assert TOKEN.encode() not in sent
    assert b"eyJ" not in sent
    request = opened(sent)
    assert (request.sender, request.name, request.nonce) == (HOST.public, "laptop-17", asked.nonce)
    assert unseal(request, ENDPOINT) == TOKEN


def test_the_longest_token_arrives() -> None:
    sent, _ = new_jwt_request(HOST, ADDRESS, "n" * TEXT_MAX, "x" * JWT_MAX, NOW)
    assert unseal(opened(sent), ENDPOINT) == "x" * JWT_MAX
    with pytest.raises(ValueError, match="JWT has 1 to"):
        new_jwt_request(HOST, ADDRESS, "n", "x" * (JWT_MAX + 1), NOW)
    with pytest.raises(ValueError, match="at most 200 bytes"):
        new_jwt_request(HOST, ADDRESS, "n" * (TEXT_MAX + 1), TOKEN, NOW)


@pytest.mark.parametrize("token", ["", "é"])
def test_what_is_no_token_is_not_sent(token: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        new_jwt_request(HOST, ADDRESS, "laptop", token, NOW)


def test_a_thief_on_the_way_cannot_use_the_sealed_token_with_another_key() -> None:
    """The service passes the request on, and signs what is in it by a key of its own."""
    thief = PrivateIdentity.generate()
    sent, _ = new_jwt_request(HOST, ADDRESS, "laptop", TOKEN, NOW)
    body = msgpack.unpackb(msgpack.unpackb(sent)["body"])
    packed = msgpack.packb({**body, "from": thief.public})
    stolen = msgpack.packb({"body": packed, "signature": thief.sign(packed)})
    with pytest.raises(JoinRejected, match="another endpoint or another key"):
        unseal(opened(stolen), ENDPOINT)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": b"another nonce 16"},
        {"expires": int(NOW) + 61},
        {"name": "desktop"},
        {"to": HOST.public},
        {"sealed": b""},
        {"sealed": bytes(49)},
    ],
)
def test_the_sealed_token_belongs_to_all_of_its_request(change: dict[str, Any]) -> None:
    sent, _ = new_jwt_request(HOST, ADDRESS, "laptop", TOKEN, NOW)
    with pytest.raises(JoinRejected, match="sealed for another"):
        unseal(replace(opened(sent), **change), ENDPOINT)


def test_another_endpoint_cannot_read_it() -> None:
    sent, _ = new_jwt_request(HOST, ADDRESS, "laptop", TOKEN, NOW)
    with pytest.raises(JoinRejected):
        unseal(opened(sent), PrivateIdentity.generate())


@settings(max_examples=50)
@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_changed_bit_is_noticed(at: int, bit: int) -> None:
    sent, _ = new_jwt_request(HOST, ADDRESS, "laptop", TOKEN, NOW)
    sealed = bytearray(opened(sent).sealed)
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(JoinRejected):
        unseal(replace(opened(sent), sealed=bytes(sealed)), ENDPOINT)


def test_a_longer_request_is_for_tokens_only_and_has_an_end() -> None:
    assert joining.SEALED_MAX == JWT_MAX + 48
    with pytest.raises(JoinRejected, match="not understood"):
        joining.open_request(bytes(joining.SEALED_MAX + joining.REQUEST_MAX + 1), bytes(32), NOW)
