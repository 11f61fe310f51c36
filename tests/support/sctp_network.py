"""Two SCTP transports over a simulated path, on an event loop whose time is virtual.

The transports are the real ones, ours or aiortc's, with timers and handshakes; only DTLS and the
network below are replaced. A path has a rate, a queue, delay, jitter, loss, duplication and
corruption, all drawn from a seeded generator, so that a run can be repeated exactly.
"""

import asyncio
import heapq
import math
import random
import selectors
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


START = 1_000.0
"""Seconds at which the virtual time begins."""

CLOCK_RESOLUTION = 1e-9
"""Seconds by which the virtual time may be early."""


class _NoWaiting(selectors.SelectSelector):
    """A selector that never waits: what would be waited for is added to the virtual time."""

    def __init__(self, owner: "VirtualLoop") -> None:
        super().__init__()
        self._owner = owner

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left to happen: a test waits for ever")
        if timeout > 0:
            self._owner.skip()
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing is left to do.

    With `turn`, delays end only at multiples of so many seconds, as on a host where the process
    gets a core only now and then. Packets keep their own times.
    """

    def __init__(self, turn: float = 0.0) -> None:
        self._now = START
        self._turn = turn
        super().__init__(_NoWaiting(self))
        self._clock_resolution = CLOCK_RESOLUTION

    def time(self) -> float:
        return self._now

    def call_later(  # type: ignore[override] # typeshed ties the arguments to the callback
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        when = self._now + delay
        if self._turn:
            when = math.ceil(when / self._turn - CLOCK_RESOLUTION) * self._turn
        return self.call_at(when, callback, *args, context=context)

    def skip(self) -> None:
        self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]


def run_virtual(main: Callable[[], Awaitable[T]], turn: float = 0.0) -> T:
    """Runs a coroutine function to its end in virtual time; `turn` as in :class:`VirtualLoop`.

    An exception in a callback or a task that nobody waits for ends the run, and is raised.
    """
    loop = VirtualLoop(turn)
    failures: list[BaseException] = []
    running: asyncio.Task[T]

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failures.append(context.get("exception") or RuntimeError(context["message"]))
        running.cancel()

    loop.set_exception_handler(failed)
    try:
        asyncio.set_event_loop(loop)
        running = loop.create_task(main())  # type: ignore[arg-type]
        return loop.run_until_complete(running)
    except asyncio.CancelledError:
        raise failures[0] from None
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def virtual_aiortc(monkeypatch: Any) -> Any:
    """Has aiortc's own SCTP read the virtual clock too."""
    import aiortc.rtcsctptransport as module

    class Clock:
        @staticmethod
        def time() -> float:
            return asyncio.get_event_loop().time()

    with monkeypatch.context() as patch:
        patch.setattr(module, "time", Clock)
        yield


