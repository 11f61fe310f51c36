"""A rendezvous service on loopback, and who uses it, well or badly."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from integration.links_world import Side, World, until
from socks_tunnel.config.rendezvous import RendezvousConfig
from socks_tunnel.peer import quiet_loop_exceptions
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.rendezvous_states import ClientConnection
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling import presence
from socks_tunnel.signaling.carrier import Handlers
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from socks_tunnel.signaling.rendezvous_relay import ServiceRelay
from socks_tunnel.supervisor import carriers, dialler
from support.configs import checked


class Delays:
    """Always the same short delay; counts the resets."""

    def next(self) -> float:
        return 0.05

    def reset(self) -> None:
        pass


async def nothing(*_: Any) -> None:
    """Answers nothing, whatever comes."""


def handled(more: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments of a client whose handlers `offer`, `bye`, `join` may be among `more`."""
    given = {name: more.pop(name) for name in ("offer", "bye", "join") if name in more}
    if given:
        usual: dict[str, Any] = {"offer": nothing, "bye": nothing, "join": nothing}
        more["handlers"] = Handlers(**usual | given)
    return more


class CountedRelay(ServiceRelay):
    """A relay with its counts by their labels."""

    def __init__(self, url: str) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__(url, passed=self._count, dropped=self._count)

    def _count(self, what: str, datagrams: int) -> None:
        self.counts[what] += datagrams


def counts(client: Rendezvous) -> Counter[str]:
    """What the relay of a client of :meth:`Place.client` has counted."""
    assert isinstance(client.relay, CountedRelay)
    return client.relay.counts


class Place:
    """A service that can be restarted on the same port, and who uses it."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.node: Service | None = None
        self.port = 0
        self.tls: Any = None
        self.clients: list[Rendezvous] = []
        self.settings: dict[str, Any] = {"clients": "any"}

    def configuration(self) -> RendezvousConfig:
        return RendezvousConfig.model_validate(
            {
                "listen": f"127.0.0.1:{self.port}",
                "source": Path("/rendezvous.toml"),
                **self.settings,
            }
        )

    async def start(self) -> Service:
        node = Service(self.configuration(), self.tls)
        await node.start()
        assert isinstance(node.address, HostPort)
        self.port = node.address.port
        self.node = node
        return node

    async def stop(self) -> None:
        if self.node is not None:
            await self.node.stop()
            self.node = None

    @property
    def url(self) -> str:
        return f"{'ws' if self.tls is None else 'wss'}://localhost:{self.port}/"

    def client(
        self, identity: PrivateIdentity, *watched: PrivateIdentity, **more: Any
    ) -> Rendezvous:
        relay = CountedRelay(self.url)
        made = Rendezvous(self.url, identity, Delays(), relay=relay, **handled(more))
        made.watch([other.public for other in watched])
        made.start()
        self.clients.append(made)
        return made

    def gateway(
        self,
        *,
        ice: dict[str, Any] | None = None,
        routes: list[dict[str, Any]] | None = None,
        **more: Any,
    ) -> Side:
        side = self.world.gateway()
        peers = [{**_peer(side), "rendezvous": self.url, **more}]
        tables: dict[str, Any] = {} if ice is None else {"ice": ice}
        if routes is not None:
            tables["routes"] = routes
        return self._with(side, "gateway", peers=peers, **tables)

    def endpoint(self, **more: Any) -> Side:
        side = self.world.endpoint()
        peers = [{"name": "laptop", "public_key": self.world.key("laptop").public_text}]
        return self._with(side, "endpoint", peers=peers, signaling={"rendezvous": self.url, **more})

    def _with(self, side: Side, role: str, **tables: Any) -> Side:
        """Makes the host again, with other tables."""
        self.world.sides.remove(side)
        fields = {
            "role": role,
            "source": str(self.world.directory / f"{role}.toml"),
            "identity": {"private_key_file": "key"},
            "ice": {"addresses": ["127.0.0.1"]},
            **tables,
        }
        config = checked(fields, self.world.directory)
        made = Side(role, side.identity, config)
        self.world.sides.append(made)
        return made


def _peer(side: Side) -> dict[str, str]:
    (peer,) = side.manager.config.peers
    return {"name": peer.name, "public_key": peer.public_key}


async def prepared(side: Side) -> None:
    await side.manager.prepare(side.manager.config)
    await side.manager.start()


@asynccontextmanager
async def a_place(
    directory: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Place] = Place
) -> AsyncIterator[Place]:
    """Yields a place whose service is not started, and ends all that is in it."""
    monkeypatch.setattr(dialler, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(carriers, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(presence, "APPEARED_PERIOD", 0.05)
    quiet_loop_exceptions(asyncio.get_running_loop())
    made = kind(directory)
    try:
        yield made
    finally:
        for side in made.world.sides:
            await side.manager.stop("the test is over")
        for client in made.clients:
            await client.stop()
        await made.stop()


async def linked(place: Place) -> tuple[Side, Side]:
    await place.start()
    endpoint, gateway = place.endpoint(), place.gateway()
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    return gateway, endpoint


class Raw:
    """A client that speaks as the test wants."""

    def __init__(self, place: Place, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.place = place
        self.protocol = ClientConnection(f"localhost:{place.port}")

    async def frame(self) -> Any:
        message = await self.ws.receive(timeout=30)
        assert message.type is aiohttp.WSMsgType.BINARY, (message, self.ws.close_code)
        return self.protocol.receive(message.data, time.time())

    async def prove(self, identity: PrivateIdentity, *, host: str | None = None) -> None:
        if host is not None:
            self.protocol.host = host
        assert isinstance(await self.frame(), wire.Challenge)
        now = time.time()
        signature = identity.sign(self.protocol.signed_text(now))
        await self.ws.send_bytes(self.protocol.proof(identity.public, signature, now))

    async def join(
        self, identity: PrivateIdentity, *watched: PrivateIdentity, enrolment: bytes = b""
    ) -> wire.Welcome:
        """Joins, and returns what the service says of itself."""
        self.protocol = ClientConnection(self.protocol.host, enrolment)
        await self.prove(identity)
        welcome = await self.frame()
        assert isinstance(welcome, wire.Welcome)
        for frame in wire.watches([other.public for other in watched]):
            await self.ws.send_bytes(frame)
        return welcome

    async def closed(self) -> int | None:
        """Reads until the end; returns the code."""
        while not self.ws.closed:
            await self.ws.receive(timeout=30)
        return self.ws.close_code


Connect = Callable[..., Awaitable[Raw]]


@asynccontextmanager
async def raw_connections(place: Place) -> AsyncIterator[Connect]:
    """Yields what makes connections that end with the test."""
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def connect(**more: Any) -> Raw:
            url = f"http://127.0.0.1:{place.port}/v1"
            ws = await stack.enter_async_context(session.ws_connect(url, **more))
            return Raw(place, ws)

        yield connect
