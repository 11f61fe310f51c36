"""The two byte streams of a TCP flow: windows, and the bytes that must outlive a lost link.

Theory. For each direction of a flow the receiver says how far the sender may go, because neither a
WebRTC data channel nor an SCTP sender ever holds a fast sender back from a slow reader
(docs/protocol.md section 4). Both ends count stream bytes from 0::

    sender     acked <= next <= end        next <= limit        (SendStream)
    receiver   consumed <= received <= limit                    (ReceiveStream)

    acked      the peer has them for good: they are forgotten here
    next       the next byte to transmit; a resume may move it back, but never before `acked`
    end        bytes taken from the local socket; [acked, end) is kept in memory
    limit      how far the sender may transmit: LIMIT, at most `WINDOW_MAX` beyond `acked`

CONSUMED and LIMIT only grow, so an update that comes late, twice or out of order changes nothing.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Self

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.byte_queue import JOIN_MAX, PIECE_COST, ByteQueue
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError

WINDOW_MAX: Final = 16 * 1024 * 1024
"""Bytes: the longest window of one flow, in both directions. It fills 1.3 Gbit/s at a round trip of
100 ms. A peer may allow more; what it does not acknowledge is kept here, so it is not used."""

POSITION_MAX: Final = (1 << 64) - 1
"""Bytes of one stream, as far as the protocol can count them."""


ROUND_TRIP_MIN: Final = 0.005
"""Seconds that a window covers at least: what the turns of four processes take, which no PING goes
through."""

STARVED_REACH: Final = 16
"""Shortest round trips that a window may cover if it held its sender up; otherwise it covers 2. The
queues of a path that others fill take several. On a LAN this changes nothing: 16 of its round
trips are less than 2 of :data:`ROUND_TRIP_MIN`."""

STARVED_MIN: Final = 0.010
"""Seconds for which a receiver got nothing before its sender counts as held up, at least."""

_STARVED_SHARE: Final = 6
"""A sixth of the time since the update that the sender waited for is needed as well."""


class SendStream:
    """What one side sends of a flow. All positions are counted in bytes from the stream's start.

    The attributes are read on the data path; they change only through the methods. `eof` says that
    the local side has ended the stream at `end`, `eof_sent` that SEND_EOF was transmitted on the
    link of the moment.
    """

    __slots__ = (
        "_first",
        "_index",
        "_pieces",
        "_start",
        "acked",
        "cost",
        "end",
        "eof",
        "eof_sent",
        "high",
        "limit",
        "next",
    )

    def __init__(self, window: int) -> None:
        self.acked = 0
        self.next = 0
        self.end = 0
        self.high = 0
        """How far was ever transmitted: what the peer may claim to have."""
        self.limit = min(window, WINDOW_MAX)
        self.eof = False
        self.eof_sent = False
        self.cost = 0
        """Memory that the kept bytes take."""
        self._pieces: deque[bytes] = deque()
        self._first = 0  # the position at which _pieces[0] begins
        self._index = 0  # the piece that holds `next`; len(_pieces) if all was transmitted
        self._start = 0  # the position at which that piece begins

    @property
    def room(self) -> int:
        """How many bytes may be taken from the local socket now."""
        return self.limit - self.end

    @property
    def unsent(self) -> int:
        """How many bytes wait to be transmitted, whether the window allows it or not."""
        return self.end - self.next

    @property
    def ready(self) -> bool:
        """Whether there is something that may be transmitted now: bytes within LIMIT, or EOF."""
        if self.next < self.end:
            return self.next < self.limit
        return self.eof and not self.eof_sent

    def write(self, data: bytes) -> None:
        """Keeps bytes that the local side has written, to be transmitted by :meth:`take`.

        More than `room` is allowed: bytes that came together with a request are kept whole, and
        leave as the window opens.
        """
        if self.eof:
            raise LocalProtocolError("the local side wrote after its end of file")
        count = len(data)
        if not count:
            return
        pieces = self._pieces
        self.end += count
        if pieces and len(pieces[-1]) + count <= JOIN_MAX:
            if self._index == len(pieces):
                self._index -= 1
                self._start -= len(pieces[-1])
            pieces[-1] += data
            self.cost += count
        else:
            pieces.append(data)
            self.cost += count + PIECE_COST

    def write_through(self, data: bytes) -> None:
        """Keeps bytes that are transmitted at this moment: the path of bulk data.

        Nothing may wait (`unsent` is 0), and `data` fits the window; otherwise this raises
        :class:`LocalProtocolError`.
        """
        count = len(data)
        end = self.end + count
        if self.next != self.end or end > self.limit or self.eof:
            raise LocalProtocolError(
                f"{count} bytes cannot be passed through at {self.next} of {self.end}, "
                f"limit {self.limit}"
            )
        pieces = self._pieces
        if pieces and len(pieces[-1]) + count <= JOIN_MAX:
            pieces[-1] += data
            self.cost += count
        else:
            pieces.append(data)
            self.cost += count + PIECE_COST
        self.end = self.next = self.high = self._start = end
        self._index = len(pieces)

    def take(self, longest: int) -> bytes | memoryview:
        """Returns up to `longest` bytes to transmit now, and counts them as transmitted.

        The result is empty if nothing waits or the window is closed.
        """
        count = min(longest, self.limit - self.next)
        if self.next >= self.end or count <= 0:
            return b""
        piece = self._pieces[self._index]
        offset = self.next - self._start
        length = len(piece)
        if offset or count < length:
            count = min(count, length - offset)
            data: bytes | memoryview = memoryview(piece)[offset : offset + count]
        else:
            count, data = length, piece
        self.next += count
        if offset + count == length:
            self._index += 1
            self._start = self.next
        self.high = max(self.high, self.next)
        return data

    def finish(self) -> None:
        """Notes the end of file of the local side."""
        if self.eof:
            raise LocalProtocolError("the local side ended its stream twice")
        self.eof = True

    def take_eof(self) -> bool:
        """Whether SEND_EOF is to be transmitted now; it counts as transmitted then."""
        if not self.eof or self.eof_sent or self.next < self.end:
            return False
        self.eof_sent = True
        return True

    def update(self, consumed: int, limit: int) -> bool:
        """Applies a WINDOW_UPDATE, and says whether the window opened.

        Raises :class:`RemoteProtocolError` if the peer claims bytes that were never transmitted.
        """
        if consumed > self.high:
            raise RemoteProtocolError(
                f"WINDOW_UPDATE has CONSUMED {consumed}, but only {self.high} bytes were sent",
                kind="window-consumed",
            )
        if consumed > self.acked:
            self._acknowledge(consumed)
        limit = min(limit, self.acked + WINDOW_MAX)
        if limit > self.limit:
            self.limit = limit
            return True
        return False

    def resume(self, received: int, limit: int, *, eof_received: bool) -> None:
        """Goes on where the peer is after a resume: it has `received` bytes and allows `limit`.

        Raises :class:`RemoteProtocolError` if it claims bytes that were never sent, or lacks bytes
        that it had acknowledged.
        """
        if not self.acked <= received <= self.high:
            raise RemoteProtocolError(
                f"RESUME says that {received} bytes were received, but {self.acked} were "
                f"acknowledged and {self.high} sent",
                kind="resume-received",
            )
        if eof_received and not (self.eof and received == self.end):
            raise RemoteProtocolError(
                "RESUME says that our end of file was received, but it was not sent",
                kind="resume-eof",
            )
        self._acknowledge(received)
        self.next, self._index, self._start = received, 0, self._first
        self.eof_sent = eof_received
        self.limit = max(self.limit, min(limit, self.acked + WINDOW_MAX))

    def _acknowledge(self, position: int) -> None:
        self.acked = position
        pieces = self._pieces
        while pieces:
            length = len(pieces[0])
            if self._first + length > position:
                break
            pieces.popleft()
            self.cost -= length + PIECE_COST
            self._first += length
            self._index -= 1
        if position > self.next:  # the peer has what a resume was about to send again
            self.next, self._index, self._start = position, 0, self._first

    def forget(self) -> None:
        """Drops all kept bytes: the flow has ended."""
        self._pieces.clear()
        self.cost = 0
        self._first = self._start = self.end
        self.acked = self.next = self.end
        self._index = 0

    # --- hand-over ------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Returns the stream as plain values, for a hand-over to another process."""
        return {
            "acked": self.acked,
            "next": self.next,
            "end": self.end,
            "high": self.high,
            "limit": self.limit,
            "eof": self.eof,
            "eof_sent": self.eof_sent,
            "first": self._first,
            "pieces": list(self._pieces),
        }

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the stream that :meth:`export` described.

        Raises :class:`~socks_tunnel.protocol.bounded.Malformed` for what no stream can be.
        """
        stream = cls(0)
        stream.end = bounded.integer(fields, "end", 0, POSITION_MAX)
        stream.acked = bounded.integer(fields, "acked", 0, stream.end)
        stream.next = bounded.integer(fields, "next", stream.acked, stream.end)
        stream.high = bounded.integer(fields, "high", 0, stream.end)
        stream.limit = bounded.integer(fields, "limit", 0, stream.acked + WINDOW_MAX)
        stream.eof = bounded.boolean(fields, "eof")
        stream.eof_sent = bounded.boolean(fields, "eof_sent")
        stream._first = bounded.integer(fields, "first", 0, stream.acked)
        pieces = bounded.binaries(fields, "pieces")
        if stream._first + sum(map(len, pieces)) != stream.end:
            raise bounded.Malformed("the kept bytes of a stream do not reach from 'first' to 'end'")
        stream._pieces = deque(pieces)
        stream.cost = sum(len(piece) + PIECE_COST for piece in pieces)
        stream._start = stream._first
        while (
            stream._index < len(pieces)
            and stream._start + len(pieces[stream._index]) <= stream.next
        ):
            stream._start += len(pieces[stream._index])
            stream._index += 1
        return stream


class ReceiveStream:
    """What one side receives of a flow. All positions are counted from the stream's start.

    `pending` holds what the local socket has not taken yet, `eof` says that the peer's SEND_EOF
    came, `eof_delivered` that it was passed on to the local socket.
    """

    __slots__ = (
        "_edge_at",
        "announced",
        "consumed",
        "edge",
        "eof",
        "eof_delivered",
        "limit",
        "pending",
        "received",
        "starved",
        "updated_at",
        "window",
    )

    def __init__(self, window: int) -> None:
        self.window = window
        self.received = 0
        self.consumed = 0
        self.limit = window
        self.announced = 0
        """CONSUMED of the last update: what the peer may have forgotten."""
        self.updated_at = 0.0
        """When the last update left, on the caller's clock in seconds."""
        self.edge = -1
        """LIMIT before an update that left while bytes below it were still to come: `received` at
        which a sender stops that has not got the update yet. -1: none is looked at."""
        self._edge_at = 0.0
        self.starved = False
        """Whether the sender stopped there, since the last update."""
        self.eof = False
        self.eof_delivered = False
        self.pending = ByteQueue()

    @property
    def buffered(self) -> int:
        """How many bytes came that the local socket has not taken yet."""
        return self.received - self.consumed

    @property
    def all_written(self) -> bool:
        """Whether the local socket took everything that came."""
        return self.received == self.consumed

    def receive(self, count: int) -> None:
        """Counts `count` bytes of DATA. Raises :class:`RemoteProtocolError` beyond LIMIT."""
        received = self.received + count
        if received > self.limit:
            raise RemoteProtocolError(
                f"the peer sent {received} bytes with a limit of {self.limit}",
                kind="window-exceeded",
            )
        if self.eof:
            raise RemoteProtocolError("DATA after SEND_EOF", kind="data-after-eof")
        self.received = received

    def passed_edge(self, now: float, waited: float) -> None:
        """Notes that the first bytes beyond :attr:`edge` come now, after `waited` seconds of none.

        If that was long, the window held the sender up: the update was still on its way. A round
        trip that a PING takes does not tell, for it has other queues.
        """
        self.edge = -1
        if self.received == self.consumed and waited >= STARVED_MIN:
            self.starved = waited * _STARVED_SHARE >= now - self._edge_at

    def finish(self) -> None:
        """Notes the peer's SEND_EOF. Raises :class:`RemoteProtocolError` if it came before."""
        if self.eof:
            raise RemoteProtocolError("SEND_EOF came twice", kind="eof-twice")
        self.eof = True

    def consume(self, count: int) -> bool:
        """Counts bytes that the local socket took, and says whether an update is due.

        An update is due when half of the window was consumed since the last one: there are fewer
        messages than one for each read, and the sender never runs dry on a path shorter than half
        a window. It is due after a :meth:`shrink` too, although LIMIT stands still then: the peer
        may hold no more than it keeps. After its end of file only that matters.
        """
        if count > self.received - self.consumed:
            raise LocalProtocolError(
                f"consuming {count} bytes with only {self.received - self.consumed} received"
            )
        self.consumed += count
        return self.consumed - self.announced >= self.window >> 1

    def announce(self, now: float, *, round_trip: float = 0.0, grow_to: int = 0) -> tuple[int, int]:
        """Opens the window as far as it may be now; returns (CONSUMED, LIMIT) for the update.

        A window that is less than twice what was consumed in a round trip may hold the sender up:
        it doubles, up to `grow_to` bytes, if the sender used up half of it since the last update.
        If it did hold the sender up, it doubles although it is longer (:data:`STARVED_REACH`).
        `round_trip` is that of the link, in seconds; 0 if it is not known. The windows of a short
        path are not smaller than those of one of ROUND_TRIP_MIN.
        """
        elapsed = now - self.updated_at
        consumed = self.consumed - self.announced
        span = 2 * max(round_trip, ROUND_TRIP_MIN)
        if self.starved:
            span = max(span, STARVED_REACH * round_trip)
        if (
            0 < self.window < grow_to
            and round_trip
            and self.consumed + self.window - self.limit >= self.window >> 1
            and self.window * elapsed <= span * consumed
        ):
            self.window = min(2 * self.window, grow_to)
        self.starved = False
        if self.edge != self.received:  # else that one is looked at first
            self.edge, self._edge_at = (self.limit if self.received < self.limit else -1), now
        self.updated_at = now
        self.announced = self.consumed
        self.limit = max(self.limit, self.consumed + self.window)
        return self.consumed, self.limit

    def shrink(self, window: int) -> None:
        """Makes the window of further updates at most `window` bytes. LIMIT never falls."""
        self.window = min(self.window, window)

    # --- hand-over ------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Returns the stream as plain values, for a hand-over to another process."""
        return {
            "window": self.window,
            "received": self.received,
            "consumed": self.consumed,
            "limit": self.limit,
            "announced": self.announced,
            "updated_at": self.updated_at,
            "eof": self.eof,
            "eof_delivered": self.eof_delivered,
            "pending": [bytes(piece) for piece in self.pending.export()],
        }

    @classmethod
    def restore(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the stream that :meth:`export` described. Raises Malformed for what is none."""
        stream = cls(bounded.integer(fields, "window", 0, WINDOW_MAX))
        stream.limit = bounded.integer(fields, "limit", 0, POSITION_MAX)
        stream.received = bounded.integer(fields, "received", 0, stream.limit)
        stream.consumed = bounded.integer(fields, "consumed", 0, stream.received)
        stream.announced = bounded.integer(fields, "announced", 0, stream.consumed)
        stream.updated_at = bounded.number(fields, "updated_at")
        stream.eof = bounded.boolean(fields, "eof")
        stream.eof_delivered = bounded.boolean(fields, "eof_delivered")
        for piece in bounded.binaries(fields, "pending"):
            stream.pending.append(piece)
        if stream.pending.size != stream.buffered:
            raise bounded.Malformed("the bytes that wait for a socket are not those that came")
        return stream
