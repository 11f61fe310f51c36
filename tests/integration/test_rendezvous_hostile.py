"""Hostile clients of a rendezvous service, and a hostile service."""

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgpack
import pytest

from integration.links_world import until
from integration.rendezvous_world import Connect, Place, a_place, prepared, raw_connections
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.rendezvous import limits, registry, service, session
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling import rendezvous_socket
from socks_tunnel.signaling.carrier import Answered, SignalingError
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import enrolment_for
from socks_tunnel.signaling.rendezvous_peer import RendezvousCarrier
from socks_tunnel.signaling.rendezvous_relay import RelaySocket
from socks_tunnel.supervisor import dialler


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def raw(place: Place) -> AsyncIterator[Connect]:
    async with raw_connections(place) as connect:
        yield connect


# --- hostile clients ----------------------------------------------------------------------------------


async def test_a_wrong_proof_is_refused(place: Place, raw: Connect) -> None:
    node = await place.start()
    identity, other = PrivateIdentity.generate(), PrivateIdentity.generate()
    client = await raw()
    await client.frame()
    now = time.time()
    signature = other.sign(client.protocol.signed_text(now))
    await client.ws.send_bytes(client.protocol.proof(identity.public, signature, now))
    assert await client.closed() == wire.CLOSE_PROOF
    assert node.registry.counts["protocol: proof"] == 1
    await until(lambda: not len(node.door))
    assert not len(node.registry)


async def test_a_proof_for_another_service_is_refused(place: Place, raw: Connect) -> None:
    place.settings["names"] = ["LocalHost"]
    node = await place.start()
    identity = PrivateIdentity.generate()
    client = await raw()
    await client.prove(identity, host="evil.example:443")
    assert await client.closed() == wire.CLOSE_PROOF
    assert not len(node.registry)
    place.client(identity)
    await until(lambda: len(node.registry) == 1)


async def test_a_key_that_is_not_listed_is_refused(place: Place, raw: Connect) -> None:
    known = PrivateIdentity.generate()
    place.settings = {
        "clients": "listed",
        "keys": [{"name": "office", "public_key": known.public_text}],
    }
    node = await place.start()
    client = await raw()
    await client.prove(PrivateIdentity.generate())
    assert await client.closed() == wire.CLOSE_FORBIDDEN
    stranger = place.client(PrivateIdentity.generate())
    await until(lambda: stranger.problem == wire.CLOSE_MEANINGS[wire.CLOSE_FORBIDDEN])
    place.client(known)
    await until(lambda: len(node.registry) == 1)