@dataclass
class Path:
    """One direction of a path. Times in seconds, sizes in bytes, probabilities from 0 to 1."""

    delay: float = 0.0
    rate: float = 0.0
    """Bytes a second; 0: no limit."""
    queue: int = 1_000
    """Packets that may wait for the rate."""
    harsh: bool = False
    """Whether what waits is counted in packets of the size of the one that comes: a small packet
    finds the queue full where a large one still finds room."""
    jitter: float = 0.0
    """Each packet takes up to this much longer, so that packets overtake each other."""
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    pauses: tuple[tuple[float, float], ...] = ()
    """Times (from, to) in seconds since START in which the receiver has no CPU."""
    mtu: int = 65_536
    """Bytes of the largest SCTP packet; larger ones disappear."""
    batch: int = 64
    """Packets that are handed over in one call at most."""
    turn: float = 0.0
    """Seconds between two looks of the receiver at its socket, as on a busy machine; 0: at once."""
    seed: int = 1
    overhead: int = 65
    drop: Callable[[bytes], bool] | None = None
    """Decides on each packet, beside the probabilities."""

    sent: int = 0
    dropped: int = 0
    lost: int = 0
    peak: int = 0
    _free: float = 0.0
    _departures: list[float] = field(default_factory=list, repr=False)
    _arrivals: list[tuple[float, int, bytes, Any]] = field(default_factory=list, repr=False)
    _count: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def carry(self, packets: list[bytes], deliver: Callable[[list[bytes]], None]) -> None:
        """Sends packets; `deliver` is called later with those that arrive."""
        loop = asyncio.get_event_loop()
        now = loop.time()
        for packet in packets:
            self.sent += 1
            if self.drop is not None and self.drop(packet):
                self.lost += 1
                continue
            if len(packet) > self.mtu or (self.loss and self.random.random() < self.loss):
                self.lost += 1
                continue
            leave = now
            if self.rate:
                waiting = self._departures
                while waiting and waiting[0] <= now:
                    heapq.heappop(waiting)
                ahead: float = len(waiting)
                if self.harsh and waiting:
                    ahead = (self._free - now) * self.rate / (len(packet) + self.overhead)
                if ahead >= self.queue:
                    self.dropped += 1
                    continue
                self._free = max(self._free, now) + (len(packet) + self.overhead) / self.rate
                leave = self._free
                heapq.heappush(waiting, leave)
                self.peak = max(self.peak, len(waiting))
            copies = 2 if self.duplicate and self.random.random() < self.duplicate else 1
            for _ in range(copies):
                arrive = leave + self.delay
                if self.jitter:
                    arrive += self.random.random() * self.jitter
                if self.turn:
                    arrive = math.ceil(arrive / self.turn) * self.turn
                for start, end in self.pauses:
                    if start <= arrive - START < end:
                        arrive = START + end
                data = packet
                if self.corrupt and self.random.random() < self.corrupt:
                    at = self.random.randrange(len(packet))
                    data = packet[:at] + bytes((packet[at] ^ 0x5A,)) + packet[at + 1 :]
                self._count += 1
                heapq.heappush(self._arrivals, (arrive, self._count, data, deliver))
                loop.call_at(arrive, self._arrive)

    def _arrive(self) -> None:
        # The loop runs what is due within its resolution, and will not come again for it.
        now = asyncio.get_event_loop().time() + CLOCK_RESOLUTION
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now:
            deliver = arrivals[0][3]
            batch: list[bytes] = []
            while (
                arrivals
                and arrivals[0][0] <= now
                and arrivals[0][3] == deliver
                and len(batch) < self.batch
            ):
                batch.append(heapq.heappop(arrivals)[2])
            deliver(batch)


class FakeDtls:
    """What an SCTP transport needs of DTLS, over a :class:`Path`."""

    def __init__(self, role: str, path: Path, *, probing: bool = False) -> None:
        self.state = "connected"
        self._role = role
        self.path = path
        self.peer: FakeDtls
        self.packet_overhead = 65
        self.probing_allowed = probing
        self.authentic = False
        self.blocked = False
        self.receiver: Any = None
        self.fragmented = 0
        self.log: list[bytes] | None = None

    def _register_data_receiver(self, receiver: Any) -> None:
        self.receiver = receiver

    def _unregister_data_receiver(self, receiver: Any) -> None:
        if self.receiver is receiver:
            self.receiver = None

    async def _send_data(self, data: bytes) -> None:
        self.send_packets([data])

    def send_packets(self, packets: list[bytes], fragment: bool = False) -> None:
        assert packets
        if self.log is not None:
            self.log.extend(packets)
        if fragment:
            self.fragmented += len(packets)
            mtu, self.path.mtu = self.path.mtu, 65_536
            self.path.carry(packets, self.peer.deliver)
            self.path.mtu = mtu
        else:
            self.path.carry(packets, self.peer.deliver)

    def send_probe(self, packet: bytes) -> bool:
        self.path.carry([packet], self.peer.deliver)
        return True

    def deliver(self, packets: list[bytes]) -> None:
        receiver = self.receiver
        if receiver is None:
            return
        if hasattr(receiver, "receive_packets"):
            receiver.receive_packets(packets)
        else:
            for packet in packets:
                coroutine = receiver._handle_data(packet)
                try:
                    coroutine.send(None)
                except StopIteration:
                    continue
                raise AssertionError("aiortc waits for something")


def dtls_pair(there: Path, back: Path, *, probing: bool = False) -> tuple[FakeDtls, FakeDtls]:
    """Returns the client's and the server's end."""
    client = FakeDtls("client", there, probing=probing)
    server = FakeDtls("server", back, probing=probing)
    client.peer, server.peer = server, client
    return client, server
