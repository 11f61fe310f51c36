"""What keystrokes and calls notice of bulk transfers on a link that is full both ways.

    python -m bench.scheduling [--rates 1 10 100] [--shared-rates 10] [--weights 4 1]
        [--single-rates 10 100 300] [--rounds N] [--seconds S]

A gateway, an endpoint and target servers in namespaces; linkemu.c is the path of the link (20 ms each
way). 8 downloads and 4 uploads go as fast as they can. Beside them, 64 bytes go to an echo server
every 100 ms, as an SSH client sends keystrokes, and datagrams of the size of G.711 speech every 20 ms.
Then two gateways share one endpoint and one path, of which one has 20 downloads and one has 1. At last two
gateways of equal weights, and then of different ones, share one endpoint without a slow path: its process is what
they share. One download, and then one upload, has a path of 80 ms for itself.

Each figure is the median of the rounds; each round has its own idle figure. Needs root, /dev/net/tun
and a C compiler.
"""

import argparse
import contextlib
import json
import math
import select
import socket
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.workers import Worker, machine
from support.hosts import TARGET_ADDRESS, why_no_namespaces
from support.rawsocks import Association, packet, unpack
from support.slow_path import ENDPOINT_ICE, GATEWAY_ICE, SlowPath
from support.tunnels import Site, Tunnel

DELAY: Final = 20.0
"""Milliseconds each way."""

QUEUES: Final = {1.0: 20, 10.0: 33, 100.0: 333}
"""Full packets that wait at the bottleneck, by Mbit/s: what the path holds in its 40 ms, but at least 20."""

DOWNLOADS, UPLOADS = 8, 4

LEAD: Final = 4.0
"""Seconds of the transfers before anything counts."""

KEYSTROKE_BYTES, KEYSTROKE_INTERVAL = 64, 0.1
SPEECH_BYTES, SPEECH_INTERVAL = 172, 0.02

PATIENCE: Final = 10.0
"""Seconds after the last probe in which answers are waited for."""

RATIO_MAX: Final = 3.0
"""What the loaded 99th percentile may be of the idle one, from 10 Mbit/s on."""

SLOW_RATE, SLOW_MAX = 1.0, 0.300
"""On a path of that rate, the seconds that the loaded 99th percentile may take."""

SINGLE_DELAY: Final = 40.0
"""Milliseconds each way of the path of one flow."""

SINGLE_MIN: Final = 0.8
"""Part of the path's rate that one flow reaches at least."""

FAIR: Final = 0.2
"""Part of their mean by which bulk flows may differ."""


