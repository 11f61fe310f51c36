"""The path of records without a peer: what it asks of its owner before anything is sent.

How it hands packets up: tests/integration/test_fast_recordpath.py; between two peers:
tests/integration/test_fast_dtls.py.
"""

from typing import Any

import pytest

from socks_tunnel.peer.fast import recordpath
from socks_tunnel.peer.fast.recordpath import RecordPath
from socks_tunnel.peer.fast.records import Records


class Owner:
    """Writes down what it is asked for; there is no pair and no handshake."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: list[Exception] = []

    def follow_pair(self) -> None:
        self.calls.append("follow")
        raise ConnectionError("no pair")

    def open_records(self) -> Records:
        self.calls.append("open")
        raise ConnectionError("no handshake")

    def closed_by_peer(self) -> None:
        self.calls.append("closed")

    def failed(self, error: Exception) -> None:
        self.failures.append(error)


async def test_nothing_is_sent_before_the_handshake_or_without_a_pair() -> None:
    owner = Owner()
    path = RecordPath(owner, {})
    assert not path.blocked
    with pytest.raises(ConnectionError, match="not connected"):
        path.send_packets([b"x"])
    assert owner.calls == []
    path.connected = True
    with pytest.raises(ConnectionError, match="no pair"):
        path.send_packets([b"x"])
    with pytest.raises(ConnectionError, match="no pair"):
        path.send_probe(b"x")
    assert owner.calls == ["follow", "follow"]
    assert path.counters.sent_records == 0


async def test_the_pair_that_was_adopted_is_not_asked_for_again() -> None:
    owner = Owner()
    chosen: Any = object()
    path = RecordPath(owner, {1: chosen})
    path.connected = True
    path.pair = chosen
    with pytest.raises(ConnectionError, match="no handshake"):
        path.send_packets([b"x"])
    assert owner.calls == ["open"]


async def test_after_the_end_datagrams_count_for_nothing() -> None:
    """Anybody can send what looks like a record."""
    owner = Owner()
    path = RecordPath(owner, {})
    record = b"\x17\xfe\xfd\x00\x01" + bytes(6) + b"\x00\x20" + bytes(32)
    for number in (1, 3):
        path.datagrams_received(
            bytearray(record * number), len(record) * number, len(record), (), None
        )
    path.read_datagram(record)
    assert owner.calls == []
    assert path.counters.received_bytes == 0


async def test_what_comes_another_way_is_bounded_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recordpath, "RELAYED_PACKETS_MAX", 2)
    path = RecordPath(Owner(), {})
    path.pending += [b"a", b"b"]
    path.relayed(b"\x17" + bytes(50))
    assert path.counters.dropped_packets == 1
    assert path.pending == [b"a", b"b"]
