"""Datagrams that a rendezvous service relays, and how they wait. Sans-IO.

Two clients that no UDP path connects send their datagrams (STUN and DTLS) through the service, as
frames of the kind `relay` of :mod:`socks_tunnel.protocol.rendezvous`::

    "channel"   bin 8    which of the connections between the two clients; the offer names it
    "datagram"  bin      one datagram, or several of one size, the last maybe shorter
    "segment"   int      that size; absent for one datagram

Joined datagrams look as they do in a kernel's segmentation offload::

    "datagram"  +-----------+-----------+-----------+-----+
                |  segment  |  segment  |  segment  | <=  |
                +-----------+-----------+-----------+-----+

So the datagrams that leave in one turn of the event loop are one message of the WebSocket, whose
other fields would otherwise cost each of them a tenth of its size.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from socks_tunnel.protocol import bounded

CHANNEL_SIZE: Final = 8

JOINED_MAX: Final = 16_384
"""Bytes of datagrams in one frame: the longest time that another channel waits for it is that of
this many bytes."""

SEGMENTS_MAX: Final = 64
"""Datagrams in one frame: each costs the receiver a call."""

QUEUE_MAX: Final = 262_144
"""Bytes of frames that wait for one connection. The oldest of the channel that has most waiting is
dropped for what comes beyond."""

QUEUE_TIME: Final = 0.05
"""Seconds that a frame may wait for a connection that takes nothing. SCTP above takes the loss for
the congestion that it is, and speech has no use for what is older."""

BLOCKED_TIME: Final = 0.005
"""Seconds that handing over one frame takes at least where the connection took nothing. Time in
which the frame waited for the process to run is no reason to drop it."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """Datagrams on their way. `peer` is whom they are to, or from, as the service says.

    `segment` is the length of each datagram but the last, which may be shorter.
    """

    peer: bytes
    channel: bytes
    joined: bytes
    segment: int

    @property
    def count(self) -> int:
        """How many datagrams there are."""
        return -(-len(self.joined) // self.segment)

    def datagrams(self) -> list[bytes]:
        """Returns the datagrams, each for itself."""
        joined, segment = self.joined, self.segment
        if segment >= len(joined):
            return [joined]
        return [joined[start : start + segment] for start in range(0, len(joined), segment)]


def encode_relayed(frame: Relayed, direction: str) -> bytes:
    """Returns the frame's bytes; `direction` is `to` or `from`."""
    fields: dict[str, Any] = {
        "kind": "relay",
        direction: frame.peer,
        "channel": frame.channel,
        "datagram": frame.joined,
    }
    if frame.segment < len(frame.joined):
        fields["segment"] = frame.segment
    packed: bytes = msgpack.packb(fields)
    return packed


def count_relayed(frame: bytes, direction: str) -> int:
    """Returns how many datagrams are in what :func:`encode_relayed` has returned."""
    fields = bounded.unpack_own(frame)
    assert isinstance(fields, dict), "it is ours"
    return decode_relayed(fields[direction], fields).count


def decode_relayed(peer: bytes, fields: Mapping[str, Any]) -> Relayed:
    """Returns the frame with these fields. Raises :class:`bounded.Malformed`."""
    channel = bounded.binary(fields, "channel", CHANNEL_SIZE)
    joined = bounded.binary(fields, "datagram")
    if not 0 < len(joined) <= JOINED_MAX:
        raise bounded.unusable(fields, "datagram")
    segment = bounded.integer(fields, "segment", 1, JOINED_MAX, default=len(joined))
    frame = Relayed(peer, channel, joined, min(segment, len(joined)))
    if frame.count > SEGMENTS_MAX:
        raise bounded.unusable(fields, "segment")
    return frame


def join(datagrams: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields the datagrams joined in their order, each time with the length of a segment.

    Empty datagrams and those beyond :data:`JOINED_MAX` are left out: neither STUN nor DTLS sends
    them.
    """
    run: list[bytes] = []
    segment = size = 0
    for datagram in datagrams:
        length = len(datagram)
        if not 0 < length <= JOINED_MAX:
            continue
        full = size + length > JOINED_MAX or len(run) >= SEGMENTS_MAX
        if run and (full or length > segment or len(run[-1]) < segment):
            yield b"".join(run), segment
            run, size = [], 0
        if not run:
            segment = length
        run.append(datagram)
        size += length
    if run:
        yield b"".join(run), segment


class _Lane:
    """The frames of one channel, the oldest first, each with its time and its datagrams."""

    __slots__ = ("frames", "size")

    def __init__(self) -> None:
        self.frames: deque[tuple[float, bytes, int]] = deque()
        self.size = 0


class RelayQueue:
    """Frames that wait for one connection, of each channel in turn.

    `dropped` is told why datagrams are dropped, and how many: `full` because :data:`QUEUE_MAX`
    bytes waited, `late` because the connection took nothing for :data:`QUEUE_TIME`, `gone` because
    there is no connection any more.
    """

    __slots__ = ("_dropped", "_lanes", "_limit", "size")

    def __init__(self, dropped: Callable[[str, int], None], *, limit: int = QUEUE_MAX) -> None:
        self.size = 0
        """Bytes that wait."""
        self._dropped = dropped
        self._limit = limit
        self._lanes: dict[Hashable, _Lane] = {}

    def push(self, channel: Hashable, frame: bytes, datagrams: int, now: float) -> None:
        """Puts a frame at the end of its channel's."""
        while self._lanes and self.size + len(frame) > self._limit:
            fullest = max(self._lanes, key=lambda name: self._lanes[name].size)
            self._drop(fullest, "full")
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = _Lane()
        lane.frames.append((now, frame, datagrams))
        lane.size += len(frame)
        self.size += len(frame)

    def peek(self) -> int:
        """Returns the length of the frame that is next; 0 if none waits."""
        for lane in self._lanes.values():
            return len(lane.frames[0][1])
        return 0

    def pop(self) -> bytes | None:
        """Takes the oldest frame of the channel whose turn it is; None if none waits."""
        for channel, lane in self._lanes.items():
            _, frame, _ = self._take(channel, lane)
            if lane.frames:  # the others first
                del self._lanes[channel]
                self._lanes[channel] = lane
            return frame
        return None

    def expire(self, now: float) -> None:
        """Drops what has waited for too long. To be called when the connection takes more again."""
        for channel, lane in list(self._lanes.items()):
            while lane.frames and now - lane.frames[0][0] > QUEUE_TIME:
                self._drop(channel, "late")

    def clear(self) -> None:
        """Drops all: there is no connection any more."""
        for channel, lane in list(self._lanes.items()):
            for _ in range(len(lane.frames)):
                self._drop(channel, "gone")

    def _drop(self, channel: Hashable, why: str) -> None:
        _, _, datagrams = self._take(channel, self._lanes[channel])
        self._dropped(why, datagrams)

    def _take(self, channel: Hashable, lane: _Lane) -> tuple[float, bytes, int]:
        entry = lane.frames.popleft()
        lane.size -= len(entry[1])
        self.size -= len(entry[1])
        if not lane.frames:
            del self._lanes[channel]
        return entry
