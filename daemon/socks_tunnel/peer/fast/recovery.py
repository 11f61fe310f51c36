"""What is in flight, what was lost, and when to do something about it. Neither clock nor I/O.

Losses are found in the order of transmission, in the manner of RFC 8985: a chunk is lost when one
that was sent later has arrived, and the time in which mere reordering would have shown is over.
So a retransmission that is lost is noticed like any other chunk, and some reordering is no loss.

This file is long because flight, loss and retransmission change the same chunks together.

States of a chunk, all transitions of which are in this file::

                 +-------- sent again ---------+
                 v                             |
    new --> IN_FLIGHT --- detected, RTO ---> LOST
                 |  |                          |
                 |  +------- limit -------> ABANDONED (partial reliability, RFC 3758)
                 v                             |
               ACKED <-------------------------+ (a SACK may name any that is outstanding)

Timers:

* reordering (RFC 8985 section 6.3): the youngest chunk that is only suspected has waited long
  enough;
* probe, after two round trips of silence: makes the peer answer, so that the rest can be found
  without waiting for the time-out (:mod:`socks_tunnel.peer.fast.probing`);
* retransmission time-out (RFC 9260 section 6.3.3), never below 200 ms;
* stall, after as long again: says that nothing is answered (:mod:`socks_tunnel.peer.fast.stall`).
"""

from collections import deque
from typing import Final

from socks_tunnel.peer.fast.forwarding import Forwarding
from socks_tunnel.peer.fast.outstanding import (
    ABANDONED,
    ACKED,
    IN_FLIGHT,
    LOST,
    Chunk,
)
from socks_tunnel.peer.fast.probing import Probing
from socks_tunnel.peer.fast.ranges import Ranges
from socks_tunnel.peer.fast.rate import Burst, DeliveryRate
from socks_tunnel.peer.fast.reordering import REORDER_CHUNKS, Reordering
from socks_tunnel.peer.fast.rtt import RoundTrip
from socks_tunnel.peer.fast.stall import Stall
from socks_tunnel.peer.fast.streams import Message
from socks_tunnel.peer.fast.wire import TSN_HALF, TSN_MASK
from socks_tunnel.protocol.errors import RemoteProtocolError

OUTSTANDING_MAX: Final = 16_384
"""Chunks that may be outstanding: half of how far a receiver of ours looks ahead."""

BLOCKS_MAX: Final = 2_048
"""Ranges acknowledged beyond gaps that are remembered; a block that would be one more is ignored,
until the others have grown together."""

TIMEOUTS_MAX: Final = 10
"""Time-outs in a row after which the peer is given up (RFC 9260 section 8.1)."""

RENEGE_TIMEOUTS: Final = 2
"""Time-outs in a row after which gap blocks are no longer believed: the peer may have dropped what
it had reported (RFC 9260 section 6.2.1)."""

LIES_MAX: Final = 8
"""SACKs for what was never sent that are taken for leftovers of an earlier association."""


LOSSES_MAX: Final = 192
"""Chunks that are declared lost in one turn; more than a turn can send again."""

CLOCK_ERROR: Final = 1e-6
"""Seconds by which sums of times may be wrong, as floating point numbers are."""


