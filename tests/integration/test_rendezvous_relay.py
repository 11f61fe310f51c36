"""Links whose datagrams a rendezvous service relays, with real WebSockets on loopback."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from integration.links_world import Side, until
from integration.rendezvous_world import Place, a_place, counts, prepared, raw_connections
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol import rendezvous_relay
from socks_tunnel.protocol.rendezvous_relay import JOINED_MAX, Relayed, encode_relayed
from socks_tunnel.rendezvous import session
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling.clock import SignalingClock
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from socks_tunnel.signaling.rendezvous_relay import Channel
from socks_tunnel.signaling.tls import read_server_certificate
from socks_tunnel.supervisor.carriers import Outgoing
from support.certificates import Authority


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No datagram is dropped because a busy machine has let it wait for 50 ms."""
    monkeypatch.setattr(rendezvous_relay, "QUEUE_TIME", 60.0)


async def relaying(place: Place, **relay: Any) -> Service:
    """Starts the service with a relay, for two listed hosts and any others."""
    keys = [
        {"name": name, "public_key": place.world.key(name).public_text}
        for name in ("office", "laptop")
    ]
    place.settings = {"clients": "any", "keys": keys, "relay": {"enabled": True, **relay}}
    return await place.start()


def hosts(place: Place, **more: Any) -> tuple[Side, Side]:
    """A gateway and an endpoint that only the relay connects, not started."""
    endpoint = place.endpoint(**more)
    return place.gateway(ice={"policy": "relay"}, **more), endpoint


async def linked(place: Place, **more: Any) -> tuple[Side, Side]:
    """The same, linked."""
    gateway, endpoint = hosts(place, **more)
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    return gateway, endpoint


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
async def test_a_link_comes_up_through_the_relay(place: Place) -> None:
    node = await relaying(place)
    gateway, endpoint = await linked(place)
    for side, peer in ((gateway, "office"), (endpoint, "laptop")):
        row = side.row(peer)
        assert row["path_kind"] == "relay"
        assert row["path"] == f"through {place.url}, relayed"
        assert row["path_family"] == "ipv4"
        for direction in ("sent", "received"):
            assert side.metric("relay_datagrams_total", direction=direction) > 0
    assert len(node.relay) >= 1
    assert not [name for name in node.registry.counts if name.startswith("relay dropped")]


async def test_what_a_host_drops_of_its_relayed_links_is_in_its_metrics(place: Place) -> None:
    await relaying(place)
    office, metrics = place.world.key("office"), Metrics()
    outgoing = Outgoing(office, metrics, SignalingClock(trusts_service=False))
    try:
        outgoing.apply(place.gateway().manager.config)
        (service,) = outgoing._services.values()
        service.relay.send(office.public, NAME, [b"no", b"connection"])
        service.relay.receive(Relayed(office.public, NAME, b"no channel", 10))
    finally:
        await outgoing.stop()
    dropped = metrics.relay_dropped_total
    assert {reason: value.value for (reason,), value in dropped.series.items()} == {
        "not-connected": 2,
        "no-channel": 1,
    }


async def test_a_link_comes_up_through_the_relay_over_tls(place: Place, tmp_path: Path) -> None:
    authority = Authority("Meeting")
    certificate = tmp_path / "server.pem"
    certificate.touch(0o600)
    certificate.write_text(authority.issue("localhost").both)
    (tmp_path / "ca.pem").write_text(authority.certificate)
    place.tls = read_server_certificate(certificate, None)
    await relaying(place)
    gateway, _ = await linked(place, tls_ca="ca.pem")
    assert gateway.row("office")["path"] == f"through wss://localhost:{place.port}/, relayed"


