"""How long the queue may be that a sender itself keeps in the path. No clock.

A controller that waits for losses fills the queue of the bottleneck, however long it is, and keeps
it full. Everything beside the bulk waits there, and datagrams are dropped with it. So the window is
cut when round trips are longer than the path alone needs by more than a queue that is as long as
the base, and within bounds::

    round trip  =  base + our own queue          the shortest one of each round counts
    allowed     =  base, at least OWN_QUEUE_MIN, at most OWN_QUEUE_MAX; at least OWN_QUEUE_PACKETS
    cut to         (base + allowed / 2) / round trip  of the window

Between hosts that are near each other, the queue is that of a host: what its socket holds while its
processes wait for a core. There, a long one gains nothing.

A sender that has less to send than its window allows keeps no queue, so its window is not cut:
beside a download, what acknowledges it would leave an upload that begins next a window of a few
packets. Nor is what it sends a rate that a window could follow.

The queue need not be ours: another sender may fill it, or that of the way back, or the path has
become longer. That shows in two ways. If the round trips do not become shorter by at least half of
what they should, or if they are as long again with less of ours in flight, the cut is taken back,
and what they are now is the base. No more is given back than was there before. So a sender beside
others that wait for losses waits for losses too, and in a queue that is shorter than what is
allowed nothing of this happens.

A base may be wrong after all, or the others may have gone. So after :data:`TEST_INTERVAL` the
window is cut by a quarter to a half for two round trips, to see what they become.
"""

from typing import Final

from socks_tunnel.peer.fast.congestion import Acked

OWN_QUEUE_MAX: Final = 0.030
"""Seconds of the path's rate that a sender keeps in its queue. Half of it is enough not to run dry
while a busy host takes no turn, and 30 ms more are not heard in a call."""
OWN_QUEUE_MIN: Final = 0.005
"""The same where round trips are as short as between hosts of one room: the delay that
RFC 8289 (CoDel) leaves to a queue."""

OWN_QUEUE_PACKETS: Final = 3
"""Full packets that may wait at least, at the rate of the last round trip. Where one takes 12 ms,
round trips differ by as much already because of what else is between the packets of the bulk."""

SETTLE_ROUNDS: Final = 2
"""Rounds after a cut until its effect shows: the first one measures what was sent before."""

TEST_INTERVAL: Final = 10.0
"""Seconds between two tests of the base."""
TEST_AGAIN: Final = 1.0
"""Seconds after which it is tested again if it was found to be too long."""
TEST_CUT_MIN: Final = 0.75
TEST_CUT_MAX: Final = 0.5
"""Parts of the window that are kept in a test."""

LESS: Final = 0.95
"""Part of what was in flight at the last cut, and of its round trip, that counts as less."""

_CUT: Final = 0
_TEST: Final = 1
_GIVEN_BACK: Final = 2


