"""A rendezvous service behind nginx and Caddy, by the blocks of configuration that docs/reach.md has."""

import asyncio
import contextlib
import hashlib
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from integration.links_world import until
from integration.rendezvous_world import Place, Raw, a_place, nothing
from network.test_rendezvous_relay import by_the_service, curl, links_up, service_of, started
from socks_tunnel.rendezvous import limits, service
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling import rendezvous_socket
from socks_tunnel.signaling.carrier import SignalingError, SignalingRefused
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from support.figures import Told
from support.hosts import TARGET_ADDRESS, why_no_namespaces
from support.nat import SERVICES, NatSite
from support.processes import wait_until
from support.rawsocks import Association
from support.reverse_proxies import Kind, ReverseProxy, on_this_machine
from support.targets import body_hash
from support.tunnels import Tunnel

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]  # on a loaded machine

BOTH = pytest.mark.parametrize("kind", ["nginx", "caddy"])

CLIENTS = 30

READ_TIMEOUT = 20
"""Seconds without data from the service after which nginx ends a WebSocket here. Usually it is 60."""

DOWNLOAD = 2_000_000

OFFICE = PrivateIdentity.generate()
"""Is listed, as an endpoint is, and may answer more often than others."""


# --- the service in this process ------------------------------------------------------------------


class Behind(Place):
    """A service behind a proxy, which its clients go to."""

    proxy: ReverseProxy

    @property
    def url(self) -> str:
        return f"wss://{self.proxy.address}/"

    def through(
        self, identity: PrivateIdentity, *watched: PrivateIdentity, **more: Any
    ) -> Rendezvous:
        return self.client(identity, *watched, ca=self.proxy.authority, **more)

    @asynccontextmanager
    async def raw(self, address: str) -> AsyncIterator[Callable[..., Any]]:
        """Yields what makes WebSockets from that address of loopback, by way of the proxy."""
        context = ssl.create_default_context(cafile=self.proxy.authority)
        connector = aiohttp.TCPConnector(local_addr=(address, 0), limit=0)
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))

            async def connect(**more: Any) -> Raw:
                url = f"https://{self.proxy.address}/v1"
                ws = await stack.enter_async_context(session.ws_connect(url, ssl=context, **more))
                made = Raw(self, ws)
                made.protocol.host = self.proxy.address
                return made

            yield connect