@pytest.mark.parametrize("paths", [("off", "auto"), ("auto", "off"), ("off", "off")])
async def test_unmodified_aiortc_uses_the_relay_too(
    paths: tuple[Literal["off", "auto"], Literal["off", "auto"]], place: Place
) -> None:
    await relaying(place)
    gateway, endpoint = sides = hosts(place)
    for side, path in zip(sides, paths, strict=True):
        config = side.manager.config
        transport = replace(config.transport, fast_path=path)
        side.manager.config = replace(config, transport=transport)
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    assert gateway.row("office")["path_kind"] == "relay"


async def test_a_restart_of_the_service_costs_no_relayed_link(place: Place) -> None:
    node = await relaying(place)
    gateway, endpoint = await linked(place)
    before = gateway.up
    await place.stop()
    node = await place.start()
    await until(lambda: len(node.registry) == 2)
    await until(lambda: node.registry.counts["relayed datagrams"] >= 2)
    assert gateway.up == before
    assert len(endpoint.up) == 1


async def test_an_endpoint_that_stops_says_so_through_the_relay(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await relaying(place)
    _, endpoint = await linked(place)
    await endpoint.manager.stop("it is switched off")
    await until(lambda: "link office is down: the peer closed the connection" in caplog.text)


async def test_direct_is_better_where_it_works(place: Place) -> None:
    node = await relaying(place)
    endpoint, gateway = place.endpoint(), place.gateway()
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    assert gateway.row("office")["path_kind"] == "host"
    assert node.registry.counts["passed"] >= 2


async def test_without_a_relay_there_is_no_candidate_of_it(place: Place) -> None:
    await relaying(place, enabled=False)
    gateway, endpoint = hosts(place)
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: "there is no relay: " in gateway.detail("office"))
    assert not endpoint.up


HANDSHAKE = (20, 22)
"""First bytes of records that are not authenticated yet (RFC 6347): ChangeCipherSpec, Handshake.

Whoever is on the way can keep two hosts from a handshake, so a test of that would prove nothing."""


# --- a service that is no friend ------------------------------------------------------------------


def mangle(
    node: Service, monkeypatch: pytest.MonkeyPatch, how: Callable[[Relayed], Sequence[Relayed]]
) -> list[Relayed]:
    """Has the service relay what `how` makes of each frame; returns the list of what came."""
    seen: list[Relayed] = []
    relay = node.relay.relay

    def mangled(sender: Client, frame: Relayed, now: float) -> None:
        seen.append(frame)
        for other in how(frame):
            relay(sender, other, now)

    monkeypatch.setattr(node.relay, "relay", mangled)
    return seen


async def test_repeated_reordered_and_invented_datagrams_cost_no_link(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    late: list[Relayed] = []

    def how(frame: Relayed) -> list[Relayed]:
        if frame.joined[0] in HANDSHAKE:
            return [frame]
        length = len(frame.joined)
        forged = bytearray(frame.joined)
        forged[chance.randrange(length)] ^= 1 << chance.randrange(8)
        made = [frame, frame]
        made.append(replace(frame, joined=bytes(forged)))
        made.append(replace(frame, joined=chance.randbytes(length)))
        made += late
        late[:] = [frame] if chance.random() < 0.3 else []
        chance.shuffle(made)
        return made

    node = await relaying(place)
    mangle(node, monkeypatch, how)
    gateway, endpoint = await linked(place)
    assert gateway.row("office")["path_kind"] == "relay"
    assert not gateway.abused
    assert not endpoint.abused


async def test_a_service_that_relays_garbage_costs_the_link_and_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = await relaying(place)
    chance = random.Random(8)

    def how(frame: Relayed) -> list[Relayed]:
        garbage = chance.randbytes(len(frame.joined))
        return [replace(frame, joined=garbage), replace(frame, channel=chance.randbytes(8))]

    seen = mangle(node, monkeypatch, how)
    gateway, endpoint = hosts(place)
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: len(seen) >= 6)
    assert not gateway.up
    assert not endpoint.up
    assert "bug" not in caplog.text
    monkeypatch.undo()


# --- clients --------------------------------------------------------------------------------------


