"""Two agents' sockets: the first check is aioice's, those after it are answered without it."""

import time
from typing import Any

import pytest
from aioice import Candidate, stun
from aioice.ice import CandidatePair

from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.pairs import candidate_priority
from socks_tunnel.peer.ice.protocol import PathProtocol

HERE, THERE = ("192.0.2.1", 1000), ("192.0.2.9", 1000)


class Wire:
    """A transport: what is sent waits in `sent`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.broken = False

    def sendto(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.broken:
            raise RuntimeError("the transport is closed")
        self.sent.append(data)

    def take(self) -> bytes:
        (data,) = self.sent
        self.sent.clear()
        return data


def candidate(address: tuple[str, int]) -> Candidate:
    return Candidate(
        foundation="1",
        component=1,
        transport="udp",
        priority=candidate_priority("host", 1),
        host=address[0],
        port=address[1],
        type="host",
    )


def agent(*, controlling: bool) -> Any:
    return IceConnection(ice_controlling=controlling)


class Agent:
    """An agent that has nominated its one pair."""

    def __init__(self, own: tuple[str, int], other: tuple[str, int], *, controlling: bool) -> None:
        self.ice = agent(controlling=controlling)
        self.ice._ours = True
        self.ice._early_checks_done = True
        self.wire = Wire()
        self.protocol = PathProtocol(self.ice, self.ice._consented)
        self.protocol.connection_made(self.wire)  # type: ignore[arg-type] # a datagram transport
        self.protocol.local_candidate = candidate(own)
        self.pair = CandidatePair(self.protocol, candidate(other))
        self.pair.state = CandidatePair.State.SUCCEEDED
        self.ice._protocols.append(self.protocol)
        self.ice._remote_candidates.append(self.pair.remote_candidate)
        self.ice._check_list.append(self.pair)
        self.ice._nominated[1] = self.pair
        self.looked_at: list[bytes] = []
        look = self.ice.request_received

        def request_received(message: stun.Message, *rest: Any) -> None:
            self.looked_at.append(message.transaction_id)
            look(message, *rest)

        self.ice.request_received = request_received


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment is the same for all of a test."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)


def two_agents() -> tuple[Agent, Agent]:
    one, two = Agent(HERE, THERE, controlling=True), Agent(THERE, HERE, controlling=False)
    for this, other in ((one, two), (two, one)):
        this.ice.remote_username = other.ice.local_username
        this.ice.remote_password = other.ice.local_password
    return one, two


def seen(of: Agent) -> float | None:
    """When its peer has last answered."""
    at: float | None = of.ice.seen_at
    return at


def ask(asking: Agent, answering: Agent) -> bytes:
    """Carry one check and its answer, which is returned."""
    asking.protocol.ask_consent(asking.pair)
    answering.protocol.datagram_received(asking.wire.take(), answering.pair.remote_addr)
    answer = answering.wire.take()
    asking.protocol.datagram_received(answer, asking.pair.remote_addr)
    return answer


async def test_only_the_first_check_is_read_by_aioice() -> None:
    one, two = two_agents()
    for asking, answering in ((one, two), (two, one)):
        answers = [ask(asking, answering) for _ in range(3)]
        assert len(answering.looked_at) == 1
        assert len({stun.parse_message(answer).transaction_id for answer in answers}) == 3
        assert {len(answer) for answer in answers} == {len(answers[0])}


async def test_an_answer_is_a_sign() -> None:
    one, two = two_agents()
    assert seen(one) is None
    ask(one, two)
    assert seen(one) == 100.0
    assert seen(two) is None  # it was asked, and has not asked


async def test_what_was_not_asked_for_or_is_forged_is_no_sign() -> None:
    one, two = two_agents()
    one.protocol.ask_consent(one.pair)
    two.protocol.datagram_received(one.wire.take(), HERE)
    answer = two.wire.take()
    forged = answer[:-1] + bytes([answer[-1] ^ 1])
    one.protocol.datagram_received(forged, THERE)
    assert seen(one) is None
    one.protocol.datagram_received(answer, THERE)
    assert seen(one) == 100.0
    one.ice.seen_at = None
    one.protocol.datagram_received(answer, THERE)  # once more
    assert seen(one) is None


async def test_another_role_another_pair_and_a_nomination_are_for_aioice() -> None:
    one, two = two_agents()
    ask(one, two)
    ask(one, two)
    assert len(two.looked_at) == 1
    two.ice.switch_role(ice_controlling=False)
    ask(one, two)
    assert len(two.looked_at) == 2
    nomination = one.ice.build_request(one.pair, nominate=True)
    nomination.add_message_integrity(one.ice.remote_password.encode())
    for number in (3, 4):
        two.protocol.datagram_received(bytes(nomination), HERE)
        assert len(two.looked_at) == number
    two.ice._nominated.clear()
    two.protocol.forget()
    two.wire.sent.clear()
    for number in (5, 6):
        ask(one, two)
        assert len(two.looked_at) == number


async def test_a_socket_that_is_gone_does_no_harm() -> None:
    one, two = two_agents()
    ask(one, two)
    one.protocol.ask_consent(one.pair)
    request = one.wire.take()
    two.wire.broken = True
    two.protocol.datagram_received(request, HERE)
    two.wire.broken = False
    two.ice._closing = True
    two.protocol.datagram_received(request, HERE)
    assert not two.wire.sent
    one.wire.broken = True
    with pytest.raises(RuntimeError):
        one.protocol.ask_consent(one.pair)
