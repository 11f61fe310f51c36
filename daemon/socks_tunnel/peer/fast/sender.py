"""The sending half of an association's data path: what is sent, and when. No I/O, no clock.

What may be sent now is the smallest of the congestion window, what recovery allows (proportional
rate reduction, RFC 9937), what the peer's receive window allows, and the pacer. What is sent is
decided in this order: chunks that the receiving half wants to send (SACK), FORWARD-TSN, control
messages and datagrams, what was lost, then new fragments as the scheduler picks them. How they are
put into packets is in :mod:`socks_tunnel.peer.fast.packing`.

Control messages and datagrams wait neither for the pacer nor for the congestion window; see
:mod:`socks_tunnel.peer.fast.urgent`.
"""

from typing import Final

from socks_tunnel.peer.fast.congestion import Acked, Controller
from socks_tunnel.peer.fast.limits import message_limit, queue_limit
from socks_tunnel.peer.fast.pacer import Pacer
from socks_tunnel.peer.fast.packing import Packing
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.recovery import OUTSTANDING_MAX
from socks_tunnel.peer.fast.reduction import Reduction
from socks_tunnel.peer.fast.urgent import URGENT_PACKETS, UrgentWindow
from socks_tunnel.peer.fast.wayback import WayBack
from socks_tunnel.peer.fast.wire import PACKET_HEADER, forward_tsn

BURST_PACKETS: Final = 64
"""Packets that are sent in one turn: what one UDP GSO call takes."""

UNKNOWN: Final = -1.0
"""For how long a SACK has waited on the way back if it was not stamped."""

SLOW_RATE: Final = 200_000
SLOW_RATE_MAX: Final = 350_000
"""Bytes a second up to which the ways are told apart wholly, and from which on they are not. On
faster paths a packet takes little time, and a TCP beside us cannot tell the ways apart."""

WAIT_SHARE: Final = 0.55
"""Part of a round trip that is believed to be wait on the way back; it is seldom more where both
ways have the same queue. If all was believed, a sender would take no queue for its own, and push
others aside for a peer whose stamps lie."""

CREDIT_WINDOWS: Final = WAIT_SHARE / (1 - WAIT_SHARE)
"""Windows beyond the window that may be in flight because SACKs wait on the way back."""

TOP_UP_PACKETS: Final = 2
"""Packets beyond what window and pacer let go from which on urgent messages travel without bulk:
one that may be beyond it anyway, and one for a message that follows another at once."""


