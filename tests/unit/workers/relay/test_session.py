"""A session as a worker sees it: what is told to the supervisor, counted and logged.

And what all flows have in common: what they refuse, their row, and their end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.ipc import Attach, Attached, Credit, Demand
from socks_tunnel.protocol.messages import (
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    ResolveKind,
    SendEof,
    UdpPacket,
    WindowUpdate,
    message_header,
)
from socks_tunnel.protocol.session import CLOSED_REMEMBERED_MAX
from socks_tunnel.protocol.streams import WINDOW_MAX
from socks_tunnel_workers.frontends.resolving import Question
from socks_tunnel_workers.relay.probe import ProbeFlow
from socks_tunnel_workers.relay.session import ROWS_PER_FRAME, Flow, WorkerSession, reason_name
from socks_tunnel_workers.relay.tcp import TcpRelay
from unit.workers.frontends.fakes import Gateway, Sock

ATTACH = Attach(
    window=1000, max_data=500, idle_udp=300, features=["resume"], credit=100, resume=True
)


TARGET = HostPort("::1", 443)


class Client:
    """Waits for the answer to its flow."""

    def opened(self, bound: HostPort) -> None:
        pass

    def listening(self, bound: HostPort) -> None:
        pass

    def failed(self, reason: int) -> None:
        pass


def asked(session: WorkerSession, conn_id: int) -> TcpRelay:
    """A flow that its session has asked for."""
    flow = TcpRelay(
        session,
        conn_id,
        command="connect",
        client="127.0.0.1:5",
        destination=TARGET,
        opener=Client(),
        opening=OpenConnection(conn_id, *TARGET).encode(),
    )
    session.admit(flow)
    flow.ask()
    return flow


def probe(session: WorkerSession, conn_id: int) -> ProbeFlow:
    return ProbeFlow(session, conn_id, TARGET, lambda _reason: None)


class Questioner:
    client = "127.0.0.1:5"

    def answered(self, reason: int, answers: tuple[Any, ...]) -> None:
        pass


def question(session: WorkerSession, conn_id: int) -> Question:
    return Question(session, conn_id, Questioner(), ResolveKind.ADDRESSES, "name.example")


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
        flow = probe(session, conn_id)
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


def test_flows_that_owe_bytes_end_with_the_session(
    gateway: Gateway, session: WorkerSession
) -> None:
    flow = asked(session, 3)
    sock = Sock(gateway.loop)
    sock.room = 0
    gateway.answer(session, ConnectionOpened(3, TARGET))
    flow.attach(cast("Any", sock))
    gateway.answer(session, Data(3, b"owed"), CloseConnection(3, CloseReason.ORDERLY))
    assert session.lingering == {flow}
    gateway.sent(session)
    session.end(CloseReason.SHUTTING_DOWN, tell_peer=True)
    assert gateway.sent(session) == [], "on the wire it was over already"
    assert sock.reset
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


# --- flows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (CloseReason.ORDERLY, "orderly"),
        (CloseReason.IDLE_TIMEOUT, "idle-timeout"),
        (0xEE, "0xee"),
    ],
)
def test_a_reason_has_a_name_even_if_it_is_unknown(reason: int, name: str) -> None:
    assert reason_name(reason) == name


def test_what_a_flow_does_not_expect_is_an_error_of_the_peer(session: WorkerSession) -> None:
    flow = question(session, 9)
    handlers: list[tuple[str, Callable[[], None]]] = [
        ("DATA", lambda: flow.on_data(memoryview(b"x"))),
        ("WINDOW_UPDATE", lambda: flow.on_window(WindowUpdate(9, 0, 1))),
        ("UDP_PACKET", lambda: flow.on_datagram(memoryview(b"x"))),
        ("SendEof", lambda: Flow.on_message(flow, SendEof(9))),
        ("OpenConnection", lambda: flow.on_repeated(OpenConnection(9, "a", 1))),
    ]
    for name, handle in handlers:
        with pytest.raises(RemoteProtocolError, match=f"^{name} is not allowed in a res") as caught:
            handle()
        assert (caught.value.kind, caught.value.conn_id) == ("unexpected-message", 9)
    assert probe(session, 11).on_missing() is False, "nothing is asked for again"


def test_the_row_of_a_flow_for_operators(gateway: Gateway, session: WorkerSession) -> None:
    flow = asked(session, 9)
    flow.write_early(b"hello")
    gateway.answer(session, Data(9, b"1234567"))
    assert flow.as_row(gateway.loop.now + 1.25) == {
        "peer": "office",
        "conn_id": 9,
        "kind": "tcp",
        "command": "connect",
        "client": "127.0.0.1:5",
        "destination": "[::1]:443",
        "state": "opening",
        "seconds": 1.25,
        "up": 5,
        "down": 7,
        "held": flow.core.cost,
    }
    assert flow.core.cost >= 12
    flow.destination = None
    assert flow.as_row(gateway.loop.now)["destination"] == ""
    assert not flow.udp


def test_a_flow_leaves_once_with_one_line_in_the_audit(
    gateway: Gateway, session: WorkerSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "socks_tunnel.audit")
    flow = asked(session, 9)
    assert gateway.counters.active["tcp"] == 1
    gateway.loop.advance(3)
    assert flow.end(CloseReason.RESET)
    assert not flow.end(CloseReason.ORDERLY)
    assert gateway.counters.active["tcp"] == 0
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["reason"], fields["flow"], fields["seconds"]) == ("reset", 9, 3.0)
