"""When a link asks for a sign of its peer, suspects it, and gives it up. Sans-IO.

======================  =====================================================================
seconds after           what follows
======================  =====================================================================
`PROBE_AFTER`           something was sent, and nothing has been heard since: a PING
`SUSPECT_AFTER`         the same, and that PING is not answered either: the link is suspected
`PING_INTERVAL`         nothing was heard: a PING
6 of `PING_INTERVAL`    the last PING: another one, for the round trip that metrics show
`DEAD_AFTER`            nothing was heard: the link is dead
======================  =====================================================================

A deadline that is noticed late says something about this process, which was stopped or starved,
and nothing about the peer: what came meanwhile still waits in the sockets. One more PING decides.
"""

import struct
from dataclasses import dataclass
from typing import Final

PING_INTERVAL: Final = 5.0
"""Seconds of silence until a PING asks whether the peer is there."""

DEAD_AFTER: Final = 15.0
"""Seconds of silence after which a link is dead (docs/protocol.md section 5)."""

PROBE_AFTER: Final = 1.0
"""Seconds without a sign of the peer, after something was sent, until a PING asks for one."""

SUSPECT_AFTER: Final = 2.0
"""Seconds without a sign of the peer, after something was sent, until the link is suspected. On
paths whose round trip is long it is more: `PROBE_AFTER` and three round trips."""

PONGS_PER_SECOND: Final = 16
"""PINGs that are answered within a second, after a burst of as many. An honest peer sends one."""

PINGS_REMEMBERED: Final = 4
"""PINGs whose PONG may still come and be measured."""

_MICROSECONDS: Final = struct.Struct("!Q")
_RTT_PINGS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of a link, in seconds."""

    ping_interval: float = PING_INTERVAL
    dead_after: float = DEAD_AFTER
    probe_after: float = PROBE_AFTER
    suspect_after: float = SUSPECT_AFTER


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is due at one moment.

    `ping`: the opaque bytes of a PING to send. `suspected`: seconds without an answer, if the link
    is suspected from now on. `dead`: seconds of silence, if that is enough.
    """

    ping: bytes | None = None
    suspected: float | None = None
    dead: float | None = None


class Keepalive:
    """The signs of life of one peer. It begins when the link is established.

    `now` is in seconds of any clock that never goes back.
    """

    def __init__(self, now: float, timing: Timing) -> None:
        self.rtt: float | None = None
        """Last measured round trip in seconds, None before the first."""
        self.suspected = False
        self._timing = timing
        self._epoch = self._heard_at = self._pinged_at = self._sent_at = now
        self._unanswered_since: float | None = None
        self._pings: dict[bytes, float] = {}
        self._pongs = float(PONGS_PER_SECOND)
        self._ponged_at = now
        self._due: float | None = None

    def heard(self, at: float) -> bool:
        """The peer has given a sign, maybe a moment ago. Returns whether that ends a suspicion.

        A sign that comes within less than a round trip was under way before what was sent last,
        and answers only what was sent before that: the wait goes on, from the sign.
        """
        self._heard_at = max(self._heard_at, at)
        if self._unanswered_since is None or at <= self._unanswered_since:
            return False
        answers_all = self.rtt is not None and self._sent_at <= at - self.rtt
        self._unanswered_since = None if answers_all else at
        suspected, self.suspected = self.suspected, False
        return suspected

    def sent(self, now: float) -> bool:
        """Something was sent. Returns whether the wait for a sign begins with it."""
        self._sent_at = now
        if self._unanswered_since is not None:
            return False
        self._unanswered_since = now
        return True

    def may_answer(self, now: float) -> bool:
        """Whether a PING is answered: so many that answers would fill our queues are not."""
        earned = (now - self._ponged_at) * PONGS_PER_SECOND
        self._pongs = min(float(PONGS_PER_SECOND), self._pongs + earned)
        self._ponged_at = now
        if self._pongs < 1:
            return False
        self._pongs -= 1
        return True

    def answered(self, opaque: bytes, now: float) -> float | None:
        """Returns the round trip in seconds that a PONG shows.

        None if it echoes nothing of ours, or a PING so old that it is forgotten.
        """
        sent = self._pings.pop(opaque, None)
        if sent is None:
            return None
        self.rtt = now - sent
        if sent >= self._sent_at:
            self._unanswered_since = None
        return self.rtt

    def ping(self, now: float) -> bytes:
        """Returns the opaque bytes of a PING that is sent now."""
        self._pinged_at = now
        self.sent(now)
        opaque = _MICROSECONDS.pack(int((now - self._epoch) * 1e6))
        self._pings[opaque] = now
        if len(self._pings) > PINGS_REMEMBERED:
            del self._pings[next(iter(self._pings))]
        return opaque

    def next_due(self) -> float:
        """Returns when :meth:`check` has something to do next."""
        timing = self._timing
        due = min(
            self._heard_at + timing.dead_after,
            max(self._heard_at, self._pinged_at) + timing.ping_interval,
        )
        since = self._unanswered_since
        if since is not None and not self.suspected:
            probed = self._pinged_at >= since
            due = min(due, self._suspicion_due(since) if probed else since + timing.probe_after)
        self._due = due
        return due

    def check(self, now: float) -> Verdict:
        """Returns what is due. May be called early, and late."""
        timing = self._timing
        self._forgive_own_pause(now)
        # Moments are compared as next_due() adds them up: differences are rounded another way.
        if now >= self._heard_at + timing.dead_after:
            return Verdict(dead=now - self._heard_at)
        since = self._unanswered_since
        suspected = None
        if since is not None and not self.suspected and now >= self._suspicion_due(since):
            self.suspected = True
            suspected = now - since
        if (
            now >= max(self._heard_at, self._pinged_at) + timing.ping_interval
            or now >= self._pinged_at + _RTT_PINGS * timing.ping_interval
            or (since is not None and self._pinged_at < since and now >= since + timing.probe_after)
        ):
            return Verdict(ping=self.ping(now), suspected=suspected)
        return Verdict(suspected=suspected)

    def _suspicion_due(self, since: float) -> float:
        patience = self._timing.probe_after + 3 * (self.rtt or 0.0)
        return since + max(self._timing.suspect_after, patience)

    def _forgive_own_pause(self, now: float) -> None:
        timing = self._timing
        late = 0.0 if self._due is None else now - self._due
        if late > timing.ping_interval / 2:
            recently = now - timing.dead_after + timing.ping_interval
            self._heard_at = max(self._heard_at, recently)
            self._pinged_at = min(self._pinged_at, now - timing.ping_interval)
        if late > timing.probe_after / 2 and self._unanswered_since is not None:
            self._unanswered_since = now