async def test_strangers_cannot_fill_the_log(
    place: Place, raw: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One address alone may connect 20 times a second, and each time with another key."""
    known = PrivateIdentity.generate()
    place.settings = {
        "clients": "listed",
        "keys": [{"name": "office", "public_key": known.public_text}],
    }
    node = await place.start()
    node.refusals = limits.Bucket(0, session.REFUSALS_LOGGED, 0)  # however long this takes
    caplog.set_level(logging.INFO)
    for _ in range(3 * session.REFUSALS_LOGGED):
        client = await raw()
        await client.prove(PrivateIdentity.generate())
        assert await client.closed() == wire.CLOSE_FORBIDDEN
    assert node.registry.counts["refused: not listed"] == 3 * session.REFUSALS_LOGGED
    told = [text for text in caplog.messages if text.startswith("closing the connection of")]
    assert len(told) == session.REFUSALS_LOGGED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(wire.FRAME_MAX + 1), 1009),
        (bytes(wire.SHORT_FRAME_MAX + 1), wire.CLOSE_PROTOCOL),
        (b"\xc1", wire.CLOSE_PROTOCOL),
        (msgpack.packb({"kind": "watch", "keys": b"", "reset": True}), wire.CLOSE_PROTOCOL),
        (b"\xdf\xff\xff\xff\xff", wire.CLOSE_PROTOCOL),
    ],
)
async def test_garbage_before_the_proof_ends_the_connection(
    place: Place, raw: Connect, data: bytes, code: int
) -> None:
    node = await place.start()
    client = await raw()
    await client.frame()
    await client.ws.send_bytes(data)
    assert await client.closed() == code
    await until(lambda: not len(node.door))


async def test_a_huge_frame_after_the_proof_costs_its_sender_only(
    place: Place, raw: Connect
) -> None:
    node = await place.start()
    place.client(PrivateIdentity.generate())
    client = await raw()
    await client.join(PrivateIdentity.generate())
    await until(lambda: len(node.registry) == 2)
    with contextlib.suppress(ConnectionError):  # it is cut off in the middle of it
        await client.ws.send_bytes(bytes(10_000_000))
    await until(lambda: len(node.registry) == 1)


async def test_strangers_neither_reach_nor_see_who_does_not_watch_them(
    place: Place, raw: Connect
) -> None:
    node = await place.start()
    office, laptop, stranger = (PrivateIdentity.generate() for _ in range(3))
    place.client(office, laptop)
    await until(lambda: len(node.registry) == 1)
    client = await raw()
    await client.join(stranger, office)
    await client.ws.send_bytes(client.protocol.envelope(office.public, b"parcel"))
    assert await client.frame() == wire.Absent(office.public, "absent")
    friend = await raw()
    await friend.join(laptop, office)
    assert await friend.frame() == wire.Presence((office.public,), ())


async def test_a_flood_of_strangers_leaves_clients_served(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNPROVED_MAX", 20)
    # As from many addresses: the limits of one are tested without a socket.
    place.settings["trusted_proxies"] = ["127.0.0.1"]
    node = await place.start()
    a, b = PrivateIdentity.generate(), PrivateIdentity.generate()
    strangers = []
    for _ in range(100):
        sock = socket.create_connection(("127.0.0.1", place.port))
        sock.setblocking(False)
        strangers.append(sock)
    try:
        await until(lambda: node.door.counts["full"] + node.door.counts["flood"] == 80)
        assert len(node.door) == 20

        async def refuse(envelope: bytes) -> Answered | None:
            del envelope
            return None

        place.client(b, a, offer=refuse)
        carrier = RendezvousCarrier(place.client(a, b), b.public)
        await carrier.appeared()
        with pytest.raises(SignalingError, match="the peer refused"):
            await carrier.offer(b"offer", 30)
    finally:
        for sock in strangers:
            sock.close()
    await until(lambda: not len(node.door))


async def test_one_address_has_few_connections_without_a_proof(place: Place) -> None:
    node = await place.start()
    strangers = [socket.create_connection(("127.0.0.1", place.port)) for _ in range(40)]
    await until(lambda: node.door.counts["unproved"] == 8)
    for sock in strangers:
        sock.close()
    await until(lambda: not len(node.door))


async def test_who_proves_nothing_is_disconnected(
    place: Place, raw: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PROOF_TIMEOUT", 1.0)
    node = await place.start()
    client = await raw()
    await client.frame()
    assert await client.closed() == 1006
    await until(lambda: not len(node.door))


@pytest.fixture
def office(place: Place, tmp_path: Path) -> PrivateIdentity:
    """The endpoint of a place whose clients are those that it has enrolled."""
    made = PrivateIdentity.generate()
    secret = tmp_path / "turn.secret"
    secret.write_text("north" * 8)
    place.settings |= {
        "clients": "enrolled",
        "keys": [{"name": "office", "public_key": made.public_text}],
        "turn": {"servers": [{"urls": ["turn:turn.example"]}], "secret_file": secret},
    }
    return made


async def test_a_guest_cannot_use_the_turn_server(
    place: Place, raw: Connect, office: PrivateIdentity
) -> None:
    await place.start()
    host = PrivateIdentity.generate()
    assert (await (await raw()).join(host)).turn == ()
    enrolment = enrolment_for(office, host.public, 0)
    assert (await (await raw()).join(host, enrolment=enrolment)).turn


async def test_a_host_that_has_joined_for_a_time_is_disconnected_after_it(
    place: Place, raw: Connect, office: PrivateIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ENROLMENT_CHECKED", 0.05)
    node = await place.start()
    host, other = PrivateIdentity.generate(), PrivateIdentity.generate()
    until_then = int(time.time()) + 3600
    client, stays = await raw(), await raw()
    await client.join(host, enrolment=enrolment_for(office, host.public, until_then))
    await stays.join(other, enrolment=enrolment_for(office, other.public, 0))
    assert len(node.registry) == 2
    monkeypatch.setattr(session, "time", SimpleNamespace(time=lambda: time.time() + 3601))
    assert await client.closed() == wire.CLOSE_FORBIDDEN
    assert node.registry.counts["ended: enrolment over"] == 1
    assert len(node.registry) == 1


async def test_a_service_that_does_not_take_a_revocation_is_told_it_by_the_next_connection(
    place: Place, office: PrivateIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous_socket, "SEND_TIMEOUT", 0.5)
    send, stuck = RelaySocket.send_bytes, 0

    async def send_bytes(ws: RelaySocket, data: bytes, *args: Any, **more: Any) -> None:
        nonlocal stuck
        if b"\xa7revoked" in data and revoked and not stuck:
            stuck += 1
            await asyncio.Event().wait()
        await send(ws, data, *args, **more)

    monkeypatch.setattr(RelaySocket, "send_bytes", send_bytes)
    node = await place.start()
    revoked: list[bytes] = []
    client = place.client(office, revoked=lambda: revoked)
    await until(lambda: client.problem is None)
    host = PrivateIdentity.generate().public
    revoked.append(host)
    client.revoked.changed()
    await until(lambda: node.registry.revocations.has(office.public, host))
    assert stuck


async def test_a_proxy_that_is_trusted_names_the_address(place: Place, raw: Connect) -> None:
    place.settings["trusted_proxies"] = ["127.0.0.1"]
    node = await place.start()
    headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7"}
    for _ in range(limits.UNPROVED_PER_NETWORK_MAX):
        await raw(headers=headers)
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await raw(headers=headers)
    assert caught.value.status == 429
    await raw(headers={"X-Forwarded-For": "198.51.100.8"})
    assert node.door.counts["unproved"] == 1


async def test_a_newer_connection_of_a_key_takes_the_place_of_the_older(
    place: Place, raw: Connect
) -> None:
    node = await place.start()
    identity = PrivateIdentity.generate()
    older, newer = await raw(), await raw()
    await older.join(identity)
    await newer.join(identity)
    assert await older.closed() == wire.CLOSE_REPLACED
    assert len(node.registry) == 1
    await newer.ws.send_bytes(newer.protocol.envelope(bytes(32), b""))
    assert await newer.frame() == wire.Absent(bytes(32), "absent")


# --- a hostile service ----------------------------------------------------------------------------


class Liar(registry.Registry):
    """Tells of a presence that is none, and delivers everything to everybody, twice, mixed up."""

    def envelope(self, client: Client, to: bytes, body: bytes, now: float) -> None:
        del now
        parcel = wire.decode_parcel(body)
        for other in list(self._clients.values()):
            for sender in (client.key, to, bytes(32)):
                for kind in wire.PARCEL_KINDS:
                    for envelope in (
                        parcel.envelope,
                        parcel.envelope[:-1] + b"\0",
                        b"",
                        bytes(60_000),
                    ):
                        lie = wire.Parcel(kind, parcel.ref, "0123", envelope)
                        other.push(wire.encode(wire.FromKey(sender, wire.encode_parcel(lie))))
            other.push(wire.encode(wire.FromKey(to, b"garbage")))
            for frame in (*wire.presences([to], []), *wire.presences([], [to])):
                other.push(frame)
        self.counts["lies"] += 1


async def test_a_service_that_lies_gets_nothing_but_denial(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    node = await place.start()
    node.registry = Liar({}, clients="any")
    endpoint, gateway = place.endpoint(), place.gateway()
    await prepared(endpoint)
    await until(lambda: len(node.registry) == 1)
    await prepared(gateway)
    await until(lambda: node.registry.counts["lies"] >= 3)
    assert not [record for record in caplog.records if record.exc_info]
    links = [*gateway.up, *endpoint.up]
    assert {link.peer.name for link in links} <= {"office", "laptop"}
    # What the gateway drops is counted: garbage, answers to nothing, and what gateways do not take.

    def dropped(reason: str) -> float:
        return gateway.metric("parcels_dropped_total", reason=reason)

    expected = ("malformed", "unasked", "not-for-gateways")
    await until(lambda: all(map(dropped, expected)))
    await until(lambda: endpoint.metric("parcels_dropped_total", reason="malformed") > 0)
    # With an honest one in its place they find each other at once.
    await place.stop()
    await place.start()
    await until(lambda: gateway.up and endpoint.up)
    await until(lambda: gateway.row("office")["state"] == "up")


class Careless(registry.Registry):
    """Drops the first parcel, holds up all others, turns their order round, and repeats answers."""

    def __init__(self) -> None:
        super().__init__({}, clients="any")
        self.held: list[tuple[Client, bytes, bytes]] = []

    def envelope(self, client: Client, to: bytes, body: bytes, now: float) -> None:
        self.counts["parcels"] += 1
        if self.counts["parcels"] == 1:
            return
        answers = wire.decode_parcel(body).kind == "answer"
        self.held += [(client, to, body)] * (3 if answers else 1)
        if len(self.held) in {1, 3}:
            asyncio.get_running_loop().call_later(0.2, self.let_go, now)

    def let_go(self, now: float) -> None:
        held, self.held = self.held, []
        for client, to, body in reversed(held):
            super().envelope(client, to, body, now)


async def test_a_service_that_drops_delays_reorders_and_repeats_costs_time_alone(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler, "OFFER_TIMEOUT", 4.0)  # after which the one that was lost counts
    node = await place.start()
    node.registry = Careless()
    endpoint, gateway = place.endpoint(), place.gateway()
    await prepared(endpoint)
    await until(lambda: len(node.registry) == 1)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    assert [link.peer.name for link in gateway.up] == ["office"]
    await until(lambda: gateway.metric("parcels_dropped_total", reason="unasked") >= 2)
    assert not [record for record in caplog.records if record.exc_info]


class FalseTurn:
    """TURN servers that are none: one that answers rubbish, one where nobody is, and no URLs."""

    def __init__(self) -> None:
        self.asked = 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self.sock, self.answer)

    def answer(self) -> None:
        data, sender = self.sock.recvfrom(65_536)
        self.asked += 1
        # The header of a success with the transaction's id (RFC 8489 section 5), then rubbish.
        lie = bytes([data[0] | 0x01, data[1] & 0x0F]) + b"\xff\xff" + data[4:20] + bytes(range(200))
        for rubbish in (lie, data, b"", bytes(1500)):
            self.sock.sendto(rubbish, sender)

    def for_key(self, *_: object) -> tuple[wire.TurnServer, ...]:
        port = self.sock.getsockname()[1]
        urls = (f"turn:127.0.0.1:{port}", "turn:127.0.0.1:9", "stun:127.0.0.1", "http://a/", "")
        return (wire.TurnServer(urls, "user", "secret"),) * 2

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()


async def test_false_turn_servers_cost_no_direct_link(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    node = await place.start()
    false = FalseTurn()
    node.registry.turn = false  # type: ignore[assignment] # it is asked for nothing else
    endpoint, gateway = place.endpoint(), place.gateway()
    try:
        await prepared(endpoint)
        await prepared(gateway)
        await until(lambda: gateway.up and endpoint.up)
        await until(lambda: false.asked)
        assert gateway.row("office")["path_kind"] == "host"
    finally:
        false.close()
    assert not [record for record in caplog.records if record.exc_info]
    assert "secret" not in caplog.text


async def test_a_service_cannot_fill_the_log(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    node = await place.start()
    host = PrivateIdentity.generate()
    drops: Counter[str] = Counter()
    place.client(host, dropped=lambda why: drops.update([why]))
    await until(lambda: node.registry.get(host.public) is not None)
    client = node.registry.get(host.public)
    assert client is not None
    caplog.set_level(logging.INFO)
    for number in range(100):
        false = wire.TurnServer((f"nonsense:{number}", "stun:192.0.2.1"), "u", "c")
        turn = (false,) * wire.TURN_SERVERS_MAX
        client.push(wire.encode(wire.Welcome(bytes(8), 0, 66_048, 64, 10, turn)))
        client.push(wire.encode(wire.Drain(3600)))
    client.push(wire.encode(wire.FromKey(bytes(32), b"nonsense")))
    client.wake()
    await until(lambda: drops["malformed"] == 1)
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "leaving it in" in text]) == 1
    warned = [text for text in told if "TURN server" in text]
    assert len(warned) == 2 * wire.TURN_SERVERS_MAX, "those of the first one"


async def test_what_somebody_else_has_put_in_the_place_of_its_socket_stays(place: Place) -> None:
    """Another service listens there already, or it is a file of somebody else."""
    path = place.world.directory / "service.sock"
    place.settings = {"listen": f"unix:{path}", "clients": "any"}
    node = Service(place.configuration(), None)
    await node.start()
    path.unlink()
    path.write_text("another's")
    await node.stop()
    assert path.read_text() == "another's"
    path.unlink()
    node = Service(place.configuration(), None)
    await node.start()
    assert path.is_socket()
    await node.stop()
    assert not path.exists()
