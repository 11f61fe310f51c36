"""A TCP flow that goes on in another program."""

from __future__ import annotations

from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import CloseConnection, Data, SendEof, WindowUpdate
from socks_tunnel_workers.relay import handover
from socks_tunnel_workers.relay.handover import (
    export_destination,
    export_relay,
    restore_client_relay,
    restore_destination,
)
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.tcp import TcpRelay
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.handed import Kernel, again

TARGET = HostPort("target.example", 443)


class Site:
    """A flow that is open, with a socket that takes little."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = Kernel(monkeypatch, handover)
        self.gateway = Gateway()
        self.session = self.gateway.session()
        self.sock = Sock(self.gateway.loop)
        self.relay = TcpRelay(
            self.session,
            self.session.allocate(),
            command="connect",
            client="127.0.0.1:5",
            destination=TARGET,
            opening=b"opening",
        )
        self.relay.upstream = True
        self.session.admit(self.relay)
        self.relay.attach(cast("Any", self.sock))

    def leave(self) -> dict[str, Any]:
        """The program goes: its link first."""
        self.session.detach()
        return again(export_relay(self.relay))

    def next(self) -> WorkerSession:
        """The session of the next program, without a link."""
        self.gateway = Gateway()
        self.sock.loop = self.gateway.loop
        session = self.gateway.session()
        session.detach()
        return session


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_what_waits_for_the_socket_is_written_and_what_was_sent_is_kept(site: Site) -> None:
    conn_id = site.relay.conn_id
    site.sock.arrives(b"request")
    site.sock.room = 3
    site.gateway.answer(site.session, Data(conn_id, b"answer"))
    site.gateway.loop.now += 5
    fields = site.leave()
    site.sock.room = 100
    session = site.next()
    relay = restore_client_relay(session, fields)
    assert site.sock.sent == b"answer"
    assert (relay.up, relay.down, relay.client) == (7, 6, "127.0.0.1:5")
    assert (relay.started, relay.destination) == (site.relay.started, TARGET)
    assert relay.row() == (conn_id, 6, relay.core.receive.limit, 1)
    assert session.memory.used == relay.core.cost > 0
    assert session.counters.active["tcp"] == 1
    assert site.gateway.counted("flows_total", "tcp") == 0, "it was counted when it was opened"


def test_it_is_read_again_once_there_is_a_link(site: Site) -> None:
    fields = site.leave()
    session = site.next()
    relay = restore_client_relay(session, fields)
    assert site.sock not in site.gateway.loop.readers
    session.core.attach(session.terms, 1 << 20, resume=True)
    session.resumed([(relay.conn_id, 0, 100_000, 1)], last=True)
    site.sock.arrives(b"more")
    assert Data(relay.conn_id, b"more") in site.gateway.sent(session)


def test_a_flow_that_is_over_on_the_wire_still_owes_its_socket(site: Site) -> None:
    site.sock.room = 2
    site.gateway.answer(
        site.session,
        Data(site.relay.conn_id, b"last words"),
        CloseConnection(site.relay.conn_id, 0),
    )
    assert site.session.lingering == {site.relay}
    fields = site.leave()
    session = site.next()
    relay = restore_client_relay(session, fields)
    assert session.lingering == {relay}
    assert relay.conn_id not in session.flows
    site.sock.takes(100)
    assert site.sock.sent == b"last words"
    assert site.sock.closed
    assert not session.lingering


def test_both_ends_of_file_survive(site: Site) -> None:
    conn_id = site.relay.conn_id
    site.sock.arrives(b"")
    site.gateway.answer(site.session, WindowUpdate(conn_id, 0, 100_000), SendEof(conn_id))
    assert site.sock.closed or site.sock.ended
    fields = again(export_relay(site.relay)) if not site.relay.ended else None
    assert fields is None, "the opener has closed it"


@pytest.mark.parametrize(
    "change",
    [
        {"core": None},
        {"destination": None},
        {"destination": ["host"]},
        {"opening": "text"},
        {"answer": [1]},
        {"ended": 0},
        {"fd": "3"},
    ],
)
def test_a_record_that_is_none_is_refused(site: Site, change: dict[str, Any]) -> None:
    fields = site.leave() | change
    with pytest.raises(Malformed):
        restore_client_relay(site.next(), fields)


def test_a_socket_that_is_not_there_or_a_name_in_use_costs_the_flow(site: Site) -> None:
    fields = site.leave()
    session = site.next()
    with pytest.raises(OSError, match="Bad file descriptor"):
        restore_client_relay(session, fields | {"fd": 999})
    assert not len(session.flows)
    first = restore_client_relay(session, fields)
    other = Sock(site.gateway.loop)
    with pytest.raises(RemoteProtocolError, match="in use"):
        restore_client_relay(session, fields | {"fd": site.kernel.lend(other)})
    assert other.closed
    assert session.flows.get(first.conn_id) is first


def test_a_flow_that_was_handed_over_ends_as_any_other(site: Site) -> None:
    session = site.next()
    relay = restore_client_relay(session, site.leave())
    relay.abort(CloseReason.IDLE_TIMEOUT)
    assert site.sock.reset
    assert session.counters.active["tcp"] == 0
    assert session.core.closed == {relay.conn_id: CloseReason.IDLE_TIMEOUT}


@pytest.mark.parametrize("destination", [None, TARGET, HostPort("2001:db8::1", 65_535)])
def test_destinations_there_and_back(destination: HostPort | None) -> None:
    fields = again({"destination": export_destination(destination)})
    assert restore_destination(fields) == destination


@pytest.mark.parametrize("value", ["host", ["host"], ["host", "1"], ["host", -1], [7, 7]])
def test_a_destination_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(Malformed):
        restore_destination({"destination": value})
