"""The composition root of a worker: what the supervisor says, and what the worker answers.

Flows with real sockets are in tests/integration/test_worker_*.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, cast

import pytest

from socks_tunnel.ipc.stream import Channel
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    Attach,
    ChildHello,
    ChildReady,
    Configure,
    Control,
    Drain,
    Drained,
    IpcPing,
    IpcPong,
    NewFlows,
    PeerRows,
    ReadyState,
    Reload,
    SessionEnded,
    SessionOpened,
    Shutdown,
)
from socks_tunnel.protocol.messages import Data, OpenConnection
from socks_tunnel.protocol.settings import WorkerSettings
from socks_tunnel_workers import worker
from socks_tunnel_workers.frontends.accepting import Listener
from socks_tunnel_workers.frontends.forward import UdpForward
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.worker import EXIT_CONFIG, Worker
from unit.workers.frontends.fakes import Gateway, Loop, Sock

SESSION = 3


class Listening(Sock):
    """A listening socket, or that of a UDP forward."""

    def __init__(self, loop: Loop, number: int) -> None:
        super().__init__(loop)
        self.number = number

    def fileno(self) -> int:
        return self.number

    def setsockopt(self, *arguments: object) -> None:
        pass


class Transport:
    """The IPC stream is not written to: frames are counted where they are made."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class NoResolver:
    """Nothing is looked up here."""

    def __init__(self, **_: object) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Site:
    """A worker without a stream, without a clock and without sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, index: int = 0) -> None:
        self.loop = Loop()
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self.loop)
        monkeypatch.setattr(worker, "Resolver", NoResolver)
        self.listening = [Listening(self.loop, number) for number in (10, 11, 12)]
        self.exits: list[int] = []
        self.said: list[Control] = []
        self.worker = Worker(
            index, cast("Any", {s.number: s for s in self.listening}), self.exits.append
        )
        monkeypatch.setattr(
            self.worker, "send_control", lambda _session, what: self.said.append(what)
        )
        monkeypatch.setattr(self.worker, "send_message", lambda *_: None)
        monkeypatch.setattr(self.worker, "send_messages", lambda *_: None)
        monkeypatch.setattr(self.worker, "close", lambda: self.worker.on_closed(None))

    def settings(self, **tables: Any) -> dict[str, Any]:
        return Gateway.config(**tables).to_map()

    def configure(
        self, *listeners: tuple[int, str, str, int], count: int = 2, **tables: Any
    ) -> Site:
        self.tell(Configure(count, self.settings(**tables), [list(row) for row in listeners]))
        return self

    def tell(self, message: Control, session: int = 0) -> None:
        self.worker.on_control(session, message)

    def heard(self) -> list[Control]:
        said, self.said = self.said, []
        return said

    def link(self) -> None:
        """A session with a link, which takes new flows."""
        self.tell(SessionOpened("office"), SESSION)
        self.tell(
            Attach(
                window=1 << 18, max_data=65_529, idle_udp=300, features=["resume"],
                credit=1 << 20, resume=False,
            ),
            SESSION,
        )  # fmt: skip
        self.tell(PeerRows([], last=True), SESSION)
        self.tell(NewFlows([[[SESSION], []]], [[]]))

    def flow(self) -> TcpRelay:
        """One more flow of the session."""
        session = self.worker.sessions[SESSION]
        conn_id = session.allocate()
        flow = TcpRelay(
            session,
            conn_id,
            command="connect",
            client="127.0.0.1:5",
            destination=HostPort("10.0.0.1", 80),
            opener=None,
            opening=OpenConnection(conn_id, "10.0.0.1", 80).encode(),
        )
        session.admit(flow)
        return flow


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_it_says_hello_and_is_ready_once_it_is_configured(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "connection_made", lambda *_: None)
    site.worker.connection_made(cast("Any", Transport()))
    assert site.heard() == [ChildHello(os.getpid())]
    site.configure()
    assert site.heard() == [ChildReady()]


def test_a_configuration_of_another_version_ends_it_for_good(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    fields = site.settings()
    del fields["limits"]
    site.tell(Configure(2, fields, []))
    assert site.exits == [EXIT_CONFIG]
    assert "cannot use the configuration from the supervisor" in caplog.text
    assert site.heard() == []
    assert all(sock.closed for sock in site.listening)


@pytest.mark.parametrize(("index", "forwards"), [(0, [11]), (1, [12])])
def test_a_udp_forward_is_read_by_one_worker(
    monkeypatch: pytest.MonkeyPatch, index: int, forwards: list[int]
) -> None:
    site = Site(monkeypatch, index=index)
    site.configure(
        (10, "socks", "", 0),
        (12, "forward-udp", "10.0.0.1", 53),
        (11, "forward-udp", "10.0.0.1", 54),
    )
    kinds = [type(each) for each in site.worker._listeners]
    assert kinds == [Listener, UdpForward]
    read = [sock.number for sock in site.listening if sock in site.loop.readers]
    assert read == sorted([10, *forwards])


def test_pings_are_answered_before_anything_else(site: Site) -> None:
    site.tell(IpcPing(5))
    assert site.heard() == [IpcPong(5)]


def test_what_is_of_no_use_is_said(site: Site) -> None:
    with pytest.raises(RemoteProtocolError, match="does not take the control message 'state'"):
        site.tell(ReadyState(None))


def test_messages_for_a_session_that_is_over_are_dropped(site: Site) -> None:
    site.configure()
    site.link()
    site.tell(SessionEnded("the peer is gone"), SESSION)
    site.worker._incoming.take_messages(SESSION, [memoryview(Data(1, b"late").encode())])
    assert SESSION not in site.worker.sessions
    site.tell(SessionEnded("once more"), SESSION)


def test_the_end_of_a_session_ends_its_flows(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.configure()
    site.link()
    flow = site.flow()
    with caplog.at_level(logging.INFO):
        site.tell(SessionEnded("the peer was removed"), SESSION)
    assert flow.ended
    assert "the session with peer office is over (the peer was removed): closing its 1 flows" in (
        caplog.text
    )
    assert site.worker.clients.routing.choose(0) is None


def test_a_bug_in_a_message_ends_the_flows_of_its_session(site: Site) -> None:
    site.configure()
    site.link()
    flow = site.flow()
    ended = []
    for session in (0, SESSION + 1, SESSION):
        site.worker.on_bug(session, None, ZeroDivisionError())
        ended.append(flow.ended)
    assert ended == [False, False, True]
    assert SESSION in site.worker.sessions, "it takes new flows"
    assert site.exits == []


def test_a_bug_in_its_configuration_ends_it(site: Site) -> None:
    with pytest.raises(ZeroDivisionError):
        site.worker.on_bug(0, IpcPing(1), ZeroDivisionError())
    site.configure()
    with pytest.raises(ZeroDivisionError):
        site.worker.on_bug(0, Configure(1, {}, []), ZeroDivisionError())


def test_it_holds_as_many_flows_as_it_may(site: Site) -> None:
    site.configure(limits={"flows_per_worker": 2})
    site.link()
    full = []
    for _ in range(2):
        site.flow()
        full.append(site.worker.clients.full)
    site.tell(Reload(site.settings(limits={"flows_per_worker": 3})))
    full.append(site.worker.clients.full)
    assert full == [False, True, False]


def test_a_reload_changes_limits_of_sessions_that_are_there(site: Site) -> None:
    site.configure()
    site.link()
    limits = {"flows_per_worker": 7, "memory_per_worker": 32 << 20, "associations_per_client": 3}
    site.tell(Reload(site.settings(limits=limits)))
    assert site.worker.sessions[SESSION].flows.limit == 7
    assert site.worker.memory.limit == 32 << 20
    assert site.worker.clients.associations.limit == 3


def test_a_drain_is_over_with_the_last_flow_and_said_once(site: Site) -> None:
    site.configure((10, "socks", "", 0))
    site.link()
    flow = site.flow()
    site.heard()
    site.tell(Drain())
    assert not site.loop.readers
    assert site.heard() == []
    flow.abort(1, tell_peer=False)
    site.tell(Drain())
    assert site.heard() == [Drained()]


def test_shutdown_is_an_orderly_end(site: Site) -> None:
    site.configure((10, "socks", "", 0))
    site.link()
    flow = site.flow()
    site.tell(Shutdown())
    assert flow.ended
    assert site.exits == [0]
    assert all(sock.closed for sock in site.listening)


def test_a_supervisor_that_is_lost_is_no_orderly_end(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.configure()
    site.worker.on_closed(ConnectionResetError("gone"))
    assert site.exits == [1]
    assert "worker 0 lost its connection to the supervisor: gone" in caplog.text
    site.worker.on_closed(None)
    assert site.exits == [1], "told once"


def test_settings_come_as_they_were_sent(site: Site) -> None:
    site.configure(socks={"connect_timeout": 5})
    assert isinstance(site.worker.settings.config, WorkerSettings)
    assert site.worker.settings.config.socks.connect_timeout == 5
