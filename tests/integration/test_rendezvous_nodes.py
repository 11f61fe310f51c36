"""Two nodes of one service over a real Redis: presence, envelopes, and the end of each part."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from integration.links_world import until
from integration.rendezvous_world import CountedRelay, Delays, a_place, nothing
from socks_tunnel.config.rendezvous import RendezvousConfig
from socks_tunnel.protocol import rendezvous_relay
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.rendezvous import REASONS
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.rendezvous import redis_bus
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling.carrier import Answered, Handlers, SignalingError
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from support.corporate import need

A, B = PrivateIdentity.generate(), PrivateIdentity.generate()


class RedisServer:
    """Debian's redis-server on a Unix socket. It keeps nothing on disk."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "redis.sock"
        self._log = directory / "redis.log"
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        command: list[str | Path] = [
            *(need("redis-server"), "--port", "0", "--unixsocket", self.socket),
            *("--save", "", "--appendonly", "no", "--dir", self.socket.parent),
        ]
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait(30)
            self._popen = None
            self.socket.unlink(missing_ok=True)


class Balancer:
    """Stands before the nodes, as a load balancer does: each connection goes to one that lives."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            for _ in self.nodes:
                self._turn += 1
                port = self.nodes[self._turn % len(self.nodes)]
                try:
                    there, back = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    continue
                try:
                    await asyncio.gather(_copy(reader, back), _copy(there, writer))
                finally:
                    back.close()
                return
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one of the two has gone, and the other end of it is closed below
    finally:
        writer.close()


class Nodes:
    """Nodes in this process, and clients of theirs."""

    def __init__(self, redis: RedisServer) -> None:
        self.redis = redis
        self.services: list[Service] = []
        self.clients: list[Rendezvous] = []

    async def node(self) -> Service:
        settings = {
            "listen": "127.0.0.1:0",
            "clients": "any",
            "keys": [{"name": "a", "public_key": A.public_text}],
            "relay": {"enabled": True},
            "redis_url": self.redis.url,
            "source": Path("/rendezvous.toml"),
        }
        service = Service(RendezvousConfig.model_validate(settings), None)
        await service.start()
        self.services.append(service)
        await until(lambda: service._bus is not None and service._bus.is_up)
        return service

    def client(
        self,
        node: Service | Balancer,
        identity: PrivateIdentity,
        *watched: PrivateIdentity,
        load: Callable[[], Load] | None = None,
    ) -> Rendezvous:
        port = node.port if isinstance(node, Balancer) else port_of(node)

        async def answer(envelope: bytes) -> Answered:
            return Answered(b"answer to " + envelope, "1")

        handlers = Handlers(offer=answer, bye=nothing, join=nothing)  # type: ignore[arg-type]
        url = f"ws://localhost:{port}/"
        relay = CountedRelay(url)
        made = Rendezvous(url, identity, Delays(), handlers=handlers, relay=relay, load=load)
        made.watch([other.public for other in watched])
        made.start()
        self.clients.append(made)
        return made

    async def stop(self) -> None:
        for client in self.clients:
            await client.stop()
        for service in self.services:
            await service.stop()


def port_of(node: Service) -> int:
    assert isinstance(node.address, HostPort)
    return node.address.port


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def nodes(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Nodes]:
    monkeypatch.setattr(redis_bus, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(redis_bus, "LONGEST_PAUSE", 0.2)
    # No datagram is dropped because a busy machine has let it wait for 50 ms.
    monkeypatch.setattr(rendezvous_relay, "QUEUE_TIME", 60.0)
    async with a_place(tmp_path, monkeypatch):
        made = Nodes(redis)
        try:
            yield made
        finally:
            await made.stop()


async def test_a_client_reaches_a_peer_at_another_node(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    a = nodes.client(one, A, B)
    appeared = asyncio.ensure_future(a.appeared(B.public))
    b = nodes.client(two, B, A)
    async with asyncio.timeout(60):
        await appeared
        assert await a.offer(B.public, b"offer", 30) == (b"answer to offer", "1")
    await reached(b, A)  # which is told of by another message


async def test_a_load_is_told_to_a_client_at_another_node(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    office = nodes.client(one, A, B, load=lambda: Load(7, 2, "1.0"))
    laptop = nodes.client(two, B)
    laptop.watch([A.public], loads=True)
    await until(lambda: laptop.presence.loads.get(A.public) == Load(7, 2, "1.0"))
    assert office.presence.loads.get(B.public) is None
    await office.stop()
    await until(lambda: laptop.presence.loads.get(A.public) is None)


async def reached(client: Rendezvous, peer: PrivateIdentity) -> None:
    """Waits until a client's offers get through to a peer."""
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await client.offer(peer.public, b"offer", 30)
            except SignalingError:  # the peer is not there yet
                await asyncio.sleep(0.05)
            else:
                assert answer == (b"answer to offer", "1")
                return


