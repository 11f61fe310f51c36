"""Transports in memory: no socket, no event loop, and time that passes only when a test says so.

A :class:`Wire` joins a gateway's and an endpoint's :class:`MemoryTransport`. It behaves like data
channels over a real path, and each of its faults is the choice of a test::

    clock = VirtualClock()
    wire = Wire(clock, delay=0.02, rate=1_250_000, loss=[False, False, True])
    wire.gateway.attach(left)
    wire.endpoint.attach(right)
    wire.connect()
    clock.advance(1.0)

* Messages of one lane arrive in order, those of different lanes in any order that `jitter` makes.
* A lost message on a reliable channel comes a round trip later, and holds up its lane. A lost
  datagram does not come.
* :meth:`Wire.cut` is a black hole: nothing arrives and nobody is told. After :meth:`Wire.heal`
  reliable messages come after all, datagrams of the gap do not.
* :meth:`Wire.kill` is the end of the connection: what was under way is gone, both sides are told.
  To attach again, a test makes the next wire, on the same clock.

The set-up by offer and answer works as well, between transports of one :class:`MemoryNetwork`.

This file is long because clock, transports and wire are one model of a path.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from socks_tunnel.peer.channels import Inbox, channel_for, lane_of
from socks_tunnel.peer.ice import SelectedPath
from socks_tunnel.peer.transport import (
    QUEUE_LIMIT,
    Role,
    TransportError,
    TransportObserver,
    TransportState,
    TransportStats,
)
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import HEADER, MESSAGE_MAX

PATH = SelectedPath("host", "ipv4", ("192.0.2.1", 1), ("192.0.2.2", 2))
"""The path of every wire."""

_T = TypeVar("_T")


def finish(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Returns the result of a coroutine that never waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    coroutine.close()
    raise AssertionError("the coroutine waits for something")


# --- time ---------------------------------------------------------------------------------------


@dataclass(order=True, slots=True)
class VirtualTimer:
    """A call that is due at a moment of virtual time."""

    when: float
    number: int
    callback: Callable[..., object] = field(compare=False)
    args: tuple[Any, ...] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """Time that stands still until :meth:`advance`; with the timer calls of an event loop."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._timers: list[VirtualTimer] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any) -> VirtualTimer:
        return self.call_at(self._now, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> VirtualTimer:
        return self.call_at(self._now + max(0.0, delay), callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> VirtualTimer:
        timer = VirtualTimer(max(when, self._now), next(self._numbers), callback, args)
        heapq.heappush(self._timers, timer)
        return timer

    @property
    def next_due(self) -> float | None:
        """When the next timer is due; None if there is none."""
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0].when if self._timers else None

    def advance(self, seconds: float) -> None:
        """Lets time pass, and makes each call at its moment."""
        end = self._now + seconds
        while (due := self.next_due) is not None and due <= end:
            timer = heapq.heappop(self._timers)
            self._now = max(self._now, timer.when)
            timer.callback(*timer.args)
        self._now = end

    def stop(self, seconds: float) -> None:
        """Lets time pass without a single call, as for a process that was stopped."""
        self._now += seconds

    def until(self, condition: Callable[[], bool], *, limit: float = 120.0) -> None:
        """Lets time pass until `condition` holds, at most `limit` seconds."""
        end = self._now + limit
        while not condition():
            due = self.next_due
            assert due is not None, "nothing is due any more, and it does not hold"
            assert due <= end, f"it does not hold after {limit:g} s"
            self.advance(max(0.0, due - self._now))


# --- a connection -------------------------------------------------------------------------------


class MemoryTransport:
    """One end of a :class:`Wire`; fulfils :class:`socks_tunnel.peer.transport.Transport`."""

    def __init__(
        self,
        clock: VirtualClock,
        role: Role,
        *,
        lanes: int = 8,
        max_message: int = MESSAGE_MAX,
        network: "MemoryNetwork | None" = None,
        sends_early: bool = False,
    ) -> None:
        self.role: Role = role
        self.state: TransportState = "new"
        self.max_message = max_message
        self.buffered = 0
        self.queue_limit = QUEUE_LIMIT
        self.sent: list[bytes] = []
        """All messages that were taken, in order, for tests to look at."""
        self.heard_at: float | None = None
        self.seen_at: float | None = None
        self.closed = False
        self.wire: Wire | None = None
        self._clock = clock
        self._network = network
        self._sends_early = sends_early
        self.early: list[bytes] = []
        """What goes out behind the opening of the channels."""
        self._lanes = lanes
        self._dropped = self._drained = 0
        self._reporting = False

    # --- Transport ----------------------------------------------------------------------------

    @property
    def path(self) -> SelectedPath | None:
        return PATH if self.state == "up" else None

    @property
    def candidates(self) -> tuple[list[str], list[str]]:
        return (["host"], ["host"]) if self.state == "up" else ([], [])

    @property
    def stage(self) -> str:
        return "no answer came" if self.wire is None else "the wire is not connected"

    @property
    def stats(self) -> TransportStats:
        return TransportStats(
            queued=self.buffered,
            datagrams_dropped=self._dropped,
        )

    def attach(self, observer: TransportObserver) -> None:
        self.observer = observer
        self._inbox = Inbox(observer, self._clock.call_soon)

    async def create_offer(self) -> str:
        if self.state == "down":
            raise TransportError("the transport is closed")
        assert self._network is not None, "made by a MemoryNetwork"
        self.state = "connecting"
        return self._network.enter(self)

    async def accept_offer(self, sdp: str) -> str:
        if self.state == "down":
            raise TransportError("the transport is closed")
        assert self._network is not None, "made by a MemoryNetwork"
        self.state = "connecting"
        if sdp not in self._network.offers:
            self.end("the offer is no one's here")
            raise TransportError("the offer is no one's here")
        self._network.answers[sdp] = self
        return sdp

    async def accept_answer(self, sdp: str) -> None:
        assert self._network is not None, "made by a MemoryNetwork"
        other = self._network.answers.pop(sdp, None)
        if other is None:
            self.end("the answer is no one's here")
            raise TransportError("the answer is no one's here")
        self._network.join(self, other)

    def send_early(self, message: bytes) -> bool:
        if self._sends_early:
            self.early.append(message)
        return self._sends_early

    def send_many(self, messages: list[bytes]) -> None:
        if self.state in {"new", "down"} or self.wire is None:
            return
        for message in messages:
            too_long = len(message) > self.max_message and channel_for(message[0]) != "datagram"
            if len(message) < HEADER.size or too_long:
                raise LocalProtocolError(f"a message of {len(message)} bytes cannot be sent")
        for message in messages:
            kind = channel_for(message[0])
            if self.state != "up" and kind != "control":
                continue
            self.sent.append(message)
            if kind != "control":
                self.buffered += len(message)
            if len(message) > self.max_message:
                self._dropped += 1
                self.left(len(message))
            else:
                channel = f"lane-{lane_of(message, self._lanes)}" if kind == "lane" else kind
                self.wire.carry(self, channel, message)

    def close(self, reason: str, *, linger: float = 0.0) -> None:
        if self.state == "down":
            return
        wire = self.wire
        self._inbox.close()
        self.end(reason)
        self.closed = True
        if wire is not None:
            wire.closed_by(self, linger=linger)

    async def wait_closed(self) -> None:
        assert self.state == "down", "nobody has closed it"

    # --- the wire's side ----------------------------------------------------------------------

    def go_up(self) -> None:
        """The channels are open."""
        if self.state in {"new", "connecting"}:
            self.state = "up"
            self.observer.transport_up()

    def left(self, size: int) -> None:
        """So many bytes of a flow message have left; told in one call at the end of the turn."""
        self._drained += size
        if not self._reporting:
            self._reporting = True
            self._clock.call_soon(self._report)

    def _report(self) -> None:
        self._reporting = False
        drained, self._drained = self._drained, 0
        if self.state == "up":
            self.buffered -= drained
            self.observer.transport_writable(drained)

    def arrive(self, channel: str, message: bytes) -> None:
        """A message came."""
        if self.state == "down":
            return
        self.heard_at = self._clock.time()
        if channel == "control":
            self._inbox.from_control(message)
        elif channel == "datagram":
            self._inbox.from_datagram(message)
        else:
            self._inbox.from_lane(message)

    def end(self, reason: str) -> None:
        """The end, from whatever side; once."""
        if self.state == "down":
            return
        self._inbox.flush()
        self._inbox.close()
        if self._has_ended():  # what came last led to the end as well
            return
        self.state = "down"
        self.buffered = 0
        self.observer.transport_down(reason)

    def _has_ended(self) -> bool:
        return self.state == "down"


class Wire:
    """A path between a gateway and an endpoint.

    `delay` is one way, in seconds; `rate` in bytes per second each way, None for no limit; `loss`
    is a pattern that repeats: True loses a message. `jitter` is the most that a message of one
    lane is later than one of another, drawn from `rng`. `window` bytes may be under way each way
    before further messages wait, which `transport_writable` shows.
    """

    def __init__(
        self,
        clock: VirtualClock,
        gateway: MemoryTransport | None = None,
        endpoint: MemoryTransport | None = None,
        *,
        delay: float = 0.02,
        rate: float | None = None,
        window: int | None = None,
        loss: Sequence[bool] = (),
        jitter: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = clock
        self.gateway = gateway or MemoryTransport(clock, "gateway")
        self.endpoint = endpoint or MemoryTransport(clock, "endpoint")
        self.gateway.wire = self.endpoint.wire = self
        self.delay = delay
        self.is_cut = False
        self._ways = {
            id(sender): _Way(self, receiver, rate, window, tuple(loss), jitter, rng)
            for sender, receiver in (
                (self.gateway, self.endpoint),
                (self.endpoint, self.gateway),
            )
        }

    def connect(self) -> None:
        """Brings both ends up: the endpoint after `delay`, the gateway after the round trip."""
        for transport in (self.gateway, self.endpoint):
            if transport.state == "new":
                transport.state = "connecting"
        self.clock.call_later(self.delay, self.endpoint.go_up)
        for message in self.gateway.early:
            self.carry(self.gateway, "control", message)
        self.clock.call_later(2 * self.delay, self.gateway.go_up)

    def carry(self, sender: MemoryTransport, channel: str, message: bytes) -> None:
        """Takes a message into the queue of its way."""
        self._ways[id(sender)].enqueue(sender, channel, message)

    def cut(self) -> None:
        """From now on nothing arrives."""
        self.is_cut = True

    def heal(self) -> None:
        """What a reliable channel owes comes now, and everything after it."""
        self.is_cut = False
        for way in self._ways.values():
            way.resume()

    def kill(self, reason: str = "the test has killed the connection") -> None:
        """Ends both sides at once; what was under way is lost."""
        for way in self._ways.values():
            way.clear()
        self.gateway.end(reason)
        self.endpoint.end(reason)

    def closed_by(self, sender: MemoryTransport, *, linger: float) -> None:
        """One side has closed: the other learns of it when what is under way has come."""
        way = self._ways[id(sender)]
        if not linger:
            way.drop_queued()
        way.then(lambda: way.receiver.end("the peer closed the connection"))


class _Way:
    """One direction of a wire."""

    def __init__(
        self,
        wire: Wire,
        receiver: MemoryTransport,
        rate: float | None,
        window: int | None,
        loss: tuple[bool, ...],
        jitter: float,
        rng: random.Random | None,
    ) -> None:
        self.receiver = receiver
        self._wire = wire
        self._clock = wire.clock
        self._rate = rate
        self._window = window
        self._loss = itertools.cycle(loss) if loss else None
        self._jitter = jitter
        self._rng = rng or random.Random(0)
        self._queue: deque[tuple[MemoryTransport, str, bytes]] = deque()
        self._flying = 0
        self._idle_at = 0.0
        self._newest: dict[str, float] = {}
        self._stalled: list[tuple[str, bytes]] = []
        self._generation = 0
        self._finally: Callable[[], None] | None = None

    def enqueue(self, sender: MemoryTransport, channel: str, message: bytes) -> None:
        self._queue.append((sender, channel, message))
        self._pump()

    def _pump(self) -> None:
        while self._queue and (self._window is None or self._flying < self._window):
            sender, channel, message = self._queue.popleft()
            if channel != "control":
                sender.left(len(message))
            self._fly(channel, message)

    def _fly(self, channel: str, message: bytes) -> None:
        now = self._clock.time()
        start = max(now, self._idle_at)
        self._idle_at = start + (len(message) / self._rate if self._rate else 0.0)
        arrival = self._idle_at + self._wire.delay
        if self._jitter:
            arrival += self._rng.random() * self._jitter
        lost = self._loss is not None and next(self._loss)
        if lost and channel != "datagram":
            arrival += 2 * self._wire.delay  # sent again
        if channel != "datagram":
            arrival = self._newest[channel] = max(arrival, self._newest.get(channel, 0.0))
        self._flying += len(message)
        generation = self._generation
        self._clock.call_at(
            arrival,
            lambda: self._landed(generation, channel, message, lost=lost),
        )

    def _landed(self, generation: int, channel: str, message: bytes, *, lost: bool) -> None:
        if generation != self._generation:
            return
        if self._wire.is_cut:
            if channel != "datagram":
                self._stalled.append((channel, message))
            else:
                self._gone(message)
            return
        if not lost or channel != "datagram":
            self.receiver.arrive(channel, message)
        self._gone(message)

    def _gone(self, message: bytes) -> None:
        self._flying -= len(message)
        self._pump()
        self._maybe_finish()

    def resume(self) -> None:
        stalled, self._stalled = self._stalled, []
        for channel, message in stalled:
            self.receiver.arrive(channel, message)
            self._gone(message)
        self._maybe_finish()

    def drop_queued(self) -> None:
        self._queue.clear()

    def then(self, callback: Callable[[], None]) -> None:
        self._finally = callback
        self._clock.call_later(self._wire.delay, self._maybe_finish)

    def _maybe_finish(self) -> None:
        if self._finally and not self._queue and not self._flying and not self._wire.is_cut:
            callback, self._finally = self._finally, None
            callback()

    def clear(self) -> None:
        self._generation += 1
        self._queue.clear()
        self._stalled.clear()
        self._flying = 0
        self._finally = None


class MemoryNetwork:
    """Transports that find each other by offer and answer; `options` are those of their wires."""

    def __init__(self, clock: VirtualClock, **options: Any) -> None:
        self.clock = clock
        self.options = options
        self.offers: dict[str, MemoryTransport] = {}
        self.answers: dict[str, MemoryTransport] = {}
        self.wires: list[Wire] = []
        self._numbers = itertools.count(1)

    def transport(self, role: Role, **options: Any) -> MemoryTransport:
        """Makes a transport that is not connected to anything yet."""
        return MemoryTransport(self.clock, role, network=self, **options)

    def enter(self, transport: MemoryTransport) -> str:
        """Takes an offer in and returns its text."""
        sdp = f"memory {next(self._numbers)}"
        self.offers[sdp] = transport
        return sdp

    def join(self, gateway: MemoryTransport, endpoint: MemoryTransport) -> None:
        """Connects two transports."""
        wire = Wire(self.clock, gateway, endpoint, **self.options)
        self.wires.append(wire)
        wire.connect()
