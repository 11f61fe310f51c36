"""Messages out of fragments, in the order that their stream promises. Neither clock nor I/O.

DATA (RFC 9260 section 6.9): the fragments of one message have consecutive TSNs, so what belongs
together is a *run* of TSNs. Runs are found by their first TSN and by the TSN that would continue
them; a fragment that arrives touches at most one run on each side::

    TSN      40   41   42   43   44   45         by_start {40, 44}
             [B---run---]    ?   [--run--E]      by_next  {43}; a run that has its E is not there

I-DATA (RFC 8260): fragments name their message (MID) and their place in it (FSN), so that messages
of different streams may alternate on the wire.

A peer decides what is kept here, so everything has a bound, and a fragment costs O(log n): the
numbers of fragments, bytes and streams are limited, and how far a message may be ahead of the one
that its stream waits for. A peer that oversteps gets a :class:`RemoteProtocolError`, which ends
the association.
"""

from bisect import bisect_left, bisect_right, insort
from typing import Final

from socks_tunnel.peer.fast.wire import FIRST, LAST, UNORDERED
from socks_tunnel.protocol.errors import RemoteProtocolError

MESSAGE_BYTES_MAX: Final = 262_144
"""Bytes of one message: what aiortc announces in SDP (a=max-message-size) and never exceeds."""

FRAGMENTS_MAX: Final = 32_768
"""Fragments and undelivered messages held at a time, by the whole association."""

STREAMS_MAX: Final = 2_048
"""Streams that a peer may use at a time. A tunnel has at most 66."""

AHEAD_MAX: Final = 32_767
"""Messages by which one may be ahead of the next in its stream. A message takes at least one TSN,
and no more TSNs than this are in flight."""


def _abuse(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, kind="sctp")


class _Run:
    """Fragments of one DATA message with consecutive TSNs."""

    __slots__ = ("end", "first", "last", "pieces", "ppid", "size", "start", "stream", "unordered")

    def __init__(
        self, tsn: int, flags: int, stream: int, number: int, ppid: int, piece: bytes
    ) -> None:
        self.start = tsn
        self.end = tsn
        self.first = flags & FIRST
        self.last = flags & LAST
        self.unordered = flags & UNORDERED
        self.stream = stream << 16 | number
        self.ppid = ppid
        self.pieces = [piece]
        self.size = len(piece)


