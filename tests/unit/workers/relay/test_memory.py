"""Who gives way when memory is short: windows, sessions without a link, then the largest flow."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import CloseConnection
from socks_tunnel_workers.relay.memory import MemoryRelief
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.tcp import QUIET_SECONDS, WINDOW_WHEN_SHORT, TcpRelay
from socks_tunnel_workers.services import Account
from unit.workers.frontends.fakes import Gateway

LIMIT = 100


class Site:
    """A worker whose flows may hold 100 bytes."""

    def __init__(self) -> None:
        self.gateway = Gateway()
        self.account: Account = self.gateway.memory
        self.account.limit = LIMIT

    def flow(self, session: WorkerSession, held: int) -> TcpRelay:
        """A flow that holds so many bytes."""
        flow = TcpRelay(
            session,
            session.allocate(),
            command="connect",
            client="127.0.0.1:5",
            destination=HostPort("10.0.0.1", 80),
        )
        session.admit(flow)
        flow.charge.set(held)
        return flow

    def session(self, *, lost_at: float | None = None) -> WorkerSession:
        """A session, without a link since that moment."""
        session = self.gateway.session()
        if lost_at is not None:
            session.detach()
            session.detached_at = lost_at
        return session

    def relieve(self) -> None:
        gateway = self.gateway
        sessions = gateway.sessions.values()
        MemoryRelief(
            self.account, sessions, gateway.notices, gateway.counters, gateway.loop.time
        ).relieve()


def test_windows_shrink_first_and_the_flow_that_holds_most_goes_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    session = site.session()
    flows = [site.flow(session, held) for held in (10, 80, 40)]
    assert all(flow.receive_window > WINDOW_WHEN_SHORT for flow in flows)
    site.relieve()
    assert {flow.receive_window for flow in flows} == {WINDOW_WHEN_SHORT}
    assert [flow.ended for flow in flows] == [False, True, False]
    assert site.gateway.sent(session) == [
        CloseConnection(flows[1].conn_id, CloseReason.RESOURCE_LIMIT)
    ]
    assert site.account.used == 50
    assert "flows hold 130 bytes" in caplog.text


def test_sessions_without_a_link_give_way_the_oldest_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    sessions = [site.session(lost_at=at) for at in (None, 20.0, 10.0)]
    linked, younger, older = (site.flow(session, 60) for session in sessions)
    site.session(lost_at=5.0)  # without flows
    site.relieve()
    assert [flow.ended for flow in (linked, younger, older)] == [False, True, True]
    assert site.gateway.counted("sessions_given_up_total", "memory") == 2
    assert "closing the 1 flows of the session with peer office" in caplog.text


def test_no_more_sessions_give_way_than_needed() -> None:
    site = Site()
    younger, older = (site.flow(site.session(lost_at=at), 60) for at in (20.0, 10.0))
    site.relieve()
    assert [flow.ended for flow in (younger, older)] == [False, True]


@pytest.mark.parametrize(("quiet_for", "shrinks"), [(QUIET_SECONDS + 1, True), (9.0, False)])
def test_windows_of_quiet_flows_shrink_first(quiet_for: float, *, shrinks: bool) -> None:
    """While that and sessions without a link make room enough, the others keep theirs."""
    site = Site()
    session = site.session()
    busy, quiet = site.flow(session, 60), site.flow(session, 10)
    waits = site.flow(site.session(lost_at=1.0), 40)
    quiet.active -= quiet_for
    window = session.receive_window
    assert window > WINDOW_WHEN_SHORT
    site.relieve()
    assert [flow.ended for flow in (busy, quiet, waits)] == [False, False, True]
    assert busy.receive_window == window
    assert quiet.receive_window == (WINDOW_WHEN_SHORT if shrinks else window)


def test_with_enough_memory_nothing_ends_and_needed_windows_stay() -> None:
    site = Site()
    session = site.session(lost_at=1.0)
    flow = site.flow(session, 50)
    site.relieve()
    assert not flow.ended
    assert flow.receive_window == session.receive_window
