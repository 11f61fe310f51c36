"""Which message fills the next packet: the sender's queues and scheduler (RFC 8260 section 3).

Order, decided anew for each packet where both sides speak I-DATA, and for each message where not
(the fragments of a DATA message need consecutive TSNs, RFC 9260 section 6.9)::

    1. control      few and small, each of them answers something
    2. datagrams    streams whose messages are never sent again: late is as bad as lost
    3. new streams  those that had nothing to send for a while, up to one quantum each
    4. old streams  deficit round robin, a quantum each

3 and 4 are the two lists of RFC 8290 section 4.2: a stream that sends little (a keystroke, a PING)
finds itself at the front of the new list each time and overtakes all bulk, and a stream cannot stay
there by sending more, since the quantum that is used up puts it at the end of the old list.

RFC 8290 sends a new stream that has emptied through the old list once, where what it sends next
waits for its turn. That is 0.1 s where eight transfers share 1 Mbit/s, so the second of two
keystrokes was late. Here such a stream goes before the others again with what is left of its
quantum. It keeps its place in the old list, and gets the next quantum there and nowhere else, so it
has one for each round as before.

A lane carries many flows, and its stream delivers in the order in which messages were begun. So a
keystroke would wait behind a download in the same lane. But only the messages of one flow need
their order, and a message gets its number when its first fragment leaves. So in a stream that flows
share, a small message overtakes larger ones of other flows that are not begun yet. Until it has
left, the stream goes ahead of the others, first with the rest of the message that is begun. All of
that counts as sent by the stream, which waits the longer afterwards, unless it becomes empty. A
message is overtaken by one quantum at most, so flows that always send small messages do not hold up
the others of their lane.
"""

from collections import deque
from typing import Any, Final

CONTROL: Final = 0
DATAGRAM: Final = 1
NORMAL: Final = 2

CONTROL_LABEL: Final = "control"
"""Data channels of this label go before all others."""

QUANTUM: Final = 1_500
"""Bytes that a stream may send until it is another's turn: about one packet."""

SPARSE_BYTES: Final = 1_100
"""Bytes of the largest message that goes beyond the window if its stream has sent nothing for a
while. A session lets quiet flows send as much (ADR 0032)."""


OVERTAKEN_MAX: Final = 64
"""Messages of a stream that a small one overtakes at most, so that to look at them takes little
time. So many wait on fast paths only, where they leave within milliseconds."""

_FLOW: Final = 3
_FLOW_END: Final = 7
"""From where to where a message of a lane has the number of its flow (docs/protocol.md section 2).
A slice object would do in pure Python only: compiled code takes none as an index of bytes."""


def rank_of(label: str, ordered: bool, retransmits: int | None) -> int:
    """Returns the rank of a data channel, from what was said when it was opened."""
    if label == CONTROL_LABEL:
        return CONTROL
    return DATAGRAM if not ordered and retransmits == 0 else NORMAL


class Message:
    """A message that waits, or some of whose fragments are in flight.

    `number` is its SSN or MID, from its first fragment on; None before.
    """

    __slots__ = (
        "abandoned",
        "counted",
        "data",
        "expiry",
        "first_tsn",
        "fragments",
        "last_tsn",
        "number",
        "position",
        "ppid",
        "retransmits",
        "size",
        "stream",
        "unordered",
    )

    def __init__(
        self,
        stream: "OutboundStream",
        ppid: int,
        data: bytes,
        *,
        unordered: bool = False,
        retransmits: int = -1,
        expiry: float = 0.0,
        counted: bool = False,
    ) -> None:
        self.stream = stream
        self.ppid = ppid
        self.data = data
        self.size = len(data)
        self.unordered = unordered
        self.retransmits = retransmits
        """How often a fragment may be sent again; -1: until it arrives."""
        self.expiry = expiry
        """When the message is given up; 0: never."""
        self.counted = counted
        """Whether its bytes are reported as drained when they leave the queue."""
        self.position = 0
        self.fragments = 0
        self.number = -1
        self.first_tsn = -1
        self.last_tsn = -1
        self.abandoned = False