class _Partial:
    """Fragments of one I-DATA message: `pieces` without a gap from the first, `later` beyond."""

    __slots__ = ("last", "later", "number", "pieces", "ppid", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pieces: list[bytes] = []
        self.later: dict[int, bytes] = {}
        self.last = -1
        self.ppid = 0
        self.size = 0


_NOTHING = _Partial(-1)


class _Track:
    """The ordered, or the unordered, messages of one stream.

    Numbers (SSN or MID) are unwrapped: they grow for ever, starting at 0.
    """

    __slots__ = ("next", "open", "open_mid", "order", "partial", "skipped", "waiting")

    def __init__(self) -> None:
        self.next = 0
        self.skipped = -1
        """Unordered messages up to this were given up: what still comes of them is late."""
        self.waiting: dict[int, tuple[int, bytes]] = {}
        self.partial: dict[int, _Partial] = {}
        self.order: list[int] = []
        self.open = _NOTHING
        """The message that was begun last; `open_mid` is its number on the wire, -1 for none."""
        self.open_mid = -1


class Reassembly:
    """All streams of one association, as receiver.

    What is complete is appended to :attr:`ready` as (stream, payload protocol identifier, message);
    the owner takes the list and empties it. `held` counts the bytes, `fragments` the pieces and
    messages that wait here.
    """

    __slots__ = (
        "_by_next",
        "_by_start",
        "_ordered",
        "_starts",
        "_unordered",
        "fragments",
        "held",
        "ready",
        "stale",
    )

    def __init__(self) -> None:
        self.ready: list[tuple[int, int, bytes]] = []
        self.held = 0
        self.fragments = 0
        self.stale = 0
        """Fragments dropped because their message was delivered or given up before."""
        self._by_start: dict[int, _Run] = {}
        self._by_next: dict[int, _Run] = {}
        self._starts: list[int] = []  # the keys of _by_start in rising order
        self._ordered: dict[int, _Track] = {}
        self._unordered: dict[int, _Track] = {}

    # --- DATA ---------------------------------------------------------------------------------

    def data(self, tsn: int, flags: int, stream: int, ssn: int, ppid: int, piece: bytes) -> None:
        """Takes a DATA chunk that was never received before. `tsn` is unwrapped."""
        kind = flags & (FIRST | LAST)
        if kind & FIRST and tsn in self._by_next:
            # The message before this one was given up without its last fragment.
            self._drop_run(self._by_next[tsn])
        if kind == FIRST | LAST:
            if flags & UNORDERED:
                self.ready.append((stream, ppid, piece))
            else:
                self._complete(stream, ssn, ppid, piece, 0)
            return
        left = None if kind == FIRST else self._by_next.pop(tsn, None)
        if left is not None:
            self._check_same(left, flags, stream, ssn)
            left.pieces.append(piece)
            left.end = tsn
            left.last = kind
            left.size += len(piece)
            run = left
        else:
            run = self._by_start[tsn] = _Run(tsn, flags, stream, ssn, ppid, piece)
            if self._starts and tsn < self._starts[-1]:
                insort(self._starts, tsn)
            else:
                self._starts.append(tsn)
        self.held += len(piece)
        self.fragments += 1
        if not kind & LAST:
            right = self._by_start.get(tsn + 1)
            if right is None or right.first:
                self._by_next[tsn + 1] = run
                if right is not None:
                    self._drop_run(run)
                if self.fragments > FRAGMENTS_MAX or run.size > MESSAGE_BYTES_MAX:
                    raise self._too_much(run.size)
                return
            run = self._join(run, right, flags, stream, ssn)
        if run.first and run.last:
            self._finish(run)
        elif self.fragments > FRAGMENTS_MAX or run.size > MESSAGE_BYTES_MAX:
            raise self._too_much(run.size)

    def _join(self, run: _Run, right: _Run, flags: int, stream: int, ssn: int) -> _Run:
        """Puts a run and the one that follows it together, moving the pieces of the shorter one."""
        self._check_same(right, flags, stream, ssn)
        self._unlist(right)
        if len(run.pieces) >= len(right.pieces):
            run.pieces.extend(right.pieces)
        else:
            right.pieces[:0] = run.pieces
            run.pieces = right.pieces
        run.end = right.end
        run.last = right.last
        run.size += right.size
        if not run.last:
            self._by_next[run.end + 1] = run
        return run

    def _check_same(self, run: _Run, flags: int, stream: int, ssn: int) -> None:
        # RFC 9260 section 6.9: the same stream, SSN and U flag in all fragments of a message.
        if run.stream != (stream << 16 | ssn) or run.unordered != flags & UNORDERED:
            raise _abuse("the peer's fragments with consecutive TSNs belong to different messages")

    def _unlist(self, run: _Run) -> None:
        del self._by_start[run.start]
        starts = self._starts
        del starts[0 if starts[0] == run.start else bisect_left(starts, run.start)]

    def _finish(self, run: _Run) -> None:
        self._unlist(run)
        self.held -= run.size
        self.fragments -= len(run.pieces)
        message = b"".join(run.pieces)
        if run.unordered:
            self.ready.append((run.stream >> 16, run.ppid, message))
        else:
            self._complete(run.stream >> 16, run.stream & 0xFFFF, run.ppid, message, 0)

    def _too_much(self, size: int) -> RemoteProtocolError:
        if size > MESSAGE_BYTES_MAX:
            return _abuse(f"the peer sends a message of more than {MESSAGE_BYTES_MAX} bytes")
        return _abuse(f"the peer left more than {FRAGMENTS_MAX} fragments unfinished")

    # --- I-DATA -------------------------------------------------------------------------------

    def interleaved(self, flags: int, stream: int, mid: int, word: int, piece: bytes) -> None:
        """Takes an I-DATA chunk that was never received before.

        `word` is the payload protocol identifier if B is set, and the FSN if not.
        """
        tracks = self._unordered if flags & UNORDERED else self._ordered
        track = tracks.get(stream)
        if track is None:
            track = self._open(tracks, stream)
        kind = flags & (FIRST | LAST)
        if mid == track.open_mid and not kind & FIRST:
            # The next fragment of the message that came last, as nearly always.
            last = track.open
            if word == len(last.pieces) and not last.later and last.last < 0:
                size = len(piece)
                last.pieces.append(piece)
                last.size += size
                self.held += size
                self.fragments += 1
                if kind:
                    last.last = word
                    self._whole(track, stream, last, flags & UNORDERED)
                elif self.fragments > FRAGMENTS_MAX or last.size > MESSAGE_BYTES_MAX:
                    raise self._too_much(last.size)
                return
        number = track.next + ((mid - track.next + AHEAD_MAX + 1) & 0xFFFF_FFFF) - AHEAD_MAX - 1
        if kind == FIRST | LAST and number not in track.partial:
            self._deliver(track, stream, number, word, piece, flags & UNORDERED)
            return
        partial = track.partial.get(number)
        if partial is None:
            partial = self._begin(track, number, flags & UNORDERED)
            if partial is None:
                return
        fsn = 0 if kind & FIRST else word
        if not fsn and not kind & FIRST:
            # RFC 8260 section 2.1: FSN 0 is that of the fragment with the B bit, and is not sent.
            raise _abuse("the peer's message begins with a fragment that is not its first")
        if kind & FIRST:
            partial.ppid = word
        pieces = partial.pieces
        if fsn == len(pieces):
            pieces.append(piece)
            later = partial.later
            while later and (following := later.pop(len(pieces), None)) is not None:
                pieces.append(following)
        elif fsn < len(pieces) or fsn in partial.later or fsn > FRAGMENTS_MAX:
            raise _abuse("the peer sent two fragments for one place in a message, or one far off")
        else:
            partial.later[fsn] = piece
        if kind & LAST:
            if partial.last >= 0 or fsn + 1 < len(pieces):
                raise _abuse("the peer sent two ends of one message")
            partial.last = fsn
        partial.size += len(piece)
        self.held += len(piece)
        self.fragments += 1
        if partial.last >= 0 and len(pieces) == partial.last + 1:
            if partial.later:
                raise _abuse("the peer sent fragments beyond the end of a message")
            self._whole(track, stream, partial, flags & UNORDERED)
        elif self.fragments > FRAGMENTS_MAX or partial.size > MESSAGE_BYTES_MAX:
            raise self._too_much(partial.size)

    def _whole(self, track: _Track, stream: int, partial: _Partial, unordered: int) -> None:
        self._forget(track, partial.number, partial)
        message = b"".join(partial.pieces)
        self._deliver(track, stream, partial.number, partial.ppid, message, unordered)

    def _begin(self, track: _Track, number: int, unordered: int) -> _Partial | None:
        if number - track.next > AHEAD_MAX:
            raise _abuse(f"the peer's message is {number - track.next} ahead of the next in order")
        late = number <= track.skipped if unordered else number < track.next
        if late or number in track.waiting:
            self.stale += 1
            return None
        partial = track.partial[number] = track.open = _Partial(number)
        track.open_mid = number & 0xFFFF_FFFF
        if track.order and track.order[-1] > number:
            insort(track.order, number)
        else:
            track.order.append(number)
        return partial

    def _forget(self, track: _Track, number: int, partial: _Partial) -> None:
        self.held -= partial.size
        self.fragments -= len(partial.pieces) + len(partial.later)
        del track.partial[number]
        if track.open is partial:
            track.open_mid = -1
        order = track.order
        if order[0] == number:
            del order[0]
        else:
            del order[bisect_left(order, number)]

    # --- streams ------------------------------------------------------------------------------

    def _open(self, tracks: dict[int, _Track], stream: int) -> _Track:
        if len(tracks) >= STREAMS_MAX:
            raise _abuse(f"the peer uses more than {STREAMS_MAX} streams")
        track = tracks[stream] = _Track()
        return track

    def _complete(self, stream: int, ssn: int, ppid: int, message: bytes, unordered: int) -> None:
        track = self._ordered.get(stream)
        if track is None:
            track = self._open(self._ordered, stream)
        # RFC 1982: SSNs up to half the space ahead are new, the others are old.
        number = track.next + ((ssn - track.next + 0x8000) & 0xFFFF) - 0x8000
        self._deliver(track, stream, number, ppid, message, unordered)

    def _deliver(
        self, track: _Track, stream: int, number: int, ppid: int, message: bytes, unordered: int
    ) -> None:
        if unordered:
            track.next = max(track.next, number + 1)
            self.ready.append((stream, ppid, message))
        elif number == track.next:
            track.next = number + 1
            self.ready.append((stream, ppid, message))
            if track.waiting:
                self._drain(track, stream)
        elif number < track.next or number in track.waiting:
            self.stale += 1
        elif number - track.next > AHEAD_MAX:
            raise _abuse(f"the peer's message is {number - track.next} ahead of the next in order")
        else:
            track.waiting[number] = (ppid, message)
            self.held += len(message)
            self.fragments += 1
            if self.fragments > FRAGMENTS_MAX:
                raise self._too_much(0)

    def _drain(self, track: _Track, stream: int) -> None:
        waiting = track.waiting
        while waiting and (found := waiting.pop(track.next, None)) is not None:
            track.next += 1
            self.held -= len(found[1])
            self.fragments -= 1
            self.ready.append((stream, *found))

    # --- what the peer gives up, resets ----------------------------------------------------------

    def skip_fragments(self, low: int, high: int) -> None:
        """Drops the DATA fragments from `low` to `high`: the cumulative TSN was moved to `high`.

        RFC 3758 section 3.6. A message whose fragments reach beyond `high`, or end there without
        their last one, may still be completed if its first fragment is here.
        """
        by_start, starts = self._by_start, self._starts
        run = self._by_next.get(low)
        first = bisect_left(starts, low if run is None else run.start)
        end = bisect_right(starts, high)
        kept = []
        for start in starts[first:end]:
            run = by_start[start]
            if run.end < high or not run.first:
                del by_start[start]
                self._drop_pieces(run)
            else:
                kept.append(start)
        starts[first:end] = kept
        orphan = by_start.get(high + 1)
        if orphan is not None and not orphan.first:
            self._drop_run(orphan)

    def _drop_run(self, run: _Run) -> None:
        self._unlist(run)
        self._drop_pieces(run)

    def _drop_pieces(self, run: _Run) -> None:
        if not run.last:
            self._by_next.pop(run.end + 1, None)
        self.held -= run.size
        self.fragments -= len(run.pieces)

    def skip_message(self, stream: int, number: int, unordered: int, modulus: int) -> None:
        """Gives up the messages of a stream up to `number`, an SSN or MID as on the wire.

        Complete messages that waited for them are delivered (RFC 3758 section 3.6). `modulus` is
        2**16 for SSNs and 2**32 for MIDs.
        """
        tracks = self._unordered if unordered else self._ordered
        track = tracks.get(stream)
        if track is None:
            track = self._open(tracks, stream)
        last = track.next + ((number - track.next + AHEAD_MAX + 1) % modulus) - AHEAD_MAX - 1
        if last - track.next > AHEAD_MAX:
            raise _abuse(f"the peer skips {last - track.next} messages of a stream at once")
        if track.order:
            for found in track.order[: bisect_right(track.order, last)]:
                self._forget(track, found, track.partial[found])
        if unordered:
            track.skipped = max(track.skipped, last)
            track.next = max(track.next, last + 1)
            return
        if last < track.next:
            return
        waiting = track.waiting
        if waiting:
            skipped = range(track.next, last + 1)
            numbers = skipped if len(skipped) < len(waiting) else sorted(waiting)
            for found in numbers:
                if found <= last and found in waiting:
                    ppid, message = waiting.pop(found)
                    self.held -= len(message)
                    self.fragments -= 1
                    self.ready.append((stream, ppid, message))
        track.next = last + 1
        if waiting:
            self._drain(track, stream)

    def reset(self, stream: int) -> None:
        """Starts a stream anew, because the peer reset it (RFC 6525 section 5.2.2)."""
        for tracks in (self._ordered, self._unordered):
            track = tracks.pop(stream, None)
            if track is None:
                continue
            for number, partial in list(track.partial.items()):
                self._forget(track, number, partial)
            for _, message in track.waiting.values():
                self.held -= len(message)
                self.fragments -= 1
