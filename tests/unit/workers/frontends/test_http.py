"""A client that speaks HTTP to the proxy's port: what becomes a flow, and what passes between."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    SendEof,
    WindowUpdate,
)
from socks_tunnel_workers.frontends import http
from socks_tunnel_workers.frontends.http import AHEAD_MAX, HttpSession
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.relay.session import WorkerSession
from unit.workers.frontends.fakes import Gateway, Sock

BOUND = HostPort("192.0.2.9", 4000)
GET = b"GET http://10.0.0.1/x HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"
SENT = b"GET /x HTTP/1.1\r\nHost: 10.0.0.1\r\nVia: 1.1 socks-tunnel\r\n\r\n"
ANSWER = b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\nok"
CONNECT = b"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: 10.0.0.1:443\r\n\r\n"


class Half(Sock):
    """One end of a socket pair; what is sent arrives at the other end in the next turn."""

    other: Half
    limit = 100_000

    def send(self, data: bytes | bytearray | memoryview) -> int:
        if self.other.closed:
            raise BrokenPipeError
        waiting = sum(len(piece) for piece in self.other.incoming if isinstance(piece, bytes))
        self.room = max(self.limit - waiting, 0)
        count = super().send(data)
        self.other.incoming.append(bytes(data[:count]))
        return count

    def close(self) -> None:
        super().close()
        self.other.incoming.append(b"")

    def shutdown(self, how: int) -> None:
        super().shutdown(how)
        self.other.incoming.append(b"")


class Pairs:
    """All socket pairs of a test."""

    def __init__(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gateway = gateway
        self.halves: list[Half] = []
        self.broken = False
        monkeypatch.setattr(socket, "socketpair", self.make)

    def make(self) -> tuple[Half, Half]:
        if self.broken:
            raise OSError(24, "too many open files")
        ours, theirs = Half(self.gateway.loop), Half(self.gateway.loop)
        ours.other, theirs.other = theirs, ours
        self.halves += [ours, theirs]
        return ours, theirs

    def run(self) -> None:
        """Let everything arrive that is under way."""
        for _ in range(20):
            for half in self.halves:
                if not half.closed:
                    half.turn()
                    if half in self.gateway.loop.writers and not half.other.incoming:
                        self.gateway.loop.writers[half]()

    @property
    def all_closed(self) -> bool:
        return all(half.closed for half in self.halves)


class Site:
    """A gateway with a session, one HTTP client, and the endpoint's answers."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        gateway: Gateway | None = None,
        *,
        linked: bool = True,
    ) -> None:
        self.gateway = gateway or Gateway()
        self.pairs = Pairs(self.gateway, monkeypatch)
        self.session: WorkerSession | None = self.gateway.session() if linked else None
        self.sock = Sock(self.gateway.loop)

    def client(self, data: bytes) -> Sock:
        HttpSession(
            self.gateway.clients,
            cast("socket.socket", self.sock),
            Client("127.0.0.1:5", "127.0.0.1"),
            data,
            started=0.0,
        )
        self.pairs.run()
        return self.sock

    def says(self, data: bytes) -> None:
        self.sock.arrives(data)
        self.sock.takes(0)
        self.pairs.run()

    def sent(self) -> list[Any]:
        assert self.session is not None
        return list(self.gateway.sent(self.session))

    def answer(self, *messages: Any) -> None:
        assert self.session is not None
        self.gateway.answer(self.session, *messages)
        self.pairs.run()

    def opened(self) -> tuple[int, bytes]:
        """The endpoint opens the flow that was asked for; its id, and what was said too early."""
        opening, *rest = self.sent()
        assert isinstance(opening, OpenConnection)
        assert all(isinstance(message, Data) for message in rest)
        self.answer(ConnectionOpened(opening.conn_id, BOUND))
        return opening.conn_id, b"".join(message.data for message in rest)

    def rejected(self, kind: str) -> int:
        return self.gateway.counted("socks_rejected_total", kind)

    def replied(self, command: str, reply: str) -> int:
        return self.gateway.counted("requests_total", command, reply)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


