"""A peer that sends a list of a million rows in RESUME, beside another peer whose flow goes on.

The rows are said to be of open flows. Nobody has them, so each would get an answer. The peer loses its link
for it; the flow of the other peer has its answers meanwhile, and lives.
"""

import asyncio
from collections.abc import Sequence

import pytest

from integration.links_world import FakeWorker, Side, World, until
from socks_tunnel.peer import Link
from socks_tunnel.protocol.ipc import PeerRows
from socks_tunnel.protocol.messages import RESUME_ROWS_MAX, Data, OpenConnection, Resume
from socks_tunnel.supervisor.routing import AttachedLink, RoutedSession
from support.figures import Told

ROWS = 1_000_000

FLOWS_MAX = 20_000
"""Flows that the endpoint may have with each peer: rows of twice as many, and a few more, are taken."""

FLOW = 2


class Echo(FakeWorker):
    """A worker whose flows answer each DATA with the same."""

    def send_messages(self, session: int, messages: Sequence[bytes]) -> None:
        super().send_messages(session, messages)
        assert self.routes is not None
        answers = [memoryview(message) for message in messages if message[0] == Data.TYPE]
        if answers:
            self.routes.from_worker(session, answers)


async def keep_asking(side: Side, answers: list[int]) -> None:
    """Sends one DATA after another on a flow, each when the one before has come back."""
    ((number, _),) = side.router.sessions.items()
    await until(lambda: side.router.target == number)
    side.routes.from_worker(number, [memoryview(OpenConnection(FLOW, "echo", 7).encode())])
    while True:
        question = Data(FLOW, b"%d" % len(answers)).encode()
        side.routes.from_worker(number, [memoryview(question)])
        async with asyncio.timeout(60):
            while (number, question) not in side.worker.messages[-1:]:
                await asyncio.sleep(0)
        answers.append(len(answers))


async def test_a_list_of_a_million_costs_its_sender_the_link_and_nobody_else_anything(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: Told
) -> None:
    caplog.set_level("INFO")
    endpoint = world.endpoint("office", "laptop", "tablet")
    endpoint.router.flows_per_session = FLOWS_MAX
    endpoint.worker = worker = Echo()
    endpoint.routes = worker.routes = endpoint.router.worker_up(0, worker)
    honest, liar = world.gateway("tablet"), world.gateway("laptop")
    await endpoint.manager.start()
    await honest.manager.start()
    await until(lambda: honest.up and endpoint.up)
    answers: list[int] = []
    asking = asyncio.create_task(keep_asking(honest, answers))
    await until(lambda: answers)
    honest.manager.goaway()  # no second link beside this one, however busy the machine is

    send_resume, take_resume = Link.send_resume, RoutedSession.from_peer_resume
    answered_at: list[int] = []  # how many answers there were when each part of the list was taken

    def hold_back(link: Link, resume: Resume) -> None:
        if all(mine.link is not link for mine in liar.manager.links):
            send_resume(link, resume)

    def take(session: RoutedSession, link: AttachedLink, resume: Resume) -> None:
        if session.peer == "laptop" and session.router is endpoint.router:
            answered_at.append(len(answers))
        take_resume(session, link, resume)

    monkeypatch.setattr(Link, "send_resume", hold_back)
    monkeypatch.setattr(RoutedSession, "from_peer_resume", take)
    await liar.manager.start()
    await until(lambda: liar.up)
    (link,) = liar.up
    for start in range(1, ROWS, RESUME_ROWS_MAX):
        rows = tuple((conn_id, 0, 0, 1) for conn_id in range(start, start + RESUME_ROWS_MAX))
        send_resume(link.link, Resume(rows, last=False))
        await asyncio.sleep(0)
        if link.ended.done():
            break
    await until(link.ended.done)
    await until(lambda: "closing link laptop: " in caplog.text)
    before = len(answers)
    await until(lambda: len(answers) > before)
    asking.cancel()
    told(f"{answered_at[-1] - answered_at[0]} answers while {len(answered_at)} RESUMEs were taken")
    assert answered_at[-1] > answered_at[0]
    assert "rows came in RESUME, more than the peer can have flows" in caplog.text
    assert "closing link tablet" not in caplog.text
    (session,) = [each for each in endpoint.router.sessions.values() if each.peer == "tablet"]
    assert session.flows == 1
    # Rows of flows that nobody has reach no worker.
    assert not [told_of for told_of in worker.told(PeerRows) if told_of.rows]
