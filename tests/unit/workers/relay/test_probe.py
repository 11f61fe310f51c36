"""Probes: how each ends, and that it always does."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    SendEof,
    UdpAssociateOpened,
    WindowUpdate,
)
from socks_tunnel_workers.relay.probe import GREETING_SECONDS, PROBE_SECONDS, ProbeFlow
from unit.workers.frontends.fakes import Gateway

BOUND = HostPort("192.0.2.9", 4000)


class Site:
    def __init__(self) -> None:
        self.gateway = Gateway()
        self.session = self.gateway.session()
        self.ended: list[int] = []
        self.flow = ProbeFlow(
            self.session, self.session.allocate(), HostPort("10.0.0.1", 443), self.ended.append
        )
        self.session.admit(self.flow)
        self.flow.ask()
        (opening,) = self.gateway.sent(self.session)
        assert opening == OpenConnection(self.flow.conn_id, "10.0.0.1", 443)


def test_a_target_that_is_reached_may_greet_before_the_probe_ends() -> None:
    site = Site()
    conn_id = site.flow.conn_id
    assert site.flow.as_row(site.gateway.loop.now)["state"] == "asked"
    site.gateway.answer(site.session, ConnectionOpened(conn_id, BOUND))
    assert site.ended == [0]
    assert site.flow.as_row(site.gateway.loop.now)["state"] == "connected"
    site.gateway.answer(
        site.session,
        Data(conn_id, b"220 hello\r\n"),
        WindowUpdate(conn_id, 0, 10),
        SendEof(conn_id),
    )
    assert site.gateway.sent(site.session) == []
    site.gateway.loop.advance(GREETING_SECONDS)
    assert site.gateway.sent(site.session) == [CloseConnection(conn_id, CloseReason.ORDERLY)]
    assert (site.ended, len(site.session.flows)) == ([0], 0)
    assert site.gateway.counters.active["probe"] == 0


@pytest.mark.parametrize("reason", [2, 4, 5])
def test_a_target_that_is_not_reached(reason: int) -> None:
    site = Site()
    site.gateway.answer(site.session, CloseConnection(site.flow.conn_id, reason))
    site.gateway.loop.advance(60)
    assert site.ended == [reason]


def test_a_close_without_a_reason_is_a_failure() -> None:
    site = Site()
    site.gateway.answer(site.session, CloseConnection(site.flow.conn_id, 0))
    assert site.ended == [CloseReason.GENERAL_FAILURE]


def test_a_target_that_does_not_answer_in_time() -> None:
    site = Site()
    site.gateway.loop.advance(PROBE_SECONDS)
    assert site.ended == [CloseReason.TTL_EXPIRED]
    assert site.gateway.sent(site.session) == [
        CloseConnection(site.flow.conn_id, CloseReason.TTL_EXPIRED)
    ]


def test_a_lost_link_says_nothing_of_the_target() -> None:
    site = Site()
    site.session.detach()
    assert site.ended == [CloseReason.RESUME_FAILED]
    site.gateway.loop.advance(60)
    assert site.ended == [CloseReason.RESUME_FAILED]


def test_its_row_of_a_resume_has_no_stream() -> None:
    site = Site()
    assert site.flow.row() == (site.flow.conn_id, 0, 0, 0)
    assert (site.flow.up, site.flow.down) == (0, 0)


@pytest.mark.parametrize("early", [True, False])
def test_what_has_no_place_in_a_probe_ends_it(early: bool) -> None:
    site = Site()
    conn_id = site.flow.conn_id
    wrong = Data(conn_id, b"x") if early else UdpAssociateOpened(conn_id)
    site.gateway.answer(site.session, wrong)
    assert site.ended == [CloseReason.PROTOCOL_ERROR]
