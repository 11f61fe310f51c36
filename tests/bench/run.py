"""The benchmark: the whole tunnel beside bare data channels and rivals, in the same namespaces.

Each figure is taken from all in turn, in interleaved rounds of which the median counts, so that
whatever else the machine does meets all alike. Prints a table with the issue's bars; `--json FILE`
writes every single value too, `--markdown` prints the table as docs/performance.md has it.
"""

import argparse
import contextlib
import datetime as dt
import functools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.load import WARM_UP
from bench.rivals import Hysteria, Keeper, Rival
from bench.workers import RawPair, Worker, cpu_seconds, machine
from socks_tunnel.ops.compiled import is_compiled
from support.hosts import TARGET_ADDRESS, why_no_namespaces
from support.peers import libdatachannel_python
from support.tunnels import Site, Tunnel

COMPILED = is_compiled("socks_tunnel.peer.fast.sender")


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
    """What the ratio of two contenders' figures has to reach, or must not exceed."""

    who: str
    other: str
    bound: float
    is_least: bool = True

    def judge(self, values: Values) -> tuple[str, bool] | None:
        """The bar as text with the ratio, and whether it is met; None where one of the two is missing."""
        if self.who not in values or self.other not in values:
            return None
        ratio = values[self.who] / values[self.other]
        met = ratio >= self.bound if self.is_least else ratio <= self.bound
        least = "least" if self.is_least else "most"
        return f"{self.who} at {least} {self.bound:g} x {self.other} ({ratio:.2f})", met


DOWNLOAD = "download, 1 flow"

