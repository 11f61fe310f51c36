"""Only an HTTP proxy leads out, on both sides, and there is no TURN server: the service relays."""

import contextlib
import hashlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from support.corporate import need
from support.figures import Told
from support.hosts import TARGET_ADDRESS, why_no_namespaces
from support.nat import SERVICES, NatSite
from support.processes import wait_until
from support.rawsocks import Association
from support.targets import body_hash
from support.tunnels import Tunnel, write_key

TARGETS = Path(__file__).parents[1] / "support" / "targets.py"

TRANSFER = 20_000_000
"""Bytes each way."""

BETWEEN_NODES = 5_000_000

PORT, OTHER_PORT = 8443, 8444
RENDEZVOUS = f"wss://{SERVICES}:{PORT}/"
OTHER_NODE = f"wss://{SERVICES}:{OTHER_PORT}/"
ONLY_THE_PROXY = f"iifname lan ip daddr {SERVICES} tcp dport 3128 accept; iifname lan drop"

Report = Callable[[Tunnel], None]

pytestmark = pytest.mark.timeout(
    600
)  # on a loaded machine; the world is made within the first test


@pytest.fixture(scope="module")
def world() -> Iterator[NatSite]:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite()
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def walled(world: NatSite) -> NatSite:
    """The world, where only the proxy leads out on both sides."""
    for router in (world.world.near, world.world.far):
        router.become("port-restricted", ONLY_THE_PROXY)
    world.world.route_insides(near=False, far=False)
    return world


def through_the_proxies(world: NatSite, proxy: str) -> Tunnel:
    """A tunnel whose sides know of the service and of the proxy, and of nothing else."""
    return by_the_service(world, {"proxy": proxy})


def by_the_service(world: NatSite, ice: dict[str, Any]) -> Tunnel:
    tunnel = world.nat_tunnel(ice)
    authority = Authority("Meeting")
    issued = authority.issue(SERVICES)
    certificate = world.directory / "meeting.pem"
    certificate.touch(0o600)
    certificate.write_text(issued.both)
    for home in tunnel.homes.values():
        home.put("ca.pem", authority.certificate)
    peer = tunnel.gateway_settings["peers"][0]
    del peer["url"]
    peer |= {"rendezvous": RENDEZVOUS, "tls_ca": "ca.pem"}
    tunnel.endpoint_settings["signaling"] = {"rendezvous": RENDEZVOUS, "tls_ca": "ca.pem"}
    return tunnel


def service_of(
    world: NatSite, tunnel: Tunnel, port: int = PORT, redis: Path | None = None
) -> tuple[str | Path, ...]:
    keys = {
        "office": tunnel.gateway_settings["peers"][0]["public_key"],
        "laptop-17": tunnel.endpoint_settings["peers"][0]["public_key"],
    }
    path = world.directory / f"rendezvous-{port}.toml"
    path.write_text(
        f'listen = "0.0.0.0:{port}"\ntls_certificate = "meeting.pem"\n'
        + (f'redis_url = "unix://{redis}"\n' if redis else "")
        + "".join(f'[[keys]]\nname = "{n}"\npublic_key = "{k}"\n' for n, k in keys.items())
        + "[relay]\nenabled = true\nbytes_per_second = 20_000_000\n"
    )
    return sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", path


def curl(tunnel: Tunnel, *arguments: str, **more: object) -> "subprocess.Popen[bytes]":
    return tunnel.site.gateway.start(
        *("curl", "-sS", "--fail", "--max-time", "240"),
        *("--socks5", f"127.0.0.1:{tunnel.socks_port}", *arguments),
        stdout=subprocess.PIPE,
        **more,
    )


def started(tunnel: Tunnel) -> dict[str, Any]:
    """Start both sides; the gateway's link once it is up."""
    tunnel.start_endpoint()
    tunnel.start_gateway()
    tunnel.wait_linked()
    rows: list[dict[str, Any]] = wait_until(lambda: links_up(tunnel), "a link that is up")
    return rows[0]


def links_up(tunnel: Tunnel) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tunnel.gateway.control("status")["links"]
    return [row for row in rows if row["state"] == "up"]