class Refusals:
    """Keeps why datagrams were refused."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.why: list[str] = []

    def relayed(self, datagrams: Sequence[bytes]) -> None:
        self.got += datagrams

    def refused(self, why: str) -> None:
        self.why.append(why)


async def test_datagrams_are_relayed_between_nodes_and_their_loss_is_counted(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    a, b = nodes.client(one, A, B), nodes.client(two, B, A)
    await reached(a, B)
    await reached(b, A)
    here, there = Refusals(), Refusals()
    to_b, to_a = a.relay.to(B.public), b.relay.to(A.public)
    assert to_b is not None
    assert to_a is not None
    ours, theirs = to_b.open(b"channel1", here), to_a.open(b"channel1", there)
    ours.send([b"one", b"two", b"3"])
    await until(lambda: there.got)
    theirs.send([b"back"])
    await until(lambda: here.got)
    assert (here.got, there.got) == ([b"back"], [b"one", b"two", b"3"])
    assert [node.registry.counts["relayed datagrams"] for node in (one, two)] == [1, 3]
    assert [len(node.relay) for node in (one, two)] == [1, 1]
    nodes.redis.kill()
    await until(lambda: not (one._bus.is_up or two._bus.is_up))  # type: ignore[union-attr]
    ours.send([b"lost"])
    await until(lambda: here.why)
    assert here.why == [REASONS["elsewhere"]]
    assert one.registry.counts["relay dropped: elsewhere"] == 1
    nodes.redis.start()
    await until(lambda: one._bus.is_up and two._bus.is_up)  # type: ignore[union-attr]

    def has_come() -> bool:
        ours.send([b"again"])
        return b"again" in there.got

    await until(has_come)


async def test_datagrams_to_a_node_that_has_died_are_counted(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    a, b = nodes.client(one, A, B), nodes.client(two, B, A)
    await reached(a, B)
    await reached(b, A)
    to_b = a.relay.to(B.public)
    assert to_b is not None
    bus = two._bus
    assert bus is not None
    assert bus._task is not None
    bus._task.cancel()  # killed: it says goodbye to nobody
    await asyncio.wait([bus._task])
    bus.is_up = False
    to_b.open(b"channel1", Refusals()).send([b"one", b"two"])
    await until(lambda: one.registry.counts["relay dropped: gone"] == 2)


async def test_redis_may_be_restarted_and_forget_everything(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    a, b = nodes.client(one, A, B), nodes.client(two, B, A)
    await until(lambda: a.problem is None and b.problem is None)
    nodes.redis.kill()
    await until(lambda: not (one._bus.is_up or two._bus.is_up))  # type: ignore[union-attr]
    with pytest.raises(SignalingError, match="the peer is not there"):
        await a.offer(B.public, b"x", 30)
    assert a.problem is None, "the client's connection does not depend on Redis"
    nodes.redis.start()
    await until(lambda: one._bus.is_up and two._bus.is_up)  # type: ignore[union-attr]

    async def answered() -> bool:
        try:
            return await a.offer(B.public, b"again", 30) == (b"answer to again", "1")
        except SignalingError:
            return False

    async with asyncio.timeout(60):
        while not await answered():
            await asyncio.sleep(0.05)


async def test_clients_of_a_node_that_ends_come_back_at_another(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    balancer = Balancer()
    balancer.nodes = [port_of(one), port_of(two)]
    await balancer.start()
    try:
        identities = [PrivateIdentity.generate() for _ in range(50)]
        office = nodes.client(balancer, A, *identities)
        clients = [nodes.client(balancer, each, A) for each in identities]
        await until(lambda: all(client.problem is None for client in clients))
        at_one, at_two = len(one.registry), len(two.registry)
        assert min(at_one, at_two) > 0
        assert at_one + at_two == 51
        balancer.nodes.remove(port_of(one))
        nodes.services.remove(one)
        await one.stop()
        await until(lambda: len(two.registry) == 51)
        await until(lambda: all(client.problem is None for client in [office, *clients]))
        for each in clients:
            assert await each.offer(A.public, b"x", 30) == (b"answer to x", "1")
    finally:
        await balancer.stop()


async def test_a_node_that_falls_silent_is_given_up(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "HEARTBEAT", 0.05)
    monkeypatch.setattr(redis_bus, "SILENCE", 0.5)
    one, two = await nodes.node(), await nodes.node()
    a, b = nodes.client(one, A, B), nodes.client(two, B, A)
    federation = one.registry.elsewhere
    await until(lambda: federation.nodes() == {two._bus.node})  # type: ignore[union-attr]
    assert b.problem is None
    two._bus._task.cancel()  # type: ignore[union-attr] # killed: it says goodbye to nobody
    await until(lambda: not federation.nodes())  # type: ignore[union-attr]
    assert a.problem is None
    two._bus.is_up = False  # type: ignore[union-attr]


async def test_a_renewal_finds_out_that_a_key_is_elsewhere(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "RENEWAL", 0.1)
    one, two = await nodes.node(), await nodes.node()
    nodes.client(one, A, B)
    claimed: list[str | None] = []

    def is_elsewhere() -> bool:
        # Nobody tells node one, as if the message had been lost.
        two._bus.claim(A.public, claimed.append)  # type: ignore[union-attr]
        return one.registry.counts["replaced"] >= 1

    await until(is_elsewhere)
    assert one._bus.node in claimed  # type: ignore[union-attr]


async def test_a_bug_in_an_answer_does_not_cut_a_node_off(nodes: Nodes) -> None:
    one, two = await nodes.node(), await nodes.node()
    bus = one._bus
    assert bus is not None

    def fails(_: object) -> None:
        raise ZeroDivisionError

    bus._put(("PING",), fails)
    await until(lambda: one.registry.counts["bugs"] == 1)
    await until(lambda: bus.is_up)
    nodes.client(one, A, B)
    await reached(nodes.client(two, B, A), A)
