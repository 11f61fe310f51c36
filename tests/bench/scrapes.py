"""What scrapes cost: throughput of a download with 200 scrapes and without, window by window.

    python -m bench.scrapes [--windows 10] [--seconds 2]

A gateway and an endpoint in namespaces carry a download as fast as they can. Windows with scrapes
and without take turns, in one run, so that whatever else the machine does meets both alike. Both
exporters are asked by turns; whoever asks runs on the same machine and costs it too. Prints the
medians, their quotient, the processor time of both exporters for each scrape, and how many windows
say that scrapes cost something. As root.
"""

import argparse
import contextlib
import http.client
import math
import socket
import statistics
import sys
import threading
import time

from bench.run import cpu_seconds
from support.hosts import ENDPOINT_ADDRESS, why_no_namespaces
from support.tunnels import Site, Tunnel

SCRAPES = 200
BUDGET = 0.02
"""Share of the throughput that scrapes may cost."""

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


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
        connection = http.client.HTTPConnection(address, tunnel.metrics_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers=OPENMETRICS)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or not body.endswith(b"# EOF\n"):
                sys.exit(f"a scrape failed with {answer.status}")
            return len(body)

    return tunnel.site.gateway.call(ask)


def window(tunnel: Tunnel, load: Download, seconds: float, scrapes: int) -> float:
    """Returns bytes per second of a window with so many scrapes."""
    before, began = load.received, time.monotonic()
    for number in range(scrapes):
        scrape(tunnel, ("127.0.0.1", ENDPOINT_ADDRESS)[number % 2])
        time.sleep(max(0.0, began + (number + 1) * seconds / scrapes - time.monotonic()))
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return (load.received - before) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.scrapes")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    if reason := why_no_namespaces():
        sys.exit(reason)
    each = math.ceil(SCRAPES / arguments.windows)
    with contextlib.closing(Site()) as site:
        tunnel = site.tunnel(foreground=True)
        metrics = {"listen": f"{ENDPOINT_ADDRESS}:{tunnel.metrics_port}"}
        tunnel.endpoint_settings["metrics"] = metrics
        tunnel.start()
        try:
            exporters = [d.children("exporter")[0] for d in tunnel.daemons]
            load = Download(tunnel)
            window(tunnel, load, 3 * arguments.seconds, 4)  # both get warm
            before = sum(map(cpu_seconds, exporters))
            plain: list[float] = []
            scraped: list[float] = []
            for number in range(arguments.windows):
                turns = [(plain, 0), (scraped, each)]
                for values, scrapes in turns if number % 2 else reversed(turns):
                    values.append(window(tunnel, load, arguments.seconds, scrapes))
            spent = sum(map(cpu_seconds, exporters)) - before
            load.stop()
            size = scrape(tunnel, "127.0.0.1")
        finally:
            tunnel.stop()
    a, b = statistics.median(plain), statistics.median(scraped)
    slower = sum(with_them < without for without, with_them in zip(plain, scraped, strict=True))
    print(f"without scrapes   {a / 1e6:8.1f} MB/s   {[round(v / 1e6) for v in plain]}")
    print(
        f"with {each * arguments.windows} scrapes  {b / 1e6:8.1f} MB/s   {[round(v / 1e6) for v in scraped]}"
    )
    print(f"cost              {(1 - b / a):8.1%}        bar: under {BUDGET:.0%}")
    print(f"slower in         {slower:8} of {arguments.windows} pairs of windows")
    print(
        f"exporters         {1000 * spent / (each * arguments.windows):8.2f} ms of processor time "
        f"for each scrape of {size / 1000:.0f} kB, all that they do besides included"
    )


if __name__ == "__main__":
    main()
