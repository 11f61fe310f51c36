"""Endpoints with one list of members, and what carries their requests from one to the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.config.settings import Config
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling import joining
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import Joined, Token
from socks_tunnel.supervisor import group as group_module
from socks_tunnel.supervisor.enroller import Enroller
from support.configs import checked


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


class Endpoint:
    """One endpoint of the group."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.identity = world.keys[name]
        self.directory = world.directory / name
        self.directory.mkdir(exist_ok=True)
        self.metrics = Metrics()
        self.config: Config = world.configuration()
        self.enroller = Enroller(
            self.directory, self.identity, self.config, self._apply, self.metrics
        )
        self.peers: set[str] = set()
        self.enroller.start(self._ask)

    async def _apply(self) -> None:
        self.peers = {peer.public_key for peer in self.enroller.extended().peers}

    async def _ask(self, to: bytes, request: bytes, timeout: float) -> bytes:
        del timeout
        return await self.world.carry(self.identity.public, to, request)

    async def stop(self) -> None:
        await self.enroller.stop()

    async def join(self, token: Token, host: PrivateIdentity, name: str = "host") -> Joined:
        sent, request = joining.new_request(host, token, name, time.time())
        answer = await self.enroller.handle(sent)
        assert answer is not None
        decided = joining.open_answer(answer, request)
        assert isinstance(decided, Joined), decided
        return decided

    async def invite(self, uses: int = 1) -> Token:
        made = await self.enroller.answer({"op": "invite", "uses": uses})
        return Token.parse(made["token"])

    async def rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = await self.enroller.answer({"op": "peers"})
        return rows

    async def revoke(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = await self.enroller.answer({"op": "revoke", "name": name})
        return result


class World:
    """Three endpoints, and what carries their requests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = {name: PrivateIdentity.generate() for name in ("a", "b", "c")}
        self.endpoints: dict[str, Endpoint] = {}
        self.max_age = 604_800
        self.cut: set[str] = set()
        """Endpoints that nobody reaches."""
        self.tampered: Callable[[bytes], bytes] = lambda answer: answer

    def configuration(self) -> Config:
        endpoints = [{"name": n, "public_key": key.public_text} for n, key in self.keys.items()]
        return checked(
            {
                "role": "endpoint",
                "source": str(self.directory / "endpoint.toml"),
                "identity": {"private_key_file": "key"},
                "signaling": {"rendezvous": "wss://rendezvous.example/"},
                "join": {
                    "group": {
                        "name": "offices",
                        "owner": "a",
                        "endpoints": endpoints,
                        "max_age": self.max_age,
                    }
                },
            },
            self.directory,
        )

    def start(self, *names: str) -> None:
        for name in names:
            self.endpoints[name] = Endpoint(self, name)

    async def stop(self, name: str) -> None:
        await self.endpoints.pop(name).stop()

    async def carry(self, sender: bytes, to: bytes, request: bytes) -> bytes:
        await asyncio.sleep(0)
        by_key = {key.public: name for name, key in self.keys.items()}
        name = by_key[to]
        endpoint = self.endpoints.get(name)
        if endpoint is None or {name, by_key[sender]} & self.cut:
            raise SignalingError("the peer is not there")
        answer = await endpoint.enroller.handle(request)
        if answer is None:
            raise SignalingError("refused")
        return self.tampered(answer)

    def all_have(self, *hosts: PrivateIdentity) -> bool:
        return all(
            {host.public_text for host in hosts} <= endpoint.peers
            for endpoint in self.endpoints.values()
        )

    def none_has(self, host: PrivateIdentity) -> bool:
        return not any(host.public_text in endpoint.peers for endpoint in self.endpoints.values())


@asynccontextmanager
async def a_world(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Yields a world in which copies ask often."""
    monkeypatch.setattr(group_module, "POLL", 0.2)
    monkeypatch.setattr(group_module, "RETRY_MAX", 0.2)
    made = World(directory)
    yield made
    for name in list(made.endpoints):
        await made.stop(name)
