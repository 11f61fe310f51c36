"""The load of a bare data channel: rawpeer.py has aiortc's channels, rawlibdatachannel.py libdatachannel's.

Signalling goes over standard input and output, one JSON object a line; so do the commands to the
dialling end, each answered by one line of figures:

    {"do": "throughput", "direction": "down"|"up", "flows": N, "seconds": S}
    {"do": "round-trip", "count": N, "size": BYTES}
    {"do": "open", "clients": N, "seconds": S}
    {"do": "datagrams", "size": BYTES, "outstanding": N, "seconds": S}
    {"do": "idle", "flows": N}
    {"do": "quit"}

`down` is from the answering end to the dialling one, as a download through the tunnel is. Messages
of 16 KiB, paced by bufferedAmount.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

MESSAGE = bytes(range(256)) * 64
HIGH_WATER = 1 << 20
WARM_UP = 2.0


def say(**fields: Any) -> None:
    """One line to the harness."""
    print(json.dumps(fields), flush=True)


class Channel(Protocol):
    """What both have; the names are those of the browsers' interface, as aiortc's are."""

    bufferedAmountLowThreshold: int

    @property
    def label(self) -> str: ...

    @property
    def readyState(self) -> str: ...

    @property
    def bufferedAmount(self) -> int: ...

    def on(self, event: str, handler: Callable[..., Any]) -> Any: ...

    def once(self, event: str, handler: Callable[..., Any]) -> Any: ...

    def send(self, data: bytes | str) -> None: ...

    def close(self) -> None: ...


async def pump(channel: Channel, stop: asyncio.Event) -> None:
    """Send as fast as the channel takes it, until `stop`."""
    low = asyncio.Event()
    channel.bufferedAmountLowThreshold = HIGH_WATER // 2
    channel.on("bufferedamountlow", low.set)
    sent = 0
    while not stop.is_set() and channel.readyState == "open":
        if channel.bufferedAmount > HIGH_WATER:
            low.clear()
            await low.wait()
        channel.send(MESSAGE)
        sent += 1
        if sent % 16 == 0:
            await asyncio.sleep(0)


class Counter:
    """Bytes received on any number of channels, from when it was told to start."""

    def __init__(self) -> None:
        self.bytes = 0
        self.last: float = 0

    def add(self, message: bytes | str) -> None:
        self.bytes += len(message)

    async def rate(self, seconds: float) -> float:
        """Mbit/s over `seconds`, after the warm-up."""
        await asyncio.sleep(WARM_UP)
        start, before = time.perf_counter(), self.bytes
        await asyncio.sleep(seconds)
        return (self.bytes - before) * 8 / (time.perf_counter() - start) / 1e6


class Answerer:
    """Serves channels by their labels: `echo`, `source`, `sink`, and silence for the rest."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.kept: list[Channel] = []

    def opened(self, channel: Channel) -> None:
        """Takes a channel that the other end has opened."""
        self.kept.append(channel)
        if channel.label == "echo":
            channel.on("message", channel.send)
        elif channel.label == "source":
            stop = asyncio.Event()
            task = asyncio.get_running_loop().create_task(pump(channel, stop))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            channel.on("message", lambda _: stop.set())
        elif channel.label == "sink":
            channel.on("message", SinkReport(channel).message)


