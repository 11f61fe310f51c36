"""When a link asks for a sign of its peer, suspects it, and gives it up. Sans-IO.

======================  =====================================================================
seconds after           what follows
======================  =====================================================================
`ASK_AFTER`             a gateway has sent something: a PING, if no other waits for its PONG
`PROBE_AFTER`           something was sent, and nothing has been heard since: a PING
`PONG_AFTER`            a gateway's PING has no PONG yet: the link is suspected
told                    a gateway's transport says that its packets are not answered any more:
                        the link is suspected
`SUSPECT_AFTER`         something was sent and nothing has been heard since, not even after a PING:
                        the link is suspected
`PING_INTERVAL`         nothing was heard: a PING
`SEEN_INTERVALS` of it  the peer has answered a check of consent, and nothing was sent: a PING
6 of `PING_INTERVAL`    the last PING: another one, for the round trip that metrics show
`DEAD_AFTER`            nothing was heard: the link is dead
======================  =====================================================================

What is heard shows that the peer's packets arrive here, and not that ours arrive there. Only a PONG
shows both, so a gateway, which can dial another link, asks for one while it sends. A PONG may wait
behind the data of a slow link: a suspicion that is wrong ends with it, and nothing is torn down.

An answered check of consent (RFC 7675) shows both ways too, and that the peer's process runs. It
says nothing of what lies above ICE, so it counts only while nothing that was sent waits for a sign.
A link that carries nothing lives by such checks, which come anyway, and costs few PINGs.

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

ASK_AFTER: Final = 0.5
"""Seconds after the first thing that a gateway has sent since its last PING, until the next one."""

PONG_AFTER: Final = 1.2
"""Seconds without the PONG of a gateway's PING until the link is suspected, or three round trips if
that is longer. A PING that was lost has been repeated by then: SCTP does so after 1 s at the latest
where round trips are short (RFC 9260 section 16, RTO.Min)."""

PONGS_PER_SECOND: Final = 16
"""PINGs that are answered within a second, after a burst of as many. An honest peer sends one."""

PINGS_REMEMBERED: Final = 4
"""PINGs whose PONG may still come and be measured."""

SEEN_INTERVALS: Final = 1.3
"""`PING_INTERVAL` after an answered check of consent until a PING on a link that carries nothing.
Checks are up to 1.2 of the same 5 s apart, and an answer takes a round trip."""

_MICROSECONDS: Final = struct.Struct("!Q")
_RTT_PINGS: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of a link, in seconds."""

    ping_interval: float = PING_INTERVAL
    dead_after: float = DEAD_AFTER
    probe_after: float = PROBE_AFTER
    suspect_after: float = SUSPECT_AFTER
    ask_after: float = ASK_AFTER
    pong_after: float = PONG_AFTER
    repeat_after: float = 0.0
    """Seconds beyond three round trips that the PONG of a PING that was lost may take."""


FAILOVER_TIMING: Final = Timing(ping_interval=0.5, ask_after=0.25)
"""The times of a link whose peer shares a route with others: a peer that is gone is suspected
within :attr:`Timing.ping_interval` and :attr:`Timing.pong_after`, 1.7 s, also if nothing else is
sent. New flows go to the others then."""

