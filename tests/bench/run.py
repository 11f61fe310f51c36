"""The benchmark: the whole tunnel beside a bare aiortc data channel, in the same three namespaces.

Each figure is taken from both in turn, in interleaved rounds of which the median counts, so that
whatever else the machine does meets both alike. Prints a table with the issue's bars; `--json FILE`
writes every single value too, `--markdown` prints the table as docs/benchmarks.md has it.
"""

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from support.hosts import TARGET_ADDRESS, Host, why_no_namespaces
from support.processes import resident
from support.tunnels import Site, Tunnel

HERE = Path(__file__).parent


class Worker:
    """A process that carries out commands given as lines of JSON."""

    def __init__(self, host: Host, script: str, *arguments: str) -> None:
        self.popen = host.start(
            *(sys.executable, str(HERE / script), *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def tell(self, **command: Any) -> None:
        """Send an object."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(command).encode() + b"\n")
        self.popen.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for an object."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.popen.args!r} ended with status {self.popen.wait()}")
        decoded: dict[str, Any] = json.loads(line)
        return decoded

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command, wait for its result."""
        self.tell(**command)
        return self.hear()

    def quit(self) -> None:
        """End the process."""
        self.tell(do="quit")
        self.popen.communicate(timeout=30)


class RawPair:
    """A bare aiortc data channel from the gateway's host to the endpoint's."""

    def __init__(self, site: Site) -> None:
        self.dialler = Worker(site.hosts.gateway, "rawpeer.py", "dial")
        self.answerer = Worker(site.hosts.endpoint, "rawpeer.py", "answer")
        self.answerer.tell(sdp=self.dialler.hear()["sdp"])
        self.dialler.tell(sdp=self.answerer.hear()["sdp"])
        self.dialler.hear()

    def memory(self) -> int:
        """Bytes of memory of both ends (PSS)."""
        return sum(resident(w.popen.pid) for w in (self.dialler, self.answerer))

    def quit(self) -> None:
        """End both."""
        self.dialler.quit()
        self.answerer.quit()


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Bar:
    """What the figure has to reach: judged on the tunnel's value and its ratio to the raw one."""

    text: str
    met: Callable[[float, float], bool]


@dataclass(frozen=True)
class Measure:
    """One figure: the command that gives it, the key of its value, and how to print it."""

    name: str
    unit: str
    command: dict[str, Any]
    key: str
    bar: Bar | None = None


def measures(seconds: float) -> list[Measure]:
    """All but the idle flows, which need memory read around them."""
    return [
        Measure(
            "download, 1 flow",
            "Mbit/s",
            {"do": "throughput", "direction": "down", "flows": 1, "seconds": seconds},
            "mbps",
            Bar("at least 0.70 of raw", lambda _, ratio: ratio >= 0.70),
        ),
        Measure(
            "download, 8 flows",
            "Mbit/s",
            {"do": "throughput", "direction": "down", "flows": 8, "seconds": seconds},
            "mbps",
        ),
        Measure(
            "upload, 1 flow",
            "Mbit/s",
            {"do": "throughput", "direction": "up", "flows": 1, "seconds": seconds},
            "mbps",
        ),
        Measure(
            "upload, 8 flows",
            "Mbit/s",
            {"do": "throughput", "direction": "up", "flows": 8, "seconds": seconds},
            "mbps",
        ),
        Measure(
            "round trip of 64 bytes, median",
            "ms",
            {"do": "round-trip", "count": 2000, "size": 64},
            "p50_ms",
            Bar("at most 2.00 of raw", lambda _, ratio: ratio <= 2.0),
        ),
        Measure(
            "round trip of 64 bytes, 99th percentile",
            "ms",
            {"do": "round-trip", "count": 2000, "size": 64},
            "p99_ms",
        ),
        Measure(
            "new connections, 8 clients",
            "/s",
            {"do": "open", "clients": 8, "seconds": seconds},
            "per_second",
            Bar("at least 1000 /s", lambda value, _: value >= 1000),
        ),
        Measure(
            "UDP echo of 200 bytes, 1 outstanding",
            "/s",
            {"do": "datagrams", "size": 200, "outstanding": 1, "seconds": seconds},
            "per_second",
        ),
        Measure(
            "UDP echo of 200 bytes, 32 outstanding",
            "/s",
            {"do": "datagrams", "size": 200, "outstanding": 32, "seconds": seconds},
            "per_second",
        ),
    ]


@dataclass
class Row:
    """One line of the result: the medians."""

    name: str
    unit: str
    tunnel: float
    raw: float
    bar: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float:
        """The tunnel's figure in terms of the raw channel's."""
        return self.tunnel / self.raw if self.raw else float("nan")


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.values: dict[str, dict[str, list[float]]] = {}
        self.cpu: dict[str, dict[str, list[float]]] = {}
        self.rows: list[Row] = []
        self.console = Console(stderr=True)

    def run(self) -> None:
        """Measure everything."""
        site = Site()
        try:
            tunnel = site.tunnel({"workers": {"count": 0}}, {"workers": {"count": 0}})
            try:
                tunnel.start()
                self.measure(site, tunnel)
            except BaseException:
                self.console.print(tunnel.logs(), markup=False)
                raise
            finally:
                tunnel.stop()
        finally:
            site.close()

    def measure(self, site: Site, tunnel: Tunnel) -> None:
        """All rounds, then the idle flows."""
        chosen = [m for m in measures(self.options.seconds) if self.options.only in m.name]
        for number in range(self.options.rounds):
            for measure in chosen:
                # Whoever goes first in one round goes second in the next.
                for who in ("raw", "tunnel") if number % 2 == 0 else ("tunnel", "raw"):
                    if who == "raw":
                        value = self.raw(site, measure)
                    else:
                        value = self.tunnel(site, tunnel, measure)
                    self.values.setdefault(measure.name, {}).setdefault(who, []).append(value)
                    self.console.print(
                        f"round {number + 1}: {measure.name}: {who} {value:.2f} {measure.unit}"
                    )
        for measure in chosen:
            medians = {k: statistics.median(v) for k, v in self.values[measure.name].items()}
            row = Row(measure.name, measure.unit, medians["tunnel"], medians["raw"])
            if measure.bar:
                row.bar, row.met = measure.bar.text, measure.bar.met(row.tunnel, row.ratio)
            self.rows.append(row)
        if self.options.only in "idle flows":
            self.idle(site, tunnel)

    def raw(self, site: Site, measure: Measure) -> float:
        """A figure of a fresh bare data channel."""
        pair = RawPair(site)
        value: float = pair.dialler.ask(**measure.command)[measure.key]
        pair.quit()
        return value

    def tunnel(self, site: Site, tunnel: Tunnel, measure: Measure) -> float:
        """A figure of the tunnel, with the CPU time that each kind of process took for it."""
        load = self.load(site, tunnel)
        pids = {
            "gateway supervisor": [tunnel.gateway.pid],
            "gateway workers": tunnel.gateway.workers(),
            "endpoint supervisor": [tunnel.endpoint.pid],
            "endpoint workers": tunnel.endpoint.workers(),
            "load": [load.popen.pid],
        }
        before = {k: sum(map(cpu_seconds, v)) for k, v in pids.items()}
        value: float = load.ask(**measure.command)[measure.key]
        for name, ids in pids.items():
            used = sum(map(cpu_seconds, ids)) - before[name]
            self.cpu.setdefault(measure.name, {}).setdefault(name, []).append(used)
        load.quit()
        return value

    def load(self, site: Site, tunnel: Tunnel) -> Worker:
        """A load client on the gateway's host."""
        return Worker(
            *(site.hosts.gateway, "load.py", str(tunnel.socks_port), TARGET_ADDRESS),
            json.dumps(site.ports),
        )

    def idle(self, site: Site, tunnel: Tunnel) -> None:
        """Memory of idle flows over all processes, and whether all are alive afterwards."""
        flows = self.options.idle_flows
        self.console.print(f"{flows} idle flows")
        pair = RawPair(site)
        before = pair.memory()
        pair.dialler.ask(do="idle", flows=flows)
        raw = (pair.memory() - before) / flows / 1024
        pair.quit()

        load = self.load(site, tunnel)
        before = tunnel.gateway.memory() + tunnel.endpoint.memory()
        load.ask(do="idle", flows=flows)
        per_flow = (tunnel.gateway.memory() + tunnel.endpoint.memory() - before) / flows / 1024
        alive = load.ask(do="check")["alive"]
        load.quit()
        name = f"{flows} idle flows: memory of each"
        self.values[name] = {"raw": [raw], "tunnel": [per_flow]}
        self.rows.append(Row(name, "KiB", per_flow, raw, "less than 40 KiB", per_flow < 40))
        self.values["idle flows alive"] = {"tunnel": [alive]}
        self.rows.append(Row(f"{flows} idle flows: alive", "", alive, flows, "all", alive == flows))

    def report(self) -> dict[str, Any]:
        """The whole run as JSON."""
        return {
            "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "rows": [vars(row) | {"ratio": row.ratio} for row in self.rows],
            "values": self.values,
            "cpu_seconds": self.cpu,
        }


def machine() -> str:
    """The shape of this machine, in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 30)
    return (
        f"{os.cpu_count()} cores ({model}), {memory} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def verdict(row: Row) -> str:
    """The word beside the bar."""
    return "" if row.met is None else "met" if row.met else "missed"


def cells(row: Row) -> list[str]:
    """A row as text."""
    digits = 0 if max(row.tunnel, row.raw) >= 100 else 2
    return [
        row.name,
        f"{row.tunnel:.{digits}f} {row.unit}".strip(),
        f"{row.raw:.{digits}f} {row.unit}".strip(),
        f"{row.ratio:.2f}",
        row.bar,
        verdict(row),
    ]


HEADINGS = ["figure", "tunnel", "raw aiortc", "ratio", "bar", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--idle-flows", type=int, default=5000)
    parser.add_argument("--only", default="", help="only figures whose name has this in it")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    if reason := why_no_namespaces():
        sys.exit(f"the benchmark cannot run here: {reason}")
    bench = Bench(options)
    bench.run()
    if options.json:
        options.json.write_text(json.dumps(bench.report(), indent=1) + "\n")
    if options.markdown:
        for line in (HEADINGS, ["---"] * len(HEADINGS), *map(cells, bench.rows)):
            print("| " + " | ".join(line) + " |")
        return
    table = Table(*HEADINGS, title=machine())
    for row in bench.rows:
        table.add_row(*cells(row))
    # Not squeezed into 80 columns where it goes to a file.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
