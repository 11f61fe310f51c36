"""When a peer of a route is passed over for new flows, and when it comes back. No clock, no I/O.

What speaks against a peer of a route, and how it ends:

===========  ===================================================  =================================
cause        begins with                                          ends
===========  ===================================================  =================================
`link`       its link is lost, or is in doubt                     `recover_after` after it is well
`dials`      `failures` dials that did not reach their targets    `recover_after` later, on trial:
             within :data:`FAILURE_WINDOW`, none that did         one more failure, and it falls
`probe`      `failures` probes that failed one after the other    `recover_after` after a good one
===========  ===================================================  =================================

A peer falls at once, and comes back slowly. One that falls again soon after it came back waits
twice as long the next time, up to :data:`HOLD_MAX`, so that flows do not flap between two peers.

Whether a dial speaks against the peer or against its target is told by comparison: a host that
another peer of the route does not reach either is dead, and its failures count against nobody.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from socks_tunnel.protocol.errors import CloseReason

FAILURE_WINDOW: Final = 30.0
"""Seconds for which a dial that failed speaks against the peer."""

FAILURES_REMEMBERED: Final = 64
"""Failed dials that are remembered for one peer of one route."""

DEAD_SECONDS: Final = 60.0
"""Seconds for which a host that several peers do not reach counts as dead."""

DEAD_HOSTS_MAX: Final = 256
"""Dead hosts that one route remembers; the oldest one is forgotten."""

HOLD_MAX: Final = 300.0
"""Seconds that a peer has to be well at most, however often it has fallen."""

DOUBLINGS_MAX: Final = 32
"""How often a hold doubles: the shortest one that can be configured is at :data:`HOLD_MAX` long
before."""

STEADY_HOLDS: Final = 6.0
"""A peer that was in use for so many times its hold begins anew with the shortest one."""

UNREACHED: Final = frozenset(
    {CloseReason.NETWORK_UNREACHABLE, CloseReason.HOST_UNREACHABLE, CloseReason.TTL_EXPIRED}
)
"""The reasons of a CLOSE that say that the peer did not reach the target. A refused connection
(0x05) was answered by the target, and a policy (0x02) says nothing of the network."""


class Standing:
    """Whether something may be used: it falls at once, and is good again once it was well for long.

    `hold` is in seconds; 0: it is good as soon as it is well.
    """

    __slots__ = ("_fallen", "_good_since", "_strikes", "_well_since", "hold")

    def __init__(self, hold: float) -> None:
        self.hold = hold
        self._fallen = False
        self._strikes = 0
        self._well_since: float | None = None
        self._good_since: float | None = None

    @property
    def fallen(self) -> bool:
        """Whether it has fallen, and was not found good since."""
        return self._fallen

    @property
    def wait(self) -> float:
        """Seconds that it has to be well until it is good again."""
        doublings = min(max(self._strikes - 1, 0), DOUBLINGS_MAX)
        return min(self.hold * (1 << doublings), max(HOLD_MAX, self.hold))

    def fall(self, now: float) -> None:
        """It is not well."""
        if not self._fallen:
            since = self._good_since
            if since is None or now - since >= STEADY_HOLDS * self.wait:
                self._strikes = 0
            self._strikes += 1
            self._fallen = True
        self._well_since = None

    def well(self, now: float) -> None:
        """It is well, and may have been before."""
        if self._fallen and self._well_since is None:
            self._well_since = now

    def acquit(self) -> None:
        """It fell for what was not its fault."""
        if self._fallen:
            self._fallen = False
            self._strikes -= 1
            self._well_since = None

    def good(self, now: float) -> bool:
        """Returns whether it may be used."""
        if self._fallen and self._well_since is not None and now - self._well_since >= self.wait:
            self._fallen = False
            self._good_since = now
        return not self._fallen

    def due(self) -> float | None:
        """Returns when it will be good, if nothing happens; None if it is, or is not well."""
        if not self._fallen or self._well_since is None:
            return None
        return self._well_since + self.wait


@dataclass(frozen=True, slots=True)
class Against:
    """What speaks against a peer. `left`: the seconds until it ends, if the peer is well."""

    cause: str
    sentence: str
    left: float | None


class PeerHealth:
    """One peer of one route."""

    __slots__ = ("dials", "failures", "link", "link_sentence", "probe_error", "probes", "trial")

    def __init__(self, hold: float) -> None:
        self.link = Standing(hold)
        self.link_sentence = ""
        self.dials = Standing(hold)
        self.probes = Standing(hold)
        self.failures: deque[tuple[float, str]] = deque(maxlen=FAILURES_REMEMBERED)
        self.probe_error: tuple[int, str] = (0, "")
        """How many probes failed one after the other, and how the last one did."""
        self.trial = False
        """Whether the next failed dial is enough: it has just come back."""

    def recent(self, now: float) -> int:
        """Returns how many dials failed lately."""
        while self.failures and now - self.failures[0][0] > FAILURE_WINDOW:
            self.failures.popleft()
        return len(self.failures)


class RouteHealth:
    """The peers of one route. `failures` 0: dials and probes say nothing.

    `probed` says whether probes are made: then they decide when a peer that fell comes back.
    """

    def __init__(
        self, peers: Iterable[str], *, failures: int, recover_after: float, probed: bool
    ) -> None:
        self.failures = failures
        self.probed = probed
        self.peers = {peer: PeerHealth(recover_after) for peer in peers}
        self._dead: OrderedDict[str, float] = OrderedDict()

    # --- what happens -------------------------------------------------------------------------

    def link_lost(self, peer: str, now: float, sentence: str) -> None:
        """The peer's link is gone, is in doubt, or takes no new flows."""
        health = self.peers[peer]
        health.link.fall(now)
        health.link_sentence = sentence

    def link_well(self, peer: str, now: float) -> None:
        """The peer's link takes new flows."""
        self.peers[peer].link.well(now)

    def dial_failed(self, peer: str, host: str, now: float) -> None:
        """The peer did not reach a target on this host, for one of :data:`UNREACHED`."""
        health = self.peers.get(peer)
        if health is None or not self.failures or self._is_dead(host, now):
            return
        if self._others_failed(peer, host, now):
            self._dead[host] = now
            while len(self._dead) > DEAD_HOSTS_MAX:
                self._dead.popitem(last=False)
            return
        health.failures.append((now, host))
        if health.recent(now) >= (1 if health.trial else self.failures):
            health.trial = False
            health.dials.fall(now)
            if not self.probed:
                health.dials.well(now)

    def dial_succeeded(self, peer: str) -> None:
        """The peer has reached a target."""
        health = self.peers.get(peer)
        if health is not None and not health.dials.fallen:
            health.failures.clear()
            health.trial = False

    def probe_succeeded(self, peer: str, now: float) -> None:
        """A probe through the peer has reached its target."""
        health = self.peers.get(peer)
        if health is not None:
            health.probe_error = (0, "")
            health.probes.well(now)
            health.dials.well(now)

    def probe_failed(self, peer: str, sentence: str, now: float) -> None:
        """A probe through the peer has not reached its target."""
        health = self.peers.get(peer)
        if health is None or not self.failures:
            return
        count = health.probe_error[0] + 1
        health.probe_error = count, sentence
        if count >= self.failures or health.probes.fallen:
            health.probes.fall(now)
        if health.dials.fallen:
            health.dials.fall(now)

    def _is_dead(self, host: str, now: float) -> bool:
        since = self._dead.get(host)
        if since is not None and now - since > DEAD_SECONDS:
            del self._dead[host]
            return False
        return since is not None

    def _others_failed(self, peer: str, host: str, now: float) -> bool:
        """Returns whether another peer did not reach the host either; that is forgiven then."""
        found = False
        for name, health in self.peers.items():
            if name == peer or not health.recent(now):
                continue
            kept = [failure for failure in health.failures if failure[1] != host]
            if len(kept) == len(health.failures):
                continue
            found = True
            health.failures = deque(kept, maxlen=FAILURES_REMEMBERED)
            if health.dials.fallen and len(kept) < self.failures:
                health.dials.acquit()
        return found

    # --- what follows -------------------------------------------------------------------------

    def against(self, peer: str, now: float) -> Against | None:
        """Returns what speaks against the peer; None if it may be preferred."""
        health = self.peers[peer]
        if not health.link.good(now):
            return Against("link", health.link_sentence, _left(health.link, now))
        if not health.probes.good(now):
            count, sentence = health.probe_error
            what = (
                f"{count} probes failed, the last one: {sentence}" if count else "it has recovered"
            )
            return Against("probe", what, _left(health.probes, now))
        was_fallen = health.dials.fallen
        if not health.dials.good(now):
            hosts = {host for _, host in health.failures}
            what = f"{len(health.failures)} dials did not reach {', '.join(sorted(hosts)[:3])}"
            return Against("dials", what, _left(health.dials, now))
        if was_fallen:
            health.trial = True
            health.failures.clear()
        return None


def _left(standing: Standing, now: float) -> float | None:
    due = standing.due()
    return None if due is None else max(0.0, due - now)
