"""UDP associations through the whole tunnel, as bytes on sockets."""

import os
import socket
from collections.abc import Iterator

import pytest

from support.hosts import (
    DOMAIN,
    ENDPOINT_INSIDE_ADDRESS,
    ENDPOINT_INSIDE_ADDRESS6,
    TARGET_ADDRESS,
    TARGET_ADDRESS6,
)
from support.processes import wait_until
from support.rawsocks import UDP_ASSOCIATE, Association, request
from support.tunnels import MakeTunnel, Tunnel

LARGEST = 65_507 - 10
"""The largest payload that fits a UDP packet to the relay behind its header for IPv4."""


@pytest.fixture
def association(tunnel: Tunnel) -> Iterator[Association]:
    with tunnel.site.gateway.inside():
        made = Association(tunnel.proxy)
    with made:
        yield made


def test_reply_gives_a_concrete_address(tunnel: Tunnel, association: Association) -> None:
    assert association.answer.host == "127.0.0.1"
    assert association.answer.port != 0


def test_relay_is_on_the_address_family_of_the_listener(tunnel: Tunnel) -> None:
    with (
        tunnel.site.gateway.inside(),
        Association(("::1", tunnel.socks_port)) as association,
    ):
        assert association.answer.host == "::1"
        port = tunnel.site.ports["udp_echo"]
        assert association.ask(TARGET_ADDRESS, port, b"x") == (TARGET_ADDRESS, port, b"x")


@pytest.mark.parametrize("hint", ["0", "no such name", TARGET_ADDRESS, "::", "127.0.0.1"])
def test_destination_of_the_request_is_only_a_hint(tunnel: Tunnel, hint: str) -> None:
    with tunnel.site.gateway.inside():
        control, answer = request(tunnel.proxy, hint, 0, UDP_ASSOCIATE)
    control.close()
    assert (answer.code, answer.host) == (0, "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "sender", "seen_as"),
    [
        (TARGET_ADDRESS, TARGET_ADDRESS, ENDPOINT_INSIDE_ADDRESS),
        (TARGET_ADDRESS6, TARGET_ADDRESS6, ENDPOINT_INSIDE_ADDRESS6),
        (f"v4.{DOMAIN}", TARGET_ADDRESS, ENDPOINT_INSIDE_ADDRESS),
        (f"v6.{DOMAIN}", TARGET_ADDRESS6, ENDPOINT_INSIDE_ADDRESS6),
    ],
)
def test_destinations_of_each_kind(
    tunnel: Tunnel, association: Association, host: str, sender: str, seen_as: str
) -> None:
    port = tunnel.site.ports["udp_whoami"]
    *origin, seen = association.ask(host, port, b"who am I?")
    assert origin == [sender, port]
    assert seen.decode().split()[0] == seen_as


def test_one_socket_for_all_destinations(tunnel: Tunnel, association: Association) -> None:
    """Endpoint-independent mapping (RFC 4787): every target sees the same source port."""
    port = tunnel.site.ports["udp_whoami"]
    first = association.ask(TARGET_ADDRESS, port, b"?")[2].split()[1]
    association.ask(TARGET_ADDRESS, tunnel.site.ports["udp_echo"], b"?")
    assert association.ask(f"v4.{DOMAIN}", port, b"?")[2].split()[1] == first


@pytest.mark.parametrize("size", [0, 1, 1160, 1472, 1500, 9000, 65_000, LARGEST])
def test_datagrams_of_every_size(tunnel: Tunnel, association: Association, size: int) -> None:
    payload = os.urandom(size)
    port = tunnel.site.ports["udp_echo"]
    assert association.ask(TARGET_ADDRESS, port, payload) == (TARGET_ADDRESS, port, payload)


def test_fragments_are_dropped_and_counted(tunnel: Tunnel, association: Association) -> None:
    port = tunnel.site.ports["udp_echo"]
    # Of earlier tests, a datagram that was sent again may be under way still.
    wait_until(
        lambda: tunnel.metric("flows_active", "endpoint", kind="udp") <= 1,
        "the end of other associations",
    )
    before = tunnel.metric("udp_dropped_total")
    seen = tunnel.site.state()["datagrams"].get("udp_echo", 0)
    association.send(TARGET_ADDRESS, port, b"part", frag=1)
    association.send(TARGET_ADDRESS, port, b"last", frag=0x82)
    # Once only: a second one would be seen by the target too.
    assert association.ask(TARGET_ADDRESS, port, b"whole", attempts=1)[2] == b"whole"
    wait_until(lambda: tunnel.metric("udp_dropped_total") >= before + 2, "two drops counted")
    assert tunnel.site.state()["datagrams"]["udp_echo"] == seen + 1


