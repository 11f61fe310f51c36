"""The client's part of relaying datagrams through a rendezvous service, if no UDP path works.

One :class:`ServiceRelay` belongs to one service, and outlives each connection to it. Without a
connection, datagrams are lost, as on any path. Datagrams wait for the connection in a short queue,
in which the channels take turns. They leave at the rate that the service grants, so that it drops
none.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import aiohttp

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.ops.write_queue import WRITE_BUFFER, keep_queue_short
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.datagram_relay import RelayedReceiver
from socks_tunnel.protocol.rendezvous import REASONS, Absent
from socks_tunnel.protocol.rendezvous_relay import (
    BLOCKED_TIME,
    Relayed,
    RelayQueue,
    count_relayed,
    encode_relayed,
    join,
)

_log = logging.getLogger(__name__)

RATE_SHARE: Final = 0.95
"""Part of the granted rate that is used, because the service measures with its own clock."""

BURST_SECONDS: Final = 0.02
"""Burst after a pause, in seconds of the rate."""


def _uncounted(what: str, datagrams: int) -> None:
    """Counts nothing."""
    del what, datagrams


class RelaySocket(aiohttp.ClientWebSocketResponse):
    """A WebSocket with a short queue of bytes behind it."""

    def __init__(self, reader: Any, writer: Any, *more: Any, **named: Any) -> None:
        super().__init__(reader, writer, *more, **named)
        # The server class of aiohttp has an argument for this, the client class has not.
        writer._limit = WRITE_BUFFER  # noqa: SLF001
        keep_queue_short(writer.transport)


class ServiceRelay:
    """The relay of one service. `url` is the service's.

    `passed` is called with the number of datagrams that were `sent` (put into the queue) or
    `received`. `dropped` is called with the number of dropped datagrams and the reason, one of
    :data:`socks_tunnel.ops.labels.RELAY_DROPS`.
    """

    def __init__(
        self,
        url: str,
        *,
        passed: Callable[[str, int], None] = _uncounted,
        dropped: Callable[[str, int], None] = _uncounted,
    ) -> None:
        self.url = url
        self._passed = passed
        self._dropped = dropped
        self.rate = 0
        """Bytes per second that the service relays for this host; 0: none, or no connection."""
        self.family: Literal["ipv4", "ipv6"] = "ipv4"
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._queue = RelayQueue(dropped)
        self._channels: dict[tuple[bytes, bytes], Channel] = {}
        self._pump: asyncio.Task[None] | None = None
        self._credit = 0.0
        self._credit_at = 0.0

    # --- the connection -----------------------------------------------------------------------

    def opened(self, ws: aiohttp.ClientWebSocketResponse, rate: int) -> None:
        """Uses a new connection, or a new rate."""
        self._ws, self.rate = ws, rate
        if not rate:
            self._queue.clear()  # nothing waits for credit any more
        address = ws.get_extra_info("peername")
        self.family = "ipv6" if isinstance(address, tuple) and ":" in address[0] else "ipv4"

    def closed(self) -> None:
        """Notes that the connection has ended."""
        self._ws, self.rate = None, 0
        self._queue.clear()
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None

    def receive(self, frame: Relayed) -> None:
        """Passes datagrams to their channel."""
        channel = self._channels.get((frame.peer, frame.channel))
        if channel is None:
            self._dropped("no-channel", frame.count)
            return
        self._passed("received", frame.count)
        channel.receiver.relayed(frame.datagrams())

    def refused(self, absent: Absent) -> None:
        """Tells the sender of datagrams that they were not relayed."""
        channel = self._channels.get((absent.to, absent.channel))
        if channel is not None:
            channel.receiver.refused(REASONS[absent.reason])

    # --- channels -----------------------------------------------------------------------------

    def to(self, key: bytes) -> "PeerRelay | None":
        """Returns the relay to a peer; None while the service relays nothing."""
        return PeerRelay(self, key) if self.rate else None

    def open(self, key: bytes, name: bytes, receiver: RelayedReceiver) -> "Channel":
        """Returns a channel to a peer. It replaces an older one with the same name."""
        channel = self._channels[key, name] = Channel(self, key, name, receiver)
        return channel

    def forget(self, channel: "Channel") -> None:
        """Stops passing datagrams to a channel."""
        place = channel.key, channel.name
        if self._channels.get(place) is channel:
            del self._channels[place]

    def send(self, key: bytes, name: bytes, datagrams: Sequence[bytes]) -> None:
        """Sends datagrams to a peer. As with UDP, they may be lost."""
        if self._ws is None or not self.rate:
            self._dropped("not-connected", len(datagrams))
            return
        now = asyncio.get_running_loop().time()
        taken = 0
        for joined, segment in join(datagrams):
            frame = Relayed(key, name, joined, segment)
            self._queue.push((key, name), encode_relayed(frame, "to"), frame.count, now)
            taken += frame.count
        self._passed("sent", taken)
        if taken != len(datagrams):
            self._dropped("length", len(datagrams) - taken)
        if self._pump is None or self._pump.done():
            self._pump = spawn("relay datagrams", self._send_waiting(self._ws))

    async def _send_waiting(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Sends waiting datagrams at the granted rate, and ends when none wait."""
        clock = asyncio.get_running_loop().time
        queue = self._queue
        frame: bytes | None = None
        try:
            while size := queue.peek():
                began = clock()
                if delay := self._delay(size, began):
                    await asyncio.sleep(delay)
                    queue.expire(clock())
                    continue
                frame = queue.pop()
                assert frame is not None, "the length of the frame was known"
                await ws.send_bytes(frame)
                frame = None
                if (now := clock()) - began > BLOCKED_TIME:
                    queue.expire(now)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            # The reader of the connection also learns of its end, and reports it.
            _log.debug("cannot relay datagrams through %s: %s", self.url, clip(error))
            queue.clear()
        finally:
            if frame is not None:  # the connection failed or was given up meanwhile
                self._dropped("gone", count_relayed(frame, "to"))

    def _delay(self, size: int, now: float) -> float:
        """Returns the seconds that a frame must wait for its credit. For 0, the credit is taken."""
        rate = RATE_SHARE * self.rate
        earned = self._credit + rate * (now - self._credit_at)
        self._credit, self._credit_at = min(earned, rate * BURST_SECONDS), now
        if self._credit < 0:
            return -self._credit / rate
        self._credit -= size  # the credit may become negative, so that no frame is too long for it
        return 0.0


class PeerRelay:
    """The relay of a service to one peer."""

    def __init__(self, service: ServiceRelay, key: bytes) -> None:
        self._service = service
        self._key = key

    @property
    def server(self) -> str:
        """The name of the service, for log and status."""
        return self._service.url

    @property
    def family(self) -> Literal["ipv4", "ipv6"]:
        """The address family of the connection to the service."""
        return self._service.family

    def open(self, channel: bytes, receiver: RelayedReceiver) -> "Channel":
        """Returns a channel with this name. Its datagrams go to `receiver`."""
        return self._service.open(self._key, channel, receiver)


class Channel:
    """The datagrams of one connection to one peer."""

    def __init__(
        self, service: ServiceRelay, key: bytes, name: bytes, receiver: RelayedReceiver
    ) -> None:
        self._service = service
        self.key = key
        self.name = name
        self.receiver = receiver

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Sends datagrams. As with UDP, they may be lost."""
        self._service.send(self.key, self.name, datagrams)

    def close(self) -> None:
        """Takes no more datagrams."""
        self._service.forget(self)