class OutboundStream:
    """One stream as sender. `owner` is whatever the shell wants to find again (the channel).

    It is `shared` if its messages belong to flows, which their headers name, and only those of one
    flow have to keep their order.
    """

    __slots__ = (
        "ahead",
        "deficit",
        "drained",
        "listed",
        "next_mid",
        "next_ssn",
        "next_unordered",
        "overtaken",
        "owner",
        "queue",
        "rank",
        "shared",
        "small",
        "stream_id",
    )

    def __init__(
        self, stream_id: int, rank: int, owner: Any = None, *, shared: bool = False
    ) -> None:
        self.stream_id = stream_id
        self.rank = rank
        self.owner = owner
        self.shared = shared
        self.queue: deque[Message] = deque()
        self.small: list[Message] = []
        """Messages that go before those of the queue that are not begun."""
        self.overtaken = 0
        """Bytes of them that go before the first message of the queue that is not begun."""
        self.deficit = 0
        self.listed = False
        """Whether it is in the list of its rank; for the last rank, in that of old streams."""
        self.ahead = False
        """Whether it is in the list of new streams."""
        self.drained = 0
        """Bytes that left the queue and were not reported yet."""
        self.next_ssn = 0
        self.next_mid = 0
        self.next_unordered = 0

    @property
    def first(self) -> Message | None:
        """The message whose next fragment is to be sent first, or None if there is none.

        What is begun has to be finished: the peer delivers nothing of the stream before it.
        """
        queue = self.queue
        if self.small and not (queue and queue[0].position):
            return self.small[0]
        return queue[0] if queue else None


