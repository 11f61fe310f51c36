"""What scrapes cost: throughput of a download with 200 scrapes and without, round by round.

    python -m bench.scrapes [--rounds 40] [--seconds 1]

A gateway and an endpoint in namespaces carry a download as fast as they can. Windows without scrapes
and windows with them take turns, and each one with scrapes is compared with the mean of the two
around it, so that a machine that slowly gets faster or slower counts for nothing. Both exporters are
asked by turns; whoever asks runs on the same machine and costs it too. As root.

Prints the medians, the median of the quotients with its quartiles, and the interval that has the
true median with 95 %: a bootstrap of pairs of neighbours, as these share a window. The same is
printed for bytes in a second of processor time of all processes of the tunnel, exporters included.
That is what scrapes cost where the processor is the limit. Other programs on the machine hardly
change it, so its interval is far narrower. The last lines say what a scrape costs an exporter: what
both use in windows with scrapes, less what they use in those without.
"""

import argparse
import contextlib
import itertools
import math
import random
import socket
import statistics
import sys
import threading
import time
from dataclasses import dataclass

from bench.workers import cpu_seconds
from support.hosts import ENDPOINT_ADDRESS, why_no_namespaces
from support.tunnels import Site, Tunnel

SCRAPES = 200
BUDGET = 0.02
"""Share of the throughput that scrapes may cost."""

REQUEST = (
    "GET /metrics HTTP/1.1\r\nHost: {}\r\n"
    "Accept: application/openmetrics-text; version=1.0.0\r\n\r\n"
)
BOOTSTRAPS = 2000
BLOCK = 2
"""Quotients that are drawn together: neighbours share a window."""


class Download:
    """Reads from a target that sends without end, in a thread, and counts."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.received = 0
        self._sock = tunnel.connect("source")
        self._stopped = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        room = bytearray(1 << 20)
        with contextlib.suppress(OSError):
            while not self._stopped and (count := self._sock.recv_into(room)):
                self.received += count

    def stop(self) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()


def scrape(tunnel: Tunnel, address: str) -> int:
    """Asks one exporter; returns the length of its answer."""

    def ask() -> int:
        answer = bytearray()
        with socket.create_connection((address, tunnel.metrics_port), timeout=30) as sock:
            sock.sendall(REQUEST.format(address).encode())
            while piece := sock.recv(65_536):
                answer += piece
        if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"# EOF\n"):
            sys.exit(f"a scrape failed: {bytes(answer[:200])!r}")
        return len(answer)

    return tunnel.site.gateway.call(ask)


@dataclass(frozen=True)
class Window:
    """Bytes of the download, seconds of processor time, and its length in seconds."""

    received: int
    exporters: float
    """Processor time of both exporters."""
    tunnel: float
    """Processor time of all processes of both sides, exporters included."""
    seconds: float

    @property
    def throughput(self) -> float:
        """Bytes in a second."""
        return self.received / self.seconds

    @property
    def work(self) -> float:
        """Bytes in a second of processor time."""
        return self.received / self.tunnel


class Scene:
    """A tunnel under load whose exporters are asked."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._exporters = [daemon.children("exporter")[0] for daemon in tunnel.daemons]
        self._all = [pid for daemon in tunnel.daemons for pid in (daemon.pid, *daemon.lasting())]
        self.load = Download(tunnel)

    def window(self, seconds: float, scrapes: int) -> Window:
        """Returns what a window with so many scrapes was like."""
        exporters, tunnel = self._spent()
        before, began = self.load.received, time.monotonic()
        for number in range(scrapes):
            scrape(self._tunnel, ("127.0.0.1", ENDPOINT_ADDRESS)[number % 2])
            time.sleep(max(0.0, began + (number + 1) * seconds / scrapes - time.monotonic()))
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        took = time.monotonic() - began
        received = self.load.received - before
        exporters_after, tunnel_after = self._spent()
        return Window(received, exporters_after - exporters, tunnel_after - tunnel, took)

    def _spent(self) -> tuple[float, float]:
        return sum(map(cpu_seconds, self._exporters)), sum(map(cpu_seconds, self._all))


def interval(values: list[float]) -> tuple[float, float]:
    """Returns the interval that has the median of what the values are drawn from, with 95 %."""
    draw = random.Random(1)
    blocks = [values[start : start + BLOCK] for start in range(max(1, len(values) - BLOCK + 1))]
    number = math.ceil(len(values) / BLOCK)
    medians = sorted(
        statistics.median(value for block in draw.choices(blocks, k=number) for value in block)
        for _ in range(BOOTSTRAPS)
    )
    return medians[BOOTSTRAPS // 40], medians[-BOOTSTRAPS // 40]


def quotients(without: list[float], with_them: list[float]) -> list[float]:
    """Returns what each window with scrapes is of the mean of the windows around it."""
    around = itertools.pairwise(without)
    return [2 * value / (a + b) for (a, b), value in zip(around, with_them, strict=True)]


def compared(ratios: list[float]) -> str:
    """Returns the median of quotients, and how sure it is."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    at_least, at_most = interval(ratios)
    return (
        f"{middle:8.3f}, median of {len(ratios)} rounds; quartiles {low:.3f} and {high:.3f}; "
        f"95 % interval of the median {at_least:.3f} to {at_most:.3f}; cost {1 - middle:.1%}"
    )


def report(plain: list[Window], scraped: list[Window], each: int, size: int) -> None:
    """Prints what was measured. There is one window more without scrapes than with them."""
    count = each * len(scraped)
    without, with_them = ([w.throughput for w in windows] for windows in (plain, scraped))
    work = quotients([w.work for w in plain], [w.work for w in scraped])
    idle = sum(w.exporters for w in plain)
    spent = sum(w.exporters for w in scraped) - idle * len(scraped) / len(plain)
    print(f"without scrapes   {statistics.median(without) / 1e6:8.1f} MB/s, median")
    print(f"with {count} scrapes  {statistics.median(with_them) / 1e6:8.1f} MB/s, median")
    print(f"of throughput     {compared(quotients(without, with_them))}; bar: under {BUDGET:.0%}")
    print(f"of bytes a CPU s  {compared(work)}")
    print(
        f"a scrape          {1000 * spent / count:8.2f} ms of processor time of the exporter, for "
        f"{size / 1000:.0f} kB; both together use {1000 * idle / len(plain):.1f} ms in a window "
        "without any"
    )
    share = spent / sum(window.seconds for window in scraped)
    print(
        f"                  {share:8.2%} of one core: what the scrapes take from the tunnel at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scrapes")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    if reason := why_no_namespaces():
        sys.exit(reason)
    each = math.ceil(SCRAPES / arguments.rounds)
    with contextlib.closing(Site()) as site:
        tunnel = site.tunnel(foreground=True)
        metrics = {"listen": f"{ENDPOINT_ADDRESS}:{tunnel.metrics_port}"}
        tunnel.endpoint_settings["metrics"] = metrics
        tunnel.start()
        try:
            scene = Scene(tunnel)
            scene.window(5.0, 4)  # both get warm
            plain: list[Window] = []
            scraped: list[Window] = []
            for _ in range(arguments.rounds):
                plain.append(scene.window(arguments.seconds, 0))
                scraped.append(scene.window(arguments.seconds, each))
            plain.append(scene.window(arguments.seconds, 0))
            scene.load.stop()
            size = scrape(tunnel, "127.0.0.1")
        finally:
            tunnel.stop()
    report(plain, scraped, each, size)


if __name__ == "__main__":
    main()
