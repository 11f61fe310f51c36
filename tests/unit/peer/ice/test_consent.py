"""Checks of consent as bytes, against aioice's reading and writing of them."""

import statistics

import pytest
from aioice import stun

from socks_tunnel.peer.ice.consent import (
    ANSWER,
    CONSENT_INTERVAL,
    REMEMBERED_MAX,
    REQUEST,
    Answers,
    attributes_of,
    is_sealed,
    mapped_address,
    next_check,
    seal,
    transaction_of,
)

KEY = b"p" * 22
V4, V6 = ("192.0.2.9", 4321), ("2001:db8::9", 4321)


def check(transaction: bytes = b"t" * 12, *, priority: int = 1, key: bytes = KEY) -> bytes:
    """A check as aioice sends it."""
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST, transaction)
    message.attributes["USERNAME"] = "mine:yours"
    message.attributes["PRIORITY"] = priority
    message.attributes["ICE-CONTROLLING"] = 1 << 40
    message.add_message_integrity(key)
    return bytes(message)


def test_a_sealed_message_is_the_one_of_aioice() -> None:
    message = check(b"0123456789ab")
    assert transaction_of(message) == b"0123456789ab"
    assert seal(REQUEST, b"0123456789ab", attributes_of(message), KEY) == message
    assert is_sealed(message, KEY)


def test_each_bit_is_covered() -> None:
    message = check()
    assert not is_sealed(message, b"q" * 22)
    for bit in range(8 * len(message)):
        forged = bytearray(message)
        forged[bit // 8] ^= 1 << bit % 8
        assert not is_sealed(bytes(forged), KEY)
    for size in range(len(message)):
        assert not is_sealed(message[:size], KEY)
    assert not is_sealed(message + bytes(4), KEY)


@pytest.mark.parametrize("address", [V4, V6], ids=["IPv4", "IPv6"])
def test_what_was_accepted_is_answered_as_aioice_answers_it(address: tuple[str, int]) -> None:
    answers = Answers(KEY)
    assert answers.answer(check(), address) is None
    answers.learn(check(), address)
    for transaction in (b"a" * 12, b"b" * 12):
        answer = answers.answer(check(transaction), address)
        assert answer is not None
        read = stun.parse_message(answer)
        assert (read.message_method, read.message_class) == (
            stun.Method.BINDING,
            stun.Class.RESPONSE,
        )
        assert read.transaction_id == transaction
        assert read.attributes["XOR-MAPPED-ADDRESS"] == address
        assert read.check_message_integrity(KEY)
        expected = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, transaction)
        expected.attributes["XOR-MAPPED-ADDRESS"] = address
        expected.add_message_integrity(KEY)
        assert answer == bytes(expected)


def test_anything_else_is_left_to_ice() -> None:
    answers = Answers(KEY)
    answers.learn(check(), V4)
    assert answers.answer(check(), ("192.0.2.9", 4322)) is None
    assert answers.answer(check(), ("192.0.2.8", 4321)) is None
    assert answers.answer(check(priority=2), V4) is None
    assert answers.answer(check(key=b"q" * 22), V4) is None
    assert answers.answer(b"", V4) is None
    assert answers.answer(seal(ANSWER, b"t" * 12, attributes_of(check()), KEY), V4) is None
    assert answers.answer(check(), V4) is not None
    answers.forget()
    assert answers.answer(check(), V4) is None


def test_what_is_not_signed_or_too_long_is_not_remembered() -> None:
    answers = Answers(KEY)
    answers.learn(check(key=b"q" * 22), V4)
    assert answers.answer(check(key=b"q" * 22), V4) is None
    for size, known in ((REMEMBERED_MAX - 52, True), (REMEMBERED_MAX - 48, False)):
        request = seal(REQUEST, b"t" * 12, bytes(size), KEY)
        answers.learn(request, V4)
        assert (answers.answer(request, V4) is not None) is known
    empty = seal(REQUEST, b"t" * 12, b"", KEY)
    answers.learn(empty, V4)
    assert answers.answer(empty, V4) is None


def test_mapped_addresses_are_those_of_aioice() -> None:
    for address in (V4, V6):
        attribute = mapped_address(address, b"0123456789ab")
        assert stun.unpack_xor_address(attribute[4:], b"0123456789ab") == address
        assert int.from_bytes(attribute[2:4]) == len(attribute) - 4


def test_checks_are_spread() -> None:
    """RFC 7675 section 5.1: each interval is drawn from 0.8 to 1.2 of the basic one."""
    drawn = [next_check() for _ in range(400)]
    assert min(drawn) >= 0.8 * CONSENT_INTERVAL
    assert max(drawn) <= 1.2 * CONSENT_INTERVAL
    assert statistics.stdev(drawn) > 0.3
