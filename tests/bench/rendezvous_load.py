"""What one node of the rendezvous service takes: a table.

    python -m bench.rendezvous_load [--idle 10000] [--clients 5000] [--herds 8] [--offers 500]
        [--seconds 10]

* Idle WebSockets: how much memory each of them costs the service (RSS of its process).
* Offers: so many a second are passed from 200 clients to five endpoints, and answered by them.
* A restart: the clients of the product are told to leave, and come back. How many came back in the
  worst second, and how long it takes until all are. `--clients` of them are the product's own
  :class:`~socks_tunnel.signaling.rendezvous.Rendezvous`, in `--herds` processes: in one process,
  thousands of them hold each other up for so long that their attempts run out of time, which hosts
  of a fleet do not do to each other.

The service runs as a process of its own. It shares the machine with the clients.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.rendezvous_states import ClientConnection
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from socks_tunnel.supervisor.backoff import Backoff
from socks_tunnel.supervisor.carriers import FIRST_DELAY, LONGEST_DELAY

COMMAND = Path(sys.executable).with_name("socks-tunnel")

IDLE_BUDGET = 60.0
"""KiB that an idle client may cost the service."""

RETURN_MAX = 180.0
"""Seconds in which all clients have to be back after a restart."""


OFFICES = [PrivateIdentity.generate() for _ in range(5)]
CALLERS = [PrivateIdentity.generate() for _ in range(200)]


class Service:
    """`socks-tunnel rendezvous` on a port of loopback that stays the same.

    `any` key may come; those of the offers are listed, for their rate.
    """

    def __init__(self, directory: Path) -> None:
        self._config = directory / "rendezvous.toml"
        self._log = directory / "log"
        self._popen: subprocess.Popen[bytes] | None = None
        self.port = 0

    async def start(self) -> None:
        self._config.write_text(
            f'listen = "127.0.0.1:{self.port}"\nclients = "any"\nnames = ["localhost"]\n'
            'trusted_proxies = ["127.0.0.1"]\ndrain_timeout = 10\n'  # no limit for this address
            + "".join(
                f'[[keys]]\nname = "key-{number}"\npublic_key = "{key.public_text}"\n'
                for number, key in enumerate([*OFFICES, *CALLERS])
            )
        )
        said = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            command: list[str | Path] = [COMMAND, "rendezvous", "--config", self._config]
            self._popen = subprocess.Popen(command, stderr=log)
        while True:
            found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self._log.read_text()[said:])
            if found:
                self.port = int(found[1])
                return
            if self._popen.poll() is not None:
                sys.exit(self._log.read_text())
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Has it ask its clients to leave, and end."""
        if self._popen is not None:
            self._popen.send_signal(signal.SIGTERM)
            while self._popen.poll() is None:
                await asyncio.sleep(0.05)

    def resident(self) -> float:
        """KiB."""
        assert self._popen is not None
        text = Path(f"/proc/{self._popen.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found
        return float(found[1])


class Raw:
    """One WebSocket that has proved a key."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, identity: PrivateIdentity) -> None:
        self.ws = ws
        self.identity = identity
        self.protocol = ClientConnection("localhost")

    async def join(self) -> None:
        await self.frame()
        now = time.time()
        signature = self.identity.sign(self.protocol.signed_text(now))
        await self.ws.send_bytes(self.protocol.proof(self.identity.public, signature, now))
        await self.frame()

    async def frame(self) -> object:
        message = await self.ws.receive(timeout=120)
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ConnectionError(f"the service closed: {self.ws.close_code}")
        return self.protocol.receive(message.data, time.time())

    async def watch(self, *keys: bytes) -> None:
        for frame in wire.watches(keys):
            await self.ws.send_bytes(frame)


@contextlib.asynccontextmanager
async def raw_clients(
    service: Service, identities: Sequence[PrivateIdentity]
) -> AsyncIterator[list[Raw]]:
    """Yields clients that have joined, a hundred at a time."""
    connector = aiohttp.TCPConnector(limit=0)
    gate = asyncio.Semaphore(100)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(identity: PrivateIdentity) -> Raw:
            async with gate:
                ws = await session.ws_connect(f"http://127.0.0.1:{service.port}{wire.PATH}")
                client = Raw(ws, identity)
                await client.join()
                return client

        yield await asyncio.gather(*map(one, identities))


async def idle(service: Service, number: int) -> tuple[str, str, bool]:
    """Returns what an idle client costs."""
    async with raw_clients(service, CALLERS[:10]):
        before = service.resident()
    identities = [PrivateIdentity.generate() for _ in range(number)]
    async with raw_clients(service, identities):
        await asyncio.sleep(1)  # until what joining took is freed
        each = (service.resident() - before) / number
    text = f"{each:.1f} KiB (budget {IDLE_BUDGET:.0f})"
    return f"{number} idle clients: memory of each", text, each <= IDLE_BUDGET


async def offers(service: Service, rate: int, seconds: float) -> tuple[str, str, bool]:
    """Returns how offers are passed on and answered at a given rate."""
    delays: list[float] = []
    refused: Counter[str] = Counter()
    async with raw_clients(service, [*OFFICES, *CALLERS]) as everybody:
        offices, clients = everybody[: len(OFFICES)], everybody[len(OFFICES) :]
        for office in offices:
            await office.watch(*(key.public for key in CALLERS))
        for client in clients:
            await client.watch(*(key.public for key in OFFICES))
        sent: dict[bytes, float] = {}

        async def answer(office: Raw) -> None:
            while True:
                frame = await office.frame()
                if isinstance(frame, wire.FromKey):
                    await office.ws.send_bytes(office.protocol.envelope(frame.sender, frame.body))
                elif isinstance(frame, wire.Absent):
                    refused[f"answer: {frame.reason}"] += 1

        async def listen(client: Raw) -> None:
            while True:
                frame = await client.frame()
                if isinstance(frame, wire.FromKey):
                    delays.append(time.monotonic() - sent.pop(frame.body[:8]))
                elif isinstance(frame, wire.Absent):
                    refused[frame.reason] += 1

        work = [*map(answer, offices), *map(listen, clients)]
        tasks = [asyncio.ensure_future(each) for each in work]
        began = time.monotonic()
        total = int(rate * seconds)
        for index in range(total):
            client, office = clients[index % len(clients)], offices[index % len(offices)]
            ref = index.to_bytes(8, "big")
            sent[ref] = time.monotonic()
            frame = client.protocol.envelope(office.identity.public, ref + random.randbytes(4000))
            await client.ws.send_bytes(frame)
            await asyncio.sleep(max(0.0, began + (index + 1) / rate - time.monotonic()))
        await asyncio.sleep(2)  # for the last answers
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    p50, p99 = (1000 * q for q in (statistics.median(delays), sorted(delays)[-len(delays) // 100]))
    why = ", ".join(f"{n} {reason}" for reason, n in refused.items()) or "none refused"
    text = f"{len(delays)} of {total} answered, {p50:.0f} ms at the median, {p99:.0f} ms p99; {why}"
    return f"{rate} offers a second for {seconds:g} s", text, len(delays) == total


class Herd:
    """Some of the product's clients, in a process of their own, which is this program again."""

    def __init__(self, port: int, number: int) -> None:
        self.number = number
        command = [sys.executable, "-m", "bench.rendezvous_load", "--herd", str(number), str(port)]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """Returns the next line that it prints."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"a herd ended: {self._popen.wait()}")
        return line.strip()

    def returns(self) -> list[float]:
        """Returns when its clients were back, by the monotonic clock: those that were in time."""
        return [float(moment) for moment in self.line().split()]

    def end(self) -> None:
        """Ends it."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._popen.wait()


async def herd(number: int, port: int) -> None:
    """Has so many clients join, and prints a line; then a line of when each of them was back."""
    clients = [
        Rendezvous(
            f"ws://localhost:{port}/",
            PrivateIdentity.generate(),
            Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True),
        )
        for _ in range(number)
    ]
    for start in range(0, number, 20):
        for client in clients[start : start + 20]:
            client.start()
        while any(client.problem is not None for client in clients[: start + 20]):
            await asyncio.sleep(0.05)
    print("joined", flush=True)
    lost: set[Rendezvous] = set()
    back: dict[Rendezvous, float] = {}
    began = time.monotonic()
    while len(back) < number and time.monotonic() - began < RETURN_MAX:
        for client in clients:
            if client.problem is not None:
                lost.add(client)
                back.pop(client, None)  # it was let in, and has lost that connection too
            elif client in lost:
                back.setdefault(client, time.monotonic())
        await asyncio.sleep(0.02)
    print(*back.values(), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until all are measured
    await asyncio.gather(*(client.stop() for client in clients))


async def restart(service: Service, number: int, processes: int) -> tuple[str, str, bool]:
    """Returns how the product's clients come back after a restart."""
    shares = [number // processes + (index < number % processes) for index in range(processes)]
    herds = [Herd(service.port, share) for share in shares if share]
    try:
        await asyncio.gather(*(asyncio.to_thread(each.line) for each in herds))
        await service.stop()
        gone = time.monotonic()
        await service.start()
        returns = await asyncio.gather(*(asyncio.to_thread(each.returns) for each in herds))
    finally:
        await asyncio.gather(*(asyncio.to_thread(each.end) for each in herds))
    moments = [moment - gone for of_one in returns for moment in of_one]
    worst = max(Counter(map(int, moments)).values(), default=0)
    last = max(moments, default=0.0)
    text = (
        f"{len(moments)} back, the last {last:.1f} s after the service had ended; at most {worst} "
        "in one second"
    )
    return f"a restart with {number} clients", text, len(moments) == number


async def measure(arguments: argparse.Namespace) -> int:
    """Prints the table; 1 if something missed its budget, or was lost."""
    with tempfile.TemporaryDirectory() as place:
        service = Service(Path(place))
        await service.start()
        rows = []
        try:
            rows.append(await offers(service, arguments.offers, arguments.seconds))
            rows.append(await idle(service, arguments.idle))
            rows.append(await restart(service, arguments.clients, arguments.herds))
        finally:
            await service.stop()
    for what, text, _ in rows:
        print(f"{what:<42} {text}")
    return int(not all(good for _, _, good in rows))


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--herds", type=int, default=8)
    parser.add_argument("--herd", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--offers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # each client says that the service is away
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.herd:
        asyncio.run(herd(*arguments.herd))
        return 0
    return asyncio.run(measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
