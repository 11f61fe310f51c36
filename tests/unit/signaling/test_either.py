"""Direct first, and then the service."""

import pytest

from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.signaling.carrier import IceServers, SignalingError
from socks_tunnel.signaling.either import DirectFirst


class Way:
    """A carrier that answers, or fails."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name = name
        self.fails = fails
        self.calls: list[tuple[object, ...]] = []

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:
        self.calls.append(("offer", envelope, timeout))
        if self.fails:
            raise SignalingError(f"{self.name} failed")
        return b"answer", f"/{self.name} 1"

    async def ice_servers(self, timeout: float) -> IceServers:
        if self.fails:
            raise SignalingError(f"{self.name} failed")
        return [{"urls": f"turn:{self.name}:{timeout:g}"}]

    def relay(self) -> DatagramRelay | None:
        self.calls.append(("relay",))
        return None

    async def bye(self, handle: str, envelope: bytes) -> None:
        self.calls.append(("bye", handle, envelope))

    async def appeared(self) -> None:
        self.calls.append(("appeared",))


@pytest.fixture
def ways() -> tuple[Way, Way, DirectFirst]:
    direct, other = Way("direct"), Way("service")
    return direct, other, DirectFirst(direct, other)


async def test_direct_comes_first_and_gets_the_goodbye(ways: tuple[Way, Way, DirectFirst]) -> None:
    direct, other, both = ways
    answer, handle = await both.offer(b"offer", 15)
    await both.bye(handle, b"bye")
    assert answer == b"answer"
    assert direct.calls == [("offer", b"offer", 5), ("bye", "/direct 1", b"bye")]
    assert other.calls == []
    assert both.name == "direct or service"


def test_the_relay_is_that_of_the_service(ways: tuple[Way, Way, DirectFirst]) -> None:
    direct, other, both = ways
    assert both.relay() is None
    assert (direct.calls, other.calls) == ([], [("relay",)])


async def test_the_service_has_the_rest_of_the_time(ways: tuple[Way, Way, DirectFirst]) -> None:
    direct, other, both = ways
    direct.fails = True
    _, handle = await both.offer(b"offer", 15)
    await both.bye(handle, b"bye")
    assert other.calls == [("offer", b"offer", 10), ("bye", "/service 1", b"bye")]
    other.fails = True
    with pytest.raises(SignalingError, match="direct failed; service failed"):
        await both.offer(b"offer", 15)


async def test_who_appears_is_told_by_the_service(ways: tuple[Way, Way, DirectFirst]) -> None:
    _, other, both = ways
    await both.appeared()
    assert other.calls == [("appeared",)]


async def test_turn_servers_are_those_of_the_service_if_it_is_there(
    ways: tuple[Way, Way, DirectFirst],
) -> None:
    _, other, both = ways
    assert await both.ice_servers(15) == [{"urls": "turn:service:1"}]
    other.fails = True
    assert await both.ice_servers(15) == ()
