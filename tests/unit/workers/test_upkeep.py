"""What a worker does again and again: each flow has its turn, each count its metric, until the end."""

from __future__ import annotations

from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.session import Session
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.upkeep import (
    FORGET_SECONDS,
    METRICS_SECONDS,
    SWEEP_FLOWS,
    SWEEP_SECONDS,
    Upkeep,
)
from unit.workers.frontends.fakes import Gateway


class Site:
    """A gateway's worker with one session."""

    def __init__(self) -> None:
        self.gateway = gateway = Gateway(limits={"flows_per_worker": SWEEP_FLOWS + 10})
        self.session = gateway.session()
        self.buffered = 0
        self.upkeep = Upkeep(
            cast("Any", gateway.loop),
            gateway.settings,
            gateway.sessions,
            gateway.clients,
            gateway.counters,
            gateway.notices,
            gateway.metrics,
            gateway.memory,
            lambda: self.buffered,
        )
        self.upkeep.start()

    def flow(self) -> TcpRelay:
        """One more flow."""
        flow = TcpRelay(
            self.session,
            self.session.allocate(),
            command="connect",
            client="127.0.0.1:5",
            destination=HostPort("10.0.0.1", 80),
        )
        self.session.admit(flow)
        return flow


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_sweep_looks_at_all_flows_some_at_a_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows = [site.flow() for _ in range(SWEEP_FLOWS + 1)]
    swept: list[TcpRelay] = []
    monkeypatch.setattr(TcpRelay, "sweep", lambda flow, _now: swept.append(flow))
    loop = site.gateway.loop
    sweep = next(timer for timer in loop.timers if timer.callback == site.upkeep._sweep)
    sweep.callback()
    assert len(swept) == SWEEP_FLOWS
    loop.timers.remove(sweep)
    loop.advance(0)
    assert sorted(f.conn_id for f in swept) == sorted(f.conn_id for f in flows)
    assert any(timer.when == loop.now + SWEEP_SECONDS for timer in loop.timers)


def test_flows_wait_only_while_their_session_has_no_link(site: Site) -> None:
    flow, owing = site.flow(), site.flow()
    assert site.upkeep.waiting_flows() == []
    site.session.leave(owing)
    site.session.linger(owing)
    site.session.detach()
    assert site.upkeep.waiting_flows() == [flow, owing]


def test_a_flow_that_fails_in_its_turn_costs_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = site.flow(), site.flow()
    swept = []

    def sweep(flow: TcpRelay, _now: float) -> None:
        if flow is bad:
            raise ZeroDivisionError
        swept.append(flow)

    monkeypatch.setattr(TcpRelay, "sweep", sweep)
    site.gateway.loop.advance(SWEEP_SECONDS)
    assert swept == [good]
    assert bad.ended


def test_a_bug_of_one_association_does_not_end_the_sweeps(site: Site) -> None:
    class Relay:
        closed = False

        def sweep(self, _now: float) -> None:
            raise ZeroDivisionError

        def close(self) -> None:
            self.closed = True

    relay = Relay()
    site.gateway.clients.relays.add(cast("Any", relay))
    site.gateway.loop.advance(SWEEP_SECONDS)
    assert relay.closed
    assert any(timer.callback == site.upkeep._sweep for timer in site.gateway.loop.timers)


@pytest.mark.parametrize(
    ("owner", "broken", "again", "seconds"),
    [
        (Upkeep, "flush_metrics", "_each_second", METRICS_SECONDS),
        (Session, "forget_closed", "_forget_closed", FORGET_SECONDS),
    ],
)
def test_what_fails_once_is_done_again(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    owner: type[Any],
    broken: str,
    again: str,
    seconds: float,
) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    loop = site.gateway.loop
    timer = next(each for each in loop.timers if each.callback == getattr(site.upkeep, again))
    loop.timers.remove(timer)
    monkeypatch.setattr(owner, broken, fails)
    with pytest.raises(ZeroDivisionError):
        timer.callback()
    assert [t.when for t in loop.timers if t.callback == timer.callback] == [loop.now + seconds]


def test_what_was_counted_is_in_the_metrics_a_second_later(site: Site) -> None:
    metrics = site.gateway.metrics
    site.flow()
    site.session.scheduler.expired = 2
    site.session.scheduler.overflowed = 3
    site.buffered = 7
    site.gateway.loop.advance(METRICS_SECONDS)
    assert metrics.flows_active.labels("tcp").value == 1
    assert metrics.udp_dropped_total.labels("expired").value == 2
    assert metrics.udp_dropped_total.labels("queue-full").value == 3
    assert metrics.buffered_bytes.labels("ipc-worker").value == 7
    site.gateway.loop.advance(METRICS_SECONDS)
    assert metrics.udp_dropped_total.labels("expired").value == 2, "once"


def test_the_windows_of_all_open_flows_are_in_the_metrics(site: Site) -> None:
    metrics, loop = site.gateway.metrics, site.gateway.loop
    flows = [site.flow(), site.flow()]
    loop.advance(SWEEP_SECONDS)
    assert metrics.window_bytes.labels().value == 2 * site.session.receive_window
    flows[0].abort(CloseReason.RESET)
    loop.advance(SWEEP_SECONDS)
    assert metrics.window_bytes.labels().value == site.session.receive_window


def test_closed_flows_are_forgotten_when_the_peer_must_have_heard(site: Site) -> None:
    flow = site.flow()
    flow.abort(CloseReason.RESET)
    site.gateway.loop.advance(FORGET_SECONDS)
    assert flow.conn_id in site.session.core.closed
    site.gateway.loop.advance(FORGET_SECONDS)
    assert flow.conn_id not in site.session.core.closed


def test_the_row_of_a_status_has_the_sums(site: Site) -> None:
    site.flow()
    site.gateway.counters.sent["tcp"] = 5
    site.gateway.counters.received["udp"] = 6
    assert site.upkeep.status_row() == {
        "flows_tcp": 1,
        "flows_udp": 0,
        "sessions": 0,
        "bytes_up": 5,
        "bytes_down": 6,
        "buffered": 0,
    }


def test_nothing_is_done_after_the_end(site: Site) -> None:
    site.upkeep.stop()
    site.gateway.loop.advance(2 * FORGET_SECONDS)
    assert site.gateway.loop.timers == []
