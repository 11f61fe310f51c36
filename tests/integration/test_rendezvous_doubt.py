"""A connection to a rendezvous service that has died without a word is noticed where it matters."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from integration.links_world import until
from integration.rendezvous_world import Delays, Place, a_place, handled, linked, nothing
from socks_tunnel.signaling import rendezvous, rendezvous_doubt, rendezvous_socket
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from socks_tunnel.signaling.rendezvous_doubt import is_gone


class Way:
    """A way to the service that passes bytes on, or lets them vanish: as a network that is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.blocked: set[int] = set()
        """Which connections bring nothing on, by their numbers from 0."""
        self.connections = 0

    async def start(self) -> str:
        """Returns the URL of the service by this way."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, there]
        for source, sink in ((reader, there), (there_reader, writer)):
            task = asyncio.create_task(self._pass(number, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if number not in self.blocked:
                    sink.write(data)
                    await sink.drain()
            if number not in self.blocked:
                sink.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def way(place: Place) -> AsyncIterator[Way]:
    await place.start()
    made = Way(place.port)
    yield made
    await made.stop()


async def connected(place: Place, way: Way) -> Rendezvous:
    client = Rendezvous(await way.start(), PrivateIdentity.generate(), Delays())
    place.clients.append(client)
    client.start()
    await until(lambda: client.problem is None)
    return client


async def test_a_dead_connection_in_doubt_is_replaced(
    place: Place, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_doubt, "ANSWER_WITHIN", 0.2)
    client = await connected(place, way)
    way.blocked.add(0)
    client.doubt()
    await until(lambda: way.connections == 2 and client.problem is None)


async def test_a_live_connection_in_doubt_stays_however_often_it_is_doubted(
    place: Place, way: Way
) -> None:
    client = await connected(place, way)
    doubt = client._doubt
    assert doubt is not None
    for _ in range(3):
        client.doubt()
        client.doubt()  # is one with the first
        assert doubt._doubted
        await until(lambda: not doubt._doubted)
        assert doubt._patience is not None
        assert doubt._patience.when() is None
    assert (client._doubt, way.connections) == (doubt, 1)


async def test_who_asks_finds_out_that_the_connection_is_dead(
    place: Place, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_doubt, "ANSWER_WITHIN", 0.2)
    client = await connected(place, way)
    other = PrivateIdentity.generate().public
    client.watch([other])
    way.blocked.add(0)
    with pytest.raises(SignalingError, match="ended before an answer came"):
        await client.offer(other, b"an envelope", 30)
    await until(lambda: way.connections == 2 and client.problem is None)


async def test_an_attempt_is_made_anew_when_the_network_has_changed_meanwhile(
    place: Place, way: Way, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rendezvous, "UNDISTURBED", 0.0)
    way.blocked.add(0)
    client = Rendezvous(await way.start(), PrivateIdentity.generate(), Delays())
    place.clients.append(client)
    client.start()
    await until(lambda: way.connections == 1)
    client.doubt()
    await until(lambda: client.problem is None)
    assert way.connections == 2
    assert "the network has changed meanwhile; trying again in 0.0 s" in caplog.text


async def test_a_pause_ends_when_the_network_has_changed(
    place: Place, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delays, "next", lambda _: 3600.0)
    url = await way.start()
    await place.stop()
    client = Rendezvous(url, PrivateIdentity.generate(), Delays())
    place.clients.append(client)
    client.start()
    await until(lambda: client.problem not in (None, "not connected yet"))
    await place.start()
    client.doubt()
    await until(lambda: client.problem is None)


async def test_both_sides_doubt_their_connection_when_their_network_changes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubted: list[Rendezvous] = []
    monkeypatch.setattr(Rendezvous, "doubt", lambda self: doubted.append(self))
    gateway, endpoint = await linked(place)
    doubted.clear()  # who has dialled has asked
    endpoint.manager.path_changed("an address was added")
    assert len(doubted) == 1
    gateway.manager.path_changed("an address was added")
    assert len(doubted) >= 2
    assert doubted[0] is not doubted[1]


@pytest.mark.parametrize(
    ("sockname", "gone"),
    [
        (None, False),
        ("/run/a-socket", False),
        (("127.0.0.1", 40_000), False),
        (("192.0.2.77", 40_000), True),
        (("2001:db8::77", 40_000, 0, 0), True),
    ],
)
def test_an_address_that_the_host_has_lost_is_known(sockname: object, *, gone: bool) -> None:
    assert is_gone(sockname) is gone


async def test_a_dead_connection_that_nobody_doubts_is_noticed_by_its_heartbeat(
    place: Place, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_socket, "HEARTBEAT", 0.5)
    client = await connected(place, way)
    pongs = asyncio.Event()
    assert client._doubt is not None
    receive = client._doubt._receive

    async def seen() -> None:
        await receive()
        pongs.set()

    monkeypatch.setattr(client._doubt, "_receive", seen)
    for _ in range(3):
        pongs.clear()
        await pongs.wait()
    assert way.connections == 1
    way.blocked.add(0)
    await until(lambda: way.connections == 2 and client.problem is None)


async def test_an_offer_that_went_to_a_connection_which_is_gone_is_not_waited_for(
    place: Place, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    office, laptop = PrivateIdentity.generate(), PrivateIdentity.generate()
    answering = Rendezvous(await way.start(), office, Delays(), **handled({"offer": nothing}))
    place.clients.append(answering)
    answering.watch([laptop.public])
    answering.start()
    asking = place.client(laptop, office)
    await until(lambda: office.public in asking.presence._online)
    way.blocked.add(0)
    waiting = asyncio.create_task(asking.offer(office.public, b"an envelope", 3600))
    await until(lambda: len(asking._waiting) == 1)
    monkeypatch.setattr(rendezvous_doubt, "ANSWER_WITHIN", 0.2)
    answering.doubt()
    with pytest.raises(SignalingError, match="the peer has left"):
        await waiting
    await until(lambda: office.public in asking.presence._online)