# --- CONNECT --------------------------------------------------------------------------------------


def test_connect_becomes_a_flow_on_the_clients_socket(site: Site) -> None:
    sock = site.client(CONNECT + b"hello")
    conn_id, early = site.opened()
    assert early == b"hello"
    assert sock.sent == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert site.gateway.clients.handshakes == 0
    site.says(b"more")
    site.answer(Data(conn_id, b"back"))
    assert Data(conn_id, b"more") in site.sent()
    assert sock.sent.endswith(b"back")
    assert site.replied("connect", "succeeded") == 1
    site.gateway.loop.advance(1000)
    assert not sock.closed


@pytest.mark.parametrize(
    ("reason", "status"),
    [(2, 403), (3, 502), (4, 502), (5, 502), (6, 504), (1, 502), (0x12, 503), (0x17, 503)],
)
def test_the_status_is_that_of_the_far_dial(site: Site, reason: int, status: int) -> None:
    sock = site.client(CONNECT)
    (opening,) = site.sent()
    site.answer(CloseConnection(opening.conn_id, reason))
    head, _, body = bytes(sock.sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body.startswith(b"socks-tunnel: ")
    assert body.count(b"\n") == 1
    assert not sock.ended, "the client may ask for something else"
    site.says(CONNECT)
    assert isinstance(site.sent()[0], OpenConnection)


def test_without_a_link_it_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, linked=False)
    sock = site.client(CONNECT)
    site.gateway.loop.advance(31)
    assert sock.sent.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert sock.sent.endswith(b"\r\n\r\nsocks-tunnel: there is no link to an endpoint\n")


def test_a_connect_with_early_data_that_fails_ends_the_connection(site: Site) -> None:
    sock = site.client(CONNECT)
    site.says(b"\x16\x03\x01")
    opening, _ = site.sent()
    site.answer(CloseConnection(opening.conn_id, 5))
    assert b"\r\nConnection: close\r\n" in bytes(sock.sent)
    assert sock.ended
    assert site.gateway.clients.handshakes == 0


