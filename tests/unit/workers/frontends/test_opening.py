"""A client's request until it is a flow or is refused: every way that leads there."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Bind,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    WindowUpdate,
)
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
)
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.frontends.watching import EARLY_MAX
from unit.workers.frontends.fakes import Gateway, Recorder, Sock

TARGET = HostPort("10.0.0.1", 80)
CONNECT = ConnectRequest(TARGET)
BOUND = HostPort("192.0.2.9", 4000)
WHO = Client("127.0.0.1:5", "127.0.0.1")


class Asked:
    """A request under way."""

    def __init__(
        self, gateway: Gateway, request: Request = CONNECT, *, early: bytes = b"", **sock: Any
    ) -> None:
        self.sock = Sock(gateway.loop, **sock)
        self.front = Recorder()
        self.opening = Opening(
            gateway.clients, self.front, request, WHO, cast("socket.socket", self.sock), early=early
        )
        self.opening.start()

    @property
    def answers(self) -> list[tuple[object, ...]]:
        return self.front.answers


def conn_id(message: object) -> int:
    return message.conn_id  # type: ignore[attr-defined, no-any-return]  # all of a flow have one


# --- TCP ------------------------------------------------------------------------------------------


def test_a_request_becomes_a_flow_on_the_clients_socket() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway)
    (opening,) = gateway.sent(session)
    assert opening == OpenConnection(conn_id(opening), "10.0.0.1", 80)
    assert asked.answers == []

    gateway.answer(session, ConnectionOpened(conn_id(opening), BOUND))

    assert asked.answers == [("opened", "192.0.2.9:4000")]
    asked.sock.arrives(b"hello")
    assert gateway.sent(session) == [Data(conn_id(opening), b"hello")]
    gateway.answer(session, Data(conn_id(opening), b"world"))
    assert asked.sock.sent == b"world"
    gateway.loop.advance(3600)
    assert len(asked.answers) == 1


def test_a_request_waits_for_a_session() -> None:
    gateway = Gateway()
    asked = Asked(gateway)
    assert gateway.clients.waiting == 1
    gateway.loop.advance(29)

    session = gateway.session()

    (opening,) = gateway.sent(session)
    assert isinstance(opening, OpenConnection)
    assert gateway.clients.waiting == 0
    gateway.loop.advance(1.1)
    assert asked.answers == [("failed", CloseReason.TTL_EXPIRED)], "30 s in all"
    assert gateway.sent(session) == [CloseConnection(conn_id(opening), CloseReason.TTL_EXPIRED)]


def test_without_a_session_in_time_nobody_was_asked() -> None:
    gateway = Gateway()
    asked = Asked(gateway)

    gateway.loop.advance(30.1)

    assert asked.answers == [("failed", CloseReason.GENERAL_FAILURE)]
    assert not asked.opening.asked
    assert gateway.clients.waiting == 0
    assert asked.sock not in gateway.loop.readers


@pytest.mark.parametrize("window", [1, 7, 262_144])
@pytest.mark.parametrize("linked", [True, False])
def test_early_data_obeys_the_window_and_all_of_it_arrives(window: int, linked: bool) -> None:
    gateway = Gateway()
    session = gateway.session(window=window) if linked else None
    asked = Asked(gateway, early=b"GET / HTTP/1.0\r\n")
    if session is None:
        asked.sock.arrives(b"\r\n")
        session = gateway.session(window=window)
    else:
        asked.sock.arrives(b"\r\n")
    opening, *data = gateway.sent(session)
    got = b""
    opened = False
    while data:
        for message in data:
            assert isinstance(message, Data)
            got += message.data
        assert len(got) <= window or window > 18
        if len(got) > 9 and not opened:
            opened = True
            gateway.answer(session, ConnectionOpened(conn_id(opening), BOUND))
        gateway.answer(session, WindowUpdate(conn_id(opening), len(got), len(got) + window))
        window += len(got)
        data = gateway.sent(session)
    assert got == b"GET / HTTP/1.0\r\n\r\n"
    assert asked.answers == [("opened", "192.0.2.9:4000")]


def test_early_data_is_bounded_and_the_rest_stays_in_the_socket() -> None:
    gateway = Gateway()
    asked = Asked(gateway)
    asked.sock.arrives(bytes(EARLY_MAX + 5))
    assert asked.sock not in gateway.loop.readers
    assert gateway.memory.used == EARLY_MAX
    session = gateway.session()
    opening, *_ = gateway.sent(session)

    gateway.answer(session, ConnectionOpened(conn_id(opening), BOUND))
    asked.sock.turn()

    rest = gateway.sent(session)
    assert rest == [Data(conn_id(opening), bytes(5))]
    gateway.answer(session, WindowUpdate(conn_id(opening), EARLY_MAX + 5, 1 << 20))
    assert gateway.memory.used == 0


def test_a_reset_behind_much_early_data_is_found() -> None:
    gateway = Gateway()
    asked = Asked(gateway)
    asked.sock.arrives(bytes(EARLY_MAX + 5))
    gateway.loop.advance(5)
    assert asked.answers == []

    asked.sock.error = errno.ECONNRESET
    gateway.loop.advance(1)

    assert asked.answers == [("close",)]
    assert gateway.memory.used == 0


def test_early_data_waits_while_memory_is_short() -> None:
    gateway = Gateway()
    asked = Asked(gateway)
    other = gateway.memory.charge(gateway.memory.limit + 1)
    asked.sock.arrives(b"early")
    assert not asked.opening.early_taken
    other.end()

    gateway.loop.advance(1)
    asked.sock.turn()

    assert asked.opening.early_taken


def test_nothing_is_dialled_for_clients_that_are_gone() -> None:
    gateway = Gateway()
    asked = Asked(gateway)

    asked.sock.is_reset()

    assert asked.answers == [("close",)]
    session = gateway.session()
    assert gateway.sent(session) == []


def test_a_reset_ends_what_was_asked() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, early=b"x")
    opening, _ = gateway.sent(session)

    asked.sock.is_reset()

    assert asked.answers == [("close",)]
    assert gateway.sent(session) == [CloseConnection(conn_id(opening), CloseReason.RESET)]
    assert not list(session.flows)
    assert gateway.memory.used == 0


@pytest.mark.parametrize("linked", [True, False])
def test_an_end_of_file_ends_a_request_that_said_nothing_more(linked: bool) -> None:
    gateway = Gateway()
    session = gateway.session() if linked else None
    asked = Asked(gateway)

    asked.sock.arrives(b"")

    assert asked.answers == [("failed", CloseReason.GENERAL_FAILURE)]
    if session is None:
        session = gateway.session()
        assert gateway.sent(session) == []
    else:
        opening, close = gateway.sent(session)
        assert close == CloseConnection(conn_id(opening), CloseReason.RESET)


def test_a_half_close_after_early_data_lives() -> None:
    gateway = Gateway()
    asked = Asked(gateway)
    asked.sock.arrives(b"question")
    asked.sock.arrives(b"")
    assert asked.answers == []
    session = gateway.session()
    opening, data = gateway.sent(session)
    assert data == Data(conn_id(opening), b"question")

    gateway.answer(session, ConnectionOpened(conn_id(opening), BOUND))
    asked.sock.turn()

    assert type(gateway.sent(session)[-1]).__name__ == "SendEof"
    gateway.answer(session, Data(conn_id(opening), b"answer"))
    assert asked.sock.sent == b"answer"


def test_a_session_that_ends_before_its_answer_costs_nothing() -> None:
    gateway = Gateway()
    first = gateway.session()
    asked = Asked(gateway, early=b"early")
    asked.sock.arrives(b" data")
    gateway.loop.advance(10)

    assert gateway.clients.asked
    gateway.end(first)
    assert asked.answers == []
    assert not gateway.clients.asked
    second = gateway.session()

    opening, data = gateway.sent(second)
    assert data == Data(conn_id(opening), b"early data")
    gateway.answer(second, ConnectionOpened(conn_id(opening), BOUND))
    assert asked.answers == [("opened", "192.0.2.9:4000")]


def test_the_time_runs_on_from_session_to_session() -> None:
    gateway = Gateway()
    asked = Asked(gateway)
    for _ in range(3):
        session = gateway.session()
        gateway.loop.advance(9)
        gateway.end(session)
    assert asked.answers == []
    gateway.loop.advance(3.1)
    assert asked.answers == [("failed", CloseReason.GENERAL_FAILURE)]


@pytest.mark.parametrize("reason", [CloseReason.CONNECTION_REFUSED, CloseReason.WORKER_LOST])
def test_a_refusal_is_passed_on(reason: CloseReason) -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway)
    (opening,) = gateway.sent(session)

    gateway.answer(session, CloseConnection(conn_id(opening), reason))

    assert asked.answers == [("failed", reason)]
    assert asked.sock not in gateway.loop.readers
    assert not asked.sock.closed, "the socket is the front end's"


def test_a_client_that_does_not_get_its_answer_is_not_kept() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway)
    (opening,) = gateway.sent(session)
    asked.front.alive = False

    gateway.answer(session, ConnectionOpened(conn_id(opening), BOUND))

    assert gateway.sent(session) == [CloseConnection(conn_id(opening), CloseReason.RESET)]


def test_a_table_that_is_full_refuses() -> None:
    gateway = Gateway()
    session = gateway.session()
    session.flows.resize(0)
    asked = Asked(gateway)
    assert asked.answers == [("failed", CloseReason.RESOURCE_LIMIT)]
    assert gateway.sent(session) == []
    assert gateway.memory.used == 0


def test_a_request_that_is_given_up_leaves_nothing() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, early=b"x")
    gateway.sent(session)

    asked.opening.cancel()
    asked.opening.cancel()

    assert asked.answers == []
    assert [type(message) for message in gateway.sent(session)] == [CloseConnection]
    assert asked.sock not in gateway.loop.readers
    assert gateway.memory.used == 0


# --- the gateway's own policy ---------------------------------------------------------------------

POLICY: dict[str, object] = {"allowed_hosts": ["10.9.0.0/16", "*.corp"], "allowed_ports": ["*"]}


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("request_type", [ConnectRequest, BindRequest])
def test_what_the_policy_denies_is_refused_at_once(linked: bool, request_type: Any) -> None:
    gateway = Gateway(policy=POLICY)
    session = gateway.session() if linked else None
    asked = Asked(gateway, request_type(TARGET))
    assert asked.answers == [("failed", CloseReason.NOT_ALLOWED)]
    assert gateway.counted("policy_decisions_total", "denied") == 1
    if session is not None:
        assert gateway.sent(session) == []
        assert not list(session.flows)


def test_the_policy_is_that_of_the_moment() -> None:
    gateway = Gateway(policy=POLICY)
    asked = Asked(gateway, ConnectRequest(HostPort("10.9.0.1", 80)))
    assert gateway.counted("policy_decisions_total", "allowed") == 0, "asked when it is opened"
    gateway.settings.apply(gateway.config(policy=POLICY | {"denied_ports": [80]}))

    session = gateway.session()

    assert asked.answers == [("failed", CloseReason.NOT_ALLOWED)]
    assert gateway.sent(session) == []


def test_a_name_in_doubt_is_the_endpoints() -> None:
    gateway = Gateway(policy=POLICY)
    session = gateway.session()
    Asked(gateway, ConnectRequest(HostPort("www.example.com", 80)))
    assert len(gateway.sent(session)) == 1


# --- BIND -----------------------------------------------------------------------------------------


def test_bind_has_two_answers() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, BindRequest(TARGET))
    (opening,) = gateway.sent(session)
    assert opening == Bind(conn_id(opening), TARGET)

    gateway.answer(session, BindListening(conn_id(opening), BOUND))
    gateway.loop.advance(100)  # the caller may take its time
    asked.sock.arrives(b"early")
    gateway.answer(session, BindAccepted(conn_id(opening), TARGET))

    assert asked.answers == [("listening", "192.0.2.9:4000"), ("opened", "10.0.0.1:80")]
    assert gateway.sent(session) == [Data(conn_id(opening), b"early")]


def test_a_bind_whose_client_is_gone_listens_no_more() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, BindRequest(TARGET))
    (opening,) = gateway.sent(session)
    asked.front.alive = False

    gateway.answer(session, BindListening(conn_id(opening), BOUND))

    assert gateway.sent(session) == [CloseConnection(conn_id(opening), CloseReason.RESET)]
