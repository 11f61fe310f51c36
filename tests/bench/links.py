"""Many links at one endpoint: what an idle one costs, and what busy ones take from each other.

    python -m bench.links [--links 200] [--busy 10] [--seconds 60] [--kind fast|plain]

One process is the endpoint, with a link to each of many gateways. Those of the busy links are in another
process, and those of the idle ones in a third, so that the PINGs wait for the endpoint and for nobody's
downloads. All three share the cores. Links are those of the product, on loopback and with its own times, without a router and workers.
Prints, for the endpoint, processor time and memory of an idle link; then, while some links carry
downloads, the round trips of the others' PINGs, and how the downloads share.
"""

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.scheduling import percentile
from integration.link_pair import Recorder, Site, site
from socks_tunnel.ops.compiled import compiled_state
from socks_tunnel.peer import Link
from socks_tunnel.protocol.messages import Data

MESSAGE = Data(1, bytes(range(256)) * 64).encode()
HIGH_WATER = 1 << 19
"""Bytes of one link's that wait at most."""

CPU_BAR = 0.02
"""Per cent of a core that an idle link may take."""

RTT_BAR = 50.0
"""Milliseconds that a PING of an idle link may take."""

SHARE_BAR = 20.0
"""Per cent that a busy link may be away from the mean of all."""


def resident() -> int:
    """Returns the resident memory of this process in KiB."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class Download(Recorder):
    """Sends over a link as fast as it takes messages."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link
        self.waiting = 0
        self.active = False
        link._observer = self

    def start(self) -> None:
        self.active = True
        self._fill()

    def link_drained(self, drained: int) -> None:
        self.waiting -= drained
        self._fill()

    def _fill(self) -> None:
        while self.active and self.waiting < HIGH_WATER:
            self.waiting += len(MESSAGE)
            self.link.send_many([MESSAGE])


class Counting(Recorder):
    """Counts what arrives, and keeps the round trips."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def link_messages(self, messages: list[bytes]) -> None:
        self.bytes += sum(map(len, messages))


class Child:
    """The commands of the endpoint's process, and of the one with the busy gateways."""

    def __init__(self, here: Site) -> None:
        self.here = here
        self.links: list[tuple[Link, Recorder]] = []

    async def do(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "answer":
                link, recorder = self.here.endpoint()
                self.links.append((link, recorder))
                return {"sdp": await link.accept_offer(command["sdp"])}
            case "offer":
                link, _ = self.here.gateway()
                self.links.append((link, counting := Counting()))
                link._observer = counting
                return {"sdp": await link.create_offer()}
            case "connect":
                link, recorder = self.links[-1]
                await link.accept_answer(command["sdp"])
                await recorder.up()
                return {}
            case "received":
                return {"bytes": [r.bytes for _, r in self.links if isinstance(r, Counting)]}
            case "figures":
                return {"cpu": time.process_time(), "kib": resident()}
            case "busy":
                for link, _ in self.links[: command["count"]]:
                    Download(link).start()
                return {}
        raise AssertionError(command)


async def serve() -> None:
    """Runs a child's process: one JSON object a line, each answered by one."""
    loop = asyncio.get_running_loop()
    async with site() as here:
        child = Child(here)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await child.do(json.loads(line))), flush=True)


class Remote:
    """A child's process, to the one of the idle gateways."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.links", "--serve", "--kind", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def ask(self, **command: Any) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        line = await asyncio.get_running_loop().run_in_executor(None, stdout.readline)
        answer: dict[str, Any] = json.loads(line)
        return answer


def verdict(*, good: bool) -> str:
    """Returns how a line ends."""
    return "" if good else "  MISSED"


async def measure(options: argparse.Namespace) -> None:
    """Makes the links, waits, loads some, and prints the table."""
    remote, downloads = Remote(options.kind), Remote(options.kind)
    async with site() as here:
        print(f"{options.links} links, {options.kind} path, {compiled_state()}")
        gateways: list[Counting] = []
        empty = (await remote.ask(do="figures"))["kib"]
        for _ in range(options.busy):  # they are the first, which "busy" means
            offer = (await downloads.ask(do="offer"))["sdp"]
            answer = await remote.ask(do="answer", sdp=offer)
            await downloads.ask(do="connect", sdp=answer["sdp"])
        for _ in range(options.links - options.busy):
            link, _ = here.gateway()
            gateways.append(recorder := Counting())
            link._observer = recorder
            link._on_rtt = recorder.on_rtt
            offer = await link.create_offer()
            await link.accept_answer((await remote.ask(do="answer", sdp=offer))["sdp"])
            await recorder.up()
        await asyncio.sleep(10)  # what follows a start: MTU probes, SACKs
        before = await remote.ask(do="figures")
        began = time.monotonic()
        await asyncio.sleep(options.seconds)
        after = await remote.ask(do="figures")
        took = time.monotonic() - began
        share = (after["cpu"] - before["cpu"]) / took / options.links * 100
        print(
            f"idle: {share:.4f} % of a core a link (bar {CPU_BAR}), "
            f"{(after['kib'] - empty) / options.links:.1f} KiB a link{verdict(good=share < CPU_BAR)}"
        )
        await remote.ask(do="busy", count=options.busy)
        await asyncio.sleep(3)
        for recorder in gateways:
            recorder.rtts.clear()
        received = (await downloads.ask(do="received"))["bytes"]
        began = time.monotonic()
        await asyncio.sleep(options.seconds)
        moved = (await downloads.ask(do="received"))["bytes"]
        took = time.monotonic() - began
        rates = [(a - b) * 8 / took / 1e6 for a, b in zip(moved, received, strict=True)]
        rtts = [rtt * 1000 for recorder in gateways for rtt in recorder.rtts]
        mean = statistics.mean(rates)
        away = max(abs(rate / mean - 1) for rate in rates) * 100
        worst = percentile(rtts, 0.99)
        print(
            f"busy: {sum(rates):.1f} Mbit/s in all, {min(rates):.2f} to {max(rates):.2f} a link, "
            f"at most {away:.0f} % from the mean (bar {SHARE_BAR:.0f}){verdict(good=away <= SHARE_BAR)}"
        )
        print(
            f"PINGs of the others: {len(rtts)}, p50 {percentile(rtts, 0.5):.1f} ms, "
            f"p99 {worst:.1f} ms (bar {RTT_BAR:.0f}){verdict(good=worst < RTT_BAR)}"
        )
        for child in (remote, downloads):
            child.process.kill()
            child.process.wait()


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=200)
    parser.add_argument("--busy", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kind", choices=["fast", "plain"], default="fast")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    Site.kind = options.kind
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve() if options.serve else measure(options))


if __name__ == "__main__":
    main()
