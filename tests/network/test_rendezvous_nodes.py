"""Two nodes of a rendezvous service, as processes, and Redis: each is killed while it is in use."""

import asyncio
import itertools
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from integration.test_rendezvous_nodes import Balancer, RedisServer
from socks_tunnel.signaling.carrier import Handlers, SignalingError, SignalingRefused
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from socks_tunnel.supervisor.backoff import Backoff
from socks_tunnel.supervisor.carriers import FIRST_DELAY, LONGEST_DELAY
from support.figures import Told
from support.processes import Process

CLIENTS = 300

ANSWER_WITHIN = 5.0
"""Seconds for an offer, which may be lost with a node."""

ASKING = 16
"""Offers at a time: an endpoint works on 32."""

pytestmark = pytest.mark.timeout(600)  # on a loaded machine


async def refuse(*_: object) -> None:
    """Answers nothing, which the asker is told at once."""


class Scene:
    """The nodes, a load balancer before them, an endpoint, and gateways that make offers to it."""

    def __init__(self, directory: Path) -> None:
        self.redis = RedisServer(directory)
        self.balancer = Balancer()
        self.nodes: dict[int, Process] = {}
        self._directory = directory
        self.office_key = PrivateIdentity.generate()
        keys = [PrivateIdentity.generate() for _ in range(CLIENTS)]
        self._keys = keys
        self.office: Rendezvous
        self.clients: list[Rendezvous] = []
        self.answered = 0

    def start_node(self) -> int:
        """Starts a node; returns its port."""
        config = self._directory / f"node-{len(self.nodes)}.toml"
        config.write_text(
            'listen = "127.0.0.1:0"\nclients = "any"\nnames = ["localhost"]\n'
            f'redis_url = "{self.redis.url}"\ntrusted_proxies = ["127.0.0.1"]\n'
            f'[[keys]]\nname = "office"\npublic_key = "{self.office_key.public_text}"\n'
        )
        command = [sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", str(config)]
        process = Process(config.stem, command, self._directory)
        process.wait_notified("READY=1")
        process.wait_log(re.escape("the other nodes are reached through Redis"))
        port = int(process.wait_log(r"listening on 127\.0\.0\.1:(\d+)")[1])
        self.nodes[port] = process
        return port

    def kill_node(self, port: int) -> None:
        """Ends a node without a word, and has the balancer notice."""
        process = self.nodes[port]
        process.popen.send_signal(signal.SIGKILL)
        process.popen.wait(30)
        self.balancer.nodes.remove(port)

    def client(self, identity: PrivateIdentity, port: int, *watched: bytes) -> Rendezvous:
        handlers = Handlers(offer=refuse, bye=refuse, join=refuse)  # type: ignore[arg-type] # of all kinds
        made = Rendezvous(
            f"ws://localhost:{port}/",
            identity,
            Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True),
            handlers=handlers if identity is self.office_key else None,
        )
        made.watch(watched)
        made.start()
        return made

    def join(self) -> None:
        """Has all connect: each to the node whose turn it is."""
        port = self.balancer.port
        self.office = self.client(self.office_key, port, *(key.public for key in self._keys))
        self.clients = [self.client(key, port, self.office_key.public) for key in self._keys]

    async def reaches(self, client: Rendezvous) -> bool:
        """Returns whether an offer of a client came to the endpoint."""
        with suppress(SignalingRefused):
            await client.offer(self.office_key.public, b"offer", ANSWER_WITHIN)
            return False  # an answer: the endpoint gives none
        self.answered += 1
        return True

    async def ask_forever(self) -> None:
        """The load: one client after the other makes an offer, which may fail."""
        for client in itertools.cycle(self.clients):
            with suppress(SignalingError):
                await self.reaches(client)
            await asyncio.sleep(0.005)

    async def everybody_reaches(self) -> None:
        """Waits until the offers of all clients come to the endpoint."""

        few = asyncio.Semaphore(ASKING)

        async def one(client: Rendezvous) -> None:
            while True:
                with suppress(SignalingError):
                    async with few:
                        if await self.reaches(client):
                            return
                await asyncio.sleep(0.1)

        async with asyncio.timeout(240):
            await asyncio.gather(*map(one, self.clients))


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    made = Scene(directory)
    loading: asyncio.Task[None] | None = None
    try:
        made.redis.start()
        ports = [await asyncio.to_thread(made.start_node) for _ in range(2)]
        await made.balancer.start()
        made.balancer.nodes = ports
        made.join()
        await made.everybody_reaches()
        loading = asyncio.ensure_future(made.ask_forever())
        yield made
    finally:
        if loading is not None:
            loading.cancel()
            await asyncio.wait([loading])
        for client in made.clients:
            await client.stop()
        if made.clients:
            await made.office.stop()
        await made.balancer.stop()
        for process in made.nodes.values():
            process.kill()
        made.redis.kill()


async def test_a_node_and_redis_are_killed_under_load(tmp_path: Path, told: Told) -> None:
    async with scene(tmp_path) as made:
        loop = asyncio.get_running_loop()
        first, second = made.balancer.nodes
        killed = loop.time()
        await asyncio.to_thread(made.kill_node, first)
        await made.everybody_reaches()
        told(f"all of {CLIENTS} clients back {loop.time() - killed:.1f} s after a node was killed")
        assert made.nodes[second].popen.poll() is None

        made.balancer.nodes.append(await asyncio.to_thread(made.start_node))
        asked = made.answered
        made.redis.kill()
        killed = loop.time()
        made.redis.start()
        await made.everybody_reaches()
        told(
            f"each of them reaches the endpoint {loop.time() - killed:.1f} s after Redis was killed"
        )
        assert made.answered >= asked + CLIENTS
