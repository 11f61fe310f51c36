"""The default congestion controller: CUBIC with HyStart++. Neither clock nor I/O."""

from typing import Final

from socks_tunnel.peer.fast.congestion import (
    INITIAL_PACKETS,
    PACING_RTT_MIN,
    WINDOW_BYTES_MAX,
    WINDOW_PACKETS_MIN,
    Acked,
)
from socks_tunnel.peer.fast.standing import StandingQueue

CUBIC_C: Final = 0.4
CUBIC_BETA: Final = 0.7
SLOW_START_BETA: Final = 0.5
"""What a loss in slow start leaves of the window, as in Reno."""
CUBIC_ALPHA: Final = 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA)

HYSTART_SAMPLES: Final = 8
"""RTT samples of a round before it is judged (RFC 9406 section 4.3)."""
BATCH_SAMPLES: Final = 2
"""What a SACK for at least four packets counts for."""
HYSTART_ETA_MIN: Final = 0.004
HYSTART_ETA_MAX: Final = 0.016
CSS_DIVISOR: Final = 4
CSS_ROUNDS: Final = 5


class Cubic:
    """CUBIC (RFC 9438) with HyStart++ (RFC 9406), paced where the round trip is long enough.

    It grows only as long as its own queue in the path is short (:class:`StandingQueue`). On a slow
    path, round trips count without what SACKs wait on the way back
    (:mod:`socks_tunnel.peer.fast.wayback`).
    """

    __slots__ = (
        "_css_baseline",
        "_css_rounds",
        "_epoch",
        "_estimate",
        "_k",
        "_last_ack",
        "_mss",
        "_prior",
        "_round_min",
        "_round_min_last",
        "_round_samples",
        "_ssthresh_before",
        "_standing",
        "_w_max",
        "conserves",
        "one_way",
        "pacing_rate",
        "ssthresh",
        "window",
    )

    def __init__(self, packet_size: int) -> None:
        self.conserves = True
        self.one_way = True
        self.pacing_rate = 0.0
        self._mss = packet_size
        self.window = INITIAL_PACKETS * packet_size
        self.ssthresh = WINDOW_BYTES_MAX
        self._w_max = 0.0
        self._k = 0.0
        self._epoch = 0.0
        self._estimate = 0.0
        self._last_ack = 0.0
        self._prior: tuple[int, int, float] | None = None
        self._round_min = 0.0
        self._round_min_last = 0.0
        self._round_samples = 0
        self._css_rounds = 0
        self._css_baseline = 0.0
        self._standing = StandingQueue()
        self._ssthresh_before = 0

    def set_packet_size(self, size: int) -> None:
        """Learns the size of a full packet. The window stays what it is in bytes."""
        self._mss = size
        self.window = max(self.window, 2 * size)

    @property
    def slow_start(self) -> bool:
        """Whether the window still grows by all that is acknowledged."""
        return self.window < self.ssthresh

    def acknowledged(self, event: Acked) -> None:
        """Grows the window."""
        now = event.now
        since, self._last_ack = now - self._last_ack, now
        slow = self.window < self.ssthresh
        full = 2 * event.flight if slow else event.flight + 3 * self._mss
        # What the pacer holds back is there to be sent, too. If the first round trip was measured
        # on a busy host, it paces far below the window, and would go on so.
        limited = full < self.window and not event.paced
        if slow and not limited:
            self._hystart(event)
            slow = self.window < self.ssthresh
        factor = self._standing.judge(
            event, self.window, packet=self._mss, slow_start=slow, limited=limited
        )
        if factor != 1.0:
            self._correct(factor)
        elif self._standing.holds:
            if self._epoch:
                self._epoch += since
        elif not event.in_recovery:
            if limited:
                # RFC 9438 section 4.2 with 5.8: time without enough to send is no time to grow in.
                if self._epoch:
                    self._epoch += since
            elif slow:
                grow = event.acked // CSS_DIVISOR if self._css_rounds else event.acked
                self.window = min(self.window + grow, WINDOW_BYTES_MAX)
            else:
                self._avoid(event)
        self._pace(event)

    def _correct(self, factor: float) -> None:
        """Changes the window by what is known of our own queue in the path."""
        before = self.window
        # After a time-out the window is below its floor, and no cut may raise it.
        floor = min(WINDOW_PACKETS_MIN * self._mss, before)
        self.window = min(max(int(before * factor), floor), WINDOW_BYTES_MAX)
        self._epoch = 0.0
        if factor < 1:
            self._w_max = before / self._mss
            self._ssthresh_before = self.ssthresh
            self.ssthresh = self.window
        else:  # what was cut is given back
            self._w_max = max(self._w_max, self.window / self._mss)
            self.ssthresh = max(self._ssthresh_before, self.window)
            self._ssthresh_before = 0

    def _avoid(self, event: Acked) -> None:
        """Grows the window in congestion avoidance (RFC 9438 section 4)."""
        mss = self._mss
        cwnd = self.window / mss
        if not self._epoch:
            self._epoch = event.now
            self._estimate = cwnd
            if self._w_max > cwnd:
                self._k = ((self._w_max - cwnd) / CUBIC_C) ** (1 / 3)
            else:
                self._k = 0.0
                self._w_max = cwnd
        elapsed = event.now - self._epoch
        segments = event.acked / mss
        # Section 4.3: what Reno would have, with the slope that makes both take the same share.
        alpha = CUBIC_ALPHA if self._estimate < self._w_max else 1.0
        self._estimate += alpha * segments / cwnd
        target = self._w_max + CUBIC_C * (elapsed + event.srtt - self._k) ** 3
        target = min(max(target, cwnd), 1.5 * cwnd)
        grown = cwnd + (target - cwnd) / cwnd * segments
        if self._w_max + CUBIC_C * (elapsed - self._k) ** 3 < self._estimate:
            grown = max(grown, self._estimate)
        # The floating-point number may lie below the window that it came from.
        self.window = max(self.window, min(int(grown * mss), WINDOW_BYTES_MAX))

    def _hystart(self, event: Acked) -> None:
        """Leaves slow start before the queue overflows, when round trips begin to grow."""
        if event.round_start:
            self._round_min_last = self._round_min
            self._round_min = 0.0
            self._round_samples = 0
            if self._css_rounds:
                self._css_rounds += 1
                if self._css_rounds > CSS_ROUNDS:
                    self.ssthresh = self.window
                    return
        rtt = event.there
        if rtt <= 0:
            return
        # RFC 9406 counts SACKs for two packets each. One that stands for a whole batch says more,
        # but a few of them would say too little of what varies between batches.
        self._round_samples += 1 if event.acked < 4 * self._mss else BATCH_SAMPLES
        if not self._round_min or rtt < self._round_min:
            self._round_min = rtt
        if self._round_samples < HYSTART_SAMPLES or not self._round_min_last:
            return
        if self._css_rounds:
            if self._round_min < self._css_baseline:
                self._css_rounds = 0  # the round trips fell again: it was no queue
        else:
            eta = min(max(self._round_min_last / 8, HYSTART_ETA_MIN), HYSTART_ETA_MAX)
            if self._round_min >= self._round_min_last + eta:
                self._css_baseline = self._round_min
                self._css_rounds = 1

    def _pace(self, event: Acked) -> None:
        srtt = event.srtt
        if srtt < PACING_RTT_MIN:
            self.pacing_rate = 0.0
        else:
            gain = 2.0 if self.window < self.ssthresh and not self._css_rounds else 1.25
            self.pacing_rate = gain * (self.window + event.credit) / srtt

    def congestion(self, now: float, flight: int) -> None:  # noqa: ARG002 - the interface's
        """Reduces the window (RFC 9438 sections 4.6 and 4.7)."""
        self._prior = (self.window, self.ssthresh, self._w_max)
        self._reduce()
        self.window = self.ssthresh

    def timeout(self, now: float, flight: int) -> None:  # noqa: ARG002 - the interface's
        """Starts from one packet, as RFC 9438 section 4.8 and RFC 9260 section 7.2.3 want it."""
        if self._prior is None or self.window > self._mss:
            self._prior = (self.window, self.ssthresh, self._w_max)
            self._reduce()
        self.window = self._mss
        self._standing.forget()
        self._css_rounds = 0
        self._round_min = self._round_min_last = 0.0

    def _reduce(self) -> None:
        cwnd = self.window / self._mss
        if self.window < self.ssthresh:
            # Slow start has gone up to twice what path and queue hold before the first loss shows.
            self._w_max = cwnd * CUBIC_BETA
            self._epoch = 0.0
            half = int(self.window * SLOW_START_BETA)
            self.ssthresh = max(half, WINDOW_PACKETS_MIN * self._mss)
            return
        # Section 4.7, fast convergence: a smaller maximum than last time makes room for others.
        self._w_max = cwnd * (1 + CUBIC_BETA) / 2 if cwnd < self._w_max else cwnd
        self._epoch = 0.0
        self.ssthresh = max(int(self.window * CUBIC_BETA), WINDOW_PACKETS_MIN * self._mss)

    def undo(self) -> None:
        """Takes the last reduction back (RFC 9438 section 4.9)."""
        if self._prior is None:
            return
        window, self.ssthresh, self._w_max = self._prior
        self.window = max(self.window, window)
        self._prior = None
        self._epoch = 0.0
