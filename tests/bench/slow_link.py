"""What a transfer over a slow link leaves to keystrokes and datagrams, beside what they have alone.

    python -m bench.slow_link [--rates 1 2 4] [--probes N]

A gateway, an endpoint and target servers in namespaces; linkemu.c is the path of the link (10 ms each
way, a queue of 20 packets). RFC 8085 section 3.1 asks for a fair share of the capacity. Needs root,
/dev/net/tun and a C compiler.
"""

import argparse
import contextlib
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final, Literal

from support.hosts import TARGET_ADDRESS, why_no_namespaces
from support.rawsocks import Association, packet, unpack
from support.slow_path import ENDPOINT_ICE, GATEWAY_ICE, SlowPath
from support.tunnels import Site, Tunnel

Direction = Literal["down", "up"]

FILLING: Final = 3.0
"""Seconds of a transfer before a probe is sent: the first bytes only fill buffers."""

DATAGRAM_TIMEOUT: Final = 2.0
"""Seconds after which a datagram counts as lost."""


@contextlib.contextmanager
def transfer(tunnel: Tunnel, direction: Direction) -> Iterator[None]:
    """A transfer without end in one direction, well under way when the block begins."""
    sock = tunnel.connect("source" if direction == "down" else "discard")
    sock.settimeout(0.2)
    over = threading.Event()

    def move() -> None:
        block, room = bytes(65_536), bytearray(65_536)
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                if not (sock.recv_into(room) if direction == "down" else sock.send(block)):
                    raise EOFError("the transfer ended")

    thread = threading.Thread(target=move)
    thread.start()
    try:
        time.sleep(FILLING)
        yield
        if not thread.is_alive():
            raise RuntimeError("the transfer ended before the probes")
    finally:
        over.set()
        thread.join()
        # By RST: what the kernel still holds must not be sent on beside the next row.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def keystrokes(sock: socket.socket, probes: int) -> list[float]:
    """Returns how long each byte took to the echo server and back, in seconds."""
    waits = []
    for number in range(probes):
        began = time.perf_counter()
        sock.sendall(bytes([number % 256]))
        if not sock.recv(1):
            raise EOFError("the echo server closed the connection")
        waits.append(time.perf_counter() - began)
    return waits


def answered(association: Association, port: int, probes: int) -> int:
    """Returns how many datagrams of `probes` came back, sent one after another."""
    count = 0
    for number in range(probes):
        data = b"%d" % number
        association.sock.send(packet(TARGET_ADDRESS, port, data))
        with contextlib.suppress(TimeoutError):
            while unpack(association.sock.recv(1000))[2] != data:
                pass  # the answer to an earlier one, late
            count += 1
    return count


def measure(tunnel: Tunnel, rate: float, probes: int) -> None:
    """Prints one row for each direction of the transfer."""
    port = tunnel.site.ports["udp_echo"]
    with tunnel.connect("echo") as sock, tunnel.site.gateway.inside():
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with Association(tunnel.proxy, timeout=DATAGRAM_TIMEOUT) as association:
            keystrokes(sock, 1)
            for direction in ("down", "up"):
                alone = statistics.median(keystrokes(sock, probes))
                with transfer(tunnel, direction):
                    beside = keystrokes(sock, probes)
                    back = answered(association, port, probes)
                median = statistics.median(beside)
                print(
                    f"{rate:4g} Mbit/s {direction:<4}  alone {alone * 1e3:5.0f} ms  "
                    f"beside {median * 1e3:5.0f} ms ({median / alone:4.1f} x)  "
                    f"worst {max(beside) * 1e3:5.0f} ms  datagrams {back} of {probes}",
                    flush=True,
                )


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="Mbit/s")
    parser.add_argument("--probes", type=int, default=20)
    arguments = parser.parse_args()
    if reason := why_no_namespaces():
        print(reason, file=sys.stderr)
        return 1
    for rate in arguments.rates:
        with contextlib.closing(Site()) as site, SlowPath(site.hosts, rate=rate):
            tunnel = site.tunnel(GATEWAY_ICE, ENDPOINT_ICE, foreground=True)
            try:
                tunnel.start()
                measure(tunnel, rate, arguments.probes)
            finally:
                tunnel.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