OF_A_DOWNLOAD = 0.85
"""What the tunnel's uploads, and its eight flows, have to reach of its download of one flow."""


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
            DOWNLOAD,
            "Mbit/s",
            throughput("down", 1),
            "mbps",
            (
                Bar("channel", "raw", 14 if COMPILED else 8),
                Bar("to raw", "raw", 1.2),
                Bar("tunnel", "raw", 10 if COMPILED else 5),
                # The issue asks this of the compiled one only.
                *((Bar("tunnel", "hysteria2", 1),) if COMPILED else ()),
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
            (Bar("tunnel", "hysteria2", 1, is_least=False),),
        ),
        Measure("round trip of 64 bytes, 99th percentile", "ms", round_trip, "p99_ms"),
        Measure(
            "new connections, 8 clients",
            "/s",
            opens,
            "per_second",
            (Bar("tunnel", "hysteria2", 1),),
        ),
        Measure(
            "UDP echo of 200 bytes, 1 outstanding",
            "/s",
            datagrams | {"outstanding": 1},
            "per_second",
            (Bar("tunnel", "hysteria2", 1),),
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
        self.missing: list[str] = []
        """Lines about contenders that are not there."""
        self.console = Console(stderr=True)

    def run(self) -> None:
        """Measure everything."""
        with contextlib.ExitStack() as held:
            site = held.enter_context(contextlib.closing(Site()))
            tunnel = site.tunnel({"workers": {"count": 0}}, {"workers": {"count": 0}})
            held.callback(tunnel.stop)
            try:
                tunnel.start()
                self.measure(site, tunnel, self.start_rivals(site, held))
            except BaseException:
                self.console.print(tunnel.logs(), markup=False)
                raise

    def start_rivals(self, site: Site, held: contextlib.ExitStack) -> list[Rival]:
        """Starts what is installed. What is not, or does not start, is told of under the table too."""
        started: list[Rival] = []
        for kind in (Keeper, Hysteria):
            if not self.is_chosen(kind.name):
                continue
            rival = kind(site.hosts.gateway, site.hosts.endpoint, site.ports)
            held.callback(rival.stop)
            if why := rival.start():
                self.without(rival.name, why)
            else:
                started.append(rival)
        if self.is_chosen("libdatachannel") and not libdatachannel_python():
            self.without("libdatachannel", "aiolibdatachannel is not installed (make rivals)")
        return started

    def is_chosen(self, who: str) -> bool:
        """Whether a contender is to be measured."""
        return not self.options.who or who in self.options.who

    def without(self, name: str, why: str) -> None:
        """Notes that a contender is missing."""
        self.missing.append(f"without {name}: {why}")
        self.console.print(self.missing[-1])

    def contenders(
        self, site: Site, tunnel: Tunnel, rivals: list[Rival], measure: Measure
    ) -> dict[str, Callable[[], float]]:
        """Who is measured, in the order of an even round."""

        def raw(dialling: str, answering: str) -> Callable[[], float]:
            return lambda: self.raw(site, measure, dialling, answering)

        chosen = {"raw": raw("stock", "stock")}
        if libdatachannel_python():
            chosen["libdatachannel"] = raw("libdatachannel", "libdatachannel")
        chosen["channel"] = raw("fast", "fast")
        chosen["tunnel"] = lambda: self.tunnel(site, tunnel, measure)
        if measure.command.get("direction") == "down":
            # The sender is the answering end.
            chosen["to raw"] = raw("stock", "fast")
        for rival in rivals:
            if measure.command["do"] in rival.commands:
                chosen[rival.name] = functools.partial(self.through, rival, measure)
        return {who: take for who, take in chosen.items() if self.is_chosen(who)}

    def measure(self, site: Site, tunnel: Tunnel, rivals: list[Rival]) -> None:
        """All rounds, then the idle flows."""
        chosen = [m for m in measures(self.options.seconds) if self.options.only in m.name]
        for number in range(self.options.rounds):
            for measure in chosen:
                order = list(self.contenders(site, tunnel, rivals, measure).items())
                # Whoever goes first in one round goes last in the next.
                for who, take in order if number % 2 == 0 else reversed(order):
                    value = take()
                    self.values.setdefault(measure.name, {}).setdefault(who, []).append(value)
                    self.console.print(
                        f"round {number + 1}: {measure.name}: {who} {value:.2f} {measure.unit}"
                    )
        for measure in chosen:
            if measure.name in self.values:  # else none of those chosen can do it
                self.sum_up(measure)
        if self.options.only in CALLS:
            self.calls(site, tunnel, [rival for rival in rivals if "paced" in rival.commands])
        if self.options.only in "idle flows":
            self.idle(site, tunnel)

    def sum_up(self, measure: Measure) -> None:
        """Makes the rows of a figure: its medians with their bars, and what it costs."""
        medians = {k: statistics.median(v) for k, v in self.values[measure.name].items()}
        bars = dict(judged for bar in measure.bars if (judged := bar.judge(medians)))
        reference = self.values.get(DOWNLOAD, {}).get("tunnel")
        if measure.unit == "Mbit/s" and measure.name != DOWNLOAD and reference:
            ratio = medians["tunnel"] / statistics.median(reference)
            text = f"tunnel at least {OF_A_DOWNLOAD:g} of its download of one flow ({ratio:.2f})"
            bars[text] = ratio >= OF_A_DOWNLOAD
        self.rows.append(Row(measure.name, measure.unit, medians, bars))
        costs = self.costs.get(measure.name, {})
        micros = {k: statistics.median(v) * 1e6 for k, v in costs.items()}
        unit = "µs/Mbit" if measure.unit == "Mbit/s" else "µs"
        if micros:
            self.rows.append(Row("… processor time of both hosts", unit, micros))

    def calls(self, site: Site, tunnel: Tunnel, rivals: list[Rival]) -> None:
        """Datagrams as calls send them, alone and beside a download."""
        loads: dict[str, Callable[[], Worker]] = {"tunnel": lambda: self.load(site, tunnel)}
        loads |= {rival.name: rival.load for rival in rivals}
        loads = {who: load for who, load in loads.items() if self.is_chosen(who)}
        if not loads:
            return
        echo = Worker(site.hosts.target, "echo.py")
        command = {"do": "paced", "size": 160, "rate": 5000, "seconds": self.options.seconds}
        command |= echo.hear()
        added: dict[str, list[float]] = {}
        lost: dict[str, list[float]] = {}
        for _ in range(self.options.rounds):
            for who, load in loads.items():
                call, bulk = load(), load()
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
        bars = {"less than 5 ms": figures["tunnel"] < 5} if "tunnel" in figures else {}
        self.rows.append(Row(f"{CALLS}: delay added at p99", "ms", figures, bars))
        figures = {who: statistics.median(each) for who, each in lost.items()}
        bars = {"none": figures["tunnel"] == 0} if "tunnel" in figures else {}
        self.rows.append(Row(f"{CALLS}: lost", "", figures, bars))

    def raw(self, site: Site, measure: Measure, dialling: str, answering: str) -> float:
        """A figure of a fresh bare data channel."""
        pair = RawPair((site.hosts.gateway, site.hosts.endpoint), (dialling, answering))
        value: float = pair.dialler.ask(**measure.command)[measure.key]
        pair.quit()
        return value

    def through(self, rival: Rival, measure: Measure) -> float:
        """A figure of another tunnel, and its processor time."""
        load = rival.load()
        pids = [process.pid for process in rival.processes]
        before = sum(map(cpu_seconds, pids))
        value: float = load.ask(**measure.command)[measure.key]
        used = sum(map(cpu_seconds, pids)) - before
        self.costs.setdefault(measure.name, {}).setdefault(rival.name, []).append(
            used / operations(measure, value)
        )
        load.quit()
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

    def load(self, site: Site, tunnel: Tunnel) -> Worker:
        """A load client on the gateway's host, of the tunnel."""
        return Worker(
            *(site.hosts.gateway, "load.py", str(tunnel.socks_port), TARGET_ADDRESS),
            json.dumps(site.ports),
        )

    def idle(self, site: Site, tunnel: Tunnel) -> None:
        """Memory of idle flows over all processes, and whether all are alive afterwards."""
        flows = self.options.idle_flows
        memory: Values = {}
        alive: Values = {}
        self.console.print(f"{flows} idle flows")
        if self.is_chosen("raw"):
            pair = RawPair((site.hosts.gateway, site.hosts.endpoint))
            before = pair.memory()
            pair.dialler.ask(do="idle", flows=flows)
            memory["raw"] = (pair.memory() - before) / flows / 1024
            pair.quit()
        if self.is_chosen("tunnel"):
            load = self.load(site, tunnel)
            before = tunnel.gateway.memory() + tunnel.endpoint.memory()
            load.ask(do="idle", flows=flows)
            after = tunnel.gateway.memory() + tunnel.endpoint.memory()
            memory["tunnel"] = (after - before) / flows / 1024
            alive["tunnel"] = load.ask(do="check")["alive"]
            load.quit()
        if memory:
            bars = {"less than 40 KiB": memory["tunnel"] < 40} if "tunnel" in memory else {}
            name = f"{flows} idle flows: memory of each"
            self.values[name] = {who: [value] for who, value in memory.items()}
            self.rows.append(Row(name, "KiB", memory, bars))
        if alive:
            self.values["idle flows alive"] = {"tunnel": [alive["tunnel"]]}
            name = f"{flows} idle flows: alive"
            self.rows.append(Row(name, "", alive, {"all": alive["tunnel"] == flows}))

    def report(self) -> dict[str, Any]:
        """The whole run as JSON."""
        return {
            "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "missing": self.missing,
            "rows": [vars(row) for row in self.rows],
            "values": self.values,
            "cpu_seconds": self.cpu,
        }


CALLS = "5,000 datagrams of 160 bytes a second each way, beside a download"

HEADINGS = {
    "raw": "raw aiortc",
    "libdatachannel": "libdatachannel",
    "to raw": "fast to raw",
    "channel": "fast channel",
    "tunnel": "tunnel",
    "Keeper": "Keeper (no SOCKS)",
    "hysteria2": "hysteria2",
}


def cells(row: Row) -> list[str]:
    """A row as text."""
    digits = 0 if max(row.values.values()) >= 100 else 2
    figures = [
        f"{row.values[who]:.{digits}f} {row.unit}".strip() if who in row.values else ""
        for who in HEADINGS
    ]
    bars = "; ".join(f"{text}: {'met' if met else 'missed'}" for text, met in row.bars.items())
    return [row.name, *figures, bars]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--idle-flows", type=int, default=5000)
    parser.add_argument("--only", default="", help="only figures whose name has this in it")
    parser.add_argument("--who", nargs="*", choices=HEADINGS, help="only these contenders")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    if reason := why_no_namespaces():
        sys.exit(f"the benchmark cannot run here: {reason}")
    bench = Bench(options)
    bench.run()
    if options.json:
        options.json.write_text(json.dumps(bench.report(), indent=1) + "\n")
    headings = ["figure", *HEADINGS.values(), "bars"]
    if options.markdown:
        print(machine(), end="\n\n")
        for cell in (headings, ["---"] * len(headings), *map(cells, bench.rows)):
            print("| " + " | ".join(cell) + " |")
    else:
        table = Table(*headings, title=machine())
        for row in bench.rows:
            table.add_row(*cells(row))
        # Not squeezed into 80 columns where it goes to a file.
        Console(width=None if sys.stdout.isatty() else 180).print(table)
    for line in bench.missing:
        print(line)


if __name__ == "__main__":
    main()
