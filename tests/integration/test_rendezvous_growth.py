"""A rendezvous service whose clients have come and gone holds what it held after the first ones."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from integration.links_world import until
from integration.rendezvous_world import Connect, Place, a_place, prepared, raw_connections
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol import rendezvous_relay
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.identity import PrivateIdentity
from support.growth import around, grown_each_time, held

EACH = 2
"""Clients of each kind in a round."""

REMEMBERED = ("Buckets._buckets", "Bucket")
"""What is left of the allowance of each key: of BUCKETS_MAX keys at most, which unit tests hold."""


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(rendezvous_relay, "QUEUE_TIME", 60.0)
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


async def link(place: Place) -> None:
    """A link whose datagrams the service relays, and its end."""
    endpoint, gateway = place.endpoint(), place.gateway(ice={"policy": "relay"})
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    for side in (gateway, endpoint):
        await side.manager.stop("the round is over")
        place.world.sides.remove(side)


async def wanderers(place: Place, connect: Connect) -> None:
    """Clients with keys that no other round has, good ones and bad ones."""
    keys = [PrivateIdentity.generate() for _ in range(EACH)]
    for key in keys:
        good = await connect()
        await good.join(key, *keys)
        await good.ws.close()
        rude = await connect()
        await rude.join(key, *keys)
        await rude.ws.send_bytes(b"\x91" * 200)
        await rude.ws.close()
        liar = await connect()  # its signature is not that of the key that it names
        await liar.frame()
        proof = liar.protocol.proof(key.public, keys[0].sign(b"something else"), time.time())
        await liar.ws.send_bytes(proof)
        assert await liar.closed() == wire.CLOSE_PROOF
        shy = await connect()  # it proves nothing, and goes
        await shy.frame()
        await shy.ws.close()
        asking = place.client(key, *keys)
        with pytest.raises(SignalingError):
            await asking.offer(secrets.token_bytes(32), b"an offer", 30)
        await asking.stop()
        place.clients.remove(asking)


async def at_rest(node: Service) -> None:
    """Waits until nobody is there any more, and forgets what is kept for those who come back."""
    await until(lambda: not len(node.registry))
    node.relay.sweep(asyncio.get_running_loop().time() + 3600)


async def test_clients_that_are_gone_leave_nothing(place: Place) -> None:
    keys = [
        {"name": name, "public_key": place.world.key(name).public_text}
        for name in ("office", "laptop")
    ]
    place.settings = {"clients": "any", "keys": keys, "relay": {"enabled": True}}
    node = await place.start()
    sizes: list[Counter[str]] = []
    for _ in range(4):
        async with raw_connections(place) as connect:
            await wanderers(place, connect)
        await link(place)
        await at_rest(node)
        sizes.append(around() + held(node))
    assert not grown_each_time(sizes[1:], REMEMBERED)