class Recovery:
    """The outstanding chunks of one association.

    TSNs are unwrapped. `flight` counts the bytes in flight. After :meth:`sack` and :meth:`detect`
    the fields of `acked`, `lost_bytes`, `rtt_sample`, `rate` and so on describe what that call
    found.

    This class has many methods because every way in which a chunk leaves the flight is here.
    """

    def __init__(self, initial_tsn: int) -> None:
        self.next_tsn = initial_tsn + TSN_MASK + 1
        self.cumulative = self.next_tsn - 1
        self.forwarding = Forwarding(self.cumulative)
        self.flight = 0
        self.next_order = 1
        self.lost: deque[Chunk] = deque()
        """To be sent again, in the order in which they were found to be lost."""
        # What is outstanding; that with a given TSN is _chunks[tsn - cumulative - 1].
        self._chunks: list[Chunk] = []
        self._sacked = Ranges()
        self._sacked_count = 0
        self._transmissions: deque[tuple[int, Chunk]] = deque()

        self.trip = RoundTrip()

        self._rack_order = 0
        self._rack_rtt = 0.0
        self.reordering = Reordering()
        self._highest_acked = self.cumulative
        self.reorder_at = 0.0
        self.probing = Probing()
        self.rto_at = 0.0
        self.timeouts = 0
        self.stall = Stall()

        self.episode = False
        """Whether losses are being repaired; the window was reduced for them."""
        self.recovery_end = self.cumulative
        """The episode ends when this TSN is acknowledged."""
        self._retransmitted: set[int] = set()
        """TSNs sent again since the episode began and not known to have been in vain."""
        self._timed_out = False
        self.undone = False
        """Whether the last call of :meth:`sack` showed that nothing of the episode was lost."""

        self.delivery = DeliveryRate()

        self.acked_bytes = 0
        self.lost_bytes = 0
        self.losses = False
        self.moved = False
        """Whether the last SACK has moved the cumulative TSN on."""
        self.rtt_sample = 0.0

        self.retransmissions = 0
        self.spurious = 0
        self.timeouts_total = 0
        self.lies = 0

    def __len__(self) -> int:
        """How many chunks are outstanding, acknowledged beyond a gap or not."""
        return len(self._chunks)

    # --- sending ------------------------------------------------------------------------------

    def burst(self, now: float) -> Burst:
        """Returns what the chunks share that are sent now."""
        return self.delivery.burst(now, idle=not self.flight)

    def sent(self, chunk: Chunk) -> None:
        """Takes a new chunk, with `next_tsn` and `next_order`, that is being sent."""
        self._chunks.append(chunk)
        self._transmissions.append((chunk.order, chunk))
        self.next_tsn = chunk.tsn + 1
        self.next_order = chunk.order + 1
        self.flight += chunk.size

    def since(self, tsn: int) -> list[Chunk]:
        """Returns the chunks from a TSN on."""
        return self._chunks[max(tsn - self.cumulative - 1, 0) :]

    def next_lost(self) -> Chunk | None:
        """Returns the next chunk to send again, or None. It stays the next until :meth:`resent`."""
        lost = self.lost
        while lost:
            chunk = lost[0]
            if chunk.state == LOST:
                return chunk
            lost.popleft()
        return None

    def resent(self, chunk: Chunk, burst: Burst) -> None:
        """Notes that a chunk, the next lost one or one for a probe, is being sent again."""
        if chunk.state == LOST:
            chunk.state = IN_FLIGHT
            self.flight += chunk.size
            if self.lost and self.lost[0] is chunk:
                self.lost.popleft()
            if len(self._retransmitted) < OUTSTANDING_MAX:
                # What is only a probe is none of those that tell whether there was a loss at all.
                self._retransmitted.add(chunk.tsn)
        chunk.sends += 1
        chunk.burst = burst
        chunk.order = self.next_order
        self.next_order += 1
        self._transmissions.append((chunk.order, chunk))
        self.retransmissions += 1

    def transmitted(self, now: float) -> None:
        """Arms the timers after chunks were sent."""
        self.rto_at = self.rto_at or now + self.trip.rto
        self.probing.arm(now, self.trip, alone=len(self) == 1)

    def probe(self) -> Chunk | None:
        """Returns the chunk to send as a probe: the next lost one, or else the youngest in flight.

        None if there is none that may be sent again.
        """
        lost = self.next_lost()
        if lost is not None:
            return lost
        for chunk in reversed(self._chunks):
            if chunk.state == IN_FLIGHT:
                limit = chunk.message.retransmits
                if limit < 0 or chunk.sends <= limit:
                    return chunk
        return None

    def give_up(self, now: float) -> None:
        """Gives up what is in flight, none of which may be sent again.

        The FORWARD-TSN for it makes the peer answer like any other probe. Otherwise a lone lost
        datagram would end in a time-out, which is for all.
        """
        for chunk in self._chunks:
            if chunk.state == IN_FLIGHT:
                self.abandon(chunk.message, now)
        if self.forwarding.point > self.cumulative:
            self.forwarding.at = now

    # --- receiving ----------------------------------------------------------------------------

    def sack(
        self,
        cumulative: int,
        blocks: tuple[int, ...],
        duplicates: tuple[int, ...],
        now: float,
    ) -> bool:
        """Takes a SACK, as on the wire. Returns False for one that is older than another.

        Each block is two offsets. Raises :class:`RemoteProtocolError` when the peer goes on
        acknowledging what was never sent.
        """
        ahead = (cumulative - self.cumulative) & TSN_MASK
        if ahead >= TSN_HALF:
            return False
        self.moved = ahead > 0
        if ahead > len(self):
            self._lied("data that was never sent")
            return False
        self.stall.answered()
        self.acked_bytes = 0
        self.rtt_sample = 0.0
        self.delivery.clear()
        self.undone = False
        flight = self.flight
        newest: Chunk | None = None
        if ahead:
            newest = self._acknowledge_until(ahead)
        if blocks:
            newest = self._acknowledge_blocks(blocks, newest)
        for tsn in duplicates:
            self._duplicate(tsn)
        if newest is not None:
            self._measure(newest, now)
        if ahead:
            self.timeouts = 0
            self._advance(now)
            if self.episode and self.cumulative >= self.recovery_end:
                self._end_episode()
        if ahead or flight != self.flight:
            self.probing.answered()
            if len(self):
                self.rto_at = now + self.trip.rto
                self.transmitted(now)
            else:
                self.rto_at = self.reorder_at = 0.0
        return True

    def _lied(self, what: str) -> None:
        self.lies += 1
        if self.lies > LIES_MAX:
            raise RemoteProtocolError(f"the peer acknowledges {what}", kind="sctp")

    def _acknowledge_until(self, count: int) -> Chunk | None:
        """Removes the `count` oldest chunks; returns the one of them that was sent last."""
        newest: Chunk | None = None
        order = -1
        acked = 0
        flight = self.flight
        for chunk in self._chunks[:count]:
            state = chunk.state
            if state == ACKED:
                self._sacked_count -= 1
                continue
            chunk.state = ACKED
            if state == ABANDONED:
                continue
            if state == IN_FLIGHT:
                flight -= chunk.size
            acked += chunk.size
            if chunk.order > order:
                order = chunk.order
                newest = chunk
            if chunk.sends == 1 and chunk.tsn < self._highest_acked:
                self.reordering.seen = True
        del self._chunks[:count]
        self.flight = flight
        self.acked_bytes += acked
        self.cumulative += count
        self._highest_acked = max(self._highest_acked, self.cumulative)
        self._sacked.drop_until(self.cumulative)
        return newest

    def _acknowledge_blocks(self, blocks: tuple[int, ...], newest: Chunk | None) -> Chunk | None:
        """Marks what gap blocks name; returns the chunk of all acknowledged that was sent last.

        Only what was not named before is looked at, and only what was sent: a block may claim
        65,535 TSNs and costs no more than a look-up.
        """
        base = self.cumulative
        last = self.next_tsn - 1
        order = -1 if newest is None else newest.order
        for at in range(0, len(blocks), 2):
            low = base + blocks[at]
            high = min(base + blocks[at + 1], last)
            if low <= base or low > high:
                continue
            if len(self._sacked) >= BLOCKS_MAX and self._sacked.is_new_range(low):
                continue
            for start, end in self._sacked.cover(low, high):
                highest = self._highest_acked
                for chunk in self._chunks[start - base - 1 : end - base]:
                    state = chunk.state
                    chunk.state = ACKED
                    if state == ABANDONED:
                        continue
                    if state == IN_FLIGHT:
                        self.flight -= chunk.size
                    self.acked_bytes += chunk.size
                    if chunk.order > order:
                        order = chunk.order
                        newest = chunk
                    if chunk.tsn < highest and chunk.sends == 1:
                        self.reordering.seen = True
                self._sacked_count += end - start + 1
                if end > highest:
                    self._highest_acked = end
        return newest

    def _duplicate(self, tsn: int) -> None:
        """Takes a TSN that arrived twice: if we sent it again, that was not needed."""
        ahead = (tsn - self.cumulative + TSN_HALF) & TSN_MASK
        number = self.cumulative + ahead - TSN_HALF
        if number not in self._retransmitted:
            return
        self._in_vain(number)
        self.reordering.in_vain(self._rack_order, self.next_order)

    def _in_vain(self, tsn: int) -> None:
        """Notes that a chunk had arrived, though late, when it was sent again.

        If that is so of all that was sent again since the episode began, then nothing was lost at
        all, and the reduction of the window is to be taken back (RFC 3522 in its effect).
        """
        if tsn not in self._retransmitted:
            return
        self._retransmitted.discard(tsn)
        self.spurious += 1
        if not self._retransmitted and not self.next_lost():
            self.undone = True
            self.episode = False

    def _measure(self, newest: Chunk, now: float) -> None:
        """Takes the round trip and the rate from the chunk that was sent last of those acked."""
        burst = newest.burst
        rtt = now - burst.at
        self.delivery.arrived(self.acked_bytes, now)
        if newest.sends > 1 and rtt < self.trip.minimum * 0.8:
            # The answer came too soon to be one to the retransmission (RFC 8985 section 6.2.2):
            # the first transmission had only been late.
            if self._timed_out:
                self._restore()
            self._in_vain(newest.tsn)
            return
        if newest.order > self._rack_order:
            self._rack_order = newest.order
            self._rack_rtt = rtt
        if newest.sends == 1:  # Karn's algorithm, RFC 9260 section 6.3.1 C5
            self.rtt_sample = rtt
            self.trip.measured(rtt, now)
        self.delivery.measure(burst, now, self.trip.minimum)

    def new_path(self) -> None:
        """Forgets the round trips: the packets take another path from now on."""
        self.trip = RoundTrip()
        self.reordering = Reordering()
        self.stall.answered()

    # --- losses -------------------------------------------------------------------------------

    def detect(self, now: float) -> bool:
        """Finds what is lost by now; returns whether that begins a new episode of losses.

        `lost_bytes` says how much it was. If something is only suspected, `reorder_at` says when
        to ask again.
        """
        self.lost_bytes = 0
        self.losses = False
        self.reorder_at = 0.0
        transmissions = self._transmissions
        newest = self._rack_order
        patience = self.reordering.patience(
            self.trip.minimum,
            self.trip.smoothed,
            certain=self.episode or self._sacked_count >= REORDER_CHUNKS,
        )
        begins = False
        enough = LOSSES_MAX
        while transmissions:
            order, chunk = transmissions[0]
            if chunk.state != IN_FLIGHT or chunk.order != order:
                transmissions.popleft()
                continue
            if order >= newest:
                break
            due = chunk.burst.at + self._rack_rtt + patience
            if due - now > CLOCK_ERROR:
                self.reorder_at = due
                break
            if not enough:
                self.reorder_at = now  # the rest in the next turn
                break
            enough -= 1
            transmissions.popleft()
            self._lose(chunk, now)
            begins = True
        if begins and not self.episode:
            self._retransmitted.clear()
            self._timed_out = False
            self.episode = True
            self.recovery_end = self.next_tsn - 1
            return True
        return False

    def _lose(self, chunk: Chunk, now: float) -> None:
        self.losses = True
        self.lost_bytes += chunk.size
        self.flight -= chunk.size
        chunk.state = LOST
        message = chunk.message
        if (0 <= message.retransmits < chunk.sends) or 0.0 < message.expiry < now:
            self.abandon(message, now)
            return
        self.lost.append(chunk)

    def _end_episode(self) -> None:
        self.episode = False
        self._timed_out = False
        self.reordering.recovered()

    def timeout(self, now: float) -> None:
        """Declares everything in flight lost: the retransmission timer has expired.

        Raises :class:`RemoteProtocolError` after too many in a row.
        """
        self.timeouts += 1
        self.timeouts_total += 1
        if self.timeouts > TIMEOUTS_MAX:
            raise RemoteProtocolError(
                f"the peer has acknowledged nothing through {TIMEOUTS_MAX} retransmissions",
                kind="sctp-timeout",
            )
        self.lost_bytes = 0
        if self.timeouts >= RENEGE_TIMEOUTS:
            self._forget_blocks()
        self.lost.clear()
        self._transmissions.clear()
        for chunk in self._chunks:
            if chunk.state == IN_FLIGHT:
                self._lose(chunk, now)
            elif chunk.state == LOST:
                self.lost.append(chunk)
        if not self.episode or self.timeouts == 1:
            self._retransmitted.clear()
        self.episode = True
        self._timed_out = True
        self.recovery_end = self.next_tsn - 1
        self.trip.back_off()
        self.reorder_at = self.probing.at = 0.0
        self.rto_at = now + self.trip.rto if len(self) else 0.0
        self._advance(now)
        if self.forwarding.point > self.cumulative:
            self.forwarding.at = now

    def _restore(self) -> None:
        """Takes the losses of a time-out back: an answer to what was sent before it has come."""
        self._timed_out = False
        again: list[tuple[int, Chunk]] = []
        for chunk in self._chunks:
            if chunk.state == LOST:
                chunk.state = IN_FLIGHT
                self.flight += chunk.size
                again.append((chunk.order, chunk))
        again.sort(key=lambda entry: entry[0])
        self._transmissions.extendleft(reversed(again))
        self.lost.clear()

    def _forget_blocks(self) -> None:
        """Takes what is acknowledged beyond gaps for lost; a datagram among it is given up."""
        for chunk in self._chunks:
            if chunk.state == ACKED:
                message = chunk.message
                if 0 <= message.retransmits < chunk.sends:
                    message.abandoned = True
                chunk.state = ABANDONED if message.abandoned else LOST
        self._sacked.clear()
        self._sacked_count = 0

    def probed(self, now: float) -> None:
        """Notes that a probe was sent. The time-out leaves it the time to be answered."""
        self.probing.sent(now, self.trip)
        self.rto_at = max(self.rto_at, now + self.probing.delay(self.trip, alone=False))

    # --- partial reliability ------------------------------------------------------------------

    def abandon(self, message: Message, now: float) -> None:
        """Gives up a message, some fragments of which have been sent (RFC 3758 section 3.5 A3)."""
        message.abandoned = True
        first = max(message.first_tsn - self.cumulative - 1, 0)
        for chunk in self._chunks[first : message.last_tsn - self.cumulative]:
            if chunk.message is not message:
                continue  # fragments of others are between those of an I-DATA message
            if chunk.state == IN_FLIGHT:
                self.flight -= chunk.size
            if chunk.state != ACKED:
                chunk.state = ABANDONED
        self._advance(now)

    def _advance(self, now: float) -> None:
        """Moves Advanced.Peer.Ack.Point over what was given up (RFC 3758 section 3.5 C2)."""
        forwarding = self.forwarding
        forwarding.acknowledged(self.cumulative)
        before = forwarding.point
        while forwarding.point + 1 < self.next_tsn:
            if not forwarding.may_skip(self._chunks[forwarding.point - self.cumulative]):
                break
        forwarding.settle(before, self.cumulative, now, self.trip)

    def forward(self, now: float) -> list[tuple[int, int, int]]:
        """Returns the entries for a FORWARD-TSN that is being sent now."""
        entries = self.forwarding.sent(now, self.trip)
        self.rto_at = self.rto_at or self.forwarding.at
        return entries