class Sender(Packing):
    """One association as sender: what may be sent, and when."""

    def __init__(self, initial_tsn: int, controller: Controller, packet_size: int) -> None:
        super().__init__(initial_tsn, controller, packet_size)
        self.partial_reliability = False
        self.peer_window = 0
        """a_rwnd of the last SACK, or of the peer's INIT."""
        self.more = False
        """Whether the last transmission ended only because enough had been sent for one turn."""
        self.pacer = Pacer()
        self.rate = 0.0
        """Bytes a second that the peer has acknowledged lately; 0 if unknown."""
        self._reduction = Reduction()
        self._urgent = UrgentWindow()
        self._acked = Acked()
        self._lost = 0
        """Bytes found to be lost since the controller was told last: by SACKs and by timers."""
        self.way_back = WayBack()
        self.credit = 0
        """Bytes that have arrived, but whose SACKs wait on the way back. They are in flight, but
        neither on the way there nor in its queue, so they are beyond the window."""
        self.sacks_received = 0

    # --- limits for whoever fills the queue -------------------------------------------------------

    @property
    def queue_limit(self) -> int:
        """Bytes that should wait in the queue at most: about one bandwidth-delay product."""
        return queue_limit(self.controller.window, self.rate, self.recovery.trip.minimum)

    @property
    def message_limit(self) -> int:
        """Bytes of the largest message that holds nobody up for long."""
        return message_limit(0.0 if self.interleaved else self.rate)

    # --- SACKs ----------------------------------------------------------------------------------

    def receive_sack(
        self,
        cumulative: int,
        window: int,
        blocks: tuple[int, ...],
        duplicates: tuple[int, ...],
        now: float,
        waited: float = UNKNOWN,
    ) -> None:
        """Takes a SACK; the fields are those of the chunk (RFC 9260 section 3.3.4).

        It has `waited` for so many seconds on the way back.
        """
        recovery = self.recovery
        flight = recovery.flight
        if not recovery.sack(cumulative, blocks, duplicates, now):
            return
        self.sacks_received += 1
        self.peer_window = window
        if not window:
            # RFC 9260 section 6.1 A: a peer that answers probes of its closed window is alive.
            recovery.timeouts = 0
        acked = recovery.acked_bytes
        if recovery.undone:
            self.controller.undo()
        if recovery.detect(now):
            self._enter_recovery(now, flight)
        self._lost += recovery.lost_bytes
        if not acked and not recovery.losses:
            return
        event = self._acked
        event.now = now
        event.acked = acked
        event.lost, self._lost = self._lost, 0
        event.flight = max(flight - self.credit, 0)
        event.in_recovery = recovery.episode and self._reduction.active
        event.paced = self.pacer.until > 0
        event.rtt = recovery.rtt_sample
        event.srtt = recovery.trip.smoothed
        event.min_rtt = recovery.trip.minimum
        event.rate = recovery.delivery.rate
        event.app_limited = recovery.delivery.limited
        event.round_start = recovery.delivery.round_start
        self._split_trip(event, waited)
        self.controller.acknowledged(event)
        if recovery.delivery.rate and (
            recovery.delivery.rate > self.rate or not recovery.delivery.limited
        ):
            self.rate += (recovery.delivery.rate - self.rate) / (8 if self.rate else 1)
        self._reduce(acked, safe=recovery.moved and not recovery.losses)

    def _split_trip(self, event: Acked, waited: float) -> None:
        """Tells the way there from the wait on the way back, where SACKs are stamped."""
        rtt = event.there = event.rtt
        slow = (SLOW_RATE_MAX - self.rate) / (SLOW_RATE_MAX - SLOW_RATE)
        event.slow = min(max(slow, 0.0), 1.0) if self.rate and self.controller.one_way else 0.0
        if rtt and self.way_back.known:
            if waited >= rtt:
                # No SACK waits for longer than the whole round trip has taken.
                self.way_back.restart(event.now)
                waited = 0.0
            waited = min(waited, WAIT_SHARE * rtt)
            event.there = rtt - event.slow * waited if waited >= 0 else 0.0
        if event.there:
            limit = int(CREDIT_WINDOWS * self.controller.window)
            self.credit = min(int(self.rate * (rtt - event.there)), limit)
        event.credit = self.credit

    def new_path(self, controller: Controller) -> None:
        """Starts anew with what depends on the path."""
        self.recovery.new_path()
        self.controller = controller
        self.rate = 0.0
        self.way_back = WayBack()
        self.credit = 0

    def _enter_recovery(self, now: float, flight: int) -> None:
        self._reduction.begin(flight)
        self.controller.congestion(now, flight)

    def _reduce(self, acked: int, *, safe: bool) -> None:
        """Computes what may be sent in an episode after a SACK, or after losses were found."""
        reduction, recovery = self._reduction, self.recovery
        reduction.active = reduction.active and recovery.episode
        if reduction.active:
            window, packet = self.controller.window + self.credit, self.packet_size
            reduction.delivered(
                acked, flight=recovery.flight, window=window, packet=packet, safe=safe
            )

    # --- timers -----------------------------------------------------------------------------------

    @property
    def wake_at(self) -> float:
        """When :meth:`timer` has something to do; 0 if never."""
        recovery = self.recovery
        due = self.pacer.until
        probe_at, forward_at = recovery.probing.at, recovery.forwarding.at
        stall_at = recovery.stall.at
        for at in (recovery.reorder_at, probe_at, recovery.rto_at, forward_at, stall_at):
            if at and (not due or at < due):
                due = at
        return due

    def timer(self, now: float) -> list[bytes]:
        """Does what is due. Returns a probe, to be sent whatever the window says."""
        recovery = self.recovery
        if now >= self.pacer.until:
            self.pacer.until = 0.0
        if recovery.stall.at:
            recovery.stall.look(now)
        if recovery.rto_at and now >= recovery.rto_at:
            flight = recovery.flight
            if flight and self.peer_window:
                self.controller.timeout(now, flight)
            self.credit = 0
            drain = flight / self.rate if self.rate else 0.0
            recovery.stall.timed_out(now, recovery.trip.rto, drain)
            self._reduction.end()
            recovery.timeout(now)
            return []
        if recovery.reorder_at and now >= recovery.reorder_at:
            flight = recovery.flight
            if recovery.detect(now):
                self._enter_recovery(now, flight)
            self._lost += recovery.lost_bytes
            if recovery.losses:
                self._reduce(0, safe=False)
        if recovery.probing.at and now >= recovery.probing.at:
            if self.peer_window:
                return self._probe(now)
            recovery.probing.at = 0.0  # a closed window is probed by the time-out
        return []

    def _probe(self, now: float) -> list[bytes]:
        """Breaks the silence by a chunk that was sent before, or else by a FORWARD-TSN."""
        recovery = self.recovery
        chunk = recovery.probe()
        if chunk is None:
            if recovery.flight > URGENT_PACKETS * self.packet_size:
                # More than anybody may send unasked was lost, or its SACKs were.
                self.controller.congestion(now, recovery.flight)
            recovery.give_up(now)
            recovery.probed(now)
            return []
        recovery.resent(chunk, recovery.burst(now))
        recovery.probed(now)
        packets: list[bytes] = []
        parts: list[bytes] = []
        self.put(chunk, parts)
        self.finish(parts, packets)
        return packets

    # --- packets ----------------------------------------------------------------------------------

    def transmit(self, now: float, first: bytes = b"") -> list[bytes]:
        """Returns the packets that may be sent now, at most BURST_PACKETS and one.

        `first` are chunks that go into the first packet in any case (a SACK). If `more` is true
        then, call it again in the next turn; `wake_at` covers what the pacer holds back.
        """
        recovery = self.recovery
        packets: list[bytes] = []
        parts: list[bytes] = [first] if first else []
        room = self.packet_size - PACKET_HEADER - len(first)
        forward = 0.0 < recovery.forwarding.at <= now
        if forward:
            entries = recovery.forward(now)
            chunk = forward_tsn(recovery.forwarding.point, entries, interleaved=self.interleaved)
            if len(chunk) > room:
                self.finish(parts, packets)
                room = self.packet_size - PACKET_HEADER
            parts.append(chunk)
            room -= len(chunk)
        allowance = self._allowance(now)
        flight, quota = recovery.flight, self._quota()
        urgent, sparse = self.scheduler.urgent, self._may_send_sparse(quota)
        if (
            urgent
            or forward
            or sparse
            or (allowance > 0 and (self.scheduler.queued or recovery.lost))
        ):
            burst = recovery.burst(now)
            if urgent:
                room = self._send_urgent(now, burst, allowance, packets, parts, room)
            if (forward or recovery.flight > flight) and self._may_top_up(now, quota):
                room = self.fill_rest(now, burst, packets, parts, room)
            allowance -= recovery.flight - flight
            if allowance > 0 and recovery.lost:
                before = recovery.flight
                room = self.retransmit(burst, allowance, packets, parts, room)
                allowance -= recovery.flight - before
            if allowance > 0 and self.scheduler.queued and not recovery.lost:
                self.fill(now, burst, allowance, packets, parts, room, self.scheduler.pick)
            elif sparse and recovery.flight - flight < self.packet_size:
                self.fill(now, burst, 1, packets, parts, room, self.scheduler.pick_sparse)
        if parts:
            self.finish(parts, packets)
        sent = recovery.flight - flight
        if sent > 0:
            self._reduction.sent(sent)
            recovery.transmitted(now)
            rate = self.controller.pacing_rate
            if rate:
                self.pacer.sent(now, rate, sent)
        return packets

    def _send_urgent(
        self,
        now: float,
        burst: Burst,
        allowance: int,
        packets: list[bytes],
        parts: list[bytes],
        room: int,
    ) -> int:
        """Puts control messages and datagrams into packets; returns the room left in the last."""
        recovery = self.recovery
        first, flight = recovery.next_tsn, recovery.flight
        # As in _allowance: never more than fits the peer.
        fits = self.peer_window - flight - self.packet_size + 1
        own = min(self._urgent.room(self.packet_size), fits)
        limit = max(allowance, own if len(recovery) < OUTSTANDING_MAX else 0)
        if limit > 0:
            pick = self.scheduler.pick_urgent
            room = self.fill(now, burst, limit, packets, parts, room, pick)
            if recovery.flight - flight > allowance:
                self._urgent.sent(recovery.since(first))
        return room

    def _may_send_sparse(self, quota: int) -> bool:
        """Returns whether a small message of a quiet stream may go beyond the window and the pacer.

        What is beyond it is a packet at most, as in RFC 3042, and the bulk makes room for it.
        """
        recovery = self.recovery
        return (
            self.scheduler.has_new
            and quota > -self.packet_size
            and recovery.flight + self.packet_size <= self.peer_window
            and len(recovery) < OUTSTANDING_MAX
        )

    def _may_top_up(self, now: float, quota: int) -> bool:
        """Returns whether bulk may fill a packet that waits for no window.

        That is one of an urgent message or of a FORWARD-TSN; `quota` is from before it. A full
        queue may have room for the large packets of the bulk and none for small ones, for instance
        if it counts what waits in packets of the size of the one that comes. In a full packet, the
        message goes where the bulk goes.
        """
        recovery, packet = self.recovery, self.packet_size
        beyond = TOP_UP_PACKETS * packet
        rate = self.controller.pacing_rate
        return (
            self.interleaved
            and self.scheduler.queued > 0
            and not recovery.lost
            and quota > -beyond
            and (not rate or self.pacer.ahead(now, rate, packet) < beyond)
            and recovery.flight + packet <= self.peer_window
            and len(recovery) < OUTSTANDING_MAX
        )

    def settle(self) -> None:
        """Ends a turn, after the owner had its chance to queue more.

        If nothing waits although more might be in flight, then it is the owner who has too little
        to send, not the path: what is measured of what is in flight now says little of the path.
        """
        recovery = self.recovery
        if not self.scheduler.queued and not recovery.lost:
            self.more = False
            self.pacer.rested = True
            if recovery.flight < self.controller.window + self.credit:
                recovery.delivery.limited_until = recovery.delivery.delivered + max(
                    recovery.flight, 1
                )

    def _quota(self) -> int:
        """Returns how many bytes congestion control lets go now; below 0 if too many have gone."""
        if self._reduction.active and self.recovery.episode and self.controller.conserves:
            return self._reduction.quota
        return self.controller.window + self.credit - self.recovery.flight

    def _allowance(self, now: float) -> int:
        """Returns how many bytes may be added to what is in flight now."""
        recovery = self.recovery
        flight = recovery.flight
        self.more = False
        self.pacer.until = 0.0
        if not self.scheduler.queued and not recovery.lost:
            return 0
        allowance = self._quota()
        # What is sent may be a packet more than is allowed here, but never more than fits the peer.
        fits = self.peer_window - flight - self.packet_size + 1
        if fits < allowance:
            allowance = fits
            # RFC 9260 section 6.1 A: with a closed window one chunk may be in flight, as a probe.
            if allowance <= 0 and not flight:
                return 1
        if allowance <= 0 or len(recovery) >= OUTSTANDING_MAX:
            return 0
        rate = self.controller.pacing_rate
        if rate:
            quantum = self.pacer.quantum(now, rate, self.packet_size, idle=not flight)
            if not quantum:
                return 0
            if quantum < allowance:
                self.more = True
                allowance = int(quantum)
        burst = BURST_PACKETS * (self.packet_size - PACKET_HEADER)
        if allowance > burst:
            self.more = True
            return burst
        return allowance
