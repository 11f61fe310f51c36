"""A question about a name: asked, answered, asked again after a lost link."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Answer,
    CloseConnection,
    ConnectionOpened,
    Resolve,
    Resolved,
    ResolveKind,
)
from socks_tunnel_workers.frontends.resolving import Question
from socks_tunnel_workers.relay.session import WorkerSession
from unit.workers.frontends.fakes import Gateway


class Asker:
    """Who wants to know."""

    client = "127.0.0.1:5"

    def __init__(self) -> None:
        self.told: list[tuple[int, tuple[Answer, ...]]] = []

    def answered(self, reason: int, answers: tuple[Answer, ...]) -> None:
        self.told.append((reason, answers))


def asked() -> tuple[Gateway, WorkerSession, Asker, Question]:
    gateway = Gateway()
    session = gateway.session()
    asker = Asker()
    question = Question(session, session.allocate(), asker, ResolveKind.ADDRESSES, "a.b")
    session.admit(question)
    question.ask()
    assert gateway.sent(session) == [Resolve(question.conn_id, ResolveKind.ADDRESSES, "a.b")]
    return gateway, session, asker, question


@pytest.mark.parametrize("answers", [(), (Answer(1, "10.0.0.1"), Answer(1, "::1"))])
def test_an_answer_ends_it(answers: tuple[Answer, ...]) -> None:
    gateway, session, asker, question = asked()
    gateway.answer(session, Resolved(question.conn_id, 0, answers))
    assert asker.told == [(0, answers)]
    assert not list(session.flows)
    gateway.answer(session, Resolved(question.conn_id, 0, answers))
    assert len(asker.told) == 1


@pytest.mark.parametrize(
    ("close", "reason"), [(CloseReason.ORDERLY, 1), (CloseReason.RESOURCE_LIMIT, 0x17)]
)
def test_a_close_in_place_of_an_answer(close: CloseReason, reason: int) -> None:
    gateway, session, asker, question = asked()
    gateway.answer(session, CloseConnection(question.conn_id, close))
    assert asker.told == [(reason, ())]


def test_nothing_else_is_an_answer() -> None:
    gateway, session, asker, question = asked()
    gateway.answer(session, ConnectionOpened(question.conn_id, HostPort("192.0.2.1", 1)))
    assert asker.told == [(CloseReason.PROTOCOL_ERROR, ())]
    assert gateway.sent(session) == [CloseConnection(question.conn_id, CloseReason.PROTOCOL_ERROR)]


def test_it_is_asked_again_if_the_answer_may_have_been_lost() -> None:
    gateway, session, asker, question = asked()
    assert question.row() == (question.conn_id, 0, 0, 0)
    assert question.on_missing()
    assert gateway.sent(session) == [Resolve(question.conn_id, ResolveKind.ADDRESSES, "a.b")]
    assert asker.told == []


def test_it_carries_nothing() -> None:
    _, _, _, question = asked()
    assert (question.up, question.down, question.state, question.kind) == (0, 0, "asked", "resolve")