FAST_FAILOVER_TIMING: Final = Timing(
    ping_interval=0.25,
    ask_after=0.25,
    pong_after=0.6,
    repeat_after=0.3,
    probe_after=0.5,
    suspect_after=1.2,
)
"""The same on the fast path, within 0.85 s: there a PING that was lost is repeated after a probe,
or after 0.2 s and a round trip at the latest."""


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

    `asks`: whether PONGs are asked for while something is sent, as a gateway does.

    `now` is in seconds of any clock that never goes back.
    """

    def __init__(self, now: float, timing: Timing, *, asks: bool = False) -> None:
        self.rtt: float | None = None
        """Last measured round trip in seconds, None before the first."""
        self.suspected = False
        self._timing = timing
        self._epoch = self._heard_at = self._pinged_at = self._sent_at = now
        self._unanswered_since: float | None = None
        self._asks = asks
        self._asked_at: float | None = None
        """When the oldest PING was sent that no PONG has answered; only if `asks`."""
        self._waited_from = now
        """From when on the wait for that PONG counts."""
        self._unasked_since: float | None = None
        """When the first thing was sent that no PING has followed; only if `asks`."""
        self._mute = False
        """Whether our packets are suspected not to arrive, of which what is heard shows nothing."""
        self._pings: dict[bytes, float] = {}
        self._pongs = float(PONGS_PER_SECOND)
        self._ponged_at = now
        self._due: float | None = None
        self._seen_at: float | None = None
        """When the peer has last answered a check of consent."""

    def retime(self, timing: Timing) -> None:
        """Uses other times from now on."""
        self._timing = timing

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
        if self._mute or (self._asked_at is not None and at >= self._pong_due()):
            return False  # it does not show that the peer hears us
        suspected, self.suspected = self.suspected, False
        return suspected

    def seen(self, at: float) -> None:
        """The peer has answered a check of consent at that moment."""
        self._seen_at = at

    def sent(self, now: float) -> bool:
        """Something was sent. Returns whether a wait begins with it: for a sign, or to ask."""
        self._sent_at = now
        begins = False
        if self._asks and self._unasked_since is None:
            self._unasked_since = now
            begins = self._asked_at is None
        if self._unanswered_since is None:
            self._unanswered_since = now
            begins = True
        return begins

    def stalled(self) -> bool:
        """The transport's packets are not answered. Returns whether a suspicion begins with it."""
        if not self._asks:
            return False
        self._mute = True
        began, self.suspected = not self.suspected, True
        return began

    def path_answers(self, now: float) -> bool:
        """They are answered again. Returns whether that ends a suspicion.

        It shows both ways, as a PONG does; a PING that waits for its own has a new time from here.
        """
        self._mute = False
        self._waited_from = now
        suspected, self.suspected = self.suspected, False
        return suspected

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
        """Returns the round trip in seconds that a PONG shows; it may end a suspicion.

        None if it echoes nothing of ours, or a PING so old that it is forgotten.
        """
        sent = self._pings.pop(opaque, None)
        if sent is None:
            return None
        self.rtt = now - sent
        if sent >= self._sent_at:
            self._unanswered_since = None
        if self._asked_at is not None and sent >= self._asked_at:
            later = [at for at in self._pings.values() if at > sent]
            self._asked_at = min(later, default=None)
            if self._asked_at is not None:
                self._waited_from = max(self._waited_from, self._asked_at)
            self.suspected = self._mute = False
        return self.rtt

    def ping(self, now: float) -> bytes:
        """Returns the opaque bytes of a PING that is sent now."""
        self._pinged_at = now
        self.sent(now)
        self._unasked_since = None
        if self._asks and self._asked_at is None:
            self._asked_at = self._waited_from = now
        opaque = _MICROSECONDS.pack(int((now - self._epoch) * 1e6))
        self._pings[opaque] = now
        if len(self._pings) > PINGS_REMEMBERED:
            del self._pings[next(iter(self._pings))]
        return opaque

    def next_due(self) -> float:
        """Returns when :meth:`check` has something to do next."""
        timing = self._timing
        due = min(self._alive_at() + timing.dead_after, self._ping_due())
        since = self._unanswered_since
        if since is not None and not self.suspected:
            probed = self._pinged_at >= since
            due = min(due, self._suspicion_due(since) if probed else since + timing.probe_after)
        if self._asked_at is not None:
            if not self.suspected:
                due = min(due, self._pong_due())
        elif self._unasked_since is not None:
            due = min(due, self._unasked_since + timing.ask_after)
        self._due = due
        return due

    def check(self, now: float) -> Verdict:
        """Returns what is due. May be called early, and late."""
        timing = self._timing
        self._forgive_own_pause(now)
        # Moments are compared as next_due() adds them up: differences are rounded another way.
        if now >= self._alive_at() + timing.dead_after:
            return Verdict(dead=now - self._alive_at())
        since, asked = self._unanswered_since, self._asked_at
        suspected = None
        if not self.suspected:
            waits = []
            if since is not None and now >= self._suspicion_due(since):
                waits.append(now - since)
            if asked is not None and now >= self._pong_due():
                waits.append(now - asked)
                self._mute = True
            suspected = max(waits, default=None)
            self.suspected = suspected is not None
        unasked = self._unasked_since
        if (
            now >= self._ping_due()
            or (since is not None and self._pinged_at < since and now >= since + timing.probe_after)
            or (asked is None and unasked is not None and now >= unasked + timing.ask_after)
        ):
            return Verdict(ping=self.ping(now), suspected=suspected)
        return Verdict(suspected=suspected)

    def _alive_at(self) -> float:
        """Returns when the last sign came from which silence counts."""
        seen, since = self._seen_at, self._unanswered_since
        if seen is None:
            return self._heard_at
        return max(self._heard_at, seen if since is None else min(seen, since))

    def _ping_due(self) -> float:
        """Returns when silence has to be asked about."""
        interval = self._timing.ping_interval
        due = max(self._heard_at, self._pinged_at) + interval
        if self._seen_at is not None and self._unanswered_since is None:
            due = max(due, self._seen_at + SEEN_INTERVALS * interval)
        return min(due, self._pinged_at + _RTT_PINGS * interval)

    def _suspicion_due(self, since: float) -> float:
        patience = self._timing.probe_after + 3 * (self.rtt or 0.0)
        return since + max(self._timing.suspect_after, patience)

    def _pong_due(self) -> float:
        timing = self._timing
        patience = timing.repeat_after + 3 * (self.rtt or 0.0)
        return self._waited_from + max(timing.pong_after, patience)

    def _forgive_own_pause(self, now: float) -> None:
        timing = self._timing
        late = 0.0 if self._due is None else now - self._due
        if late > timing.ping_interval / 2:
            recently = now - timing.dead_after + timing.ping_interval
            self._heard_at = max(self._heard_at, recently)
            self._pinged_at = min(self._pinged_at, now - timing.ping_interval)
        if late > timing.probe_after / 2:
            if self._unanswered_since is not None:
                self._unanswered_since = now
            self._waited_from = now
