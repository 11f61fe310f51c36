"""Bare data channels over paths that are long, slow or lossy: the fast path beside unmodified aiortc.

    python -m bench.paths [--rounds N] [--seconds S] [--only TEXT] [--markdown]

Two namespaces, joined by linkemu.c. Needs root, /dev/net/tun and a C compiler.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
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
            met = "met" if set(KINDS) <= medians.keys() and shape.met(medians) else "missed"
            print("| " + " | ".join([shape.name, *figures, shape.bar, met]) + " |", flush=True)


if __name__ == "__main__":
    main()
