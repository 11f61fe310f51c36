"""The check list and the nomination, on a connection whose checks the test answers."""

import asyncio
from collections import defaultdict
from typing import Any

import aioice
from aioice import stun
from aioice.ice import CandidatePair

from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.pairs import (
    PAIRS_LEARNED_MAX,
    PAIRS_MAX,
    CandidateType,
    candidate_priority,
)

State = CandidatePair.State


def candidate(kind: CandidateType, host: str, port: int = 1000, rank: int = 0) -> aioice.Candidate:
    return aioice.Candidate(
        foundation=host,
        component=1,
        transport="udp",
        priority=candidate_priority(kind, 65_535 - rank),
        host=host,
        port=port,
        type=kind,
    )


class Dropping:
    """The transport of a socket, with what it has dropped."""

    def __init__(self) -> None:
        self.drops = {"socket-full": 0}


class Base:
    """A socket of the connection: checks wait until the test answers them."""

    def __init__(self, own: aioice.Candidate) -> None:
        self.local_candidate = own
        self.transport = Dropping()
        self.checks: dict[tuple[str, int], list[tuple[stun.Message, asyncio.Future[Any]]]] = (
            defaultdict(list)
        )
        self.checked = asyncio.Event()
        self.repeated: list[tuple[stun.Message, tuple[str, int]]] = []
        self.closed = False
        self.heard_at = 0.0

    async def request(
        self, request: stun.Message, addr: tuple[str, int], integrity_key: bytes
    ) -> tuple[stun.Message, tuple[str, int]]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.checks[addr].append((request, answer))
        self.checked.set()
        result: tuple[stun.Message, tuple[str, int]] = await answer
        return result

    def answer(self, addr: tuple[str, int], mapped: tuple[str, int] | None = None) -> stun.Message:
        """Answer the latest check to an address; the request that it was."""
        request, answer = self.checks[addr][-1]
        response = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE)
        if mapped is not None:
            response.attributes["XOR-MAPPED-ADDRESS"] = mapped
        answer.set_result((response, addr))
        return request

    def send_stun(self, message: stun.Message, addr: tuple[str, int]) -> None:
        self.repeated.append((message, addr))
        self.checked.set()

    async def close(self) -> None:
        self.closed = True


def connection(*bases: Base, remote: list[aioice.Candidate], controlling: bool = True) -> Any:
    made: Any = IceConnection(ice_controlling=controlling)
    made._ours = True
    made._local_candidates_start = made._local_candidates_end = True
    made._protocols += bases
    made._remote_candidates += remote
    made._remote_candidates_end = True
    made.remote_username, made.remote_password = "user", "p" * 22
    return made


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def until_checked(base: Base, addr: tuple[str, int], count: int = 1) -> None:
    """Wait until the connection has sent so many checks: it paces them by 20 ms."""
    async with asyncio.timeout(60):
        while len(base.checks[addr]) < count:
            base.checked.clear()
            await base.checked.wait()


HOST, RELAY = candidate("host", "192.0.2.1"), candidate("relay", "203.0.113.1")
THEIR_HOST, THEIR_RELAY = candidate("host", "192.0.2.9"), candidate("relay", "203.0.113.9")


async def test_the_list_is_bounded_and_in_order() -> None:
    bases = [Base(candidate("host", f"192.0.2.{i}", rank=i)) for i in range(1, 17)]
    bases.append(Base(RELAY))
    remote = [candidate("host", f"198.51.100.{i}", rank=i) for i in range(1, 65)]
    made = connection(*bases, remote=[*remote, THEIR_RELAY])
    made._unfreeze_initial()
    pairs = made._check_list
    assert len(pairs) == PAIRS_MAX
    assert (pairs[0].local_addr[0], pairs[0].remote_addr[0]) == ("192.0.2.1", "198.51.100.1")
    assert [made._priority(p) for p in pairs] == sorted(map(made._priority, pairs), reverse=True)
    assert pairs[-1].local_candidate is RELAY
    assert pairs[-1].remote_candidate is THEIR_RELAY
    assert {p.state for p in pairs} == {State.WAITING}


async def test_a_peer_cannot_fill_the_list() -> None:
    base = Base(HOST)
    made = connection(base, remote=[THEIR_HOST])
    made._unfreeze_initial()
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    message.attributes["PRIORITY"] = 1
    for port in range(1, 1000):
        made.check_incoming(message, ("192.0.2.9", port), base)
    assert len(made._check_list) == PAIRS_MAX + PAIRS_LEARNED_MAX
    await made.close()
