"""A congestion controller that measures the path instead of waiting for losses. No clock, no I/O.

After BBR (draft-ietf-ccwg-bbr) in its main ideas: the bottleneck's rate is the largest that was
measured lately, the round trip without queues the smallest one; data is paced at that rate, and
about two bandwidth-delay products may be in flight. So losses by chance change nothing. Losses by
an overflowing queue do: when more than :data:`LOSS_MAX` of a round trip's data is lost, `ceiling`
bounds what is in flight from then on, and is probed upwards again once a cycle::

    STARTUP --the rate has stopped growing, or too much is lost--> DRAIN
       DRAIN --what is in flight fits the path--> PROBE_BW, phases of one round trip each:
         UP (1.25 times the rate), DOWN (0.75), six times CRUISE (1.0)
       any --no smaller round trip for 10 s--> PROBE_RTT for 0.2 s --> PROBE_BW,
         or STARTUP if the rate was never found
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

BATCH_PACKETS: Final = 64
"""Packets that may be in flight beyond the computed window, because a peer acknowledges batches."""


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
        "_probe_until",
        "_rates",
        "_round",
        "_round_acked",
        "_round_lost",
        "_state",
        "conserves",
        "pacing_rate",
        "window",
    )

    def __init__(self, packet_size: int) -> None:
        self.conserves = False
        self._mss = packet_size
        self.window = INITIAL_PACKETS * packet_size
        self.pacing_rate = 0.0
        self._state = STARTUP
        self._gain = STARTUP_GAIN
        self._rates: deque[tuple[int, float]] = deque()
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
        self._round_acked = 0
        self._round_lost = 0
        self._ceiling = float(WINDOW_BYTES_MAX)

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
        if event.rate and (not event.app_limited or event.rate > self.rate):
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
        if self._state == DRAIN and event.flight <= bdp:
            self._cycle(PROBE_BW, event.now, 2)
        elif self._state == PROBE_BW and event.now - self._phase_at > self._min_rtt:
            self._next_phase(event, bdp)
        elif self._state == PROBE_RTT and event.now > self._probe_until:
            self._min_rtt_at = event.now
            if self._full:
                self._cycle(PROBE_BW, event.now, 2)
            else:
                self._state = STARTUP
                self._gain = STARTUP_GAIN
        self._set(event, bdp)

    def _measured(self, rate: float) -> None:
        """Takes a rate into the filter, whose first entry is the largest."""
        rates = self._rates
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((self._round, rate))

    def _watch_rtt(self, event: Acked) -> None:
        rtt = event.rtt
        if not rtt:
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
                self._probe_until = event.now + max(PROBE_RTT_TIME, event.srtt)
                self._min_rtt = rtt
            else:
                self._min_rtt = min(self._min_rtt, rtt)

    def _judge_losses(self, flight: int) -> None:
        """Bounds what may be in flight, if a queue overflowed in the round trip that is over."""
        lost, acked = self._round_lost, self._round_acked
        self._round_lost = self._round_acked = 0
        if lost >= LOSS_PACKETS_MIN * self._mss and lost > LOSS_MAX * (lost + acked):
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
        if gain > 1 and self._ceiling < WINDOW_BYTES_MAX:
            self._ceiling = min(self._ceiling * CEILING_GROWTH, float(WINDOW_BYTES_MAX))
        self._cycle(PROBE_BW, event.now, (self._phase + 1) % len(CYCLE))

    def _set(self, event: Acked, bdp: float) -> None:
        mss = self._mss
        floor = WINDOW_PACKETS_MIN * mss
        if not bdp:
            self.window = min(self.window + event.acked, WINDOW_BYTES_MAX)
        else:
            if self._state == PROBE_RTT:
                target = max(PROBE_RTT_GAIN * bdp, floor)
            else:
                gain = STARTUP_GAIN if self._state == STARTUP else WINDOW_GAIN
                target = min(gain * bdp + BATCH_PACKETS * mss, self._ceiling)
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

    def congestion(self, now: float, flight: int) -> None:
        """A single loss means nothing here; see `lost` of :class:`Acked`."""

    def timeout(self, now: float, flight: int) -> None:  # noqa: ARG002 - the interface's
        """Starts from one packet; what was measured is kept."""
        self.window = self._mss

    def undo(self) -> None:
        """The window was reduced by nothing that has to be taken back."""
