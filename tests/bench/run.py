"""The benchmark: the whole tunnel beside bare data channels and rivals, in the same namespaces.

Each figure is taken from all in turn, in interleaved rounds of which the median counts, so that
whatever else the machine does meets all alike. Prints a table with the issue's bars; `--json FILE`
writes every single value too, `--markdown` prints the table as docs/performance.md has it.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.load import WARM_UP
from bench.rivals import Hysteria
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
    """A bare data channel from one host to another; `kinds` are the dialling and the other end's."""

    def __init__(
        self, hosts: tuple[Host, Host], kinds: tuple[str, str] = ("stock", "stock")
    ) -> None:
        self.dialler = Worker(hosts[0], "rawpeer.py", "dial", kinds[0])
        self.answerer = Worker(hosts[1], "rawpeer.py", "answer", kinds[1])
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
    """Processor time that the threads of a process have used, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def udp_drops(tunnel: Tunnel) -> float:
    """How many datagrams both sides of the tunnel have dropped, for whatever reason."""
    return sum(tunnel.metric("udp_dropped_total", role) for role in ("gateway", "endpoint"))


def operations(measure: "Measure", value: float) -> float:
    """How many operations a figure stands for: Mbit, round trips, connections, datagrams."""
    if "count" in measure.command:
        return float(measure.command["count"])
    seconds: float = measure.command["seconds"]
    warm_up = WARM_UP if measure.command["do"] == "throughput" else 0.0
    return value * (seconds + warm_up)


Values = dict[str, float]
"""The medians of a figure, by who it was measured of."""


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach."""

    text: str
    met: Callable[[Values], bool]


def over(who: str, other: str, least: float) -> Bar:
    """A bar for the ratio of two contenders' figures."""
    return Bar(f"{who} at least {least:g} x {other}", lambda v: v[who] >= least * v[other])


def under(who: str, other: str, most: float) -> Bar:
    """The same for a figure that is to be small."""
    return Bar(f"{who} at most {most:g} x {other}", lambda v: v[who] <= most * v[other])


@dataclass(frozen=True)
class Measure:
    """One figure: the command that gives it, the key of its value, and how to print it."""

    name: str
    unit: str
    command: dict[str, Any]
    key: str
    bars: tuple[Bar, ...] = ()


def measures(seconds: float) -> list[Measure]:
    """All but the idle flows, which need memory read around them. Bars need the rival that they name."""

    def throughput(direction: str, flows: int) -> dict[str, Any]:
        return {"do": "throughput", "direction": direction, "flows": flows, "seconds": seconds}

    round_trip = {"do": "round-trip", "count": 2000, "size": 64}
    datagrams = {"do": "datagrams", "size": 200, "seconds": seconds}
    opens = {"do": "open", "clients": 8, "seconds": seconds}
    return [
        Measure(
            "download, 1 flow",
            "Mbit/s",
            throughput("down", 1),
            "mbps",
            (
                over("channel", "raw", 8),
                over("to raw", "raw", 1.2),
                over("tunnel", "raw", 5),
                over("tunnel", "hysteria2", 1),
            ),
        ),
        Measure("download, 8 flows", "Mbit/s", throughput("down", 8), "mbps"),
        Measure("upload, 1 flow", "Mbit/s", throughput("up", 1), "mbps"),
        Measure("upload, 8 flows", "Mbit/s", throughput("up", 8), "mbps"),
        Measure(
            "round trip of 64 bytes, median",
            "ms",
            round_trip,
            "p50_ms",
            (under("tunnel", "hysteria2", 1),),
        ),
        Measure("round trip of 64 bytes, 99th percentile", "ms", round_trip, "p99_ms"),
        Measure(
            "new connections, 8 clients",
            "/s",
            opens,
            "per_second",
            (over("tunnel", "hysteria2", 1),),
        ),
        Measure(
            "UDP echo of 200 bytes, 1 outstanding",
            "/s",
            datagrams | {"outstanding": 1},
            "per_second",
            (over("tunnel", "hysteria2", 1),),
        ),
        Measure(
            "UDP echo of 200 bytes, 32 outstanding",
            "/s",
            datagrams | {"outstanding": 32},
            "per_second",
        ),
    ]


