"""Bare data channels over paths that are long, slow or lossy: the fast path beside unmodified aiortc.

    python -m bench.paths [--rounds N] [--seconds S] [--only TEXT] [--kinds KIND …]

Two namespaces, joined by linkemu.c. The kinds `tunnel`, `tunnel-bbr` and `hysteria2` are whole proxies: the
download is that of a SOCKS5 client, from a server behind the far end, and both proxies of a round have the
same emulated path, one after the other. Needs root, /dev/net/tun and a C compiler.
"""

import argparse
import contextlib
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.rivals import Hysteria
from bench.workers import RawPair, Worker, machine
from support.hosts import TARGET_ADDRESS, Host, why_no_namespaces
from support.slow_path import ENDPOINT_ICE, ENDPOINT_SLOW_ADDRESS, GATEWAY_ICE, SlowPath
from support.tunnels import Site, Tunnel

HERE = Path(__file__).parent
CHANNELS = ("stock", "fast", "fast-bbr")
PROXIES = ("tunnel", "tunnel-bbr", "hysteria2")
KINDS = (*CHANNELS, *PROXIES)
HEADINGS = ("aiortc", "fast, CUBIC", "fast, bbr", "tunnel, CUBIC", "tunnel, bbr", "hysteria2")
TUN_QUEUE = "5000"
"""Packets that a TUN device holds until the emulator has read them: more than a burst has."""


@dataclass(frozen=True)
class Figure:
    """What a download was like: Mbit/s, and what part of its packets the queue of the path dropped."""

    rate: float
    dropped: float


@dataclass(frozen=True)
class Bar:
    """What has to be true of the medians, by kind."""

    text: str
    met: Callable[[dict[str, Figure]], bool]


@dataclass(frozen=True)
class PathShape:
    """One path: milliseconds each way, percent, Mbit/s (0: no bottleneck), packets."""

    name: str
    delay: float
    jitter: float
    loss: float
    rate: float
    queue: int
    kinds: tuple[str, ...]
    bars: tuple[Bar, ...]


def over(kind: str, other: str, least: float) -> Bar:
    """A bar for the ratio of the rates of two kinds."""
    return Bar(
        f"{kind} at least {least:g} x {other}", lambda v: v[kind].rate >= least * v[other].rate
    )


def reaches(kind: str, least: float) -> Bar:
    """A bar for the Mbit/s of a kind."""
    return Bar(f"{kind} at least {least:g}", lambda v: v[kind].rate >= least)


PATHS = (
    PathShape(
        *("40 ms, no loss, no limit", 20, 0, 0, 0, 10_000),
        *(CHANNELS, (over("fast", "stock", 5),)),
    ),
    PathShape(
        *("80 ms, 300 Mbit/s", 40, 0, 0, 300, 2000),
        *(CHANNELS, (reaches("fast", 240),)),
    ),
    PathShape(
        *("40 ms, 100 Mbit/s, 250 packets of queue", 20, 0, 0, 100, 250),
        CHANNELS,
        (reaches("fast", 85), Bar("fast loses less than 1 %", lambda v: v["fast"].dropped < 0.01)),
    ),
    PathShape(
        *("40 ms, 0.5 % loss", 20, 0, 0.5, 0, 10_000),
        (*CHANNELS, "tunnel-bbr", "hysteria2"),
        (
            over("fast-bbr", "fast", 10),
            over("fast-bbr", "hysteria2", 1),
            over("tunnel-bbr", "hysteria2", 1),
        ),
    ),
    PathShape(
        *("50 ms, 12 Mbit/s, 1 ms of jitter", 25, 1, 0, 12, 250),
        *(CHANNELS, (reaches("fast", 10.8),)),
    ),
)


