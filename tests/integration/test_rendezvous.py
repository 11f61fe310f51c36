"""Links and carriers over a rendezvous service, with real WebSockets on loopback."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

import socks_tunnel
from integration.links_world import until
from integration.rendezvous_world import Delays, Place, a_place, linked, prepared
from integration.test_signaling_proxy import ForwardProxy
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.rendezvous import registry
from socks_tunnel.signaling import presence, rendezvous
from socks_tunnel.signaling.carrier import Answered, SignalingError
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from socks_tunnel.signaling.rendezvous_peer import RendezvousCarrier
from socks_tunnel.signaling.tls import read_server_certificate
from socks_tunnel.supervisor import dialler
from support.certificates import Authority


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


# --- links ----------------------------------------------------------------------------------------


async def test_both_sides_outbound_only_have_a_link(place: Place) -> None:
    gateway, endpoint = await linked(place)
    assert gateway.row("office")["state"] == "up"
    node = place.node
    assert node is not None
    assert node.registry.counts["passed"] == 2
    await gateway.manager.stop("done")
    await until(lambda: not endpoint.up)
    await until(lambda: node.registry.counts["passed"] == 3)  # the goodbye
    await until(lambda: not endpoint.router.sessions)


async def test_a_restart_of_the_service_costs_no_link(place: Place) -> None:
    gateway, endpoint = await linked(place)
    before = gateway.up
    await place.stop()
    node = await place.start()
    await until(lambda: len(node.registry) == 2)
    assert gateway.up == before
    assert len(endpoint.up) == 1


async def test_a_gateway_dials_when_its_endpoint_appears(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler, "FIRST_DELAY", 3600.0)
    monkeypatch.setattr(dialler, "LONGEST_DELAY", 3600.0)
    await place.start()
    gateway = place.gateway()
    await prepared(gateway)
    await until(lambda: "is not there" in gateway.detail("office"))
    endpoint = place.endpoint()
    await prepared(endpoint)
    await until(lambda: gateway.up and endpoint.up)


async def test_a_gateway_that_balances_is_told_the_load_of_its_peer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LOAD_PERIOD", 1)
    node = await place.start()
    endpoint = place.endpoint()
    gateway = place.gateway(routes=[{"peers": ["office"], "policy": "least-loaded"}])
    await prepared(endpoint)
    await prepared(gateway)
    reported = gateway.router.chooser.reported
    await until(lambda: reported() == {"office": 0})
    await until(lambda: gateway.up and endpoint.up)
    key = place.world.key("office").public

    def told() -> Load | None:
        client = node.registry.get(key)
        return None if client is None else client.load

    await until(lambda: told() == Load(0, 1, socks_tunnel.__version__))
    await place.stop()
    await until(lambda: reported() == {})
    await place.start()
    await until(lambda: reported() == {"office": 0})


async def test_direct_is_tried_first(place: Place) -> None:
    node = await place.start()
    direct = f"unix:{place.world.directory}/office.sock"
    endpoint, gateway = place.endpoint(listen=direct), place.gateway(url=direct)
    await prepared(endpoint)
    await until(lambda: len(node.registry) == 1)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    assert node.registry.counts["passed"] == 0


async def test_the_service_takes_over_where_direct_fails(place: Place) -> None:
    node = await place.start()
    nobody = f"unix:{place.world.directory}/nobody.sock"
    endpoint, gateway = place.endpoint(), place.gateway(url=nobody)
    await prepared(endpoint)
    await prepared(gateway)
    await until(lambda: gateway.up and endpoint.up)
    assert node.registry.counts["passed"] == 2
    await gateway.manager.stop("done")
    await until(lambda: node.registry.counts["passed"] == 3)


async def test_a_peer_that_is_removed_is_not_watched_any_more(place: Place) -> None:
    gateway, endpoint = await linked(place)
    node = place.node
    assert node is not None
    laptop, office = gateway.identity.public, endpoint.identity.public
    changed = replace(endpoint.manager.config, peers=())
    await endpoint.manager.prepare(changed)
    endpoint.manager.apply(changed)
    await until(lambda: not endpoint.up)
    await until(lambda: (c := node.registry.get(office)) is not None and not c.watched)
    assert node.registry.get(laptop) is not None


# --- the carrier ------------------------------------------------------------------------------------


async def test_over_tls_with_an_authority_of_its_own(place: Place, tmp_path: Path) -> None:
    authority = Authority("Test Root")
    (tmp_path / "ca.pem").write_text(authority.certificate)
    (tmp_path / "server.pem").touch(0o600)
    (tmp_path / "server.pem").write_text(authority.issue("localhost").both)
    place.tls = read_server_certificate(tmp_path / "server.pem", None)
    node = await place.start()
    identity, stranger = PrivateIdentity.generate(), PrivateIdentity.generate()
    place.client(identity, ca=tmp_path / "ca.pem")
    await until(lambda: len(node.registry) == 1)
    distrustful = place.client(stranger)
    await until(lambda: "certificate" in (distrustful.problem or ""))
    assert node.registry.get(stranger.public) is None


async def test_what_a_carrier_says_of_failures(place: Place) -> None:
    a, b = PrivateIdentity.generate(), PrivateIdentity.generate()
    place.port = 9
    nowhere = RendezvousCarrier(place.client(a, b), b.public)
    with pytest.raises(SignalingError, match="no connection to ws://localhost:9/"):
        await nowhere.offer(b"offer", 0.3)
    with pytest.raises(SignalingError, match="no connection to"):
        await nowhere.bye("1", b"bye")
    place.port = 0
    await place.start()
    carrier = RendezvousCarrier(place.client(a, b), b.public)
    with pytest.raises(SignalingError, match="the peer is not there"):
        await carrier.offer(b"offer", 30)
    with pytest.raises(SignalingError, match="the service takes"):
        await carrier.offer(bytes(wire.PARCEL_MAX), 30)

    async def refuse(envelope: bytes) -> Answered | None:
        assert envelope == b"offer"
        return None

    place.client(b, a, offer=refuse)
    await carrier.appeared()
    with pytest.raises(SignalingError, match="the peer refused the offer"):
        await carrier.offer(b"offer", 30)


async def test_a_slow_answer_ends_with_the_time(place: Place) -> None:
    a, b = PrivateIdentity.generate(), PrivateIdentity.generate()
    await place.start()
    begun = asyncio.Event()

    async def never(envelope: bytes) -> Answered | None:
        if envelope == b"another":
            begun.set()
        await asyncio.get_running_loop().create_future()
        return None

    place.client(b, a, offer=never)
    carrier = RendezvousCarrier(place.client(a, b), b.public)
    await carrier.appeared()
    with pytest.raises(SignalingError, match="no answer through"):
        await carrier.offer(b"offer", 1.0)
    offering = asyncio.get_running_loop().create_task(carrier.offer(b"another", 60))
    async with asyncio.timeout(60):
        await begun.wait()
    await place.stop()
    with pytest.raises(SignalingError, match="ended before an answer came"):
        await offering


async def test_requests_to_join_keep_no_offer_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "HANDLED_MAX", 2)
    a, b = PrivateIdentity.generate(), PrivateIdentity.generate()
    await place.start()
    at_work: list[bytes] = []
    dropped: list[str] = []
    gate = asyncio.Event()

    async def join(request: bytes) -> bytes:
        at_work.append(request)
        await gate.wait()
        return request

    async def offer(envelope: bytes) -> Answered:
        return Answered(envelope, "1")

    place.client(b, a, offer=offer, join=join, dropped=dropped.append)
    asking = place.client(a, b)
    carrier = RendezvousCarrier(asking, b.public)
    await carrier.appeared()
    joining = [asyncio.ensure_future(asking.join(b.public, b"host", 60)) for _ in range(3)]
    await until(lambda: len(at_work) == 2 and dropped == ["too-many"])
    assert (await carrier.offer(b"offer", 60))[0] == b"offer"
    gate.set()
    await until(lambda: sum(each.done() for each in joining) == 2)
    (left,) = [each for each in joining if not each.done()]
    left.cancel()
    assert await asking.join(b.public, b"again", 60) == b"again"


@pytest.fixture
async def proxy(place: Place) -> AsyncIterator[tuple[ForwardProxy, str]]:
    """A proxy that leads to the service alone, and where it listens."""
    await place.start()
    made = ForwardProxy(HostPort("127.0.0.1", place.port))
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    yield made, f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    listening.close()
    for client in place.clients:
        await client.stop()
    if made.serving:
        await asyncio.wait(made.serving)


NAME = "rendezvous.test"
"""A name that only the proxy knows."""


async def test_through_an_http_proxy_by_connect(
    place: Place, tmp_path: Path, proxy: tuple[ForwardProxy, str]
) -> None:
    await place.stop()
    authority = Authority("Test Root")
    (tmp_path / "ca.pem").write_text(authority.certificate)
    (tmp_path / "server.pem").touch(0o600)
    (tmp_path / "server.pem").write_text(authority.issue(NAME).both)
    place.tls = read_server_certificate(tmp_path / "server.pem", None)
    node = await place.start()
    way, where = proxy
    client = Rendezvous(
        f"wss://{NAME}/",
        PrivateIdentity.generate(),
        Delays(),
        ca=tmp_path / "ca.pem",
        proxy=f"http://us%20er:pass@{where}",
    )
    place.clients.append(client)
    client.start()
    await until(lambda: len(node.registry) == 1)
    assert way.heads[0].startswith(b"CONNECT rendezvous.test:443 HTTP/1.1\r\n")
    credentials = base64.b64encode(b"us er:pass").lower()
    assert b"proxy-authorization: basic " + credentials in way.heads[0].lower()


async def test_a_proxy_that_wants_a_password_is_named(
    place: Place, proxy: tuple[ForwardProxy, str]
) -> None:
    way, where = proxy
    way.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    identity = PrivateIdentity.generate()
    client = Rendezvous(f"wss://{NAME}/", identity, Delays(), proxy=f"http://{where}")
    place.clients.append(client)
    client.start()
    await until(lambda: str(client.problem).startswith("the HTTP proxy answered with status 407"))


async def test_a_wrong_clock_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = await place.start()
    monkeypatch.setattr(
        registry.Registry,
        "welcome",
        lambda self, client, session, now: wire.Welcome(session, int(now) + 90, 65_536, 64, 1),
    )
    place.client(PrivateIdentity.generate())
    await until(lambda: "s behind that of the rendezvous" in caplog.text)
    assert len(node.registry) == 1


async def test_the_same_problem_is_told_once_with_what_to_do(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.start()
    await place.stop()
    client = place.client(PrivateIdentity.generate())
    caplog.set_level(logging.DEBUG, "socks_tunnel.signaling.rendezvous")

    def told(level: int) -> list[str]:
        return [
            r.getMessage() for r in caplog.records if r.levelno == level and "again in" in r.msg
        ]

    await until(lambda: len(told(logging.DEBUG)) >= 3)
    (line,) = told(logging.WARNING)
    assert "Is the other side running" in line
    await place.start()
    await until(lambda: client.problem is None)
    await place.stop()
    await until(lambda: len(told(logging.WARNING)) >= 3)  # that it has ended, and the refusal anew


@pytest.mark.parametrize("trusting", [True, False])
async def test_the_service_time_counts_where_it_is_trusted_for_that(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trusting: bool
) -> None:
    """It is ten minutes ahead. An endpoint that goes by it understands only who does so too."""
    await place.start()
    monkeypatch.setattr(
        registry.Registry,
        "welcome",
        lambda self, client, session, now: wire.Welcome(session, int(now) + 600, 65_536, 64, 99),
    )
    endpoint, gateway = place.endpoint(), place.gateway()
    endpoint.manager.clock.trusts_service = True
    gateway.manager.clock.trusts_service = trusting
    await prepared(endpoint)
    await prepared(gateway)
    if trusting:
        await until(lambda: gateway.up and endpoint.up)
        assert "offers and answers go by the service's (rendezvous_clock)" in caplog.text
    else:
        await until(lambda: endpoint.metric("signaling_rejected_total", reason="expired") > 0)
        await until(lambda: "one of them is wrong" in caplog.text)


async def test_drain_asks_clients_to_leave_and_refuses_new_ones(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await place.start()
    keys = [PrivateIdentity.generate() for _ in range(20)]
    clients = [place.client(key) for key in keys]
    await until(lambda: len(node.registry) == len(keys))
    draining = asyncio.get_running_loop().create_task(node.drain(2.0))
    async with asyncio.timeout(60):
        await draining
    # On a busy machine some of them leave a moment after the time that they were given.
    await until(lambda: not len(node.registry))
    await node.stop()
    again = await place.start()
    await until(lambda: len(again.registry) == len(keys))
    await until(lambda: all(client.problem is None for client in clients))


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/", 404), ("/v1", 426), ("/v2", 404)]
)
async def test_other_requests(place: Place, path: str, status: int) -> None:
    await place.start()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{place.port}{path}") as answer,
    ):
        assert answer.status == status


async def test_when_somebody_has_appeared_is_forgotten_with_him() -> None:
    board = presence.PresenceBoard()
    one, two = bytes(32), bytes(31) + b"1"
    board.watch(frozenset({one, two}))
    board.see(wire.Presence((one, two), ()))
    board.watch(frozenset({two}))
    assert board._appeared_at.keys() == {two}
