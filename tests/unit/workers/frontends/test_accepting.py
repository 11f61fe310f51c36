"""Accepting: bursts are bounded, a want of descriptors pauses, one bad client costs nobody else."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from socks_tunnel.protocol.lone import LONE_SECONDS
from socks_tunnel_workers.frontends import accepting
from socks_tunnel_workers.frontends.accepting import ACCEPTS_PER_TURN, PAUSE_SECONDS, Listener
from unit.workers.frontends.fakes import Gateway, Sock


class Accepted(Sock):
    """A socket that was accepted."""

    def setblocking(self, flag: bool) -> None:
        assert not flag
        if self.error:
            raise OSError(self.error, "reset")


class Listening:
    """A listening socket with clients, or errors, in its queue."""

    family = socket.AF_INET

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.queue: list[Accepted | OSError] = []
        self.served: list[Accepted] = []
        self.fails: Exception | None = None
        self.now = 1000.0
        self.asked = 0
        """How often the queue was asked for a client."""
        self.options: list[tuple[int, int]] = []
        self.listener = Listener(gateway.clients, cast("socket.socket", self), self.serve)
        self.listener.start()

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert value
        self.options.append((level, option))

    def accept(self) -> tuple[Accepted, tuple[str, int]]:
        self.asked += 1
        if not self.queue:
            raise BlockingIOError
        first = self.queue[0]
        if isinstance(first, OSError) and first.errno == errno.EMFILE:
            raise first  # it stays, as long as no descriptor is free
        del self.queue[0]
        if isinstance(first, OSError):
            raise first
        return first, ("127.0.0.1", 5)

    def serve(self, sock: Any, address: Any) -> None:
        assert address == ("127.0.0.1", 5)
        if self.fails is not None:
            raise self.fails
        self.served.append(sock)

    def comes(self, count: int = 1) -> list[Accepted]:
        clients = [Accepted(self.gateway.loop) for _ in range(count)]
        self.queue += clients
        return clients

    @property
    def watched(self) -> bool:
        return self in self.gateway.loop.readers

    def turn(self) -> None:
        self.gateway.loop.readers[self]()

    def turns(self) -> None:
        """The event loop calls as long as somebody waits."""
        while self.queue:
            self.turn()


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Listening:
    found = Listening(Gateway())
    monkeypatch.setattr(accepting, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_whoever_comes_alone_costs_no_call_that_fails(listening: Listening) -> None:
    for _ in range(3):
        clients = listening.comes()
        listening.turn()
        assert listening.served[-1:] == clients
        listening.now += 2 * LONE_SECONDS
    assert listening.asked == 3


def test_a_burst_is_taken_in_turns(listening: Listening) -> None:
    clients = listening.comes(ACCEPTS_PER_TURN + 3)
    listening.turn()
    assert listening.served == clients[:1]  # nobody knows yet that there are more
    listening.turn()
    assert listening.served == clients[: 1 + ACCEPTS_PER_TURN]
    listening.turn()
    assert listening.served == clients


def test_a_client_that_another_worker_took_is_not_missed(listening: Listening) -> None:
    listening.turn()
    assert listening.served == []
    assert listening.watched


def test_clients_get_their_options_from_the_listening_socket(listening: Listening) -> None:
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY) in listening.options
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE) in listening.options


def test_no_descriptor_is_a_pause_and_not_a_loop(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    listening.queue.append(OSError(errno.EMFILE, "too many open files"))
    (client,) = listening.comes()
    listening.turn()
    assert not listening.watched
    assert "a client cannot be served: [Errno 24] too many open files" in caplog.text
    del listening.queue[0]
    listening.gateway.loop.advance(PAUSE_SECONDS)
    listening.turn()
    assert listening.served == [client]


def test_a_drain_ends_a_pause_for_good(listening: Listening) -> None:
    listening.queue.append(OSError(errno.EMFILE, "too many open files"))
    listening.turn()
    listening.listener.stop()
    listening.gateway.loop.advance(10)
    assert not listening.watched


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN])
def test_a_connection_that_is_gone_is_passed_over(listening: Listening, code: int) -> None:
    listening.queue.append(OSError(code, "gone"))
    (client,) = listening.comes()
    listening.turns()
    assert listening.served == [client]


def test_a_worker_that_is_full_turns_clients_away(listening: Listening) -> None:
    listening.gateway.full = True
    (client,) = listening.comes()
    listening.turn()
    assert client.closed
    assert listening.gateway.counted("socks_rejected_total", "too-many") == 1


@pytest.mark.parametrize("failure", [ConnectionResetError(), RuntimeError("a bug")])
def test_one_client_that_cannot_be_served_costs_nobody_else(
    listening: Listening, failure: Exception
) -> None:
    clients = listening.comes(2)
    listening.fails = failure
    listening.turns()
    assert all(client.closed for client in clients)
    assert listening.watched
    bugs = 2 if isinstance(failure, RuntimeError) else 0
    assert listening.gateway.counted("protocol_errors_total", "bug") == bugs


def test_a_client_that_was_reset_meanwhile_is_closed(listening: Listening) -> None:
    (client,) = listening.comes()
    client.error = errno.EINVAL
    listening.turn()
    assert client.closed
    assert listening.served == []
