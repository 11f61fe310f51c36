"""Which attempt wins, who is blamed for what is missing, and addresses that vanish."""

import asyncio
import errno
import logging
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest

from socks_tunnel.peer.ice import gathering, servers
from socks_tunnel.peer.ice.addresses import LocalAddress
from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.gathering import Gathering, first_success
from socks_tunnel.peer.ice.settings import IceServer, IceSettings, candidate_addresses

# --- addresses that vanish ----------------------------------------------------------------------


async def gathered(settings: IceSettings) -> tuple[list[str], list[str]]:
    """The addresses of the candidates, and the problems."""
    connection = IceConnection(ice_controlling=True)
    try:
        with candidate_addresses(settings):
            await connection.gather_candidates()
        return [candidate.host for candidate in connection.local_candidates], connection.problems
    finally:
        await connection.close()


async def test_an_address_that_is_gone_before_it_is_bound_costs_only_its_own_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = [LocalAddress("veth7", IPv4Address("203.0.113.1"))]
    monkeypatch.setattr(gathering, "local_addresses", lambda: gone)
    hosts, problems = await gathered(IceSettings(addresses=["veth7", "127.0.0.1"]))
    assert hosts == ["127.0.0.1"]
    assert problems == [f"203.0.113.1: {os.strerror(errno.EADDRNOTAVAIL)}"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)),
        UnicodeDecodeError("utf-8", b"veth\xff", 4, 5, "invalid start byte"),
    ],
)
async def test_where_addresses_cannot_be_listed_those_that_lead_out_are_taken(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse() -> list[LocalAddress]:
        raise error

    monkeypatch.setattr(gathering, "local_addresses", refuse)
    leads_out = [IPv4Address("127.0.0.1")]
    monkeypatch.setattr(gathering, "preferred_sources", lambda _: leads_out)
    hosts, problems = await gathered(IceSettings(addresses=["127.0.0.0/8"]))
    assert hosts == ["127.0.0.1"]
    (problem,) = problems
    assert problem.startswith("the addresses of this host cannot be listed: ")


# --- servers that are silent, late or dead ------------------------------------------------------


SERVER = "STUN server stun:192.0.2.1:3478"


class Gatherer(Gathering):
    """Asks a server that answers when the test says so, from a host candidate that has no socket."""

    def __init__(self, patience: float = servers.DEAD_AFTER) -> None:
        super().__init__(IceSettings(servers=[{"urls": "stun:192.0.2.1"}]), Any, [])
        self.answers = asyncio.Event()
        self.patience_of_all = patience

    async def _open_hosts(self) -> None:
        pass

    def _ask(self, servers: Sequence[IceServer]) -> None:
        super()._ask(servers)
        for inquiry in self._inquiries:
            inquiry.patience = self.patience_of_all

    async def _query(self, inquiry: servers.Inquiry) -> None:
        await self.answers.wait()
        self._answered(inquiry)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> servers.ServerMemory:
    made = servers.ServerMemory()
    monkeypatch.setattr(gathering, "MEMORY", made)
    return made


async def until_over(made: Gatherer) -> None:
    assert made._late is not None
    async with asyncio.timeout(60):
        await made._late


async def test_a_late_server_is_not_called_dead_and_the_next_link_waits_longer(
    memory: servers.ServerMemory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = Gatherer(patience=0.0)
    assert await made.run() == []
    assert made.problems == [f"{SERVER}: no answer within 0.0 s"]
    assert caplog.messages == []
    made.answers.set()
    await until_over(made)
    (message,) = caplog.messages
    assert re.fullmatch(rf"{SERVER} answers after \d+\.\d\d s, too late for this link", message)
    assert memory.patience(SERVER) >= servers.DEAD_AFTER


async def test_only_a_server_that_was_silent_for_all_of_its_time_is_called_dead(
    memory: servers.ServerMemory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "LONGEST", 0.3)
    made = Gatherer(patience=0.0)
    await made.run()
    await until_over(made)
    assert caplog.messages == [f"{SERVER}: no answer within 0.3 s; links are made without it"]


async def test_a_pause_of_the_process_is_nobodys_silence(
    memory: servers.ServerMemory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop is held up for a minute after the question: the answer waits in the socket."""
    caplog.set_level(logging.INFO)
    made = Gatherer(patience=30.0)
    running = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + 60)
    await asyncio.sleep(0.05)
    assert not running.done()
    made.answers.set()
    await running
    assert made.problems == []
    assert caplog.messages == []
    made.close()


async def test_a_connection_that_is_closed_meanwhile_accuses_nobody(
    memory: servers.ServerMemory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = Gatherer()
    running = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    made.close()
    await running
    assert made._late is None
    assert caplog.messages == []


async def test_who_may_only_be_direct_asks_no_relay(memory: servers.ServerMemory) -> None:
    made = Gatherer()
    relay = {"urls": "turn:192.0.2.1", "username": "u", "credential": "c"}
    made._settings = IceSettings(servers=[relay, {"urls": "stun:192.0.2.1"}], policy="direct")
    made.answers.set()
    await made.run()
    assert [str(inquiry.server) for inquiry in made._inquiries] == [SERVER]
    made.close()


# --- attempts side by side --------------------------------------------------------------------


async def never() -> str:
    await asyncio.Event().wait()
    raise AssertionError


async def works() -> str:
    return "works"


async def fails() -> str:
    raise ConnectionRefusedError("refused")


async def test_the_first_success_wins_and_the_rest_ends() -> None:
    ended = asyncio.Event()

    async def hangs() -> str:
        try:
            return await never()
        finally:
            ended.set()

    assert await first_success([hangs, works, never], 0, no_loser) == "works"
    assert ended.is_set()


def no_loser(result: str) -> None:
    raise AssertionError(result)


async def test_two_successes_in_one_turn_leave_nothing_behind() -> None:
    released: list[str] = []
    gate = asyncio.Event()

    begun: list[str] = []

    def succeeds(result: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def attempt() -> str:
            begun.append(result)
            if len(begun) == len(names):
                gate.set()  # all of them have their result in the next turn of the loop
            await gate.wait()
            return result

        return attempt

    names = ["one", "two", "three"]
    attempts = [succeeds(name) for name in names]
    won = await first_success(attempts, 0, released.append)
    await asyncio.sleep(0)
    assert sorted([won, *released]) == sorted(names)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancelled_caller_leaves_nothing_behind(stubborn: bool) -> None:
    released: list[str] = []
    gate = asyncio.Event()

    async def attempt() -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            if not stubborn:
                raise
        return "late"

    asking = asyncio.ensure_future(first_success([attempt, attempt], 0, released.append))
    for _ in range(5):
        await asyncio.sleep(0)
    if not stubborn:
        gate.set()
        await asyncio.sleep(0)  # both have their result in the turn in which the caller leaves
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert released == ["late", "late"]


async def test_a_failure_begins_the_next_attempt_at_once() -> None:
    assert await first_success([fails, works], 3600, no_loser) == "works"


async def test_the_first_error_is_told() -> None:
    with pytest.raises(ConnectionRefusedError, match="refused"):
        await first_success([fails, fails], 0, no_loser)
    with pytest.raises(OSError, match="it has no address"):
        await first_success([], 0, no_loser)
