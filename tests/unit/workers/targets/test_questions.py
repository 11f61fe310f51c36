"""RESOLVE: who is answered, and when. Names: tests/integration/test_worker_names.py."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from socks_tunnel.protocol.errors import CloseReason, Reply
from socks_tunnel.protocol.messages import Answer, Resolve, Resolved, ResolveKind
from socks_tunnel_workers.targets.questions import QUESTIONS_MAX, Questions
from support.target_services import Session, services

NAME, ADDRESSES = ResolveKind.NAME, ResolveKind.ADDRESSES


class Waiting:
    """A resolver whose answers come when the test says so."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self.asked = 0

    async def reverse(self, *_address: Any, **_options: Any) -> list[str]:
        self.asked += 1
        return await asyncio.shield(self.answer)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def resolver() -> Waiting:
    return Waiting()


@pytest.fixture
def session() -> Any:
    return Session()


def questions(resolver: Waiting, *hosts: str) -> Questions:
    return Questions(services(*hosts), cast("Any", resolver))


async def test_an_address_is_its_own_answer_if_it_may_be_reached(
    resolver: Waiting, session: Any
) -> None:
    asked = questions(resolver, "192.0.2.0/24")
    asked.ask(session, Resolve(1, ADDRESSES, "192.0.2.1"))
    asked.ask(session, Resolve(2, ADDRESSES, "198.51.100.1"))
    asked.ask(session, Resolve(3, NAME, "198.51.100.1"))
    await turns()
    assert session.sent == [
        Resolved(1, CloseReason.ORDERLY, (Answer(60, "192.0.2.1"),)),
        Resolved(2, Reply.NOT_ALLOWED),
        Resolved(3, Reply.NOT_ALLOWED),
    ]
    assert resolver.asked == 0
    assert not session.core.questions


async def test_a_bug_is_answered_too(
    resolver: Waiting, session: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked = questions(resolver, "192.0.2.0/24")
    resolver.answer.set_exception(ZeroDivisionError())
    with caplog.at_level("CRITICAL"):
        asked._services = services("0.0.0.0")
        cast("Any", asked)._find = resolver.reverse
        asked.ask(session, Resolve(1, NAME, "192.0.2.1"))
        await turns()
    assert session.sent == [Resolved(1, Reply.GENERAL_FAILURE)]
    assert not session.core.questions


async def test_questions_are_counted_for_each_session(resolver: Waiting, session: Any) -> None:
    asked = questions(resolver, "192.0.2.0/24")
    cast("Any", asked)._find = resolver.reverse
    for number in range(1, QUESTIONS_MAX + 1):
        asked.ask(session, Resolve(number, NAME, "192.0.2.1"))
    asked.ask(session, Resolve(QUESTIONS_MAX + 1, NAME, "192.0.2.1"))
    assert session.sent == [Resolved(QUESTIONS_MAX + 1, CloseReason.RESOURCE_LIMIT)]
    other: Any = Session(number=4)
    asked.ask(other, Resolve(1, NAME, "192.0.2.1"))
    assert len(other.core.questions) == 1
    session.core.questions.give_up_all()
    resolver.answer.set_result([])
    await turns()
    assert len(session.sent) == 1, "nobody waits for what was given up"
    assert other.sent == [Resolved(1)]
    assert not other.core.questions
