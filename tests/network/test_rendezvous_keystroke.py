"""What a transfer leaves to keystrokes where a rendezvous service relays the link over a slow path.

The relayed link is in a TCP connection, which sends again what is lost and keeps the order. So what
waits before that connection has to be short, also where nginx is in between.
"""

import contextlib
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Literal, Self

import pytest

from support.corporate import Server
from support.figures import Told
from support.hosts import Host, ThreeHosts, why_no_namespaces
from support.processes import wait_until
from support.reverse_proxies import ReverseProxy
from support.slow_path import ENDPOINT_SLOW_ADDRESS, SlowPath
from support.tunnels import Site, Tunnel

RATE = 10
"""Mbit/s of the path between the gateway and the service; the round trip on it is 20 ms."""

QUEUE = 50
"""Packets that wait before that path: 60 ms."""

PROBES = 30

STARTED = 1_000_000
"""Bytes of a transfer before the first probe: the first ones only fill buffers."""

BESIDE_MAX = 20.0
"""Seconds; a loose bound of the median on a loaded machine. What it really is, is printed."""

PORT = 8443

Direction = Literal["download", "upload"]

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]  # on a loaded machine


class Transfer:
    """A transfer without end, for as long as the block lasts."""

    def __init__(self, tunnel: Tunnel, direction: Direction) -> None:
        self.moved = 0
        self._direction = direction
        self._sock = tunnel.connect("source" if direction == "download" else "discard")
        self._sock.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._move)

    def _move(self) -> None:
        block, room = bytes(65_536), bytearray(65_536)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                if self._direction == "download":
                    count = self._sock.recv_into(room)
                else:
                    count = self._sock.send(block)
                if not count:
                    return
                self.moved += count

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.moved > STARTED, "a transfer that is under way", timeout=120)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        # By RST: what the kernel still holds must not be sent on beside the next transfer.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


def keystrokes(sock: socket.socket) -> list[float]:
    """Returns how long 64 bytes took to the echo server and back, in seconds, each time."""
    waits = []
    for number in range(PROBES):
        text = bytes([number]) * 64
        began = time.perf_counter()
        sock.sendall(text)
        assert sock.recv(64, socket.MSG_WAITALL) == text
        waits.append(time.perf_counter() - began)
    return waits


@contextlib.contextmanager
def relayed(site: Site, *, behind: bool) -> Iterator[Tunnel]:
    """A tunnel whose link the service on the endpoint's host relays: to the gateway, by the slow path."""
    tunnel = site.tunnel(
        {"ice": {"policy": "relay"}}, {"ice": {"policy": "relay"}}, foreground=True
    )
    host: Host = site.hosts.endpoint
    peer = tunnel.gateway_settings["peers"][0]
    keys = {
        "office": peer["public_key"],
        "laptop": tunnel.endpoint_settings["peers"][0]["public_key"],
    }
    config = site.directory / "rendezvous.toml"
    config.write_text(
        (
            f'listen = "127.0.0.1:{PORT}"\nnames = ["{ENDPOINT_SLOW_ADDRESS}"]\n'
            'trusted_proxies = ["127.0.0.1"]\n'
            if behind
            else f'listen = "{ENDPOINT_SLOW_ADDRESS}:{PORT}"\n'
        )
        + "".join(f'[[keys]]\nname = "{n}"\npublic_key = "{k}"\n' for n, k in keys.items())
        + "[relay]\nenabled = true\n"
    )
    way = {"rendezvous": f"ws://{ENDPOINT_SLOW_ADDRESS}:{PORT}/"}
    command = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", config)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: print(tunnel.logs()))
        service = Server("rendezvous", site.directory, host, command, None, None)
        stack.callback(service.stop)
        service.wait_bound("tcp", PORT)
        if behind:
            connect = partial(socket.create_connection, (ENDPOINT_SLOW_ADDRESS, 443), 30)
            proxy = ReverseProxy(
                "nginx",
                site.directory,
                ENDPOINT_SLOW_ADDRESS,
                f"127.0.0.1:{PORT}",
                start=lambda command, **more: host.start(*command, **more),
                connect=lambda: host.call(connect),
            )
            stack.callback(proxy.stop)
            proxy.start()
            for home in tunnel.homes.values():
                home.put("ca.pem", proxy.authority.read_text())
            way = {"rendezvous": f"wss://{ENDPOINT_SLOW_ADDRESS}/", "tls_ca": "ca.pem"}
        del peer["url"]
        peer |= way
        tunnel.endpoint_settings["signaling"] = way
        stack.callback(tunnel.stop)
        tunnel.start_endpoint()
        tunnel.start_gateway()
        tunnel.wait_linked()
        yield tunnel


def kinds(tunnel: Tunnel) -> list[str]:
    """Returns of which kind the path of each of the gateway's links is."""
    return [row["path_kind"] for row in tunnel.gateway.control("status")["links"]]


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind-nginx"])
def test_a_keystroke_beside_a_transfer_over_the_relay(behind: bool, told: Told) -> None:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    with contextlib.closing(Site()) as site:
        assert isinstance(site.hosts, ThreeHosts)
        with SlowPath(site.hosts, rate=RATE, queue=QUEUE), relayed(site, behind=behind) as tunnel:
            # On a busy machine, another link may be about to take over from the first one.
            wait_until(lambda: kinds(tunnel) == ["relay"], "one relayed link", timeout=90)
            with tunnel.connect("echo") as sock:
                sock.settimeout(120)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                alone = keystrokes(sock)
                told(f"64 bytes and back alone: {1000 * statistics.median(alone):.0f} ms")
                for direction in ("download", "upload"):
                    with Transfer(tunnel, direction) as transfer:
                        before, began = transfer.moved, time.monotonic()
                        beside = keystrokes(sock)
                        rate = (transfer.moved - before) * 8e-6 / (time.monotonic() - began)
                    median = statistics.median(beside)
                    told(
                        f"beside {'a' if direction == 'download' else 'an'} {direction} at "
                        f"{rate:.1f} of {RATE} Mbit/s: {1000 * median:.0f} ms, "
                        f"at most {1000 * max(beside):.0f} ms"
                    )
                    assert median < BESIDE_MAX