class SinkReport:
    """Counts what a sink receives; on the message `count` says how much."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.bytes = 0

    def message(self, message: bytes | str) -> None:
        if isinstance(message, str):
            self.channel.send(str(self.bytes))
        else:
            self.bytes += len(message)


class Dialler:
    """Carries out the harness's commands."""

    def __init__(self, create: Callable[..., Channel]) -> None:
        """`create` makes a channel from its label and options."""
        self.create = create

    async def open(self, label: str, **options: Any) -> Channel:
        """A new channel, open."""
        channel = self.create(label, **options)
        opened = asyncio.Event()
        channel.on("open", opened.set)
        if channel.readyState != "open":
            await asyncio.wait_for(opened.wait(), 30)
        return channel

    async def throughput(
        self, direction: str, flows: int, seconds: float, trips: int = 200
    ) -> dict[str, Any]:
        # An association that knows its round-trip time recovers from a loss sooner: a tunnel has one
        # that does, so the raw channel gets one too.
        await self.round_trip(count=trips, size=64)
        if direction == "down":
            counter = Counter()
            channels = [await self.open("source") for _ in range(flows)]
            for channel in channels:
                channel.on("message", counter.add)
            rate = await counter.rate(seconds)
            until = time.monotonic()
            for channel in channels:
                channel.send("stop")
            await self.quiet(lambda: counter.bytes)
        else:
            stop = asyncio.Event()
            channels = [await self.open("sink") for _ in range(flows)]
            tasks = [asyncio.get_running_loop().create_task(pump(c, stop)) for c in channels]

            async def counted() -> int:
                # Asked beside the load; the answers come when the queue before them has drained.
                answers = []
                for channel in channels:
                    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                    channel.once("message", lambda text, f=future: f.set_result(int(text)))
                    channel.send("count")
                    answers.append(future)
                return sum(await asyncio.gather(*answers))

            await asyncio.sleep(WARM_UP)
            before = await counted()
            start = time.perf_counter()
            await asyncio.sleep(seconds)
            until = time.monotonic()
            total = await counted() - before
            rate = total * 8 / (time.perf_counter() - start) / 1e6
            stop.set()
            await asyncio.gather(*tasks)
            await counted()
        for channel in channels:
            channel.close()
        return {"mbps": rate, "until": until}

    async def quiet(self, value: Callable[[], int]) -> None:
        """Wait until a growing value has stood still for a while: the rest of a load has come in."""
        before = -1
        while value() != before:
            before = value()
            await asyncio.sleep(0.3)

    async def round_trip(self, count: int, size: int) -> dict[str, Any]:
        channel = await self.open("echo")
        got = asyncio.Event()
        channel.on("message", lambda _: got.set())
        message = bytes(size)
        times = []
        for _ in range(count):
            got.clear()
            start = time.perf_counter()
            channel.send(message)
            await got.wait()
            times.append(time.perf_counter() - start)
        channel.close()
        times.sort()
        return {"p50_ms": times[count // 2] * 1e3, "p99_ms": times[count * 99 // 100] * 1e3}

    async def opens(self, clients: int, seconds: float) -> dict[str, Any]:
        end = time.perf_counter() + seconds
        opened = 0

        async def client() -> None:
            nonlocal opened
            while time.perf_counter() < end:
                channel = await self.open("echo")
                got = asyncio.Event()
                channel.on("message", lambda _, got=got: got.set())
                channel.send(b"x")
                await got.wait()
                channel.close()
                opened += 1

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return {"per_second": opened / (time.perf_counter() - start)}

    async def datagrams(self, size: int, outstanding: int, seconds: float) -> dict[str, Any]:
        channel = await self.open("echo", ordered=False, maxRetransmits=0)
        message = bytes(size)
        received = 0

        def back(_: object) -> None:
            nonlocal received
            received += 1
            if time.perf_counter() < end:
                channel.send(message)

        channel.on("message", back)
        start = time.perf_counter()
        end = start + seconds
        for _ in range(outstanding):
            channel.send(message)
        await asyncio.sleep(seconds)
        rate = received / (time.perf_counter() - start)
        await self.quiet(lambda: received)
        channel.close()
        return {"per_second": rate}

    async def idle(self, flows: int) -> dict[str, Any]:
        self.idle_channels = []
        for _ in range(flows):
            self.idle_channels.append(await self.open("idle"))
        return {"open": sum(c.readyState == "open" for c in self.idle_channels)}


async def lines() -> "Following":
    """A function that waits for the next object from the harness."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def following() -> dict[str, Any]:
        line = await reader.readline()
        decoded: dict[str, Any] = json.loads(line) if line else {"do": "quit"}
        return decoded

    return following


Following = Callable[[], Awaitable[dict[str, Any]]]


async def serve(answerer: Answerer, following: Following) -> None:
    """Is the answering end until the harness ends it."""
    while (await following()).get("do") != "quit":
        pass
    for task in answerer.tasks:
        task.cancel()


async def carry_out(dialler: Dialler, following: Following) -> None:
    """Is the dialling end: carries out commands until the harness ends it."""
    say(ready=True)
    actions: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        "throughput": dialler.throughput,
        "round-trip": dialler.round_trip,
        "open": dialler.opens,
        "datagrams": dialler.datagrams,
        "idle": dialler.idle,
    }
    while (command := await following())["do"] != "quit":
        say(**await actions[command.pop("do")](**command))