def test_first_sender_is_pinned(tunnel: Tunnel, association: Association) -> None:
    port = tunnel.site.ports["udp_echo"]
    assert association.ask(TARGET_ADDRESS, port, b"first")[2] == b"first"
    before = tunnel.metric("udp_dropped_total")
    with tunnel.site.gateway.inside():
        stranger = association.socket()
    with stranger:
        stranger.send(b"\0\0\0\1" + socket.inet_aton(TARGET_ADDRESS) + port.to_bytes(2) + b"late")
        wait_until(lambda: tunnel.metric("udp_dropped_total") > before, "a drop counted")
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(2048)
    assert association.ask(TARGET_ADDRESS, port, b"again")[2] == b"again"


def test_forbidden_destinations_get_nothing(tunnel: Tunnel, association: Association) -> None:
    allowed = tunnel.site.ports["udp_echo"]
    denied = tunnel.metric("policy_decisions_total", "endpoint", verdict="denied")
    for host in ("127.0.0.1", "192.0.2.1", f"loop.{DOMAIN}"):
        association.send(host, allowed, b"no")
    assert association.ask(TARGET_ADDRESS, allowed, b"yes")[2] == b"yes"
    wait_until(
        lambda: tunnel.metric("policy_decisions_total", "endpoint", verdict="denied") >= denied + 3,
        "three denials counted",
    )


def test_answers_from_another_port_of_the_same_address(
    tunnel: Tunnel, association: Association
) -> None:
    """Address-dependent filtering (RFC 4787), the default: what TFTP needs."""
    asked = tunnel.site.ports["udp_other"]
    host, port, data = association.ask(TARGET_ADDRESS, asked, b"x")
    assert (host, data) == (TARGET_ADDRESS, b"x")
    assert port != asked


def test_stricter_filtering_refuses_another_port(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(endpoint={"udp_filtering": "address-and-port-dependent"})
    with tunnel.site.gateway.inside(), Association(tunnel.proxy) as association:
        association.send(TARGET_ADDRESS, tunnel.site.ports["udp_other"], b"x")
        wait_until(
            lambda: tunnel.metric("udp_dropped_total", "endpoint") >= 1,
            "the answer dropped at the endpoint",
        )
        port = tunnel.site.ports["udp_echo"]
        assert association.ask(TARGET_ADDRESS, port, b"y") == (TARGET_ADDRESS, port, b"y")


def test_association_ends_with_its_control_connection(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel()
    with tunnel.site.gateway.inside():
        association = Association(tunnel.proxy)
    port = tunnel.site.ports["udp_echo"]
    assert association.ask(TARGET_ADDRESS, port, b"x")[2] == b"x"
    wait_until(
        lambda: tunnel.metric("flows_active", "endpoint", kind="udp") == 1,
        "the association at the endpoint",
    )
    association.control.close()
    wait_until(
        lambda: tunnel.metric("flows_active", "endpoint", kind="udp") == 0,
        "the association gone at the endpoint",
    )
    association.sock.settimeout(1)

    def refused() -> bool:
        try:
            association.send(TARGET_ADDRESS, port, b"x")
            association.receive()
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        return False

    # The relay's port is closed: a datagram is answered with an ICMP error.
    with association.sock:
        wait_until(refused, "the end of the relay's port")


def test_idle_association_ends(make_tunnel: MakeTunnel) -> None:
    # Longer than a busy machine may need for the echo.
    tunnel = make_tunnel(gateway={"socks": {"idle_udp": 10}})
    with tunnel.site.gateway.inside(), Association(tunnel.proxy) as association:
        port = tunnel.site.ports["udp_echo"]
        assert association.ask(TARGET_ADDRESS, port, b"x")[2] == b"x"
        association.control.settimeout(60)
        assert association.control.recv(1) == b""
        wait_until(
            lambda: tunnel.metric("flows_active", "endpoint", kind="udp") == 0,
            "the association gone at the endpoint",
        )
