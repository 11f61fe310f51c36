"""The small services that the rooms of a worker share: counters, notices, accounts, settings.

Each part of the worker gets the few of these that it uses. None of them knows a socket, a flow or a
message, and none of them knows the others.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from socks_tunnel.config.users import PasswordChecker
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.policies import PolicySet, build_policies
from socks_tunnel.protocol.routes import RouteTable
from socks_tunnel.protocol.settings import WorkerSettings

logger = logging.getLogger(__name__)

NOTICE_SECONDS: Final = 10.0
"""The same warning is logged once in this time; then it is said how many more there were."""

NOTICES_MAX: Final = 20
"""Different warnings of one kind that are logged in that time: no stranger fills the log."""


class Settings:
    """The configuration in force, and what is derived from it. A reload replaces the contents."""

    __slots__ = ("config", "passwords", "policies", "routes")

    def __init__(self, config: WorkerSettings) -> None:
        self.apply(config)

    def apply(self, config: WorkerSettings) -> None:
        """Puts another configuration in force."""
        self.config = config
        self.policies: PolicySet = build_policies(config)
        self.routes = RouteTable.parse(config.routes)
        self.passwords = PasswordChecker(config.users) if config.users else None


class Counters:
    """What happened, added to the exported metrics once a second.

    A metric object of the multiprocess mode writes to a mapped file with a lock: too slow for the
    path of each message. `sent` and `received` count payload bytes to and from the tunnel by kind
    (`tcp`, `udp`); `active` counts open flows by kind.
    """

    __slots__ = ("_counts", "_gateway", "_reported", "active", "received", "sent")

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.active: Counter[str] = Counter()
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._reported: Counter[tuple[str, str]] = Counter()

    def count(self, metric: str, *labels: str, by: int = 1) -> None:
        """Adds to a counter of :class:`~socks_tunnel.ops.metrics.Metrics`, named by attribute."""
        self._counts[metric, labels] += by

    def pending(self, metric: str, *labels: str) -> int:
        """Returns what was counted and not exported yet."""
        return self._counts[metric, labels]

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts datagrams that were dropped."""
        self._counts["udp_dropped_total", (reason,)] += count

    def totals(self, *, gateway: bool) -> Counter[tuple[str, str]]:
        """Returns payload bytes by direction and kind; what a gateway sends goes up."""
        up, down = (self.sent, self.received) if gateway else (self.received, self.sent)
        kinds = ("tcp", "udp")
        return Counter({("up", k): up[k] for k in kinds} | {("down", k): down[k] for k in kinds})

    def totals_to_keep(self) -> dict[str, dict[str, int]]:
        """Returns the payload bytes so far, for the program that takes our place."""
        return {"sent": dict(self.sent), "received": dict(self.received)}

    def keep_totals(self, sent: dict[str, int], received: dict[str, int], *, gateway: bool) -> None:
        """Goes on from the payload bytes of the program before us, which has exported them."""
        self.sent.update(sent)
        self.received.update(received)
        self._reported = self.totals(gateway=gateway)

    def export(self, metrics: Metrics, *, gateway: bool) -> None:
        """Adds everything since the last call to the metric objects."""
        for key, total in self.totals(gateway=gateway).items():
            metrics.bytes_total.labels(*key).inc(total - self._reported[key])
            self._reported[key] = total
        for (metric, labels), count in self._counts.items():
            if count:
                getattr(metrics, metric).labels(*labels).inc(count)
        self._counts.clear()
        for kind in ("tcp", "udp"):
            metrics.flows_active.labels(kind).set(self.active[kind])


class Notices:
    """Warnings for the operator. Each is logged when it first occurs; its repetitions are counted.

    Of a kind, the same sentence is logged once in :data:`NOTICE_SECONDS`, and at most
    :data:`NOTICES_MAX` different ones; how many more there were is said after that. `clock` returns
    seconds on any monotonic clock.
    """

    __slots__ = ("_clock", "_kinds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[str, _Repetition] = {}

    def warn(self, kind: str, message: str, *args: object) -> None:
        """Logs a warning, unless the same was logged a moment ago."""
        now = self._clock()
        repetition = self._kinds.get(kind)
        if repetition is not None and now - repetition.since >= NOTICE_SECONDS:
            repetition.tell()
            repetition = None
        if repetition is None:
            repetition = self._kinds[kind] = _Repetition(now)
        if repetition.first(message % args):
            logger.warning(message, *args)

    def flush(self) -> None:
        """Says how often what was logged a while ago has been repeated; called each second."""
        now = self._clock()
        for kind, repetition in list(self._kinds.items()):
            if now - repetition.since >= NOTICE_SECONDS:
                repetition.tell()
                del self._kinds[kind]


class _Repetition:
    """What was said of one kind of warning since a moment."""

    __slots__ = ("_more", "_others", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self._more: dict[str, int] = {}
        self._others = 0

    def first(self, sentence: str) -> bool:
        """Whether a sentence is to be logged; if not, it is counted."""
        if sentence in self._more:
            self._more[sentence] += 1
        elif len(self._more) < NOTICES_MAX:
            self._more[sentence] = 0
            return True
        else:
            self._others += 1
        return False

    def tell(self) -> None:
        """Logs what was only counted."""
        for sentence, count in self._more.items():
            if count:
                logger.warning(
                    "%d more like this within %.0f s: %s", count, NOTICE_SECONDS, sentence
                )
        if self._others:
            logger.warning(
                "%d more of this kind, about other things, within %.0f s: %s",
                self._others,
                NOTICE_SECONDS,
                next(iter(self._more)),
            )


class Charge:
    """The part of an account that one holder uses. Ending it gives everything back, once."""

    __slots__ = ("_account", "used")

    def __init__(self, account: Account) -> None:
        self._account = account
        self.used = 0

    def set(self, amount: int) -> None:
        """Makes the holder's part `amount`, whatever it was before."""
        self._account.used += amount - self.used
        self.used = amount

    def end(self) -> None:
        """Gives everything back; harmless if that was done before."""
        self.set(0)


class Account:
    """An amount of something that all holders together may use: bytes, flows.

    The limit is not enforced here: whoever charges looks at :attr:`over` and decides who has to
    give way. The sum is right by construction, because only a :class:`Charge` changes it.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def over(self) -> bool:
        """Whether more is in use than allowed."""
        return self.used > self.limit

    @property
    def full(self) -> bool:
        """Whether nothing more may be taken."""
        return self.used >= self.limit

    def charge(self, amount: int = 0) -> Charge:
        """Returns a new holder's part, which uses `amount` at first."""
        charge = Charge(self)
        charge.set(amount)
        return charge


class Quota:
    """How many of something each client has, with one limit for each of them."""

    __slots__ = ("_held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()

    def held(self, client: str) -> int:
        """Returns how many the client has."""
        return self._held[client]

    @property
    def clients(self) -> dict[str, int]:
        """How many each client has that has any."""
        return dict(self._held)

    def take(self, client: str) -> QuotaSlot | None:
        """Returns one more for the client, or None if it has as many as it may."""
        if self._held[client] >= self.limit:
            return None
        self._held[client] += 1
        return QuotaSlot(self, client)

    def _give_back(self, client: str) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]


class QuotaSlot:
    """One of what a client has. Ending it gives it back, once."""

    __slots__ = ("_client", "_quota")

    def __init__(self, quota: Quota, client: str) -> None:
        self._quota: Quota | None = quota
        self._client = client

    def end(self) -> None:
        """Gives it back; harmless if that was done before."""
        quota, self._quota = self._quota, None
        if quota is not None:
            quota._give_back(self._client)  # noqa: SLF001 - the two classes are one device
