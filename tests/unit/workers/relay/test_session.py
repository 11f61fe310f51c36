"""A session as a worker sees it: what is told to the supervisor, counted and logged."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.ipc import Attach, Attached, Credit, Demand
from socks_tunnel.protocol.messages import Data, UdpPacket, message_header
from socks_tunnel.protocol.session import CLOSED_REMEMBERED_MAX
from socks_tunnel.protocol.streams import WINDOW_MAX
from socks_tunnel_workers.relay.flow import Flow
from socks_tunnel_workers.relay.session import ROWS_PER_FRAME, WorkerSession
from unit.workers.frontends.fakes import Gateway

ATTACH = Attach(
    window=1000, max_data=500, idle_udp=300, features=["resume"], credit=100, resume=True
)


class Owing(Flow):
    """A flow whose socket is owed bytes."""

    kind = "tcp"
    up = down = 0
    state = "closing"
    aborted: tuple[int, bool] | None = None

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        self.aborted = reason, tell_peer
        self.session.lingered(self)  # type: ignore[attr-defined]  # it is a whole session here


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def session(gateway: Gateway) -> WorkerSession:
    return gateway.session()


def controls(session: WorkerSession, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    sent: list[Any] = []
    monkeypatch.setattr(
        session.services.channel, "send_control", lambda number, what: sent.append((number, what))
    )
    return sent


@pytest.mark.parametrize(
    ("rows", "frames"),
    [(0, [0]), (1, [1]), (ROWS_PER_FRAME, [2000]), (ROWS_PER_FRAME + 1, [2000, 1])],
)
def test_rows_of_resume_go_to_the_supervisor_in_frames_that_fit(
    session: WorkerSession, monkeypatch: pytest.MonkeyPatch, rows: int, frames: list[int]
) -> None:
    assert rows <= CLOSED_REMEMBERED_MAX
    session.detach()
    for conn_id in range(1, rows + 1):
        session.core.close(conn_id, CloseReason.ORDERLY)
    sent = controls(session, monkeypatch)
    session.attach(ATTACH)
    assert [(number, len(what.rows), what.last) for number, what in sent] == [
        (7, size, at == len(frames) - 1) for at, size in enumerate(frames)
    ]
    assert all(isinstance(what, Attached) for _, what in sent)


def test_the_chunk_suits_the_link_and_the_peer(session: WorkerSession) -> None:
    session.attach(ATTACH)
    session.grant(Credit(10, 400, 20_000))
    assert (session.chunk, session.round_trip) == (400, 0.02)
    session.grant(Credit(10, 600, 20_000))
    assert session.chunk == 500, "the peer allows no more"


def test_how_many_flows_waited_for_credit_is_told(
    session: WorkerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.attach(replace(ATTACH, credit=0))
    sent = controls(session, monkeypatch)
    session.grant(Credit(0, 400, 20_000))
    assert sent == [], "none wait"
    for conn_id in (1, 3):
        flow = Owing(session, conn_id, command="connect", client="c")
        flow.served = 1  # more than its share: it has to wait for credit
        session.scheduler.wait(flow)
    session.grant(Credit(0, 400, 20_000))
    session.grant(Credit(0, 400, 20_000))
    assert sent == [(7, Demand(2))], "once, as long as it is new"


def test_a_window_grows_only_while_memory_is_plenty(session: WorkerSession) -> None:
    memory = session.memory
    assert session.window_max == min(WINDOW_MAX, memory.limit >> 3)
    memory.limit = 8000
    assert session.window_max == 1000
    memory.used = 4000
    assert session.window_max == 0


def test_when_it_lost_its_link_is_remembered(gateway: Gateway, session: WorkerSession) -> None:
    gateway.loop.advance(5)
    session.detach()
    lost = gateway.loop.now
    assert session.detached_at == lost
    gateway.loop.advance(5)
    session.detach()
    assert session.detached_at == lost
    assert not session.open_to_send


def test_flows_that_owe_bytes_end_with_the_session(session: WorkerSession) -> None:
    flow = Owing(session, 3, command="connect", client="c")
    session.linger(flow)
    session.end(CloseReason.SHUTTING_DOWN, tell_peer=True)
    assert flow.aborted == (CloseReason.SHUTTING_DOWN, False), "on the wire it was over already"
    assert not session.lingering
    session.lingered(flow)  # harmless


@pytest.mark.filterwarnings("error")
def test_an_error_is_counted_each_time_and_logged_once_a_kind_and_link(
    gateway: Gateway, session: WorkerSession, caplog: pytest.LogCaptureFixture
) -> None:
    before = gateway.counted("protocol_errors_total", "lie")
    for _ in range(3):
        session.protocol_error(RemoteProtocolError("a lie", kind="lie"), 5)
    assert gateway.counted("protocol_errors_total", "lie") == before + 3
    (record,) = caplog.records
    assert "peer office broke the protocol in flow 5 (lie): a lie" in record.getMessage()
    session.attach(ATTACH)
    session.protocol_error(RemoteProtocolError("a lie", kind="lie"), 5)
    assert len(caplog.records) == 2, "another link"


def test_a_bug_is_logged_once_a_kind_with_its_traceback(
    gateway: Gateway, session: WorkerSession, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (ValueError("one"), ValueError("two"), KeyError("three")):
        session.bug(error, 5)
    assert gateway.counted("protocol_errors_total", "bug") == 3
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ValueError,
        KeyError,
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_bytes_for_nobody_are_counted(gateway: Gateway, session: WorkerSession) -> None:
    session.receive([memoryview(Data(5, b"x").encode())])
    assert gateway.counted("messages_late_total") == 1
    session.receive([memoryview(UdpPacket(5, b"x").encode())])
    assert gateway.counted("messages_late_total") == 1
    unknown = session.metrics.messages_unknown_total
    before = unknown.value
    session.receive([memoryview(message_header(250, 5))])
    assert unknown.value == before + 1