@asynccontextmanager
async def behind(
    kind: Kind, directory: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> AsyncIterator[tuple[Behind, Service]]:
    """Yields a service that trusts the proxy before it."""
    async with a_place(directory, monkeypatch, Behind) as place:
        assert isinstance(place, Behind)
        node = await place.start()
        place.proxy = on_this_machine(kind, directory, f"127.0.0.1:{place.port}", **more)
        # As documented: the name that clients prove their keys to, and whom to believe.
        place.settings |= {"names": [place.proxy.address], "trusted_proxies": ["127.0.0.1"]}
        place.settings["keys"] = [{"name": "office", "public_key": OFFICE.public_text}]
        node.apply(place.configuration(), None)
        try:
            await asyncio.to_thread(place.proxy.start)
            yield place, node
        finally:
            await asyncio.to_thread(place.proxy.stop)


@BOTH
async def test_limits_are_for_the_address_that_the_proxy_has_seen(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a client says of its own address."""
    monkeypatch.setattr(service, "PROOF_TIMEOUT", 600.0)  # none is given up here
    async with (
        behind(kind, tmp_path, monkeypatch) as (place, node),
        place.raw("127.0.0.5") as one,
        place.raw("127.0.0.6") as another,
    ):
        for number in range(limits.UNPROVED_PER_NETWORK_MAX):
            await one(headers={"X-Forwarded-For": f"198.51.100.{number}"})
        for headers in ({}, {"X-Forwarded-For": "198.51.100.77"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await one(headers=headers)
            assert caught.value.status == 429
        assert node.door.counts["unproved"] == 2
        await another(headers={"X-Forwarded-For": "127.0.0.5"})
        # Who is no trusted proxy names nobody: these count for their own address, straight there.
        straight = aiohttp.TCPConnector(local_addr=("127.0.0.7", 0), limit=0)
        async with aiohttp.ClientSession(connector=straight) as session:
            url = f"http://127.0.0.1:{place.port}/v1"
            held = [
                await session.ws_connect(url, headers={"X-Forwarded-For": f"198.51.100.{n}"})
                for n in range(limits.UNPROVED_PER_NETWORK_MAX)
            ]
            with pytest.raises(aiohttp.ClientError):
                await session.ws_connect(url, headers={"X-Forwarded-For": "198.51.100.99"})
            for ws in held:
                await ws.close()


async def test_idle_clients_stay_beyond_the_time_out_of_nginx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their heartbeats keep them: a WebSocket that came later, and is silent, is ended before."""
    assert rendezvous_socket.HEARTBEAT < 60, "nginx's usual time-out"
    # A busy machine has half of that to answer one.
    monkeypatch.setattr(rendezvous_socket, "HEARTBEAT", READ_TIMEOUT / 2)
    async with behind("nginx", tmp_path, monkeypatch, read_timeout=f"{READ_TIMEOUT}s") as (
        place,
        node,
    ):
        idle = place.through(PrivateIdentity.generate())
        await until(lambda: idle.problem is None)
        async with place.raw("127.0.0.1") as connect:
            silent = await connect()
            await silent.join(PrivateIdentity.generate())
            assert len(node.registry) == 2
            assert await silent.closed() == 1006  # without a word
        await until(lambda: len(node.registry) == 1)
        assert idle.problem is None
        assert node.registry.counts["joined"] == 2


@BOTH
async def test_clients_come_back_when_the_proxy_is_restarted(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    """A reload of nginx ends no WebSocket; Caddy ends all."""
    async with behind(kind, tmp_path, monkeypatch) as (place, node):
        keys = [PrivateIdentity.generate() for _ in range(CLIENTS)]
        place.through(OFFICE, *keys, offer=nothing)
        clients = [place.through(key, OFFICE) for key in keys]

        async def reach() -> None:
            """Has the offer of each of them come to the endpoint."""
            for client in clients:
                async with asyncio.timeout(120):
                    while True:
                        try:
                            await client.offer(OFFICE.public, b"offer", 10)
                        except SignalingRefused:  # by the endpoint, which gives no answers
                            break
                        except SignalingError:
                            await asyncio.sleep(0.05)  # one of the two is not back yet

        await reach()
        assert node.registry.counts["joined"] == CLIENTS + 1
        await asyncio.to_thread(place.proxy.reload)
        if kind == "caddy":
            await until(lambda: node.registry.counts["joined"] >= 2 * (CLIENTS + 1))
        await reach()
        if kind == "nginx":
            assert node.registry.counts["joined"] == CLIENTS + 1
        await asyncio.to_thread(place.proxy.stop)
        await until(lambda: not len(node.registry))
        began = time.monotonic()
        await asyncio.to_thread(place.proxy.start)
        await reach()
        told(
            f"{CLIENTS} clients reach an endpoint {time.monotonic() - began:.1f} s after {kind} was started"
        )


# --- whole links ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[NatSite]:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite()
    try:
        for router in (site.world.near, site.world.far):
            router.become("port-restricted", "meta l4proto udp drop")
        site.world.route_insides(near=False, far=False)
        yield site
    finally:
        site.close()


def test_a_relayed_link_outlives_a_reload_and_a_restart_of_nginx(
    world: NatSite, report_logs: Callable[[Tunnel], None], told: Told
) -> None:
    """No UDP leads out on either side, so all of the link goes through the proxy."""
    tunnel = by_the_service(world, {})
    report_logs(tunnel)
    services = world.world.services
    config = Path(service_of(world, tunnel)[-1])
    text, count = re.subn(
        r"listen = .*\ntls_certificate = .*\n",
        f'listen = "127.0.0.1:8443"\nnames = ["{SERVICES}"]\ntrusted_proxies = ["127.0.0.1"]\n',
        config.read_text(),
    )
    assert count == 1
    config.write_text(text)
    proxy = ReverseProxy(
        "nginx",
        world.directory,
        SERVICES,
        "127.0.0.1:8443",
        start=lambda command, **more: services.start(*command, **more),
        connect=lambda: services.call(partial(socket.create_connection, (SERVICES, 443), 30)),
    )
    url = f"wss://{SERVICES}/"
    for home in tunnel.homes.values():
        home.put("ca.pem", proxy.authority.read_text())
    tunnel.gateway_settings["peers"][0]["rendezvous"] = url
    tunnel.endpoint_settings["signaling"]["rendezvous"] = url
    run = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", config)
    with world.serving(*run, tcp=[8443]):
        try:
            proxy.start()
            link = started(tunnel)
            assert link["path"] == f"through {url}, relayed", link
            began = time.monotonic()
            page = f"http://{TARGET_ADDRESS}:{tunnel.site.ports['http']}/bytes/{DOWNLOAD}"
            body, _ = curl(tunnel, page).communicate(timeout=270)
            assert hashlib.sha256(body).hexdigest() == body_hash(DOWNLOAD)
            rate = DOWNLOAD * 8e-6 / (time.monotonic() - began)
            told(f"download at {rate:.0f} Mbit/s")
            with tunnel.connect("echo") as sock:
                sock.settimeout(120)

                def echoes(text: bytes) -> None:
                    sock.sendall(text)
                    assert sock.recv(100) == text

                echoes(b"before")
                proxy.reload()
                echoes(b"reloaded")
                proxy.stop()
                began = time.monotonic()
                proxy.start()
                echoes(b"restarted")
                told(f"a flow goes on {time.monotonic() - began:.1f} s after nginx was restarted")
            wait_until(lambda: len(links_up(tunnel)) == 1, "one link", timeout=90)
            with tunnel.site.gateway.inside(), Association(tunnel.proxy, timeout=60) as association:
                port = tunnel.site.ports["udp_echo"]
                wait_until(
                    lambda: association.ask(TARGET_ADDRESS, port, b"through it")[-1],
                    "an echo of UDP",
                )
        finally:
            tunnel.stop()
            proxy.stop()
    log = tunnel.gateway.log_text()
    # A busy machine may put it in doubt, and then another one may take over from it.
    if "link office: " not in log:
        assert log.count("link office is up") == 1
