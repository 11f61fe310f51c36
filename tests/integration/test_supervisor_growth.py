"""Supervisors whose peers, links and flows have come and gone hold what they held after the first ones."""

from collections import Counter
from functools import partial

import pytest

from integration.links_world import Side, World, until
from socks_tunnel.protocol.messages import CloseConnection, Data, OpenConnection
from socks_tunnel.supervisor.peerlink import PeerLink
from support.growth import around, grown_each_time, held

EACH = 8
"""Flows in a round, each of which another side ends."""

REMEMBERED = ("Verifier._seen[]",)
"""Nonces of offers until they expire: NONCES_PER_PEER of each peer at most."""


pytestmark = pytest.mark.usefixtures("soon_again")


async def flows(gateway: Side, endpoint: Side, first: int) -> None:
    """Opens flows over the link, and ends them, half of them from each side."""
    await until(lambda: gateway.router.target is not None)
    here = gateway.router.target
    assert here is not None
    before = len(endpoint.worker.messages)
    for each in range(first, first + EACH):
        opening = OpenConnection(each, "example.com", 80).encode()
        gateway.routes.from_worker(here, [memoryview(opening)])
        gateway.routes.from_worker(here, [memoryview(Data(each, b"hello").encode())])
    await until(lambda: len(endpoint.worker.messages) >= before + 2 * EACH)
    there = endpoint.worker.messages[-1][0]
    for each in range(first, first + EACH):
        side, number = (gateway, here) if each % 2 else (endpoint, there)
        close = CloseConnection(each, 5).encode()
        side.routes.from_worker(number, [memoryview(close)])
    await until(lambda: not (gateway.router.flows or endpoint.router.flows))


async def visit(world: World, endpoint: Side, first: int) -> None:
    """A gateway that comes, has flows, and leaves."""
    phone = world.gateway("phone")
    world.sides.remove(phone)
    await phone.manager.start()
    await until(lambda: phone.up and len(endpoint.up) == 2)
    await flows(phone, endpoint, first)
    await phone.manager.stop("it leaves")
    await until(lambda: len(endpoint.up) == 1)


async def stranger(world: World, number: int) -> None:
    """A gateway whose key the endpoint does not have."""
    unknown = world.gateway(f"stranger-{number}")
    world.sides.remove(unknown)
    await unknown.manager.start()
    await until(lambda: "refused" in unknown.detail("office"))
    await unknown.manager.stop("nobody knows it")


def another(gateway: Side, endpoint: Side, link: PeerLink) -> bool:
    """Whether the two have another link than that."""
    return bool(gateway.up and gateway.up[0] is not link and endpoint.up)


async def test_what_is_gone_leaves_nothing(world: World) -> None:
    endpoint, gateway = world.endpoint("office", "laptop", "phone"), world.gateway()
    await endpoint.manager.start()
    await gateway.manager.start()
    await until(lambda: gateway.up and endpoint.up)
    sizes: list[Counter[str]] = []
    watched = gateway.manager, gateway.router, endpoint.manager, endpoint.router
    for number in range(4):
        await flows(gateway, endpoint, 1000 * number + 2)
        (link,) = gateway.up
        await endpoint.up[0].link.close("a test")
        await until(partial(another, gateway, endpoint, link))
        await visit(world, endpoint, 1000 * number + 502)
        await stranger(world, number)
        sizes.append(around() + held(*watched))
    assert not grown_each_time(sizes[1:], REMEMBERED)
