"""Who gives way when memory is short: windows, sessions without a link, then the largest flow."""

from typing import Any, cast

import pytest

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel_workers.relay.memory import MemoryRelief
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.tcp import WINDOW_WHEN_SHORT, TcpRelay
from socks_tunnel_workers.services import Account, Counters, Notices


class FakeRelay(TcpRelay):
    """A relay that is nothing but what it holds."""

    def __init__(self, account: Account, conn_id: int, held: int) -> None:
        self.charge = account.charge(held)
        self.conn_id = conn_id
        self.destination = None
        self.ended = False
        self.window = 0
        self.reason: int | None = None

    def shrink(self, window: int) -> None:
        self.window = window

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        self.ended = True
        self.reason = reason
        self.charge.end()


class FakeCore:
    def __init__(self, *, attached: bool) -> None:
        self.attached = attached


class FakeSession:
    def __init__(self, *flows: FakeRelay, detached_at: float | None = None) -> None:
        self.core = FakeCore(attached=detached_at is None)
        self.detached_at = detached_at or 0.0
        self.flows = list(flows)
        self.peer = "office"

    def end(self, reason: int, *, tell_peer: bool) -> None:
        for flow in self.flows:
            flow.abort(reason, tell_peer=tell_peer)


def relief(account: Account, *sessions: FakeSession) -> tuple[MemoryRelief, Counters]:
    counters = Counters()
    made = MemoryRelief(account, cast("Any", sessions), Notices(lambda: 0.0), counters)
    return made, counters


def test_windows_shrink_first_and_the_flow_that_holds_most_goes_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    account = Account(100)
    flows = [FakeRelay(account, number, held) for number, held in enumerate((10, 80, 40))]
    made, _ = relief(account, FakeSession(*flows))
    made.relieve()
    assert {flow.window for flow in flows} == {WINDOW_WHEN_SHORT}
    assert [flow.reason for flow in flows] == [None, CloseReason.RESOURCE_LIMIT, None]
    assert account.used == 50
    assert "flows hold 130 bytes" in caplog.text


def test_sessions_without_a_link_give_way_the_oldest_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    account = Account(100)
    linked, younger, older = (FakeRelay(account, number, 60) for number in range(3))
    made, counters = relief(
        account,
        FakeSession(linked),
        FakeSession(younger, detached_at=20.0),
        FakeSession(older, detached_at=10.0),
        FakeSession(detached_at=5.0),
    )
    made.relieve()
    assert [flow.ended for flow in (linked, younger, older)] == [False, True, True]
    assert counters.pending("sessions_given_up_total", "memory") == 2
    assert "gave up 1 flows of the session with office" in caplog.text


def test_with_enough_memory_only_windows_shrink() -> None:
    account = Account(100)
    flow = FakeRelay(account, 1, 50)
    made, _ = relief(account, FakeSession(flow, detached_at=1.0))
    made.relieve()
    assert not flow.ended


def test_the_fakes_are_what_the_relief_expects() -> None:
    assert {"core", "flows", "peer", "detached_at"} <= set(vars(FakeSession()))
    assert hasattr(WorkerSession, "end")