class StandingQueue:
    """What the round trips say of the sender's own queue."""

    __slots__ = (
        "_base",
        "_before",
        "_full",
        "_full_rtt",
        "_keep",
        "_latest",
        "_limited",
        "_packet_time",
        "_settling",
        "_shortest",
        "_slow",
        "_state",
        "_tested_at",
        "_wanted",
    )

    def __init__(self) -> None:
        self._base = 0.0
        self._tested_at = 0.0
        self._shortest = 0.0
        self._settling = 0
        self._state = _CUT
        self._keep = 1.0
        self._before = 0  # the window before the last cut
        self._limited = False
        self._latest = self._slow = 0.0
        self._packet_time = 0.0
        self._wanted = 0.0
        self._full = 0  # what was in flight at the last cut that was not taken back; 0: none was
        self._full_rtt = 0.0

    @property
    def holds(self) -> bool:
        """Whether the window should not grow.

        The effect of a cut is awaited, or on a slow path half of the allowed queue has come about.
        """
        if self._settling:
            return True
        if not self._slow or not self._base:
            return False
        return self._latest >= self._base + (1 - self._slow / 2) * self._allowed

    @property
    def _allowed(self) -> float:
        """Seconds by which round trips may be longer than the base."""
        time = min(max(self._base, OWN_QUEUE_MIN), OWN_QUEUE_MAX)
        return max(time, OWN_QUEUE_PACKETS * self._packet_time)

    def forget(self) -> None:
        """Forgets the path: what follows a time-out may be another one."""
        self._base = self._shortest = self._latest = self._tested_at = 0.0
        self._settling = self._full = 0

    def judge(
        self, event: Acked, window: int, *, packet: int, slow_start: bool, limited: bool
    ) -> float:
        """Takes a SACK; returns the factor by which the window is to change, mostly 1.

        `packet` is the size of a full packet in bytes. A sender is `limited` if it had less to send
        than its window allows.
        """
        factor = 1.0
        if event.round_start and self._shortest:
            self._limited = limited
            self._packet_time = packet * self._shortest / window
            factor = self._judge_round(self._shortest, event, window, slow_start=slow_start)
            self._shortest = 0.0
        if event.there:
            self._latest, self._slow = event.there, event.slow
            if not self._shortest or event.there < self._shortest:
                self._shortest = event.there
        return factor

    def _judge_round(self, rtt: float, event: Acked, window: int, *, slow_start: bool) -> float:
        now = event.now
        if self._settling:
            self._settling -= 1
            return 1.0 if self._settling else self._settled(rtt, now, window)
        if not self._base or rtt < self._base:
            self._base = rtt
            self._tested_at = self._tested_at or now
        if rtt >= self._base + self._allowed:
            return 1.0 if self._limited else self._too_long(rtt, event, window)
        if now - self._tested_at > TEST_INTERVAL and not event.app_limited and not slow_start:
            self._state = _TEST
            keep = min((self._base - self._allowed) / rtt, TEST_CUT_MIN)
            keep = max(keep, TEST_CUT_MAX)
            return self._cut(keep, rtt, rtt * keep, window)
        return 1.0

    def _too_long(self, rtt: float, event: Acked, window: int) -> float:
        if window < LESS * self._full and rtt > LESS * self._full_rtt:
            return self._give_back(self._full / window)
        aim = self._base + self._allowed / 2
        keep = aim / rtt
        rate = 0.0 if event.app_limited else event.rate
        if rate:
            # In slow start the window is twice that which this round trip belongs to.
            keep = min(keep, rate * aim / window)
        self._state = _CUT
        self._full, self._full_rtt = min(int(rate * rtt) or window, window), rtt
        return self._cut(keep, rtt, aim, window)

    def _cut(self, keep: float, rtt: float, expected: float, window: int) -> float:
        self._settling = SETTLE_ROUNDS
        self._keep, self._before = keep, window
        self._wanted = (expected + rtt) / 2
        return keep

    def _settled(self, rtt: float, now: float, window: int) -> float:
        """Judges by the round trips that have followed."""
        state, base, allowed = self._state, self._base, self._allowed
        self._base = min(base, rtt)
        if state == _GIVEN_BACK:
            self._base, self._tested_at = rtt, now
            return 1.0
        if state == _CUT:
            return 1.0 if rtt < self._wanted else self._give_back(self._undo(window))
        found = rtt < base - allowed / 4
        self._tested_at = now - TEST_INTERVAL + TEST_AGAIN if found else now
        return self._undo(window)

    def _undo(self, window: int) -> float:
        """Returns the factor that undoes the last cut.

        A window has a floor, so less may have been cut than was wanted.
        """
        return max(min(1 / self._keep, self._before / window), 1.0)

    def _give_back(self, factor: float) -> float:
        """Returns `factor`, which undoes a cut. What round trips are then is the base."""
        self._state = _GIVEN_BACK
        self._settling = SETTLE_ROUNDS
        self._full = 0
        return factor
