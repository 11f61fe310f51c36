"""One attempt to connect: each outcome is told once, and nothing stays open or watched.

Real connections: tests/integration/test_targets.py.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

import pytest

from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import Liveness
from socks_tunnel_workers.targets import attempt, dialer
from socks_tunnel_workers.targets.attempt import Attempt
from socks_tunnel_workers.targets.dialer import DialError
from unit.workers.frontends.fakes import Loop, Sock


class Connecting(Sock):
    """A socket that connects as the test says."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.code = errno.EINPROGRESS
        self.where: tuple[object, ...] = ()

    def connect_ex(self, where: tuple[object, ...]) -> int:
        self.where = where
        return self.code


class Owner:
    """Notes what it is told."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.sock: socket.socket | None = None
        self.told: list[str] = []
        self.watched_for_writing = False
        self.error: DialError | None = None

    def take(self, sock: socket.socket) -> None:
        self.sock = sock
        self.told.append("take")
        self.watched_for_writing = sock in self.loop.writers
        self.loop.add_reader(sock, lambda: None)

    def connected(self) -> None:
        assert self.sock not in self.loop.writers
        self.told.append("connected")

    def not_connected(self, error: DialError) -> None:
        self.told.append("not connected")
        self.error = error


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = Loop()
        self.sock = Connecting(self.loop)
        self.families: list[int] = []
        self.failure: OSError | None = None
        self.owner = Owner(self.loop)
        self.guarded = 0
        monkeypatch.setattr(attempt, "PlainSocket", self._socket)
        # No routing table: what it would say is the test's.
        self.source: object = None
        monkeypatch.setattr(dialer, "source_address", lambda _address: self.source)

    def _socket(self, family: int, _kind: int) -> Connecting:
        self.families.append(family)
        if self.failure is not None:
            raise self.failure
        return self.sock

    def _guard(self, handler: Callable[[], None]) -> None:
        self.guarded += 1
        handler()

    def start(self, address: str = "192.0.2.1") -> Attempt:
        made = Attempt(
            cast("Any", self.loop), self.owner, self._guard, ip_address(address), 80, seconds=5
        )
        made.start(Liveness())
        return made

    def turn(self) -> None:
        self.loop.writers[self.sock]()

    @property
    def silent(self) -> bool:
        """Whether nothing is left that could call the attempt."""
        timers = [timer for timer in self.loop.timers if not timer.cancelled]
        return not timers and not self.loop.writers


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


@pytest.mark.parametrize(
    ("address", "family"), [("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6)]
)
def test_a_connection_is_handed_over_while_the_loop_still_watches_it(
    scene: Scene, address: str, family: int
) -> None:
    made = scene.start(address)
    assert scene.families == [family]
    assert scene.sock.where == (address, 80)
    assert scene.owner.told == []
    scene.turn()
    assert scene.owner.told == ["take", "connected"]
    assert scene.owner.watched_for_writing
    assert scene.guarded == 1
    assert scene.silent
    made.cancel()
    assert not scene.sock.closed  # it is the owner's


def test_a_connection_may_be_there_at_once(scene: Scene) -> None:
    scene.sock.code = 0
    scene.start()
    assert scene.owner.told == ["take", "connected"]
    assert scene.silent


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("code", "reply"),
    [
        (errno.ECONNREFUSED, Reply.CONNECTION_REFUSED),
        (errno.ENETUNREACH, Reply.NETWORK_UNREACHABLE),
        (errno.ETIMEDOUT, Reply.TTL_EXPIRED),
        (errno.EADDRNOTAVAIL, Reply.NETWORK_UNREACHABLE),
    ],
)
def test_an_error_is_told_once(scene: Scene, code: int, reply: Reply, *, late: bool) -> None:
    if late:
        scene.sock.error = code
    else:
        scene.sock.code = code
    scene.start()
    if late:
        scene.turn()
    assert scene.owner.told == ["not connected"]
    assert scene.owner.error is not None
    assert scene.owner.error.reply is reply
    assert not scene.owner.error.shortage
    assert "(192.0.2.1 port 80)" in str(scene.owner.error)
    assert scene.sock.closed
    assert scene.silent


def test_no_port_left_is_a_want_of_this_host(scene: Scene) -> None:
    scene.source = "192.0.2.9"
    scene.sock.code = errno.EADDRNOTAVAIL
    scene.start()
    assert scene.owner.error is not None
    assert scene.owner.error.shortage


def test_so_is_a_descriptor(scene: Scene) -> None:
    scene.failure = OSError(errno.EMFILE, "too many open files")
    scene.start()
    assert scene.owner.told == ["not connected"]
    assert scene.owner.error is not None
    assert scene.owner.error.shortage


def test_a_silent_target_has_so_many_seconds(scene: Scene) -> None:
    scene.start()
    scene.loop.advance(4.9)
    assert scene.owner.told == []
    scene.loop.advance(0.2)
    assert scene.owner.told == ["not connected"]
    assert scene.owner.error is not None
    assert scene.owner.error.reply is Reply.TTL_EXPIRED
    assert str(scene.owner.error) == "no answer within 5 s"
    assert scene.sock.closed
    assert scene.silent


def test_who_gives_up_hears_no_more(scene: Scene) -> None:
    made = scene.start()
    made.cancel()
    made.cancel()
    assert scene.owner.told == []
    assert scene.sock.closed
    assert scene.silent
