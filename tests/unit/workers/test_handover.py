"""The records of a worker's state. Whole workers: tests/integration/test_worker_handover.py."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.handover import STATE_VERSION, Head, StateWriter
from socks_tunnel.protocol.messages import ResolveKind
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.frontends.resolving import Question
from socks_tunnel_workers.handover import Heirs, Inheritance, close_lent, record_of, write_state
from socks_tunnel_workers.relay import handover as relay_handover
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.tcp import TcpRelay
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.handed import Kernel

TARGET = HostPort("target.example", 80)


def flow(gateway: Gateway, session: WorkerSession, conn_id: int) -> TcpRelay:
    relay = TcpRelay(session, conn_id, command="connect", client="c", destination=TARGET)
    relay.core.open()
    session.admit(relay)
    relay.attach(cast("Any", Sock(gateway.loop)))
    return relay


class Next:
    """The next program."""

    def __init__(self) -> None:
        self.gateway = Gateway()
        self.sessions: list[WorkerSession] = []

    def open_session(self, number: int, peer: str) -> WorkerSession:
        assert (number, peer) == (7, "office")
        session = self.gateway.session()
        session.detach()
        self.sessions.append(session)
        return session

    def restore(self, state: int) -> tuple[Inheritance, str | None]:
        inheritance = Inheritance(state)
        heirs = Heirs(self.gateway.counters, self.gateway.clients, None, [])
        return inheritance, inheritance.restore(heirs, self.open_session)


def state_of(*records: dict[str, Any], version: int = STATE_VERSION, end: bool = True) -> int:
    state = os.memfd_create("test")
    with os.fdopen(state, "wb", closefd=False) as file:
        writer = StateWriter(file, Head(version, "9.0"))
        for record in records:
            writer.write(record)
        if end:
            writer.finish()
    return state


def test_sessions_flows_and_totals_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, relay_handover)
    old = Gateway()
    session = old.session()
    relays = [flow(old, session, conn_id) for conn_id in (3, 4)]
    relays[0].started = 900.0
    old.counters.sent["tcp"] = 1000
    old.counters.received["udp"] = 2000
    session.core.closed[2] = 16
    session.detach()
    state, flows = write_state({7: session}, old.counters)
    assert flows == 2

    new = Next()
    inheritance, problem = new.restore(state)
    assert (problem, inheritance.flows, inheritance.lost) == (None, 2, 0)
    (restored,) = new.sessions
    assert restored.flows.ids() == [3, 4]
    assert [each.started for each in restored.flows] == [900.0, relays[1].started]
    assert restored.core.closed == {2: 16}
    assert restored.detached_at == session.detached_at
    assert new.gateway.counters.totals(gateway=True) == old.counters.totals(gateway=True)
    new.gateway.counters.export(new.gateway.metrics, gateway=True)
    assert new.gateway.metrics.bytes_total.labels("up", "tcp").value == 0, "exported before"


def test_a_question_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, relay_handover)
    gateway = Gateway()
    session = gateway.session()
    asker = cast("Opening", type("Asker", (), {"client": "c"})())
    question = Question(session, 5, asker, ResolveKind.ADDRESSES, "a.example")
    assert record_of(question) is None
    session.admit(question)
    session.detach()
    state, flows = write_state({7: session}, gateway.counters)
    os.close(state)
    assert flows == 0


def test_a_record_that_cannot_be_used_costs_its_own_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, relay_handover)
    old = Gateway()
    session = old.session()
    relay = flow(old, session, 3)
    session.detach()
    good = {"kind": "client-stream", **relay_handover.export_relay(relay)}
    opened = {
        "kind": "session", "number": 7, "peer": "office", "detached_at": 1.0, "closed": [],
        "terms": None,
    }  # fmt: skip
    new = Next()
    inheritance, problem = new.restore(
        state_of(
            good,  # before its session
            opened,
            good | {"fd": 999},
            good | {"kind": "target-stream"},
            good | {"kind": "novelty"},
            {"kind": "session", "number": 0},
            {"kind": "counters", "sent": {"tcp": -1}, "received": {}},
            good,
        )
    )
    assert problem is None
    assert (inheritance.flows, inheritance.lost) == (1, 6)
    assert new.sessions[0].flows.ids() == [3]


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"version": STATE_VERSION + 1}, "written by 9.0; this program reads 1"),
        ({"end": False}, "too early"),
    ],
)
def test_a_state_that_cannot_be_read_is_reported(state: dict[str, Any], complaint: str) -> None:
    new = Next()
    _, problem = new.restore(state_of(**state))
    assert problem is not None
    assert complaint in problem


def test_descriptors_that_nobody_has_adopted_are_closed() -> None:
    lent, adopted = (os.memfd_create("a"), os.memfd_create("b"))
    os.set_inheritable(lent, True)
    close_lent({"fd": lent, "control": adopted, "listener": None, "sockets": [[2, -1], "x"]})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lent)
    os.close(adopted)