@dataclass
class Row:
    """One line of the result: the medians, and each bar with whether it is met."""

    name: str
    unit: str
    values: Values
    bars: dict[str, bool] = field(default_factory=dict)


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.values: dict[str, dict[str, list[float]]] = {}
        self.cpu: dict[str, dict[str, list[float]]] = {}
        self.costs: dict[str, dict[str, list[float]]] = {}
        """Seconds of processor time of one operation, of all processes on both hosts."""
        self.rows: list[Row] = []
        self.console = Console(stderr=True)

    def run(self) -> None:
        """Measure everything."""
        site = Site()
        try:
            tunnel = site.tunnel({"workers": {"count": 0}}, {"workers": {"count": 0}})
            rival: Hysteria | None = Hysteria(site.hosts.gateway, site.hosts.endpoint)
            try:
                tunnel.start()
                if rival is not None and (why := rival.start()):
                    self.console.print(f"without hysteria2: {why}")
                    rival = None
                self.measure(site, tunnel, rival)
            except BaseException:
                self.console.print(tunnel.logs(), markup=False)
                raise
            finally:
                if rival is not None:
                    rival.stop()
                tunnel.stop()
        finally:
            site.close()

    def contenders(
        self, site: Site, tunnel: Tunnel, rival: Hysteria | None, measure: Measure
    ) -> dict[str, Callable[[], float]]:
        """Who is measured, in the order of an even round."""
        chosen: dict[str, Callable[[], float]] = {
            "raw": lambda: self.raw(site, measure, "stock", "stock"),
            "channel": lambda: self.raw(site, measure, "fast", "fast"),
            "tunnel": lambda: self.tunnel(site, tunnel, measure),
        }
        if measure.command.get("direction") == "down":
            # The sender is the answering end.
            chosen["to raw"] = lambda: self.raw(site, measure, "stock", "fast")
        if rival is not None:
            chosen["hysteria2"] = lambda: self.through(site, rival, measure)
        return chosen

    def measure(self, site: Site, tunnel: Tunnel, rival: Hysteria | None) -> None:
        """All rounds, then the idle flows."""
        chosen = [m for m in measures(self.options.seconds) if self.options.only in m.name]
        for number in range(self.options.rounds):
            for measure in chosen:
                order = list(self.contenders(site, tunnel, rival, measure).items())
                # Whoever goes first in one round goes last in the next.
                for who, take in order if number % 2 == 0 else reversed(order):
                    value = take()
                    self.values.setdefault(measure.name, {}).setdefault(who, []).append(value)
                    self.console.print(
                        f"round {number + 1}: {measure.name}: {who} {value:.2f} {measure.unit}"
                    )
        for measure in chosen:
            medians = {k: statistics.median(v) for k, v in self.values[measure.name].items()}
            bars = {
                bar.text: bar.met(medians)
                for bar in measure.bars
                if "hysteria2" in medians or "hysteria2" not in bar.text
            }
            self.rows.append(Row(measure.name, measure.unit, medians, bars))
            costs = self.costs[measure.name]
            micros = {k: statistics.median(v) * 1e6 for k, v in costs.items()}
            unit = "µs/Mbit" if measure.unit == "Mbit/s" else "µs"
            self.rows.append(Row("… processor time of both hosts", unit, micros))
        if self.options.only in CALLS:
            self.calls(site, tunnel, rival)
        if self.options.only in "idle flows":
            self.idle(site, tunnel)

    def calls(self, site: Site, tunnel: Tunnel, rival: Hysteria | None) -> None:
        """Datagrams as calls send them, alone and beside a download."""
        ports = {"tunnel": tunnel.socks_port} | ({} if rival is None else {"hysteria2": rival.port})
        echo = Worker(site.hosts.target, "echo.py")
        command = {"do": "paced", "size": 160, "rate": 5000, "seconds": self.options.seconds}
        command |= echo.hear()
        added: dict[str, list[float]] = {}
        lost: dict[str, list[float]] = {}
        for _ in range(self.options.rounds):
            for who, port in ports.items():
                call, bulk = self.load(site, port), self.load(site, port)
                alone = call.ask(**command)
                # The first call after the download has begun is not counted: its rate settles.
                seconds = 2 * self.options.seconds + 2
                bulk.tell(do="throughput", direction="down", flows=1, seconds=seconds)
                call.ask(**command)
                before = udp_drops(tunnel)
                beside = call.ask(**command)
                dropped = udp_drops(tunnel) - before
                added.setdefault(who, []).append(beside["p99_ms"] - alone["p99_ms"])
                lost.setdefault(who, []).append(beside["lost"])
                self.console.print(
                    f"{CALLS}: {who} alone {alone}, beside a download {beside};"
                    f" the tunnel dropped {dropped:.0f} meanwhile"
                )
                bulk.hear()
                call.quit()
                bulk.quit()
        echo.quit()
        self.values[f"{CALLS}: added p99"], self.values[f"{CALLS}: lost"] = added, lost
        figures = {who: statistics.median(each) for who, each in added.items()}
        bars = {"less than 5 ms": figures["tunnel"] < 5}
        self.rows.append(Row(f"{CALLS}: delay added at p99", "ms", figures, bars))
        figures = {who: statistics.median(each) for who, each in lost.items()}
        self.rows.append(Row(f"{CALLS}: lost", "", figures, {"none": figures["tunnel"] == 0}))

    def raw(self, site: Site, measure: Measure, dialling: str, answering: str) -> float:
        """A figure of a fresh bare data channel."""
        pair = RawPair((site.hosts.gateway, site.hosts.endpoint), (dialling, answering))
        value: float = pair.dialler.ask(**measure.command)[measure.key]
        pair.quit()
        return value

    def through(self, site: Site, rival: Hysteria, measure: Measure) -> float:
        """A figure of another SOCKS5 proxy on the gateway's host, and its processor time."""
        load = self.load(site, rival.port)
        pids = [process.pid for process in rival.processes]
        before = sum(map(cpu_seconds, pids))
        value: float = load.ask(**measure.command)[measure.key]
        used = sum(map(cpu_seconds, pids)) - before
        self.costs.setdefault(measure.name, {}).setdefault("hysteria2", []).append(
            used / operations(measure, value)
        )
        load.quit()
        return value

    def tunnel(self, site: Site, tunnel: Tunnel, measure: Measure) -> float:
        """A figure of the tunnel, with the CPU time that each kind of process took for it."""
        load = self.load(site, tunnel.socks_port)
        pids = {
            "gateway supervisor": [tunnel.gateway.pid],
            "gateway workers": tunnel.gateway.workers(),
            "endpoint supervisor": [tunnel.endpoint.pid],
            "endpoint workers": tunnel.endpoint.workers(),
            "load": [load.popen.pid],
        }
        before = {k: sum(map(cpu_seconds, v)) for k, v in pids.items()}
        value: float = load.ask(**measure.command)[measure.key]
        total = 0.0
        for name, ids in pids.items():
            used = sum(map(cpu_seconds, ids)) - before[name]
            self.cpu.setdefault(measure.name, {}).setdefault(name, []).append(used)
            if name != "load":
                total += used
        self.costs.setdefault(measure.name, {}).setdefault("tunnel", []).append(
            total / operations(measure, value)
        )
        load.quit()
        return value

    def load(self, site: Site, port: int) -> Worker:
        """A load client on the gateway's host, of the SOCKS5 proxy at this port."""
        return Worker(
            *(site.hosts.gateway, "load.py", str(port), TARGET_ADDRESS),
            json.dumps(site.ports),
        )

    def idle(self, site: Site, tunnel: Tunnel) -> None:
        """Memory of idle flows over all processes, and whether all are alive afterwards."""
        flows = self.options.idle_flows
        self.console.print(f"{flows} idle flows")
        pair = RawPair((site.hosts.gateway, site.hosts.endpoint))
        before = pair.memory()
        pair.dialler.ask(do="idle", flows=flows)
        raw = (pair.memory() - before) / flows / 1024
        pair.quit()

        load = self.load(site, tunnel.socks_port)
        before = tunnel.gateway.memory() + tunnel.endpoint.memory()
        load.ask(do="idle", flows=flows)
        per_flow = (tunnel.gateway.memory() + tunnel.endpoint.memory() - before) / flows / 1024
        alive = load.ask(do="check")["alive"]
        load.quit()
        name = f"{flows} idle flows: memory of each"
        self.values[name] = {"raw": [raw], "tunnel": [per_flow]}
        figures = {"raw": raw, "tunnel": per_flow}
        self.rows.append(Row(name, "KiB", figures, {"less than 40 KiB": per_flow < 40}))
        self.values["idle flows alive"] = {"tunnel": [alive]}
        name = f"{flows} idle flows: alive"
        self.rows.append(Row(name, "", {"tunnel": alive}, {"all": alive == flows}))

    def report(self) -> dict[str, Any]:
        """The whole run as JSON."""
        return {
            "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "rows": [vars(row) for row in self.rows],
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


CALLS = "5,000 datagrams of 160 bytes a second each way, beside a download"

CONTENDERS = ("raw", "to raw", "channel", "tunnel", "hysteria2")
HEADINGS = ["figure", "raw aiortc", "fast to raw", "fast channel", "tunnel", "hysteria2", "bars"]


def cells(row: Row) -> list[str]:
    """A row as text."""
    digits = 0 if max(row.values.values()) >= 100 else 2
    figures = [
        f"{row.values[who]:.{digits}f} {row.unit}".strip() if who in row.values else ""
        for who in CONTENDERS
    ]
    bars = "; ".join(f"{text}: {'met' if met else 'missed'}" for text, met in row.bars.items())
    return [row.name, *figures, bars]


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
