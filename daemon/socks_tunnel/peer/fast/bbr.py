"""A congestion controller that measures the path instead of waiting for losses. No clock, no I/O.

After BBR (draft-ietf-ccwg-bbr) in its main ideas: the bottleneck's rate is the largest that was
measured lately, the round trip without queues the smallest one; data is paced at that rate, and
about two bandwidth-delay products may be in flight. So losses by chance change nothing. Losses by
an overflowing queue do: when more than :data:`LOSS_MAX` of a round trip's data is lost, `ceiling`
bounds what is in flight from then on, and is probed upwards again once a cycle::

    STARTUP --the rate has stopped growing, or too much is lost--> DRAIN
       DRAIN --what is in flight fits the path--> PROBE_BW, phases of one round trip each:
         UP (1.25 times the rate), DOWN (0.75, until the queue is gone), six times CRUISE (1.0)
       any --no smaller round trip for 10 s--> PROBE_RTT, until half of the product was in flight
         for 0.2 s and a round trip --> PROBE_BW, or STARTUP if the rate was never found
"""

from collections import deque
from typing import Final

from socks_tunnel.peer.fast.congestion import (
    INITIAL_PACKETS,
    PACING_RTT_MIN,
    WINDOW_BYTES_MAX,
    WINDOW_PACKETS_MIN,
    Acked,
)

STARTUP: Final = 0
DRAIN: Final = 1
PROBE_BW: Final = 2
PROBE_RTT: Final = 3

STARTUP_GAIN: Final = 2.77
"""4 ln 2: the smallest with which the rate can double each round trip."""
CYCLE: Final[tuple[float, ...]] = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
DOWN_ROUNDS_MAX: Final = 4
"""Round trips for which DOWN lasts at most while more is in flight than the path holds: the rate
must not be measured by what is sent in DOWN alone."""
WINDOW_GAIN: Final = 2.0
MARGIN: Final = 0.99
"""The pacing rate stays this much below what was measured, so that a queue can drain."""

RATE_ROUNDS: Final = 10
"""Round trips for which a measured rate counts."""
FULL_ROUNDS: Final = 3
FULL_GROWTH: Final = 1.25
"""The path is full when the rate has grown less than this through FULL_ROUNDS round trips."""

LOSS_MAX: Final = 0.05
"""Share of a round trip's data, lost by chance, that is put up with."""
LOSS_PACKETS_MIN: Final = 8
"""Lost packets in a round trip below which no share is computed."""
CEILING_CUT: Final = 0.7
CEILING_GROWTH: Final = 1.25

PROBE_RTT_INTERVAL: Final = 10.0
PROBE_RTT_TIME: Final = 0.2
PROBE_RTT_GAIN: Final = 0.5

BATCH_PACKETS_MIN: Final = 3
BATCH_PACKETS_MAX: Final = 64
BATCH_TIME: Final = 0.02
"""What may be in flight beyond the computed window, because a peer acknowledges batches: as much as
the path carries in so many seconds, within these bounds. A slow path would only queue the rest."""


