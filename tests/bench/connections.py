"""What one connection costs: two checkouts of this project beside each other, in turns.

    python -m bench.connections OLD NEW [--rounds 6] [--connections 500] [--seconds 4]

Each checkout has its own `.venv` (`make install`). Both run a gateway and an endpoint on loopback,
with one link and one worker a side, from their own `socks-tunnel pair`. Two figures are taken of
each in turn, and whoever goes first in one round goes last in the next:

* one connection after another: SOCKS handshake, one byte to an echo and back, close. Printed is the
  processor time of all processes of both sides for each (proc(5), schedstat), by kind of process. It
  hardly depends on what else the machine does;
* eight clients at once, for some seconds: the same processor time, and connections a second, which
  do depend on it.

Prints the medians and the median of the rounds' quotients. The status is 1 if the new checkout
takes more processor time for a connection than the bar allows.
"""

import argparse
import asyncio
import collections
import contextlib
import socket
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.load import Load
from bench.memory import name, processes, tunnel, wait_until_up
from bench.workers import cpu_seconds

BAR = 1.03
"""What the new checkout may take of the old one's processor time for a connection."""

POLICY = """allowed_hosts = ["127.0.0.1"]
allowed_ports = ["*"]
denied_ports = [25]"""

CLIENTS = 8


class Echo(asyncio.Protocol):
    """Sends back what comes, and closes when the other side does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """A target in a thread; yields its port."""
    loop = asyncio.new_event_loop()
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = loop.run_until_complete(loop.create_server(Echo, sock=sock))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


class Side:
    """One checkout's gateway and endpoint, and what they have cost."""

    def __init__(self, checkout: Path, held: contextlib.ExitStack, targets: dict[str, int]) -> None:
        # In memory, as /run is: what files cost on a disk is not the question.
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        command = (checkout / ".venv/bin/socks-tunnel").absolute()
        endpoint, gateway = held.enter_context(
            tunnel(directory, 1, more_policy=POLICY, command=command)
        )
        wait_until_up(directory, gateway, command)
        (configuration,) = (directory / "g").glob("*.toml")
        listen = configuration.read_text().partition("[socks]")[2].partition("127.0.0.1:")[2]
        port = int(listen.partition('"')[0])
        self.load = Load(port, "127.0.0.1", targets)
        self.pids: dict[str, list[int]] = collections.defaultdict(list)
        for where, root in (("gateway", gateway.pid), ("endpoint", endpoint.pid)):
            for pid in processes(root):
                if name(pid) != "nursery":  # it has no part in connections, and soon ends
                    self.pids[f"{where} {name(pid)}"].append(pid)
        self.costs: dict[str, list[dict[str, float]]] = collections.defaultdict(list)
        """Microseconds of processor time a connection by kind of process, round by round."""
        self.rates: list[float] = []

    def _used(self) -> dict[str, float]:
        return {kind: sum(map(cpu_seconds, pids)) for kind, pids in self.pids.items()}

    def _note(self, what: str, before: dict[str, float], connections: int) -> None:
        micros = {k: (v - before[k]) / connections * 1e6 for k, v in self._used().items()}
        self.costs[what].append(micros | {"all": sum(micros.values())})

    def one_by_one(self, connections: int) -> None:
        before = self._used()
        for _ in range(connections):
            with self.load.connect("echo") as sock:
                sock.send(b"x")
                if sock.recv(1) != b"x":
                    sys.exit("the echo is not one")
        self._note(ONE_BY_ONE, before, connections)

    def together(self, seconds: float) -> None:
        before = self._used()
        self.rates.append(self.load.opens(CLIENTS, seconds)["per_second"])
        self._note(TOGETHER, before, self.load.opened)


ONE_BY_ONE = "one by one"
TOGETHER = f"{CLIENTS} clients"


def quotient(old: list[float], new: list[float]) -> float:
    quotients = [b / a for a, b in zip(old, new, strict=True) if a]
    return statistics.median(quotients) if quotients else float("nan")  # too little to measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.connections")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as held:
        targets = {"echo": held.enter_context(echo())}
        old, new = (Side(each, held, targets) for each in (arguments.old, arguments.new))
        for side in (old, new):
            side.one_by_one(arguments.connections)  # warm
            side.costs.clear()
        for number in range(arguments.rounds):
            for side in (old, new) if number % 2 == 0 else (new, old):
                side.one_by_one(arguments.connections)
            for side in (new, old) if number % 2 == 0 else (old, new):
                side.together(arguments.seconds)
    print(f"{'processor time a connection, µs':<36} {'old':>8} {'new':>8} {'new/old':>8}")
    ratios = {}
    for what in (ONE_BY_ONE, TOGETHER):
        for kind in old.costs[what][0]:
            a, b = ([costs[kind] for costs in side.costs[what]] for side in (old, new))
            if statistics.median(a) + statistics.median(b) < 1:
                continue
            ratios[what, kind] = quotient(a, b)
            print(
                f"{what + ': ' + kind:<36} {statistics.median(a):8.0f} {statistics.median(b):8.0f} "
                f"{ratios[what, kind]:8.3f}"
            )
    rates = [statistics.median(side.rates) for side in (old, new)]
    print(
        f"{'connections a second':<36} {rates[0]:8.0f} {rates[1]:8.0f} "
        f"{quotient(old.rates, new.rates):8.3f}"
    )
    return int(ratios[ONE_BY_ONE, "all"] > BAR)


if __name__ == "__main__":
    sys.exit(main())