class EmulatedPath:
    """Two hosts with a path between them."""

    def __init__(self, program: Path, shape: PathShape) -> None:
        self.hosts = Host("pa"), Host("pb")
        values = (shape.delay, shape.jitter, shape.loss, shape.rate, shape.queue)
        self.process = subprocess.Popen(
            [program, *(host.name for host in self.hosts), *map(str, values)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "up\n":
            raise RuntimeError("linkemu did not start")
        for number, host in enumerate(self.hosts, 1):
            other = 3 - number
            host.run(
                *("ip", "address", "add", f"10.78.0.{number}", "peer", f"10.78.0.{other}"),
                *("dev", "path0"),
            )
            host.run(*("ip", "link", "set", "path0", "mtu", "1500", "txqueuelen", TUN_QUEUE, "up"))

    def close(self) -> list[str]:
        """Ends it; returns what each way has forwarded, lost and dropped, a download's way last."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=10)
        for host in self.hosts:
            host.delete()
        return said.splitlines()


def channel(program: Path, shape: PathShape, kind: str, seconds: float) -> Figure:
    """A download over a fresh path by a fresh channel."""
    path = EmulatedPath(program, shape)
    try:
        pair = RawPair(path.hosts, (kind, kind))
        rate: float = pair.dialler.ask(do="throughput", direction="down", flows=1, seconds=seconds)[
            "mbps"
        ]
        pair.quit()
    finally:
        counts = path.close()
    print(f"{shape.name}: {kind} {rate:.1f} Mbit/s; {' / '.join(counts)}", file=sys.stderr)
    forwarded, _, dropped = (int(word) for word in counts[-1].split()[1::2])
    return Figure(rate, dropped / max(forwarded + dropped, 1))


class Proxies:
    """Whole proxies that share an emulated path, each of which has it in turn; for a `with` block."""

    def __init__(self, shape: PathShape, kinds: list[str]) -> None:
        self.shape = shape
        self.kinds = kinds
        self.ports: dict[str, int] = {}
        """Their SOCKS5 ports on the first host, by kind."""
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        shape = self.shape
        with contextlib.ExitStack() as held:
            site = self.site = held.enter_context(contextlib.closing(Site()))
            held.enter_context(
                SlowPath(
                    site.hosts,
                    rate=shape.rate,
                    delay=shape.delay,
                    jitter=shape.jitter,
                    loss=shape.loss,
                    queue=shape.queue,
                )
            )
            for host in self._hosts():
                host.run("ip", "link", "set", "path0", "txqueuelen", TUN_QUEUE)
            for kind in self.kinds:
                if kind == "hysteria2":
                    rival = Hysteria(*self._hosts(), site.ports, ENDPOINT_SLOW_ADDRESS)
                    held.callback(rival.stop)
                    if why := rival.start():
                        print(f"without hysteria2: {why}", file=sys.stderr)
                        continue
                    self.ports[kind] = rival.port
                else:
                    self.ports[kind] = held.enter_context(self._tunnel(kind)).socks_port
            self._exit = held.pop_all()
        return self

    def _hosts(self) -> tuple[Host, Host]:
        return self.site.hosts.gateway, self.site.hosts.endpoint

    @contextlib.contextmanager
    def _tunnel(self, kind: str) -> Iterator[Tunnel]:
        congestion = {"transport": {"congestion": "bbr" if kind == "tunnel-bbr" else "cubic"}}
        tunnel = self.site.tunnel(
            {**GATEWAY_ICE, **congestion}, {**ENDPOINT_ICE, **congestion}, foreground=True
        )
        try:
            yield tunnel.start()
        finally:
            tunnel.stop()

    def download(self, kind: str, seconds: float) -> Figure:
        """A download through one of them."""
        load = Worker(
            *(self.site.hosts.gateway, "load.py", str(self.ports[kind]), TARGET_ADDRESS),
            json.dumps(self.site.ports),
        )
        rate: float = load.ask(do="throughput", direction="down", flows=1, seconds=seconds)["mbps"]
        load.quit()
        print(f"{self.shape.name}: {kind} {rate:.1f} Mbit/s", file=sys.stderr)
        return Figure(rate, math.nan)

    def __exit__(self, *_: object) -> None:
        self._exit.close()


def measure(
    program: Path, shape: PathShape, kinds: list[str], rounds: int, seconds: float
) -> dict[str, Figure]:
    """The medians of interleaved rounds, by kind. Who goes first in one goes last in the next."""
    values: dict[str, list[Figure]] = {}
    whole = [kind for kind in kinds if kind in PROXIES]
    with Proxies(shape, whole) if whole else contextlib.nullcontext() as proxies:
        for number in range(rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                if kind in CHANNELS:
                    figure = channel(program, shape, kind, seconds)
                elif proxies is not None and kind in proxies.ports:
                    figure = proxies.download(kind, seconds)
                else:
                    continue
                values.setdefault(kind, []).append(figure)
    return {
        kind: Figure(
            statistics.median(figure.rate for figure in figures),
            statistics.median(figure.dropped for figure in figures),
        )
        for kind, figures in values.items()
    }


def judged(bar: Bar, figures: dict[str, Figure]) -> str:
    """A bar as text, with whether it is met."""
    try:
        return f"{bar.text}: {'met' if bar.met(figures) else 'missed'}"
    except KeyError as error:
        return f"{bar.text}: not judged, without {error.args[0]}"


class CubicFlow:
    """A TCP connection of the kernel's, with CUBIC, from the second host to the first: bulk."""

    def __init__(self, hosts: tuple[Host, Host]) -> None:
        with hosts[0].inside():
            listening = socket.create_server(("10.78.0.1", 0))
        with hosts[1].inside():
            self.sender = socket.socket()
        self.sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        self.sender.connect(listening.getsockname())
        self.receiver, _ = listening.accept()
        listening.close()
        self.received: list[tuple[float, int]] = []
        """When (monotonic clock) how many bytes came."""
        self.threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        block = bytes(1 << 18)
        with contextlib.suppress(OSError):  # the end
            while True:
                self.sender.sendall(block)

    def _receive(self) -> None:
        buffer = bytearray(1 << 18)
        with contextlib.suppress(OSError):
            while count := self.receiver.recv_into(buffer):
                self.received.append((time.monotonic(), count))

    def rate(self, start: float, end: float) -> float:
        """Mbit/s between two times."""
        total = sum(count for at, count in self.received if start <= at < end)
        return total * 8 / (end - start) / 1e6

    def close(self) -> None:
        """Ends it."""
        for sock in (self.sender, self.receiver):
            sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(30)
        self.sender.close()
        self.receiver.close()


SHARED = PathShape(
    *("shared with TCP CUBIC: 40 ms, 100 Mbit/s, 250 packets", 20, 0, 0, 100, 250),
    ("fast",),
    (Bar("each 30 to 70", lambda v: all(30 <= each.rate <= 70 for each in v.values())),),
)


def share(program: Path, seconds: float) -> dict[str, float]:
    """Mbit/s of a download by a fresh channel and of a TCP connection that share a bottleneck."""
    path = EmulatedPath(program, SHARED)
    try:
        pair = RawPair(path.hosts, ("fast", "fast"))
        flow = CubicFlow(path.hosts)
        try:
            said = pair.dialler.ask(
                do="throughput", direction="down", flows=1, seconds=seconds, trips=1
            )
            theirs = flow.rate(said["until"] - seconds, said["until"])
        finally:
            flow.close()
        pair.quit()
    finally:
        path.close()
    return {"fast": said["mbps"], "TCP": theirs}


def row(*cells: str) -> None:
    """Prints a line of the table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", default="", help="only paths whose name has this in it")
    parser.add_argument(
        "--kinds", nargs="*", choices=KINDS, help="instead of those that the bars need"
    )
    options = parser.parse_args()
    if reason := why_no_namespaces():
        sys.exit(f"the benchmark cannot run here: {reason}")
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "linkemu"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "linkemu.c"], check=True)
        row("path", *HEADINGS, "bars")
        row(*["---"] * (len(HEADINGS) + 2))
        for shape in PATHS:
            if options.only not in shape.name:
                continue
            kinds = options.kinds or list(shape.kinds)
            figures = measure(program, shape, kinds, options.rounds, options.seconds)
            rates = [f"{figures[kind].rate:.1f}" if kind in figures else "" for kind in KINDS]
            row(shape.name, *rates, "; ".join(judged(bar, figures) for bar in shape.bars))
        if options.only in SHARED.name:
            rounds = [share(program, 3 * options.seconds) for _ in range(options.rounds)]
            for each in rounds:
                print(f"{SHARED.name}: {each}", file=sys.stderr)
            figures = {
                who: Figure(statistics.median(each[who] for each in rounds), math.nan)
                for who in rounds[0]
            }
            texts = [f"TCP {figures['TCP'].rate:.1f}", f"{figures['fast'].rate:.1f}"]
            row(
                *(SHARED.name, *texts, *[""] * (len(HEADINGS) - len(texts))),
                "; ".join(judged(bar, figures) for bar in SHARED.bars),
            )


if __name__ == "__main__":
    main()
