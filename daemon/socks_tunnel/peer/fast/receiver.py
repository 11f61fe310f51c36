"""The receiving half of an association's data path: TSNs, SACKs and the receive window.

No I/O and no clock: `now` comes in, complete messages and SACK chunks come out. TSNs are kept
unwrapped, as integers that grow for ever; their low 32 bits are what the wire has.
"""

from typing import Final

from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.ranges import Ranges
from socks_tunnel.peer.fast.reassembly import FRAGMENTS_MAX, Reassembly
from socks_tunnel.peer.fast.wire import (
    FORWARD_ENTRY,
    I_FORWARD_ENTRY,
    IMMEDIATE,
    SACK,
    SACK_CHUNK,
    SACK_HEADER,
    TSN_HALF,
    TSN_MASK,
    WORD,
)
from socks_tunnel.protocol.errors import RemoteProtocolError

TSN_AHEAD_MAX: Final = 32_768
"""TSNs beyond the cumulative one that are taken; a chunk further ahead is dropped as if lost.

A gap block cannot name what is more than 65,535 ahead (RFC 9260 section 3.3.4), and 16 MiB of
chunks that fill their packets are 14,600."""

GAPS_MAX: Final = 2_048
"""Ranges beyond the cumulative TSN; a chunk that would start one more is dropped as if lost."""

DUPLICATES_MAX: Final = 16
"""Duplicate TSNs reported in one SACK; the others are only counted."""

SACK_BLOCKS_MAX: Final = 250
"""Gap blocks in one SACK: 1,000 bytes, so that it fits the smallest packet."""

PACKETS_PER_SACK: Final = 2
"""Packets with DATA after which a SACK is due, towards a peer that asked for nothing else
(RFC 9260 section 6.2: at least one SACK for every second packet)."""

SACK_DELAY: Final = 0.020
"""Seconds until a lone packet is acknowledged; RFC 9260 section 6.2 allows 0.2."""

SACK_DELAY_BATCH: Final = 0.005
"""The same towards a peer that understands batch SACKs, where it also covers small batches."""

WINDOW_MIN: Final = 1_048_576
"""Bytes of the receive window at the start: what aiortc has always had."""

WINDOW_MAX: Final = 16_777_216
"""Bytes that the receive window may grow to, as far as the budget lets it."""

OVERRUN_MAX: Final = 1_048_576
"""Bytes beyond the receive window that are kept of a peer that does not look at the window, as
aiortc does not. What is out of order is then dropped as if lost; what is in order ends it."""

DEFAULT_RTT: Final = 0.1
"""Seconds taken for the round trip while it is not known, for the growth of the window."""


