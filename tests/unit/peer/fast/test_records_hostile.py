"""What a hostile peer, who has the keys, can do to the record layer: two ends in memory."""

import pytest
from OpenSSL._util import ffi, lib

from socks_tunnel.peer.fast.guard import _handshake
from socks_tunnel.peer.fast.records import RecordError, Records
from support.dtls_forger import (
    ALERT,
    APPLICATION_DATA,
    CLIENT_HELLO_FRAGMENT,
    FATAL_ALERT,
    HANDSHAKE,
    HELLO_REQUEST,
    Forger,
)

ROLES = pytest.mark.parametrize("role", ["client", "server"])


def victim(role: str) -> tuple[Records, Forger]:
    """The record layer in one role, and its hostile peer."""
    client, server = _handshake()
    if role == "client":
        return Records(client), Forger(server, server=True)
    return Records(server), Forger(client, server=False)


def lone(records: Records, forger: Forger, contents: bytes) -> list[bytes]:
    """What an honest record of its own datagram brings."""
    record = forger.record(APPLICATION_DATA, contents)
    got: list[bytes] = []
    records.read_joined(record, len(record), len(record), got)
    return list(got)


@ROLES
def test_hundreds_of_records_in_one_datagram_leave_nothing_in_openssl(role: str) -> None:
    """What stayed there would be delivered late, and pile up without bound."""
    records, forger = victim(role)
    for _ in range(3):
        datagram = b"".join(forger.record(APPLICATION_DATA, b"x") for _ in range(400))
        got: list[bytes] = []
        assert records.read_datagram(datagram, got) == len(got) == 400
    assert lone(records, forger, b"honest") == [b"honest"]


@ROLES
def test_empty_records_are_passed_over(role: str) -> None:
    records, forger = victim(role)
    empty = [forger.record(APPLICATION_DATA, b"") for _ in range(10)]
    got: list[bytes] = []
    joined = b"".join(empty)
    assert records.read_joined(joined, len(joined), len(empty[0]), got) == 0
    mixed = b"".join(forger.record(APPLICATION_DATA, text) for text in (b"", b"one", b"", b"two"))
    records.read_datagram(mixed, got)
    assert list(got) == [b"one", b"two"]
    assert lone(records, forger, b"honest") == [b"honest"]


@ROLES
def test_a_fatal_alert_ends_the_association(role: str) -> None:
    records, forger = victim(role)
    assert records.read_datagram(forger.record(ALERT, FATAL_ALERT), []) == 0
    assert records.closed
    assert isinstance(records.failure, RecordError)


@ROLES
@pytest.mark.parametrize(("kind", "contents"), [(ALERT, FATAL_ALERT), (24, b"a heartbeat")])
def test_after_the_end_nothing_piles_up_in_openssl(role: str, kind: int, contents: bytes) -> None:
    """Whatever anybody sends to the port would stay in the BIO, since OpenSSL reads no more."""
    records, forger = victim(role)
    records.read_datagram(forger.record(kind, contents), [])
    assert records.closed
    for _ in range(10):
        assert lone(records, forger, b"late") == []
        assert records.read_datagram(forger.record(HANDSHAKE, bytes(500)), []) == 0
    rest = ffi.new("char[]", 100)
    assert lib.BIO_read(records._in, rest, 100) <= 0


def test_a_server_cannot_make_a_client_repeat_the_handshake() -> None:
    """RFC 8827 section 6.5: an alert is the answer, and the association goes on."""
    records, forger = victim("client")
    records.read_datagram(forger.record(HANDSHAKE, HELLO_REQUEST), [])
    answer = bytes(records.written())
    assert answer[0] == ALERT
    assert not records.closed
    assert len(records.write([b"still"])) > 5
    assert lone(records, forger, b"honest") == [b"honest"]


@ROLES
def test_a_handshake_that_is_begun_in_the_midst_is_noticed_by_the_next_write(role: str) -> None:
    records, forger = victim(role)
    records.read_datagram(forger.record(HANDSHAKE, CLIENT_HELLO_FRAGMENT), [])
    with pytest.raises(RecordError):
        records.write([b"x"])