@pytest.mark.netns
def test_where_only_a_proxy_leads_out_and_there_is_no_turn_server(
    walled: NatSite, report_logs: Report, told: Told
) -> None:
    with walled.proxy() as proxy:
        tunnel = through_the_proxies(walled, proxy)
        report_logs(tunnel)
        with walled.serving(*service_of(walled, tunnel), tcp=[8443]):
            try:
                link = started(tunnel)
                assert link["path_kind"] == "relay", link
                assert link["path"] == f"through {RENDEZVOUS}, relayed"
                url = f"http://{TARGET_ADDRESS}:{tunnel.site.ports['http']}"

                began = time.monotonic()
                down = curl(tunnel, f"{url}/bytes/{TRANSFER}")
                body, _ = down.communicate(timeout=270)
                assert down.returncode == 0
                assert hashlib.sha256(body).hexdigest() == body_hash(TRANSFER)
                told(f"download at {TRANSFER * 8e-6 / (time.monotonic() - began):.0f} Mbit/s")

                generate = subprocess.Popen(
                    [sys.executable, TARGETS, "generate", str(TRANSFER)], stdout=subprocess.PIPE
                )
                began = time.monotonic()
                up = curl(tunnel, "-T", "-", f"{url}/upload", stdin=generate.stdout)
                answer, _ = up.communicate(timeout=270)
                generate.communicate()
                assert f'"sha256": "{body_hash(TRANSFER)}"' in answer.decode()
                told(f"upload at {TRANSFER * 8e-6 / (time.monotonic() - began):.0f} Mbit/s")

                with (
                    tunnel.site.gateway.inside(),
                    Association(tunnel.proxy, timeout=60) as association,
                ):
                    port = tunnel.site.ports["udp_echo"]
                    wait_until(
                        lambda: association.ask(TARGET_ADDRESS, port, b"over HTTPS")[-1],
                        "an echo of UDP",
                    )
            finally:
                tunnel.stop()
    for daemon in tunnel.daemons:
        assert "p@ss" not in daemon.log_text()


@contextlib.contextmanager
def two_nodes(world: NatSite, tunnel: Tunnel) -> Iterator[None]:
    """Two nodes of one service over Redis; the endpoint is at the other one."""
    listening = world.directory / "redis.sock"
    redis = (need("redis-server"), "--port", "0", "--unixsocket", listening, "--save", "")
    tunnel.endpoint_settings["signaling"]["rendezvous"] = OTHER_NODE
    with (
        world.serving(*redis),
        world.serving(*service_of(world, tunnel, PORT, listening), tcp=[PORT]),
        world.serving(*service_of(world, tunnel, OTHER_PORT, listening), tcp=[OTHER_PORT]),
    ):
        yield


@pytest.mark.netns
def test_a_direct_path_that_appears_later_is_moved_to(
    walled: NatSite, report_logs: Report, told: Told
) -> None:
    """The relayed path goes through two nodes of the service."""
    with walled.proxy() as proxy:
        tunnel = through_the_proxies(walled, proxy)
        report_logs(tunnel)
        with two_nodes(walled, tunnel):
            try:
                assert started(tunnel)["path_kind"] == "relay"
                url = f"http://{TARGET_ADDRESS}:{tunnel.site.ports['http']}"
                began = time.monotonic()
                down = curl(tunnel, f"{url}/bytes/{BETWEEN_NODES}")
                body, _ = down.communicate(timeout=270)
                assert hashlib.sha256(body).hexdigest() == body_hash(BETWEEN_NODES)
                rate = BETWEEN_NODES * 8e-6 / (time.monotonic() - began)
                told(f"download through two nodes at {rate:.0f} Mbit/s")
                with tunnel.connect("echo") as sock:
                    sock.sendall(b"through the service")
                    assert sock.recv(100) == b"through the service"
                    for router in (walled.world.near, walled.world.far):
                        router.become("none")
                    walled.world.route_insides(near=True, far=True)
                    opened = time.monotonic()

                    def kinds() -> set[str]:
                        return {row["path_kind"] for row in links_up(tunnel)}

                    wait_until(lambda: kinds() == {"host"}, "a direct path", timeout=150)
                    told(f"moved {time.monotonic() - opened:.1f} s after the path was open")
                    sock.sendall(b"directly")
                    assert sock.recv(100) == b"directly"
            finally:
                tunnel.stop()


@pytest.mark.netns
def test_a_reload_names_another_service_or_another_key_while_a_flow_is_open(
    world: NatSite, report_logs: Report
) -> None:
    """The flow goes on by way of the other service. It ends with the key that it belongs to."""
    for router in (world.world.near, world.world.far):
        router.become("none")
    world.world.route_insides(near=True, far=True)
    tunnel = by_the_service(world, {})
    report_logs(tunnel)

    def reload(**changes: str) -> None:
        tunnel.gateway_settings["peers"][0].update(changes)
        tunnel.write("gateway")
        tunnel.gateway.reload()

    def echoes(sock: socket.socket, text: bytes) -> None:
        sock.sendall(text)
        assert sock.recv(100) == text

    with two_nodes(world, tunnel):
        try:
            before = started(tunnel)
            with tunnel.connect("echo") as sock:
                echoes(sock, b"by one node")
                reload(rendezvous=OTHER_NODE)
                tunnel.gateway.wait_log(re.escape(f"rendezvous {OTHER_NODE}: connected"))

                def moved() -> bool:
                    rows = links_up(tunnel)
                    return len(rows) == 1 and rows[0]["path"] != before["path"]

                wait_until(moved, "a link by the other node", timeout=150)
                echoes(sock, b"by the other node")

                office = tunnel.gateway_settings["peers"][0]["public_key"]
                reload(public_key=write_key(world.directory / "other.key"))
                tunnel.gateway.wait_log("the peer's key has changed in the configuration")
                sock.settimeout(60)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
            wait_until(lambda: not links_up(tunnel), "no link to another key")
            reload(public_key=office)
            tunnel.wait_linked()
            with tunnel.connect("echo") as sock:
                echoes(sock, b"by its own key")
        finally:
            tunnel.stop()
