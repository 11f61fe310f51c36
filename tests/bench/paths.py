"""Bare data channels over paths that are long, slow or lossy: the fast path beside unmodified aiortc.

    python -m bench.paths [--rounds N] [--seconds S] [--only TEXT] [--markdown]

Two namespaces, joined by linkemu.c. Needs root, /dev/net/tun and a C compiler.
"""

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.run import RawPair
from support.hosts import Host, why_no_namespaces

HERE = Path(__file__).parent
KINDS = ("stock", "fast", "fast-bbr")


@dataclass(frozen=True)
class PathShape:
    """One path: milliseconds each way, percent, Mbit/s (0: no bottleneck), packets."""

    name: str
    delay: float
    jitter: float
    loss: float
    rate: float
    queue: int
    bar: str
    met: Callable[[dict[str, float]], bool]


PATHS = (
    PathShape(
        *("40 ms, no loss, no limit", 20, 0, 0, 0, 10_000),
        *("fast at least 5 x aiortc", lambda v: v["fast"] >= 5 * v["stock"]),
    ),
    PathShape(
        *("80 ms, 300 Mbit/s", 40, 0, 0, 300, 2000),
        *("fast at least 240", lambda v: v["fast"] >= 240),
    ),
    PathShape(
        *("40 ms, 100 Mbit/s, 250 packets of queue", 20, 0, 0, 100, 250),
        *("fast at least 85", lambda v: v["fast"] >= 85),
    ),
    PathShape(
        *("40 ms, 0.5 % loss", 20, 0, 0.5, 0, 10_000),
        *("bbr at least 10 x CUBIC", lambda v: v["fast-bbr"] >= 10 * v["fast"]),
    ),
    PathShape(
        *("50 ms, 12 Mbit/s, 1 ms of jitter", 25, 1, 0, 12, 250),
        *("fast at least 10.8", lambda v: v["fast"] >= 10.8),
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
            host.run("ip", "link", "set", "path0", "mtu", "1500", "txqueuelen", "5000", "up")

    def close(self) -> str:
        """Ends it; returns what each way has forwarded, lost and dropped."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=10)
        for host in self.hosts:
            host.delete()
        return " / ".join(said.splitlines())


def measure(program: Path, shape: PathShape, kind: str, seconds: float) -> tuple[float, str]:
    """Mbit/s of a download over a fresh path by a fresh channel, and the path's own counts."""
    path = EmulatedPath(program, shape)
    try:
        pair = RawPair(path.hosts, (kind, kind))
        rate: float = pair.dialler.ask(do="throughput", direction="down", flows=1, seconds=seconds)[
            "mbps"
        ]
        pair.quit()
    finally:
        counts = path.close()
    return rate, counts


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
    *("each 30 to 70", lambda v: all(30 <= rate <= 70 for rate in v.values())),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    options = parser.parse_args()
    if reason := why_no_namespaces():
        sys.exit(f"the benchmark cannot run here: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "linkemu"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "linkemu.c"], check=True)
        print("| path | aiortc | fast, CUBIC | fast, bbr | bar | |")
        print("| --- | --- | --- | --- | --- | --- |")
        for shape in PATHS:
            if options.only not in shape.name:
                continue
            values: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for kind in options.kinds:
                    rate, counts = measure(program, shape, kind, options.seconds)
                    values.setdefault(kind, []).append(rate)
                    print(f"{shape.name}: {kind} {rate:.1f} Mbit/s; {counts}", file=sys.stderr)
            medians = {kind: statistics.median(each) for kind, each in values.items()}
            figures = [f"{medians[kind]:.1f}" if kind in medians else "" for kind in KINDS]
            try:
                met = "met" if shape.met(medians) else "missed"
            except KeyError:
                met = "not judged"  # a kind that the bar needs was left out
            print("| " + " | ".join([shape.name, *figures, shape.bar, met]) + " |", flush=True)
        if options.only in SHARED.name:
            rounds = [share(program, 3 * options.seconds) for _ in range(options.rounds)]
            rates = {who: statistics.median(each[who] for each in rounds) for who in rounds[0]}
            for each in rounds:
                print(f"{SHARED.name}: {each}", file=sys.stderr)
            texts = [f"TCP {rates['TCP']:.1f}", f"{rates['fast']:.1f}", "", SHARED.bar]
            texts.append("met" if SHARED.met(rates) else "missed")
            print("| " + " | ".join([SHARED.name, *texts]) + " |")


if __name__ == "__main__":
    main()
