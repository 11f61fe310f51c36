"""A bug of ours that a client meets before it is a flow costs this client alone, and one line."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.messages import UdpAssociateClosed, UdpAssociateOpened
from socks_tunnel_workers.frontends.forward import UdpForward
from socks_tunnel_workers.frontends.http import HttpSession
from socks_tunnel_workers.frontends.logins import Verdict
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.frontends.origin import Origin
from socks_tunnel_workers.frontends.socks import HANDSHAKE_SECONDS, SocksSession
from socks_tunnel_workers.frontends.watching import PROBE_SECONDS, ClientWatch
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.frontends.test_http import CONNECT as HTTP_CONNECT
from unit.workers.frontends.test_http import GET, Pairs
from unit.workers.frontends.test_socks import CONNECT, GREETING, LOGIN, Logins, client, with_users


def fails(*_arguments: Any) -> Any:
    raise ZeroDivisionError("a bug")


def reads(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(GREETING)


def times_out(gateway: Gateway, sock: Sock) -> None:
    gateway.loop.advance(HANDSHAKE_SECONDS)


def asks(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(GREETING + CONNECT)


def asks_and_speaks(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(GREETING + CONNECT)
    sock.arrives(b"early")


def asks_and_waits(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(GREETING + CONNECT)
    gateway.loop.advance(30)


def asks_and_ends_its_side(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(GREETING + CONNECT)
    sock.arrives(b"early")
    sock.arrives(b"")  # the half-close of a client that still wants its answer
    gateway.loop.advance(PROBE_SECONDS)


def speaks_http(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(HTTP_CONNECT[:9])
    sock.arrives(HTTP_CONNECT[9:])


def speaks_http_slowly(gateway: Gateway, sock: Sock) -> None:
    sock.arrives(HTTP_CONNECT[:9])
    gateway.loop.advance(60)


Story = Callable[[Gateway, Sock], None]


@pytest.mark.parametrize(
    ("owner", "method", "story"),
    [
        (SocksSession, "_choose", reads),
        (SocksSession, "_handshake_timeout", times_out),
        (Opening, "start", asks),
        (Opening, "said", asks_and_speaks),
        (Opening, "_timed_out", asks_and_waits),
        (ClientWatch, "_probe", asks_and_ends_its_side),
        (HttpSession, "_advance", speaks_http),
        (HttpSession, "_timed_out", speaks_http_slowly),
    ],
)
def test_a_bug_costs_its_client_alone(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type[Any],
    method: str,
    story: Story,
) -> None:
    gateway = Gateway()
    story(gateway, client(gateway))  # it goes well by itself
    assert not caplog.records
    gateway = Gateway()
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fails)
        for _ in range(2):
            sock = client(gateway)
            story(gateway, sock)
            assert sock.closed
            assert sock not in gateway.loop.readers
    assert gateway.counted("protocol_errors_total", "bug") == 2
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert not gateway.clients.opening
    sock = client(gateway, GREETING)
    assert sock.sent == b"\x05\x00"


def test_a_verdict_that_meets_a_bug_does_not_hold_up_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = with_users()
    logins = Logins(gateway)
    first, second = client(gateway, LOGIN), client(gateway, LOGIN)
    with monkeypatch.context() as patch:
        patch.setattr(SocksSession, "_advance", fails)
        logins.offered[0].tell(Verdict.RIGHT)
    assert first.closed
    logins.offered[-1].tell(Verdict.RIGHT)
    assert second.sent == b"\x05\x02\x01\x00"
    assert gateway.counted("protocol_errors_total", "bug") == 1


def test_clients_that_wait_are_opened_although_one_meets_a_bug(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = Gateway()
    first, second = client(gateway, GREETING, CONNECT), client(gateway, GREETING, CONNECT)
    real = Opening.try_again
    opened: list[Opening] = []

    def only_the_second(opening: Opening) -> None:
        opened.append(opening)
        if len(opened) == 1:
            fails()
        real(opening)

    monkeypatch.setattr(Opening, "try_again", only_the_second)
    session = gateway.session()
    assert first.closed
    assert not second.closed
    assert len(gateway.sent(session)) == 1


@pytest.mark.parametrize("method", ["_readable", "_writable"])
def test_a_bug_between_client_and_origin(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    gateway = Gateway()
    pairs = Pairs(gateway, monkeypatch)
    gateway.session()
    monkeypatch.setattr(Origin, method, fails)
    sock = client(gateway, GET)
    ours = pairs.halves[0]
    (gateway.loop.readers if method == "_readable" else gateway.loop.writers).setdefault(
        ours, lambda: None
    )
    origin = next(iter(gateway.clients.opening))
    assert isinstance(origin, HttpSession)
    if method == "_readable":
        origin._origin.read(wanted=True)  # type: ignore[union-attr]  # it has one
        gateway.loop.readers[ours]()
    else:
        ours.limit = 0
        origin._origin.write(b"x")  # type: ignore[union-attr]  # as above
        gateway.loop.writers[ours]()
    assert sock.closed
    assert ours.closed
    assert gateway.counted("protocol_errors_total", "bug") == 1


def test_the_end_of_a_worker_closes_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    socks = [client(gateway, GREETING) for _ in range(3)]
    closed: list[SocksSession] = []
    real = SocksSession.close

    def fails_once(session: SocksSession) -> None:
        closed.append(session)
        if len(closed) == 1:
            fails()
        real(session)

    monkeypatch.setattr(SocksSession, "close", fails_once)
    gateway.clients.close()
    assert all(sock.closed for sock in socks)


def test_one_that_cannot_even_be_closed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    sock = client(gateway)
    monkeypatch.setattr(SocksSession, "_choose", fails)
    monkeypatch.setattr(SocksSession, "close", fails)
    gateway.loop.readers[sock]()
    sock.incoming.append(GREETING)
    gateway.loop.readers[sock]()
    assert gateway.counted("protocol_errors_total", "bug") == 2
    assert not gateway.clients.opening


class Datagrams(Sock):
    """A UDP socket of a forward."""

    sender: tuple[Any, ...] = ("127.0.0.1", 5)

    def recvfrom(self, size: int) -> tuple[bytes, Any]:
        if not self.incoming:
            raise BlockingIOError
        data = self.incoming.pop(0)
        assert isinstance(data, bytes)
        return data, self.sender

    def setsockopt(self, *arguments: object) -> None:
        pass


def test_a_datagram_of_a_forward_that_meets_a_bug(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway()
    session = gateway.session()
    wire = gateway.wires[session]
    sock = Datagrams(gateway.loop)
    forward = UdpForward(gateway.clients, cast("socket.socket", sock), HostPort("10.0.0.1", 53))
    forward.start()
    sock.sender = ("127.0.0.1",)  # no port: nobody is ready for that
    sock.incoming += [b"one", b"two"]
    gateway.loop.readers[sock]()
    assert gateway.counted("udp_dropped_total", "bug") == 2
    assert len(caplog.records) == 1
    sock.sender = Datagrams.sender
    sock.incoming.append(b"three")
    gateway.loop.readers[sock]()
    (association,) = forward.associations.values()
    gateway.answer(session, UdpAssociateOpened(association.conn_id))
    real = wire.send_pieces

    def fails_once(*arguments: Any) -> None:
        monkeypatch.setattr(wire, "send_pieces", real)
        fails()

    monkeypatch.setattr(wire, "send_pieces", fails_once)
    sock.incoming.append(b"four")
    gateway.loop.readers[sock]()
    assert association.ended
    assert not forward.associations
    assert any(isinstance(message, UdpAssociateClosed) for message in gateway.sent(session))
    sock.incoming.append(b"five")
    gateway.loop.readers[sock]()
    assert len(forward.associations) == 1