class Scheduler:
    """The queues of all streams of one association.

    `queued` counts the bytes of messages that are not in a packet yet. `drained` lists the streams
    whose :attr:`OutboundStream.drained` is not 0; the owner reports and empties both.
    """

    __slots__ = (
        "_control",
        "_datagrams",
        "_locked",
        "_new",
        "_old",
        "drained",
        "interleaved",
        "queued",
    )

    def __init__(self) -> None:
        self.interleaved = False
        self.queued = 0
        self.drained: list[OutboundStream] = []
        self._control: deque[OutboundStream] = deque()
        self._datagrams: deque[OutboundStream] = deque()
        self._new: deque[OutboundStream] = deque()
        self._old: deque[OutboundStream] = deque()
        self._locked: Message | None = None

    def push(self, message: Message) -> None:
        """Queues a message at the end of its stream, or before larger ones of other flows."""
        stream = message.stream
        size = message.size
        self.queued += size
        if stream.shared and size <= SPARSE_BYTES and stream.queue and _may_overtake(message):
            stream.small.append(message)
            stream.overtaken += size
            if not stream.ahead:
                stream.ahead = True
                self._new.append(stream)
            return
        stream.queue.append(message)
        if stream.rank == NORMAL:
            if stream.ahead:
                return
            if not stream.listed:
                # What it sent beyond its last quantum counts, but it does not begin behind others.
                stream.deficit = max(min(stream.deficit, 0) + QUANTUM, 1)
            elif len(stream.queue) > 1 or stream.deficit <= 0:
                return
            stream.ahead = True
            self._new.append(stream)
        elif not stream.listed:
            stream.listed = True
            urgent = self._datagrams if stream.rank == DATAGRAM else self._control
            urgent.append(stream)

    @property
    def urgent(self) -> bool:
        """Whether something of the first two ranks may wait."""
        return bool(self._control or self._datagrams)

    def pick_urgent(self) -> Message | None:
        """Returns the message of the first two ranks to be sent next, or None if there is none."""
        locked = self._locked
        if locked is not None:
            return locked if locked.stream.rank < NORMAL else None
        for urgent in (self._control, self._datagrams):
            while urgent:
                stream = urgent[0]
                if stream.queue:
                    return stream.queue[0]
                stream.listed = False
                urgent.popleft()
        return None

    @property
    def has_new(self) -> bool:
        """Whether a stream may wait that has sent nothing for a while."""
        return bool(self._new)

    def pick_sparse(self) -> Message | None:
        """Returns a small message of a stream that has sent nothing for a while, or None.

        Or one that is begun, and that such a message waits for.
        """
        if self._locked is None:
            for stream in self._new:
                if stream.small:
                    return stream.first
                if stream.queue and stream.deficit > 0 and stream.queue[0].size <= SPARSE_BYTES:
                    return stream.queue[0]
        return None

    def pick(self) -> Message | None:
        """Returns the message whose next fragment is to be sent now, or None if there is none."""
        if self._locked is not None:
            return self._locked
        if self._control or self._datagrams:
            message = self.pick_urgent()
            if message is not None:
                return message
        new, old = self._new, self._old
        while new:
            stream = new[0]
            if stream.small:
                return stream.first
            if stream.queue and stream.deficit > 0:
                return stream.queue[0]
            new.popleft()
            stream.ahead = False
            if stream.listed:
                continue  # its place is among the old ones, where it gets the next quantum
            # RFC 8290 section 4.2: once through the old list, or a stream that sends a little all
            # the time would starve the others from the new list.
            if stream.queue:
                stream.deficit += QUANTUM
            elif not old:
                continue
            stream.listed = True
            old.append(stream)
        if len(old) == 1 and old[0].queue:
            # Nobody else wants to send: there is nothing to be in debt for.
            old[0].deficit = QUANTUM
            return old[0].queue[0]
        while old:
            stream = old[0]
            if not stream.queue:
                old.popleft()
                stream.listed = False
            elif stream.deficit <= 0:
                stream.deficit += QUANTUM
                old.rotate(-1)
            else:
                return stream.queue[0]
        return None

    def sent(self, message: Message, size: int) -> None:
        """Moves on in a message by `size` bytes that were put into a packet."""
        message.position += size
        message.fragments += 1
        self.queued -= size
        stream = message.stream
        stream.deficit -= size
        if message.counted:
            # Fragment by fragment: on a slow path, a message of 64 KiB takes half a second.
            if not stream.drained:
                self.drained.append(stream)
            stream.drained += size
        if message.position == message.size:
            self._leave(message)
        elif not self.interleaved:
            self._locked = message

    def drop(self, message: Message) -> None:
        """Gives up what is left of the first message of a stream."""
        rest = message.size - message.position
        self.queued -= rest
        message.position = message.size
        if message.counted and rest:
            if not message.stream.drained:
                self.drained.append(message.stream)
            message.stream.drained += rest
        self._leave(message)

    def _leave(self, message: Message) -> None:
        if self._locked is message:
            self._locked = None
        stream = message.stream
        if stream.small and stream.small[0] is message:
            del stream.small[0]
        else:
            stream.queue.popleft()
            stream.overtaken = sum([m.size for m in stream.small])

    def discard(self, stream: OutboundStream) -> None:
        """Drops all that waits in a stream; a message that is partly sent is dropped too."""
        while (message := stream.first) is not None:
            self.drop(message)


def _may_overtake(message: Message) -> bool:
    """Returns whether a small message may go before all that waits in its stream's queue."""
    stream = message.stream
    queue = stream.queue
    if stream.overtaken + message.size > QUANTUM or len(queue) > OVERTAKEN_MAX:
        return False
    flow = message.data[_FLOW:_FLOW_END]
    large = False
    for other in reversed(queue):  # a flow that is busy itself has its own message at the end
        # What is not counted is no message of a flow: the opening of the channel, or its answer.
        if not other.counted or other.data[_FLOW:_FLOW_END] == flow:
            return False
        large = large or other.size > SPARSE_BYTES
    return large
