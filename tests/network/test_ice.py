"""Which addresses and ports a link takes, and what is said when there are none."""

import contextlib
import itertools
import re
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from support.hosts import ENDPOINT_ADDRESS, GATEWAY_ADDRESS, Host
from support.paths import settled_path
from support.processes import wait_until
from support.tunnels import MakeTunnel

pytestmark = pytest.mark.timeout(400)  # on a loaded machine; a scene is made within the test

DEAD_NETWORK = "10.96.0.0/16"


def add_addresses(host: Host, interface: str, addresses: list[str]) -> None:
    batch = "".join(f"addr add {address} dev {interface}\n" for address in addresses)
    host.run("ip", "-batch", "-", input=batch)


def bury_in_addresses(host: Host, interface: str, number: int) -> None:
    """Gives a host a hundred addresses on which nothing arrives, before and beside the one that works."""
    add_addresses(host, "lo", [f"10.96.{number}.{i}/32" for i in range(1, 61)])
    add_addresses(host, interface, [f"10.96.{number + 100}.{i}/32" for i in range(1, 41)])
    host.run(
        "nft",
        "add table ip dead; add chain ip dead in { type filter hook input priority 0; }; "
        f"add rule ip dead in ip daddr {DEAD_NETWORK} drop; "
        f"add rule ip dead in ip saddr {DEAD_NETWORK} drop",
    )


def test_a_hundred_addresses_on_both_sides(make_tunnel: MakeTunnel) -> None:
    """RFC 8445 section 6.1.2.5, RFC 8421: what leads to the peer is tried early."""
    tunnel = make_tunnel(start=False, own_network=True, foreground=True)
    bury_in_addresses(tunnel.site.hosts.gateway, "gw0", 1)
    bury_in_addresses(tunnel.site.hosts.endpoint, "ep0", 2)
    tunnel.start_endpoint()
    tunnel.start_gateway()
    tunnel.wait_linked()  # 0.2 s on an idle machine; with 1,600 pairs it was never


@contextlib.contextmanager
def interfaces_that_come_and_go(host: Host) -> Iterator[None]:
    """Has a host make interfaces with addresses and remove them again, all through this block."""
    over = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in itertools.count():
                batch = (
                    "link add br0 type veth peer name br1\n"
                    f"address add 172.18.{number % 256}.1/24 dev br0\n"
                    f"address add fd72:{number % 256:x}::1/64 dev br0\n"
                    "link set br0 up\n"
                )
                host.run("ip", "-batch", "-", input=batch)
                if over.wait(0.2):
                    return
                host.run("ip", "link", "delete", "br0")
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures


def test_interfaces_that_come_and_go_while_the_link_is_made(make_tunnel: MakeTunnel) -> None:
    """As with programs that start containers: each change makes an attempt anew that has begun.

    The TURN server takes the connection and says nothing, so an attempt needs three seconds.
    """
    server = {"urls": f"turn:{ENDPOINT_ADDRESS}:3478?transport=tcp"}
    ice = {"servers": [{**server, "username": "alice", "credential": "secret"}]}
    tunnel = make_tunnel({"ice": ice}, start=False, own_network=True, foreground=True)
    gateway, endpoint = tunnel.site.hosts.gateway, tunnel.site.hosts.endpoint
    with endpoint.inside():
        silent = socket.create_server((ENDPOINT_ADDRESS, 3478), backlog=128)
    with silent, interfaces_that_come_and_go(gateway), interfaces_that_come_and_go(endpoint):
        tunnel.start_endpoint()
        tunnel.start_gateway()
        tunnel.wait_linked(timeout=120)
    with tunnel.connect("echo") as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"


def test_ports_of_a_range(make_tunnel: MakeTunnel) -> None:
    """Also after a redial, while the ports of the link before were in use a moment ago."""
    tunnel = make_tunnel(
        {"ice": {"udp_ports": "40000-40001"}},
        {"ice": {"udp_ports": "40010-40011"}},
        own_network=True,
        foreground=True,
    )
    for _ in range(3):
        _, ours, theirs = settled_path(tunnel)
        assert 40_000 <= ours <= 40_001
        assert 40_010 <= theirs <= 40_011
        tunnel.endpoint.stop()
        wait_until(lambda: not tunnel.linked(), "the end of the link")
        tunnel.start_endpoint()


def test_a_range_without_a_free_port_is_named(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(
        {"ice": {"udp_ports": "40000", "addresses": [GATEWAY_ADDRESS]}},
        start=False,
        own_network=True,
        foreground=True,
    )
    with (
        tunnel.site.hosts.gateway.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind((GATEWAY_ADDRESS, 40_000))
        tunnel.start_endpoint()
        tunnel.start_gateway()
        tunnel.gateway.wait_log(
            r"cannot reach office: no ICE candidate can be made: 10\.77\.0\.1: "
            r"no UDP port of 40000-40000 \(ice\.udp_ports\) is free"
        )
    assert settled_path(tunnel)[1] == 40_000  # at the next attempt


def test_a_narrow_port_range_of_the_system(make_tunnel: MakeTunnel) -> None:
    """The ports of a link that has ended are free for the next one."""
    tunnel = make_tunnel(start=False, own_network=True, foreground=True)
    tunnel.site.hosts.gateway.sysctl("net/ipv4/ip_local_port_range", "50000 50003")
    tunnel.start()
    tunnel.endpoint.killed = True
    tunnel.endpoint.signal(signal.SIGKILL)
    tunnel.endpoint.wait()
    tunnel.endpoint.kill()
    wait_until(lambda: not tunnel.linked(), "the end of the link", timeout=90)
    tunnel.start_endpoint()
    tunnel.wait_linked()
    assert "no UDP port" not in tunnel.gateway.log_text()


def test_a_server_whose_name_is_unknown_is_named(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel({"ice": {"servers": [{"urls": ["stun:stun.invalid:3478"]}]}})
    warning = r"STUN server stun:stun\.invalid:3478: its name cannot be resolved: (.*); links are made without it"
    tunnel.gateway.wait_log(warning)
    said = re.findall(warning, tunnel.gateway.log_text())
    assert all(one != next_one for one, next_one in itertools.pairwise(said)), "it is said once"


@pytest.mark.parametrize("side", ["gateway", "endpoint"])
def test_a_side_without_addresses_says_so(make_tunnel: MakeTunnel, side: str) -> None:
    nothing = {"ice": {"addresses": ["nosuch0"]}}
    tunnel = make_tunnel(
        nothing if side == "gateway" else None,
        nothing if side == "endpoint" else None,
        start=False,
    )
    tunnel.start_endpoint()
    tunnel.start_gateway()
    instance = tunnel.gateway if side == "gateway" else tunnel.endpoint
    instance.wait_log(r"there is no local address that ice\.addresses allows \(nosuch0\)")