class Sink:
    """Takes datagrams of a channel."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.why: list[str] = []

    def relayed(self, datagrams: Sequence[bytes]) -> None:
        self.got += datagrams

    def refused(self, why: str) -> None:
        self.why.append(why)


NAME = b"channel1"


def channel(client: Rendezvous, to: PrivateIdentity, name: bytes = NAME) -> tuple[Channel, Sink]:
    way = client.relay.to(to.public)
    assert way is not None
    sink = Sink()
    return way.open(name, sink), sink


async def two_clients(place: Place, **relay: Any) -> tuple[Service, Rendezvous, Rendezvous]:
    node = await relaying(place, **relay)
    office, laptop = place.world.key("office"), place.world.key("laptop")
    a, b = place.client(office, laptop), place.client(laptop, office)
    await until(lambda: a.relay.rate and b.relay.rate)
    await until(lambda: all(len(client.watched) for client in node.registry.clients()))
    return node, a, b


@pytest.mark.usefixtures("unhurried")
async def test_datagrams_arrive_in_their_order_and_sizes(place: Place) -> None:
    _, a, b = await two_clients(place)
    sent, _ = channel(a, place.world.key("laptop"))
    back, sink = channel(b, place.world.key("office"))
    back.send([b"hello"])
    chance = random.Random(9)
    datagrams = [chance.randbytes(chance.choice((20, 1200, 1200, 1200))) for _ in range(60)]
    sent.send(datagrams[:30])
    sent.send(datagrams[30:])
    await until(lambda: len(sink.got) == 60)
    assert sink.got == datagrams
    assert counts(a)["sent"] == counts(b)["received"] == 60


@pytest.mark.usefixtures("unhurried")
async def test_what_comes_as_the_last_datagram_leaves_is_sent_too(place: Place) -> None:
    _, a, b = await two_clients(place)
    sent, _ = channel(a, place.world.key("laptop"))
    back, sink = channel(b, place.world.key("office"))
    back.send([b"hello"])
    for turns in range(8):  # in one of which the task that sends comes to its end
        sent.send([b"one"])
        for _ in range(turns):
            await asyncio.sleep(0)
        sent.send([b"two"])
        await until(lambda: len(sink.got) == 2)
        sink.got.clear()


@pytest.mark.usefixtures("unhurried")
async def test_a_channel_that_is_not_open_gets_nothing(place: Place) -> None:
    _, a, b = await two_clients(place)
    other, _ = channel(a, place.world.key("laptop"), b"another1")
    sent, _ = channel(a, place.world.key("laptop"))
    back, sink = channel(b, place.world.key("office"))
    other.send([b"x", b"y"])
    sent.send([b"z"])
    await until(lambda: sink.got)
    assert sink.got == [b"z"]
    assert counts(b)["no-channel"] == 2
    back.close()
    sent.send([b"late"])
    await until(lambda: counts(b)["no-channel"] == 3)
    assert sink.got == [b"z"]


async def test_a_reload_of_the_service_is_told_to_who_is_connected(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "TOLD_WITHIN", 0.05)
    node = await relaying(place, enabled=False)
    client = place.client(place.world.key("office"))
    await until(lambda: len(node.registry) == 1 and client.problem is None)
    assert not client.relay.rate
    for relay in ({"enabled": True, "bytes_per_second": 7000}, {"enabled": False}):
        place.settings["relay"] = relay
        node.apply(place.configuration(), None)
        await until(lambda: client.relay.rate == node.registry.relay_rate)
    assert client.relay.rate == 0


async def test_a_service_that_relays_no_more_ends_what_waits(place: Place) -> None:
    """A welcome that renews logins also tells of a relay that a reload has switched off."""
    _, a, _ = await two_clients(place)
    sent, _ = channel(a, place.world.key("laptop"))
    sent.send([bytes(1200)] * 100)
    pump, ws = a.relay._pump, a._ws
    assert pump is not None
    assert ws is not None
    a.relay.opened(ws, 0)
    await asyncio.wait([pump])
    assert pump.exception() is None
    assert a.relay._queue.size == 0


async def test_without_a_connection_datagrams_are_lost_and_counted(place: Place) -> None:
    _, a, b = await two_clients(place)
    sent, _ = channel(a, place.world.key("laptop"))
    _, sink = channel(b, place.world.key("office"))
    await place.stop()
    await until(lambda: not a.relay.rate)
    sent.send([b"lost", b"too"])
    assert counts(a)["not-connected"] == 2
    assert a.relay.to(place.world.key("laptop").public) is None
    node = await place.start()
    await until(lambda: a.relay.rate and b.relay.rate)
    await until(lambda: all(len(client.watched) for client in node.registry.clients()))

    def arrived() -> bool:
        sent.send([b"again"])
        return b"again" in sink.got

    await until(arrived)


async def test_a_client_keeps_to_its_rate_so_that_the_service_drops_nothing(place: Place) -> None:
    node, a, b = await two_clients(place, bytes_per_second=100_000)
    sent, _ = channel(a, place.world.key("laptop"))
    back, sink = channel(b, place.world.key("office"))
    back.send([b"hello"])
    await until(lambda: counts(b)["sent"] and node.registry.counts["relayed datagrams"])
    for _ in range(20):
        sent.send([bytes(1200)] * 100)
    await until(lambda: a.relay._pump is not None and a.relay._pump.done())
    dropped = counts(a)["late"] + counts(a)["full"]

    def late() -> int:  # held up at the service, on a machine that is busy
        return node.registry.counts["relay dropped: late"]

    await until(lambda: len(sink.got) + dropped + late() == 2000)
    assert dropped > 1000
    assert not node.registry.counts["relay dropped: rate"]


async def test_a_stranger_reaches_nobody(place: Place) -> None:
    node, a, _ = await two_clients(place)
    stranger, other = PrivateIdentity.generate(), PrivateIdentity.generate()
    _, sink = channel(a, stranger)
    async with raw_connections(place) as connect:
        raw = await connect()
        await raw.join(stranger, place.world.key("office"), other)
        for key in (place.world.key("office"), other):
            await raw.ws.send_bytes(encode_relayed(Relayed(key.public, NAME, b"hi", 2), "to"))
        await until(lambda: node.registry.counts["relay dropped: absent"] == 2)
        assert sink.got == []


async def test_before_the_proof_nothing_is_relayed(place: Place) -> None:
    await relaying(place)
    async with raw_connections(place) as connect:
        raw = await connect()
        frame = Relayed(place.world.key("office").public, NAME, b"hi", 2)
        await raw.ws.send_bytes(encode_relayed(frame, "to"))
        assert await raw.closed() == wire.CLOSE_PROTOCOL


async def test_who_floods_is_limited_and_who_does_not_read_holds_up_nobody(place: Place) -> None:
    node = await relaying(place, bytes_per_second=200_000)
    office, laptop = place.world.key("office"), place.world.key("laptop")
    quiet = PrivateIdentity.generate()
    a, c = place.client(office, laptop, quiet), place.client(quiet, office)
    await until(lambda: a.relay.rate and c.relay.rate)
    async with raw_connections(place) as connect:
        raw = await connect()  # it floods, and reads nothing from here on
        await raw.join(laptop, office)
        back, _ = channel(a, laptop)
        back.send([b"an answer"])
        frame = encode_relayed(Relayed(office.public, NAME, bytes(JOINED_MAX), 1024), "to")
        async with asyncio.timeout(60):
            while not node.registry.counts["relay dropped: rate"]:
                await raw.ws.send_bytes(frame)
                await asyncio.sleep(0)
        sent, _ = channel(c, office)
        _, sink = channel(a, quiet)
        async with asyncio.timeout(60):
            while not sink.got:  # what comes while the flood lasts may be lost
                sent.send([b"served"])
                await asyncio.sleep(0.05)
