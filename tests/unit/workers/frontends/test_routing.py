"""A worker's copy of the table: which session a new flow goes to, and what it tells of dials."""

from __future__ import annotations

import logging

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import DialFailed, DialsDone
from socks_tunnel.protocol.messages import (
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    Resolve,
    Resolved,
    ResolveKind,
)
from socks_tunnel.protocol.socks5 import BindRequest, ConnectRequest, Request, ResolveRequest
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.relay.session import WorkerSession
from unit.workers.frontends.fakes import Gateway
from unit.workers.frontends.test_opening import Asked, conn_id

PARIS = HostPort("files.paris.corp", 445)
BERLIN = HostPort("files.berlin.corp", 445)
BOUND = HostPort("192.0.2.9", 4000)


def routed() -> tuple[Gateway, WorkerSession, WorkerSession]:
    """A gateway with a route to either of a and b, and one to b alone."""
    gateway = Gateway(
        routes=[
            {"name": "berlin", "hosts": ["*.berlin.corp"], "peers": ["a", "b"]},
            {"name": "paris", "hosts": ["*.paris.corp"], "ports": [445], "peers": ["b"]},
        ]
    )
    a, b = gateway.session(peer="a"), gateway.session(peer="b")
    gateway.prefers([a, b], [b])
    return gateway, a, b


def opened_to(gateway: Gateway, session: WorkerSession) -> list[str]:
    return [
        message.host
        for message in gateway.sent(session)
        if isinstance(message, OpenConnection | Resolve)
    ]


def test_each_destination_goes_where_its_route_leads() -> None:
    gateway, a, b = routed()
    Asked(gateway, ConnectRequest(BERLIN))
    Asked(gateway, ConnectRequest(PARIS))
    Asked(gateway, ResolveRequest("files.paris.corp", reverse=False))
    assert opened_to(gateway, a) == ["files.berlin.corp"]
    assert opened_to(gateway, b) == ["files.paris.corp", "files.paris.corp"]
    assert gateway.counted("route_flows_total", "berlin", "a") == 1
    assert gateway.counted("route_flows_total", "paris", "b") == 2


@pytest.mark.parametrize(
    ("request_", "command"),
    [
        (ConnectRequest(HostPort("files.paris.corp", 22)), "connect"),
        (ConnectRequest(HostPort("10.0.0.1", 445)), "connect"),
        (BindRequest(HostPort("10.0.0.1", 445)), "bind"),
        (ResolveRequest("rome.corp", reverse=False), "resolve"),
        (ResolveRequest("10.0.0.1", reverse=True), "resolve"),
    ],
)
def test_what_no_route_has_is_refused_and_said(
    request_: Request, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "socks_tunnel.audit")
    gateway, _, _ = routed()
    asked = Asked(gateway, request_)
    assert asked.answers == [("failed", CloseReason.NOT_ALLOWED)]
    assert gateway.counted("unrouted_total", command) == 1
    assert "no route leads to" in caplog.text
    (record,) = [r for r in caplog.records if r.name == "socks_tunnel.audit"]
    assert record.getMessage() == "no route"
    assert record.__dict__["fields"]["command"] == command


def test_who_waits_gets_the_session_of_its_own_route() -> None:
    gateway, a, b = routed()
    gateway.prefers([], [])
    Asked(gateway, ConnectRequest(BERLIN))
    Asked(gateway, ConnectRequest(PARIS))
    assert gateway.clients.waiting == 2
    gateway.prefers([a], [])
    assert (opened_to(gateway, a), gateway.clients.waiting) == (["files.berlin.corp"], 1)
    gateway.prefers([a], [b])
    assert (opened_to(gateway, b), gateway.clients.waiting) == (["files.paris.corp"], 0)


def test_after_a_reload_nothing_is_opened_before_the_table_has_come() -> None:
    gateway, a, b = routed()
    gateway.clients.routing.reset()
    Asked(gateway, ConnectRequest(BERLIN))
    assert gateway.clients.waiting == 1
    gateway.prefers([b], [b])
    assert opened_to(gateway, a) == []
    assert opened_to(gateway, b) == ["files.berlin.corp"]


# --- a target that a peer does not reach --------------------------------------------------------


@pytest.mark.parametrize("reason", [3, 4, 6])
def test_another_peer_is_asked_for_what_one_does_not_reach(reason: int) -> None:
    gateway, a, b = routed()
    asked = Asked(gateway, ConnectRequest(BERLIN))
    asked.sock.arrives(b"early")
    (opening, *_) = gateway.sent(a)
    gateway.answer(a, CloseConnection(conn_id(opening), reason))
    assert gateway.told == [(a.number, DialFailed("berlin", "files.berlin.corp", reason))]
    opening, data = gateway.sent(b)
    assert isinstance(opening, OpenConnection)
    assert data == Data(opening.conn_id, b"early")
    gateway.answer(b, ConnectionOpened(opening.conn_id, BOUND))
    assert asked.answers == [("opened", str(BOUND))]


def test_who_nobody_reaches_is_told_so() -> None:
    gateway, a, b = routed()
    asked = Asked(gateway, ConnectRequest(BERLIN))
    for session in (a, b):
        (opening,) = gateway.sent(session)
        gateway.answer(session, CloseConnection(conn_id(opening), 4))
    assert asked.answers == [("failed", CloseReason.HOST_UNREACHABLE)]
    assert [session for session, _ in gateway.told] == [a.number, b.number]


@pytest.mark.parametrize("reason", [1, 2, 5, 0x17])
def test_other_failures_blame_nobody(reason: int) -> None:
    gateway, a, b = routed()
    asked = Asked(gateway, ConnectRequest(BERLIN))
    (opening,) = gateway.sent(a)
    gateway.answer(a, CloseConnection(conn_id(opening), reason))
    assert asked.answers == [("failed", CloseReason(reason))]
    assert gateway.told == []
    assert gateway.sent(b) == []