def percentile(values: list[float], share: float) -> float:
    """Returns what this share of the values does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


@dataclass
class Seen:
    """Seconds that answers took, and how much was sent."""

    keystrokes: list[float] = field(default_factory=list)
    speech: list[float] = field(default_factory=list)
    spoken: int = 0


def probe(echo: socket.socket, association: Association, port: int, seconds: float) -> Seen:
    """Sends keystrokes and speech by the clock for that long, whether answers come or not."""
    seen = Seen()
    typed: list[float] = []
    spoken: list[float] = []
    answered = 0
    begun = time.perf_counter()
    voice = association.sock
    while True:
        now = time.perf_counter() - begun
        if now < seconds:
            while now >= len(typed) * KEYSTROKE_INTERVAL:
                typed.append(time.perf_counter())
                echo.sendall(bytes(KEYSTROKE_BYTES))
            while now >= len(spoken) * SPEECH_INTERVAL:
                spoken.append(time.perf_counter())
                data = (len(spoken) - 1).to_bytes(4) + bytes(SPEECH_BYTES - 4)
                voice.send(packet(TARGET_ADDRESS, port, data))
            due = min(len(typed) * KEYSTROKE_INTERVAL, len(spoken) * SPEECH_INTERVAL)
            wait = max(min(due, seconds) - (time.perf_counter() - begun), 0.0)
        elif now > seconds + PATIENCE or (
            len(seen.keystrokes) == len(typed) and len(seen.speech) == len(spoken)
        ):
            break
        else:
            wait = 0.2
        ready, _, _ = select.select([echo, voice], [], [], wait)
        arrived = time.perf_counter()
        if echo in ready:
            data = echo.recv(65_536)
            if not data:
                raise EOFError("the echo server closed the connection")
            answered += len(data)
            while (len(seen.keystrokes) + 1) * KEYSTROKE_BYTES <= answered:
                seen.keystrokes.append(arrived - typed[len(seen.keystrokes)])
        if voice in ready:
            number = int.from_bytes(unpack(voice.recv(2000))[2][:4])
            seen.speech.append(arrived - spoken[number])
    # What never came took at least as long as it was waited for.
    for sent in typed[len(seen.keystrokes) :]:
        seen.keystrokes.append(time.perf_counter() - sent)
    seen.spoken = len(spoken)
    return seen


@dataclass
class Round:
    """One round at one rate: 99th percentiles in seconds, datagrams lost, Mbit/s of each transfer."""

    idle: float
    loaded: float
    median: float
    lost: int
    spoken: int
    speech: float
    down: list[float]
    up: list[float]


def load(tunnel: Tunnel) -> Worker:
    """Returns a load client on the gateway's host, of this tunnel's SOCKS5 listener."""
    return Worker(
        *(tunnel.site.hosts.gateway, "load.py", str(tunnel.socks_port), TARGET_ADDRESS),
        json.dumps(tunnel.site.ports),
    )


def measure(tunnel: Tunnel, seconds: float) -> Round:
    """Takes one round: idle, then beside the transfers."""
    port = tunnel.site.ports["udp_echo"]
    with tunnel.connect("echo") as echo, tunnel.site.gateway.inside():
        echo.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with Association(tunnel.proxy) as association:
            idle = probe(echo, association, port, seconds)
            client = load(tunnel)
            client.tell(do="mix", down=DOWNLOADS, up=UPLOADS, seconds=seconds, lead=LEAD)
            time.sleep(LEAD)
            beside = probe(echo, association, port, seconds)
            rates = client.hear()
            client.quit()
    return Round(
        idle=percentile(idle.keystrokes, 0.99),
        loaded=percentile(beside.keystrokes, 0.99),
        median=percentile(beside.keystrokes, 0.5),
        lost=beside.spoken - len(beside.speech),
        spoken=beside.spoken,
        speech=percentile(beside.speech, 0.99) if beside.speech else math.inf,
        down=rates["down"],
        up=rates["up"],
    )


def two_gateways(
    site: Site,
    name: str,
    rounds: int,
    seconds: float,
    *,
    flows: tuple[int, int] = (20, 1),
    weights: tuple[int, int] = (1, 1),
    ice: tuple[Mapping[str, Any], Mapping[str, Any]] = (GATEWAY_ICE, ENDPOINT_ICE),
) -> tuple[float, float]:
    """Returns the shares of two gateways of one endpoint, which have so many downloads."""
    first = site.tunnel(*ice, foreground=True)
    other_settings: dict[str, Any] = {**ice[0], "peers": first.gateway_settings["peers"]}
    other = site.tunnel(other_settings, foreground=True)
    (key,) = (peer["public_key"] for peer in other.endpoint_settings["peers"])
    (peer,) = first.endpoint_settings["peers"]
    peers = [
        {**peer, "weight": weights[0]},
        {"name": "laptop-18", "public_key": key, "weight": weights[1]},
    ]
    first.write("endpoint", {"peers": peers})
    shares = []
    try:
        first.start()
        other.start_gateway()
        other.wait_linked()
        for _ in range(rounds):
            clients = load(first), load(other)
            for client, count in zip(clients, flows, strict=True):
                client.tell(do="mix", down=count, up=0, seconds=seconds, lead=LEAD)
            one, two = (sum(client.hear()["down"]) for client in clients)
            for client in clients:
                client.quit()
            shares.append(one / (one + two))
            print(f"{name}, two gateways: {one:.2f} and {two:.2f} Mbit/s", flush=True)
    finally:
        other.stop()
        first.stop()
    share = statistics.median(shares)
    return share, 1 - share


def single(rate: float, rounds: int, seconds: float) -> str:
    """Returns what one flow through the whole tunnel reaches on a path of 80 ms, as a line."""
    queue = max(20, int(rate * 1e6 * 2 * SINGLE_DELAY / 1e3 / 8 / 1500))
    with (
        contextlib.closing(Site()) as site,
        SlowPath(site.hosts, rate=rate, delay=SINGLE_DELAY, queue=queue),
    ):
        tunnel = site.tunnel(GATEWAY_ICE, ENDPOINT_ICE, foreground=True)
        reached = {}
        try:
            tunnel.start()
            for way in ("down", "up"):
                rates = []
                for _ in range(rounds):
                    client = load(tunnel)
                    client.tell(do="throughput", direction=way, flows=1, seconds=seconds)
                    rates.append(client.hear()["mbps"])
                    client.quit()
                reached[way] = statistics.median(rates)
        finally:
            tunnel.stop()
    met = "met" if min(reached.values()) >= SINGLE_MIN * rate else "missed"
    return (
        f"{rate:g} Mbit/s, 80 ms, one flow: download {reached['down']:.1f}, "
        f"upload {reached['up']:.1f} Mbit/s ({met})"
    )


def as_text(shares: tuple[float, float]) -> str:
    """Returns two shares in percent."""
    return f"{shares[0] * 100:.0f} % and {shares[1] * 100:.0f} %"


def spread(rates: list[float]) -> float:
    """Returns by how much of their mean the flow differs that differs most.

    What an upload has sent is known only when its socket takes more, which on a slow path is seldom:
    all of them may have moved nothing. Then there is nothing to compare.
    """
    mean = statistics.fmean(rates)
    if not mean:
        return math.nan
    return max(abs(rate - mean) for rate in rates) / mean


def each(measured: Round) -> str:
    """Returns the Mbit/s of each transfer of a round."""
    down, up = (" ".join(f"{r:.2f}" for r in rates) for rates in (measured.down, measured.up))
    return f"each download: {down}; each upload: {up}"


def row(rate: float, rounds: list[Round]) -> list[str]:
    """Returns the cells of one rate, with what misses its bar marked."""

    def median(name: str) -> float:
        value: float = statistics.median(getattr(r, name) for r in rounds)
        return value

    idle, loaded = median("idle"), median("loaded")
    ratio = statistics.median(r.loaded / r.idle for r in rounds)
    good = loaded < SLOW_MAX if rate <= SLOW_RATE else ratio < RATIO_MAX
    lost = sum(r.lost for r in rounds)
    down, up = (
        statistics.median(spread(getattr(r, way)) for r in rounds) for way in ("down", "up")
    )
    total = [statistics.median(sum(getattr(r, way)) for r in rounds) for way in ("down", "up")]
    return [
        f"{rate:g} Mbit/s",
        f"{idle * 1e3:.0f} ms",
        f"{median('median') * 1e3:.0f} ms",
        f"{loaded * 1e3:.0f} ms",
        f"{ratio:.1f} ({'met' if good else 'missed'})",
        f"{lost} of {sum(r.spoken for r in rounds)} ({'missed' if lost else 'met'})",
        f"{down * 100:.0f} % ({'met' if down <= FAIR else 'missed'})",
        f"{up * 100:.0f} %",
        f"{total[0]:.1f} and {total[1]:.1f}",
    ]


HEADINGS: Final = [
    "path",
    "echo idle, p99",
    "loaded, median",
    "loaded, p99",
    "p99 to idle",
    "speech lost",
    "downloads differ by",
    "uploads differ by",
    "Mbit/s down and up",
]


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="*", default=[1.0, 10.0, 100.0], help="Mbit/s")
    parser.add_argument("--shared-rates", type=float, nargs="*", default=[10.0], help="Mbit/s")
    parser.add_argument("--weights", type=int, nargs="*", default=[4, 1], help="of two gateways")
    parser.add_argument(
        "--single-rates", type=float, nargs="*", default=[10.0, 100.0, 300.0], help="Mbit/s"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if reason := why_no_namespaces():
        print(reason, file=sys.stderr)
        return 1
    print(machine())
    rows = []
    for rate in arguments.rates:
        queue = QUEUES.get(rate, 20)
        with (
            contextlib.closing(Site()) as site,
            SlowPath(site.hosts, rate=rate, delay=DELAY, queue=queue),
        ):
            tunnel = site.tunnel(GATEWAY_ICE, ENDPOINT_ICE, foreground=True)
            try:
                tunnel.start()
                rounds = []
                for _ in range(arguments.rounds):
                    rounds.append(measure(tunnel, arguments.seconds))
                    print(" | ".join(row(rate, rounds[-1:])), flush=True)
                    print(each(rounds[-1]), flush=True)
                rows.append(row(rate, rounds))
            finally:
                tunnel.stop()
    shared = []
    for rate in arguments.shared_rates:
        with (
            contextlib.closing(Site()) as site,
            SlowPath(site.hosts, rate=rate, delay=DELAY, queue=QUEUES.get(rate, 20)),
        ):
            name = f"{rate:g} Mbit/s"
            shares = two_gateways(site, name, arguments.rounds, arguments.seconds)
            shared.append(f"{name}, two gateways: {as_text(shares)} for 20 downloads and 1")
    if len(arguments.weights) == 2:
        first, second = arguments.weights
        for weights in ((1, 1), (first, second)):
            with contextlib.closing(Site()) as site:
                name = f"no slow path, weights {weights[0]} and {weights[1]}"
                shares = two_gateways(
                    *(site, name, arguments.rounds, arguments.seconds),
                    flows=(4, 4),
                    weights=weights,
                    ice=({}, {}),
                )
                shared.append(f"{name}, two gateways: {as_text(shares)}")
    for rate in arguments.single_rates:
        shared.append(single(rate, arguments.rounds, arguments.seconds))
        print(shared[-1], flush=True)
    for line in (HEADINGS, ["---"] * len(HEADINGS), *rows):
        print("| " + " | ".join(line) + " |")
    for text in shared:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