class Receiver:
    """Everything that was received of one association and is not delivered yet.

    `batch_sacks` says that both sides announced batch SACKs; `interleaved` that both announced
    I-DATA.
    """

    __slots__ = (
        "_budget",
        "_duplicates",
        "_epoch_bytes",
        "_epoch_end",
        "_packets",
        "_reserved",
        "_sacked_bytes",
        "batch_sacks",
        "bytes_received",
        "chunks_dropped",
        "cumulative",
        "duplicates",
        "gaps",
        "interleaved",
        "reassembly",
        "sack_at",
        "sack_now",
        "sacks_sent",
        "window",
    )

    def __init__(self, budget: WindowBudget) -> None:
        self._budget = budget
        self.cumulative = -1
        """Unwrapped TSN up to which all was received; -1 before the peer's first TSN is known."""
        self.gaps = Ranges()
        self.reassembly = Reassembly()
        self.batch_sacks = False
        self.interleaved = False
        self.sack_now = False
        self.sack_at = 0.0
        """When a delayed SACK is due; 0 if none is."""
        self.window = WINDOW_MIN
        self._reserved = 0
        self._packets = 0
        self._duplicates: list[int] = []
        self._epoch_end = 0.0
        self._epoch_bytes = 0
        self.sacks_sent = 0
        self.bytes_received = 0
        self._sacked_bytes = 0
        self.duplicates = 0
        self.chunks_dropped = 0

    def start(self, initial_tsn: int) -> None:
        """Starts the association, or starts it anew, with the peer's first TSN."""
        self.cumulative = initial_tsn - 1 + TSN_MASK + 1
        self.gaps.clear()
        ready = self.reassembly.ready
        self.reassembly = Reassembly()
        self.reassembly.ready = ready
        self._duplicates.clear()
        self._packets = 0
        self.sack_now = False
        self.sack_at = 0.0

    def close(self) -> None:
        """Gives what was taken from the budget back. Nothing may be received afterwards."""
        self._budget.release(self._reserved)
        self._reserved = 0
        self.reassembly = Reassembly()
        self.gaps.clear()

    @property
    def credit(self) -> int:
        """Bytes that the peer may have in flight: a_rwnd (RFC 9260 section 6.2.1)."""
        return max(0, self.window - self.reassembly.held)

    # --- chunks -------------------------------------------------------------------------------

    def data(self, tsn: int, flags: int, stream: int, ssn: int, ppid: int, piece: bytes) -> None:
        """Takes a DATA chunk; `tsn` as on the wire."""
        ahead = (tsn - self.cumulative) & TSN_MASK
        if ahead == 1 and not self.gaps.starts:
            number = self.cumulative = self.cumulative + 1
            if flags & IMMEDIATE:
                self.sack_now = True
            if self.reassembly.held > self.window:
                self._check_overrun()
        else:
            number = self._out_of_order(tsn, ahead, len(piece))
            if number < 0:
                return
        self.bytes_received += len(piece)
        self.reassembly.data(number, flags, stream, ssn, ppid, piece)

    def interleaved_data(
        self, tsn: int, flags: int, stream: int, mid: int, word: int, piece: bytes
    ) -> None:
        """Takes an I-DATA chunk; `tsn` as on the wire, `word` the PPID or FSN."""
        ahead = (tsn - self.cumulative) & TSN_MASK
        if ahead == 1 and not self.gaps.starts:
            self.cumulative += 1
            if flags & IMMEDIATE:
                self.sack_now = True
            if self.reassembly.held > self.window:
                self._check_overrun()
        elif self._out_of_order(tsn, ahead, len(piece)) < 0:
            return
        self.bytes_received += len(piece)
        self.reassembly.interleaved(flags, stream, mid, word, piece)

    def _out_of_order(self, tsn: int, ahead: int, size: int) -> int:
        """Notes a TSN that is not simply the next one; returns it unwrapped, -1 if not taken."""
        # RFC 9260 section 6.7: a gap, also one that is being filled, is reported at once.
        self.sack_now = True
        gaps = self.gaps
        if ahead == 0 or ahead >= TSN_HALF:
            self._duplicate(tsn)
            return -1
        number = self.cumulative + ahead
        if ahead > TSN_AHEAD_MAX:
            self.chunks_dropped += 1
            return -1
        if number in gaps:
            self._duplicate(tsn)
            return -1
        if ahead == 1:
            self._check_overrun()
            if gaps.starts[0] == number + 1:
                self.cumulative = gaps.ends[0]
                gaps.drop_until(self.cumulative)
            else:
                self.cumulative = number
            return number
        reassembly = self.reassembly
        if (
            reassembly.held + size > self.window
            or reassembly.fragments >= FRAGMENTS_MAX // 2
            or (len(gaps.starts) >= GAPS_MAX and gaps.is_new_range(number))
        ):
            # Not acknowledged, so the peer sends it again when there is room (RFC 9260 6.2).
            self.chunks_dropped += 1
            return -1
        gaps.add(number)
        return number

    def _duplicate(self, tsn: int) -> None:
        self.duplicates += 1
        if len(self._duplicates) < DUPLICATES_MAX:
            self._duplicates.append(tsn)

    def _check_overrun(self) -> None:
        if self.reassembly.held > self.window + OVERRUN_MAX:
            raise RemoteProtocolError(
                "the peer sends far beyond the receive window without finishing messages",
                kind="sctp",
            )

    def forward(self, body: bytes, *, interleaved: bool) -> None:
        """Takes the value of a FORWARD-TSN or I-FORWARD-TSN chunk (RFC 3758 section 3.6)."""
        cumulative = int(WORD.unpack_from(body, 0)[0])
        self.sack_now = True
        ahead = (cumulative - self.cumulative) & TSN_MASK
        if ahead == 0 or ahead >= TSN_HALF:
            return
        if ahead > TSN_AHEAD_MAX:
            raise RemoteProtocolError(f"the peer skips {ahead} TSNs at once", kind="sctp")
        low = self.cumulative + 1
        high = self.cumulative + ahead
        gaps = self.gaps
        gaps.drop_until(high)
        self.cumulative = high
        if gaps.starts and gaps.starts[0] == high + 1:
            self.cumulative = gaps.ends[0]
            gaps.drop_until(self.cumulative)
        reassembly = self.reassembly
        if interleaved:
            for stream, unordered, mid in I_FORWARD_ENTRY.iter_unpack(
                body[4 : len(body) - (len(body) - 4) % 8]
            ):
                reassembly.skip_message(stream, mid, unordered & 1, 1 << 32)
        else:
            for stream, ssn in FORWARD_ENTRY.iter_unpack(body[4 : len(body) - (len(body) - 4) % 4]):
                reassembly.skip_message(stream, ssn, 0, 1 << 16)
            reassembly.skip_fragments(low, high)

    # --- SACKs --------------------------------------------------------------------------------

    def packet_done(self) -> bool:
        """Counts a packet that had DATA. Returns whether a SACK is due before the next one.

        Only towards a peer whose sender is clocked by SACKs. A peer with batch SACKs gets one when
        the batch is over (:meth:`batch_done`).
        """
        self._packets += 1
        return not self.batch_sacks and self._packets >= PACKETS_PER_SACK

    def batch_done(self, now: float, rtt: float | None) -> bool:
        """Ends a batch of packets; returns whether a SACK is due now. If not, see `sack_at`."""
        if self._packets:
            self._tune(now, rtt)
        elif not self.sack_now:
            return False
        if self.sack_now or self._packets >= PACKETS_PER_SACK:
            return True
        if not self.sack_at:
            self.sack_at = now + (SACK_DELAY_BATCH if self.batch_sacks else SACK_DELAY)
        return False

    @property
    def owes_sack(self) -> bool:
        """Whether something was received that no SACK has acknowledged yet."""
        return self.sack_now or self._packets > 0

    @property
    def unacknowledged(self) -> int:
        """Bytes of user data that arrived since the last SACK."""
        return self.bytes_received - self._sacked_bytes

    def sack(self, room: int) -> bytes:
        """Returns a SACK chunk of at most `room` bytes (at least 16); nothing is owed then."""
        self._packets = 0
        self.sack_now = False
        self.sack_at = 0.0
        self.sacks_sent += 1
        self._sacked_bytes = self.bytes_received
        cumulative = self.cumulative
        starts = self.gaps.starts
        if not starts and not self._duplicates:
            return SACK_CHUNK.pack(SACK, 0, SACK_HEADER, cumulative & TSN_MASK, self.credit, 0, 0)
        words = (room - SACK_HEADER) // 4
        count = min(len(starts), SACK_BLOCKS_MAX, words)
        blocks = bytearray()
        ends = self.gaps.ends
        if count < len(starts) and self.batch_sacks:
            # A sender like ours remembers what was reported before. It is the youngest blocks that
            # it has not heard of yet, the oldest that it waits for.
            half = count // 2
            starts = starts[:half] + starts[half - count :]
            ends = ends[:half] + ends[half - count :]
        for low, high in zip(starts[:count], ends[:count], strict=True):
            blocks += FORWARD_ENTRY.pack(low - cumulative, min(high - cumulative, 0xFFFF))
        duplicates = self._duplicates[: words - count]
        self._duplicates.clear()
        length = SACK_HEADER + 4 * (count + len(duplicates))
        head = SACK_CHUNK.pack(
            SACK, 0, length, cumulative & TSN_MASK, self.credit, count, len(duplicates)
        )
        return head + bytes(blocks) + b"".join([WORD.pack(tsn) for tsn in duplicates])

    # --- window -------------------------------------------------------------------------------

    def _tune(self, now: float, rtt: float | None) -> None:
        """Doubles the window when half of it arrived within one round trip."""
        if now < self._epoch_end:
            return
        arrived = self.bytes_received - self._epoch_bytes
        self._epoch_bytes = self.bytes_received
        self._epoch_end = now + (DEFAULT_RTT if rtt is None else rtt)
        if arrived * 2 < self.window or self.window >= WINDOW_MAX:
            return
        more = min(self.window, WINDOW_MAX - self.window)
        if self._budget.reserve(more):
            self._reserved += more
            self.window += more