class Bbr:
    """See the top of this file. All rates are in bytes a second."""

    __slots__ = (
        "_ceiling",
        "_full",
        "_full_rate",
        "_full_rounds",
        "_gain",
        "_min_rtt",
        "_min_rtt_at",
        "_mss",
        "_phase",
        "_phase_at",
        "_probe_drained",
        "_probe_rtt",
        "_probe_until",
        "_rates",
        "_round",
        "_round_acked",
        "_round_lost",
        "_state",
        "_undo_ceiling",
        "_undo_full",
        "conserves",
        "one_way",
        "pacing_rate",
        "window",
    )

    def __init__(self, packet_size: int) -> None:
        self.one_way = False
        self.conserves = False
        self._mss = packet_size
        self.window = INITIAL_PACKETS * packet_size
        self.pacing_rate = 0.0
        self._state = STARTUP
        self._gain = STARTUP_GAIN
        self._rates: deque[tuple[int, float]] = deque()
        """Rounds and rates, both strictly falling in age and size: at most RATE_ROUNDS + 1."""
        self._round = 0
        self._full = False
        """Whether the rate of the path was found."""
        self._full_rate = 0.0
        self._full_rounds = 0
        self._min_rtt = 0.0
        self._min_rtt_at = 0.0
        self._phase = 0
        self._phase_at = 0.0
        self._probe_until = 0.0
        """When PROBE_RTT is over; 0 while the queue of before has not left the path yet."""
        self._probe_drained = 0.0
        """When what was in flight before PROBE_RTT has left the path in any case."""
        self._probe_rtt = 0.0
        """The smallest round trip of this PROBE_RTT; 0 before the first."""
        self._round_acked = 0
        self._round_lost = 0
        self._ceiling = float(WINDOW_BYTES_MAX)
        self._undo_ceiling = 0.0
        """`_ceiling` from before the losses of this episode lowered it; 0 if they have not."""
        self._undo_full = True
        """`_full` from before the losses of this episode ended STARTUP."""

    def set_packet_size(self, size: int) -> None:
        """Learns the size of a full packet."""
        self._mss = size

    @property
    def rate(self) -> float:
        """The largest rate that was measured lately; 0 before the first."""
        return self._rates[0][1] if self._rates else 0.0

    def acknowledged(self, event: Acked) -> None:
        """Takes the measurements of a SACK and sets window and pace."""
        self._round_acked += event.acked
        self._round_lost += event.lost
        # So little is in flight in PROBE_RTT that what arrives says nothing of the path.
        limited = event.app_limited or self._state == PROBE_RTT
        if event.rate and (not limited or event.rate > self.rate):
            self._measured(event.rate)
        self._watch_rtt(event)
        if event.round_start:
            self._round += 1
            while len(self._rates) > 1 and self._rates[0][0] <= self._round - RATE_ROUNDS:
                self._rates.popleft()
            self._judge_losses(event.flight)
            if self._state == STARTUP and not event.app_limited:
                self._check_full()
        # A pacer on timers of a millisecond needs more in flight than a path of less than that.
        bdp = self.rate * max(self._min_rtt, PACING_RTT_MIN)
        floor = WINDOW_PACKETS_MIN * self._mss
        if self._state == DRAIN and event.flight <= max(bdp, floor):
            self._cycle(PROBE_BW, event.now, 2)
        elif self._state == PROBE_BW and event.now - self._phase_at > self._min_rtt:
            self._next_phase(event, bdp)
        elif self._state == PROBE_RTT:
            self._watch_probe(event, max(PROBE_RTT_GAIN * bdp, floor))
        self._set(event, bdp)

    def _measured(self, rate: float) -> None:
        """Takes a rate into the filter, whose first entry is the largest."""
        rates = self._rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        if not rates or rates[-1][0] != self._round:  # a smaller one of a round never counts
            rates.append((self._round, rate))

    def _watch_rtt(self, event: Acked) -> None:
        rtt = event.rtt
        if rtt <= 0:
            return
        if not self._min_rtt or rtt <= self._min_rtt:
            self._min_rtt = rtt
            self._min_rtt_at = event.now
        elif event.now - self._min_rtt_at > PROBE_RTT_INTERVAL:
            if event.app_limited:
                # With so little in flight, this round trip is one without a queue of ours.
                self._min_rtt = rtt
                self._min_rtt_at = event.now
            elif self._state != PROBE_RTT:
                self._state = PROBE_RTT
                self._gain = 1.0
                self._probe_until = self._probe_rtt = 0.0
                self._probe_drained = event.now + 2 * event.srtt

    def _watch_probe(self, event: Acked, target: float) -> None:
        """Waits until no queue of ours is left in the path, then for the round trip without it.

        The round trip of before counts until then: with the one that has a queue in it, half of
        the product would be more than the path holds, and the queue would stay for good.
        """
        now = event.now
        if not self._probe_until:
            # The sender may be a packet above the window, and urgent messages more than that.
            if event.flight > target + self._mss and now < self._probe_drained:
                return
            self._probe_until = now + max(PROBE_RTT_TIME, event.srtt)
        if event.rtt > 0 and (not self._probe_rtt or event.rtt < self._probe_rtt):
            self._probe_rtt = event.rtt
        if now <= self._probe_until or not self._probe_rtt:
            return
        self._min_rtt = self._probe_rtt
        self._min_rtt_at = now
        if self._full:
            self._cycle(PROBE_BW, now, 2)
        else:
            self._state = STARTUP
            self._gain = STARTUP_GAIN

    def _judge_losses(self, flight: int) -> None:
        """Bounds what may be in flight, if a queue overflowed in the round trip that is over."""
        lost, acked = self._round_lost, self._round_acked
        self._round_lost = self._round_acked = 0
        if lost >= LOSS_PACKETS_MIN * self._mss and lost > LOSS_MAX * (lost + acked):
            if not self._undo_ceiling:
                self._undo_ceiling, self._undo_full = self._ceiling, self._full
            self._ceiling = max(
                CEILING_CUT * min(self._ceiling, max(flight, acked)),
                float(WINDOW_PACKETS_MIN * self._mss),
                self.rate * self._min_rtt * CEILING_CUT,
            )
            if self._state == STARTUP:
                self._drain()

    def _check_full(self) -> None:
        rate = self.rate
        if rate > self._full_rate * FULL_GROWTH:
            self._full_rate = rate
            self._full_rounds = 0
            return
        self._full_rounds += 1
        if self._full_rounds >= FULL_ROUNDS:
            self._drain()

    def _drain(self) -> None:
        self._full = True
        self._state = DRAIN
        self._gain = 1 / STARTUP_GAIN

    def _cycle(self, state: int, now: float, phase: int) -> None:
        self._state = state
        self._phase = phase
        self._phase_at = now
        self._gain = CYCLE[phase]

    def _next_phase(self, event: Acked, bdp: float) -> None:
        gain = CYCLE[self._phase]
        if gain > 1 and not self._round_lost and event.flight < min(gain * bdp, self._ceiling):
            return  # the probe has not filled the path yet
        if (
            gain < 1
            and event.flight > max(bdp, WINDOW_PACKETS_MIN * self._mss) + self._mss
            and event.now - self._phase_at < DOWN_ROUNDS_MAX * self._min_rtt
        ):
            return  # there is still a queue of ours
        if gain > 1 and self._ceiling < WINDOW_BYTES_MAX:
            self._ceiling = min(self._ceiling * CEILING_GROWTH, float(WINDOW_BYTES_MAX))
        self._cycle(PROBE_BW, event.now, (self._phase + 1) % len(CYCLE))

    def _set(self, event: Acked, bdp: float) -> None:
        mss = self._mss
        floor = WINDOW_PACKETS_MIN * mss
        if not bdp:
            limit = max(int(self._ceiling), floor)
            self.window = min(self.window + event.acked, limit)
        else:
            if self._state == PROBE_RTT:
                target = max(PROBE_RTT_GAIN * bdp, floor)
            else:
                batch = min(self.rate * BATCH_TIME, float(BATCH_PACKETS_MAX * mss))
                batch = max(batch, float(BATCH_PACKETS_MIN * mss))
                target = min(WINDOW_GAIN * bdp + batch, self._ceiling)
            grown = self.window + event.acked
            if self._state != STARTUP:
                grown = min(grown, int(target))
            elif grown > target:
                grown = max(self.window, int(target))
            self.window = min(max(grown, floor), WINDOW_BYTES_MAX)
        if self._state == STARTUP:
            # The first measurements are of a few packets, and say too little of the path.
            self.pacing_rate = self._gain * max(self.rate, self.window / max(event.srtt, 0.001))
        else:
            self.pacing_rate = self._gain * self.rate * MARGIN

    def congestion(self, now: float, flight: int) -> None:  # noqa: ARG002 - the interface's
        """Begins another episode. One loss means nothing here; see `lost` of :class:`Acked`."""
        self._undo_ceiling = 0.0

    def timeout(self, now: float, flight: int) -> None:  # noqa: ARG002 - the interface's
        """Starts from one packet; what was measured is kept."""
        self.window = self._mss

    def undo(self) -> None:
        """Takes back what the losses of this episode have lowered."""
        self._round_lost = 0
        if not self._undo_ceiling:
            return
        self._ceiling = max(self._ceiling, self._undo_ceiling)
        self._undo_ceiling = 0.0
        if not self._undo_full and self._state != PROBE_RTT:
            self._full = False
            self._full_rounds = 0
            self._state = STARTUP
            self._gain = STARTUP_GAIN
