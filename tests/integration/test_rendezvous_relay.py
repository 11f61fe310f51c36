"""Links whose datagrams a rendezvous service relays, with real WebSockets on loopback."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from integration.links_world import Side, until
from integration.rendezvous_world import Place, a_place, prepared
from socks_tunnel.rendezvous.service import Service


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


async def relaying(place: Place, **relay: Any) -> Service:
    """Starts the service with a relay, for two listed hosts."""
    keys = [
        {"name": name, "public_key": place.world.key(name).public_text}
        for name in ("office", "laptop")
    ]
    place.settings = {
        "clients": "listed",
        "keys": keys,
        "relay": {"enabled": True, **relay},
    }
    return await place.start()


async def relayed(place: Place) -> tuple[Side, Side]:
    """A gateway and an endpoint that only the relay connects."""
    endpoint = place.endpoint()
    gateway = place._with(  # noqa: SLF001
        place.world.gateway(),
        "gateway",
        peers=[
            {
                "name": "office",
                "public_key": place.world.key("office").public_text,
                "rendezvous": place.url,
            }
        ],
        ice={"policy": "relay"},
    )
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    return gateway, endpoint


async def test_a_link_comes_up_through_the_relay(place: Place) -> None:
    node = await relaying(place)
    gateway, endpoint = await relayed(place)
    for side, peer in ((gateway, "office"), (endpoint, "laptop")):
        row = side.row(peer)
        assert row["path_kind"] == "relay"
        assert row["path"] == f"through {place.url}, relayed"
        assert row["path_family"] == "ipv4"
    assert node.registry.counts["relayed datagrams"] > 4
    assert len(node.relay) == 1
    print(node.registry.counts)