def test_a_connect_waits_until_earlier_answers_have_left(site: Site) -> None:
    sock = site.client(GET)
    conn_id, _ = site.opened()
    sock.room = 100
    site.answer(Data(conn_id, b"HTTP/1.1 200 K\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)))
    site.sent()
    site.says(CONNECT + b"early")
    assert not [m for m in site.sent() if isinstance(m, OpenConnection)]
    assert site.gateway.loop.readers.get(cast("Any", sock)) is None, "nothing more is read"
    sock.takes(100)
    assert not [m for m in site.sent() if isinstance(m, OpenConnection)]
    sock.takes(2000)  # what waited here has left, ...
    assert not [m for m in site.sent() if isinstance(m, OpenConnection)]
    sock.takes(0)  # ... and the system has room for more
    (opening, *_) = [m for m in site.sent() if isinstance(m, OpenConnection)]
    site.answer(ConnectionOpened(opening.conn_id, BOUND))
    assert sock.sent.endswith(bytes(1000) + b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert not sock.reset


def test_a_connect_behind_an_answer_that_is_never_read_has_its_time(site: Site) -> None:
    sock = site.client(GET)
    conn_id, _ = site.opened()
    sock.room = 10
    site.answer(Data(conn_id, b"HTTP/1.1 200 K\r\nContent-Length: 2\r\n\r\nok"))
    site.says(CONNECT)
    closed = []
    for seconds in (http.KEEP_SECONDS - 1, 1):
        site.gateway.loop.advance(seconds)
        closed.append(sock.closed)
    assert closed == [False, True]
    assert site.rejected("timeout") == 1


def test_a_client_that_resets_is_not_dialled_for(site: Site) -> None:
    sock = site.client(CONNECT)
    (opening,) = site.sent()
    sock.is_reset()
    assert site.sent() == [CloseConnection(opening.conn_id, CloseReason.RESET)]
    assert sock.closed
    assert site.gateway.clients.handshakes == 0


# --- absolute form --------------------------------------------------------------------------------


def test_a_request_and_its_answer(site: Site) -> None:
    sock = site.client(GET)
    conn_id, early = site.opened()
    assert early == SENT, "it saves a round trip"
    site.answer(Data(conn_id, ANSWER))
    assert sock.sent.startswith(b"HTTP/1.1 200 Fine\r\n")
    assert sock.sent.endswith(b"\r\n\r\nok")
    assert site.replied("http", "succeeded") == 1
    assert site.gateway.clients.handshakes == 1


def test_the_next_request_uses_the_same_flow(site: Site) -> None:
    site.client(GET)
    conn_id, _ = site.opened()
    site.answer(Data(conn_id, ANSWER))
    site.sent()
    site.says(GET)
    assert site.sent() == [Data(conn_id, SENT)]
    site.answer(Data(conn_id, ANSWER))
    assert site.sock.sent.count(b"200 Fine") == 2


def test_another_origin_has_a_flow_of_its_own(site: Site) -> None:
    site.client(GET)
    first, _ = site.opened()
    site.answer(Data(first, ANSWER))
    site.says(GET.replace(b"10.0.0.1", b"10.0.0.2"))
    messages = site.sent()
    assert SendEof(first) in messages
    opening = next(message for message in messages if isinstance(message, OpenConnection))
    assert opening.host == "10.0.0.2"


def test_a_kept_flow_that_ended_is_replaced(site: Site) -> None:
    site.client(GET)
    first, _ = site.opened()
    site.answer(Data(first, ANSWER))
    site.answer(SendEof(first))
    site.sent()
    site.says(GET)
    second, early = site.opened()
    assert second != first
    assert early == SENT


def test_a_kept_flow_that_brings_what_nobody_asked_for_is_replaced(site: Site) -> None:
    site.client(GET)
    first, _ = site.opened()
    site.answer(Data(first, ANSWER))
    site.sent()
    site.answer(Data(first, ANSWER.replace(b"ok", b"no")))
    assert site.sent() == [CloseConnection(first, CloseReason.RESET)]
    site.says(GET)
    second, early = site.opened()
    assert second != first
    assert early == SENT
    assert not site.sock.sent.endswith(b"no")


def test_a_kept_flow_that_ends_under_a_request_is_replaced_once(site: Site) -> None:
    site.client(GET)
    first, _ = site.opened()
    site.answer(Data(first, ANSWER))
    site.says(GET)
    site.sent()
    site.answer(CloseConnection(first, CloseReason.RESET))
    second, early = site.opened()
    assert (second != first, early) == (True, SENT)
    site.answer(CloseConnection(second, CloseReason.RESET))
    assert b"502 Bad Gateway" in bytes(site.sock.sent)


def test_an_origin_that_refuses(site: Site) -> None:
    sock = site.client(GET)
    opening, *_ = site.sent()
    site.answer(CloseConnection(opening.conn_id, 2))
    assert sock.sent.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert site.replied("http", "not_allowed") == 1
    assert site.pairs.all_closed
    assert not sock.ended


@pytest.mark.parametrize("clean", [True, False])
def test_a_body_that_ends_with_the_connection(site: Site, clean: bool) -> None:
    sock = site.client(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    conn_id, _ = site.opened()
    site.answer(Data(conn_id, b"HTTP/1.0 200 K\r\n\r\nbody"))
    site.answer(SendEof(conn_id) if clean else CloseConnection(conn_id, CloseReason.RESET))
    assert sock.sent.endswith(b"\r\n\r\nbody")
    assert sock.ended is clean
    assert sock.reset is not clean, "half a body must not look whole"
    assert site.pairs.all_closed


def test_a_reset_behind_a_whole_answer_does_not_harm(site: Site) -> None:
    sock = site.client(GET)
    conn_id, _ = site.opened()
    site.answer(Data(conn_id, ANSWER), CloseConnection(conn_id, CloseReason.RESET))
    assert sock.sent.endswith(b"ok")
    assert not sock.reset


def test_a_slow_client_is_not_buffered_for(site: Site) -> None:
    sock = site.client(GET)
    conn_id, _ = site.opened()
    sock.room = 1000
    body = 1 << 20
    head = b"HTTP/1.1 200 K\r\nContent-Length: %d\r\n\r\n" % body
    sent = 0
    site.answer(Data(conn_id, head))
    for _ in range(10):
        site.answer(Data(conn_id, bytes(20_000)))
        sent += 20_000
    pending = site.session.flows.get(conn_id).core.receive.pending.size  # type: ignore[union-attr]  # it is open
    assert pending >= sent - 2 * http._READ - Half.limit
    assert len(sock.sent) == 1000
    for _ in range(100):
        sock.takes(5000)
        site.pairs.run()
    assert len(sock.sent) == sent + len(b"HTTP/1.1 200 K\r\nContent-Length: 1048576\r\nVia: 1.1 socks-tunnel\r\n\r\n")  # fmt: skip


def test_a_slow_origin_is_not_buffered_for(site: Site) -> None:
    size = 1 << 20
    sock = site.client(
        b"POST http://10.0.0.1/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    )
    for _ in range(16):
        sock.incoming.append(bytes(65_536))
    for _ in range(20):
        sock.turn()
        site.pairs.run()
    taken = size - sum(len(piece) for piece in sock.incoming if isinstance(piece, bytes))
    assert taken < 400_000, "window, early data, the pair and one read: no more"
    conn_id, early = site.opened()
    got = len(early)
    for _ in range(100):
        for message in site.sent():
            got += len(message.data) if isinstance(message, Data) else 0
        site.answer(WindowUpdate(conn_id, got, got + 262_144))
        sock.turn()
        site.pairs.run()
    assert got > size


def test_a_client_that_leaves_in_the_middle_resets_the_origin(site: Site) -> None:
    sock = site.client(GET)
    conn_id, _ = site.opened()
    site.answer(Data(conn_id, ANSWER[:-1]))
    site.sent()
    sock.is_reset()
    assert CloseConnection(conn_id, CloseReason.RESET) in site.sent()
    assert sock.closed
    assert site.pairs.all_closed
    assert site.gateway.clients.handshakes == 0


def test_a_client_that_leaves_while_the_origin_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, linked=False)
    sock = site.client(GET)
    sock.is_reset()
    assert site.gateway.clients.waiting == 0
    assert site.pairs.all_closed
    assert sock.closed
    assert site.gateway.memory.used == 0


def test_a_client_may_end_its_side_behind_its_request(site: Site) -> None:
    sock = site.client(GET)
    site.says(b"")
    conn_id, _ = site.opened()
    site.answer(Data(conn_id, ANSWER))
    assert sock.sent.endswith(b"ok")
    assert sock.ended


def test_half_a_body_is_not_passed_for_a_whole_one(site: Site) -> None:
    sock = site.client(
        b"POST http://10.0.0.1/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    )
    conn_id, _ = site.opened()
    site.sent()
    site.says(b"")
    assert site.sent()[-1] == CloseConnection(conn_id, CloseReason.RESET)
    assert sock.closed
    assert site.rejected("incomplete") == 1


def test_pipelined_requests_are_bounded(site: Site) -> None:
    sock = site.client(GET)
    for _ in range(3 + AHEAD_MAX // len(GET * 100)):
        sock.incoming.append(GET * 100)
    site.pairs.run()
    sock.turn()
    assert sock.incoming, "the rest stays in the socket"
    assert sock not in site.gateway.loop.readers


def test_no_descriptor_for_the_pair(site: Site) -> None:
    site.pairs.broken = True
    sock = site.client(GET)
    assert sock.sent.startswith(b"HTTP/1.1 503 ")
    assert site.replied("http", "general_failure") == 1