def test_a_route_to_one_peer_has_nobody_else_to_ask() -> None:
    gateway, _, b = routed()
    asked = Asked(gateway, ConnectRequest(PARIS))
    (opening,) = gateway.sent(b)
    gateway.answer(b, CloseConnection(conn_id(opening), 4))
    assert asked.answers == [("failed", CloseReason.HOST_UNREACHABLE)]
    assert gateway.told == []


def test_a_dial_without_an_answer_speaks_against_its_peer() -> None:
    gateway, a, _ = routed()
    asked = Asked(gateway, ConnectRequest(BERLIN))
    gateway.loop.advance(30)
    assert asked.answers == [("failed", CloseReason.TTL_EXPIRED)]
    assert gateway.told == [(a.number, DialFailed("berlin", "files.berlin.corp", 6))]


def test_a_peer_that_was_blamed_is_cleared_at_once_and_others_once_a_second() -> None:
    gateway, a, b = routed()
    gateway.clients.routing.opened(0, b)
    assert gateway.told == []
    gateway.clients.routing.flush()
    gateway.clients.routing.flush()
    assert gateway.told == [(0, DialsDone([["berlin", b.number]]))]
    gateway.told.clear()
    gateway.clients.routing.failed(0, a, "h", 4)
    gateway.clients.routing.opened(0, a)
    gateway.clients.routing.opened(1, b)  # a route with one peer
    assert gateway.told[1:] == [(0, DialsDone([["berlin", a.number]]))]
    gateway.clients.routing.failed(0, a, "h", 4)
    gateway.clients.routing.opened(0, b)
    gateway.clients.routing.forget(a)
    gateway.clients.routing.forget(b)
    gateway.told.clear()
    gateway.clients.routing.flush()
    assert gateway.told == []


# --- a peer that is passed over -----------------------------------------------------------------


def test_who_waits_for_an_answer_goes_elsewhere_when_its_peer_is_passed_over() -> None:
    gateway, a, b = routed()
    asked = Asked(gateway, ConnectRequest(BERLIN))
    question = Asked(gateway, ResolveRequest("x.berlin.corp", reverse=False))
    first, second = gateway.sent(a)
    gateway.prefers([b], [b], others=(a,))
    assert gateway.sent(a) == [
        CloseConnection(conn_id(first), CloseReason.RESET),
        CloseConnection(conn_id(second), CloseReason.RESET),
    ]
    opening, resolve = gateway.sent(b)
    gateway.answer(b, ConnectionOpened(conn_id(opening), BOUND))
    assert isinstance(resolve, Resolve)
    gateway.answer(b, Resolved(resolve.conn_id, 0, ()))
    assert asked.answers == [("opened", str(BOUND))]
    assert question.answers == [("resolved",)]
    assert resolve == Resolve(resolve.conn_id, ResolveKind.ADDRESSES, "x.berlin.corp")
    assert gateway.clients.routing.unanswered == {}


def test_a_bug_of_who_goes_elsewhere_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, a, b = routed()
    bad, good = (Asked(gateway, ConnectRequest(BERLIN)) for _ in range(2))
    gateway.sent(a)
    reconsider = Opening.reconsider

    def fails(opening: Opening) -> None:
        if opening is bad.opening:
            raise ZeroDivisionError
        reconsider(opening)

    monkeypatch.setattr(Opening, "reconsider", fails)
    gateway.prefers([b], [b], others=(a,))
    assert opened_to(gateway, b) == ["files.berlin.corp"]
    assert gateway.counted("protocol_errors_total", "bug") == 1
    assert bad.answers == [("close",)]
    assert good.answers == []


def test_nobody_moves_without_somewhere_better() -> None:
    gateway, a, b = routed()
    Asked(gateway, ConnectRequest(BERLIN))
    gateway.sent(a)
    gateway.prefers([], [], others=(a, b))
    b.detach()
    gateway.prefers([b], [b], others=(a,))
    assert gateway.sent(a) == []


def test_who_is_connected_stays() -> None:
    gateway, a, b = routed()
    Asked(gateway, ConnectRequest(BERLIN))
    (opening,) = gateway.sent(a)
    gateway.answer(a, ConnectionOpened(conn_id(opening), BOUND))
    gateway.prefers([b], [b], others=(a,))
    assert gateway.sent(a) == gateway.sent(b) == []


def test_a_passed_over_peer_is_better_than_none() -> None:
    gateway, a, b = routed()
    b.detach()
    gateway.prefers([b], [b], others=(a,))
    Asked(gateway, ConnectRequest(BERLIN))
    assert opened_to(gateway, a) == ["files.berlin.corp"]


def test_the_fewest_flows() -> None:
    gateway = Gateway(routes=[{"peers": ["a", "b"], "policy": "least-loaded"}])
    a, b = gateway.session(peer="a"), gateway.session(peer="b")
    gateway.prefers([a, b])
    for _ in range(10):
        Asked(gateway, ConnectRequest(BERLIN))
    assert (len(a.flows), len(b.flows)) == (5, 5)


def test_the_fewest_flows_with_those_of_others() -> None:
    gateway = Gateway(routes=[{"peers": ["a", "b"], "policy": "least-loaded"}])
    a, b = gateway.session(peer="a"), gateway.session(peer="b")
    gateway.beside = [[[a.number, 6.5], [b.number, 0.5]]]
    gateway.prefers([a, b])
    for _ in range(10):
        Asked(gateway, ConnectRequest(BERLIN))
    assert (len(a.flows), len(b.flows)) == (2, 8)
