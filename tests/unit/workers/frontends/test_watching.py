"""Watching a client: what it says too early is bounded, and that it leaves is noticed."""

from __future__ import annotations

import socket
from typing import Any, cast

from socks_tunnel_workers.frontends.watching import EARLY_MAX, PROBE_SECONDS, ClientWatch
from socks_tunnel_workers.services import Account
from unit.workers.frontends.fakes import Loop, Sock


class Watcher:
    """Notes what it is told."""

    def __init__(self, *, keep: bool = True) -> None:
        self.loop = Loop()
        self.memory = Account(1 << 20)
        self.sock = Sock(self.loop)
        self.told: list[object] = []
        self.watch = ClientWatch(
            cast("Any", self.loop),
            self.memory,
            cast("socket.socket", self.sock),
            self,
            early=b"first",
            keep=keep,
        )
        self.watch.start()

    def said(self, data: bytes) -> None:
        self.told.append(data)

    def ended_its_side(self) -> None:
        self.told.append("end")

    def left(self) -> None:
        self.told.append("left")
        self.watch.stop()


def test_early_data_is_kept_told_and_accounted() -> None:
    watcher = Watcher()
    watcher.sock.arrives(b" second")
    assert watcher.watch.early == b"first second"
    assert watcher.told == [b" second"]
    assert watcher.memory.used == 12
    watcher.watch.stop()
    assert watcher.memory.used == 0
    assert watcher.loop.readers == {}


def test_what_is_not_wanted_is_thrown_away() -> None:
    watcher = Watcher(keep=False)
    watcher.sock.arrives(bytes(EARLY_MAX * 2))
    assert watcher.told == []
    assert watcher.watch.early == b"first"
    assert watcher.sock.incoming == []


def test_no_more_is_read_than_there_is_room_for() -> None:
    watcher = Watcher()
    watcher.sock.arrives(bytes(EARLY_MAX))
    assert len(watcher.watch.early) == EARLY_MAX
    assert watcher.loop.readers == {}
    watcher.loop.advance(PROBE_SECONDS * 3)
    assert watcher.told[1:] == []


def test_a_reset_is_found_where_nothing_is_read() -> None:
    for before in (bytes(EARLY_MAX), b""):
        watcher = Watcher()
        watcher.sock.arrives(before)
        watcher.sock.error = 104
        watcher.loop.advance(PROBE_SECONDS)
        assert watcher.told[-1] == "left"
        watcher.loop.advance(10)
        assert watcher.told.count("left") == 1


def test_an_end_of_file_is_told_once() -> None:
    watcher = Watcher()
    watcher.sock.arrives(b"")
    watcher.loop.advance(PROBE_SECONDS * 3)
    assert watcher.told == ["end"]
    assert watcher.loop.readers == {}


def test_reading_goes_on_when_there_is_memory_again() -> None:
    watcher = Watcher()
    other = watcher.memory.charge(watcher.memory.limit + 1)
    watcher.sock.arrives(b"x")
    assert watcher.told == []
    other.end()
    watcher.loop.advance(PROBE_SECONDS)
    watcher.sock.turn()
    assert watcher.told == [b"x"]
