"""The small services that the parts of a worker share: counters, notices, accounts, settings.

Each part of the worker gets the few of these that it uses. A service knows nothing of sockets,
flows and messages, nor of the other services.
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
"""Seconds in which the same warning is logged once. After that, the number of repetitions is
logged."""

NOTICES_MAX: Final = 20
"""Different warnings of one kind that are logged in that time, so that no stranger can fill the
log."""


class Settings:
    """The configuration in force, and what is derived from it. A reload replaces both."""

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
    """Counts of this worker, which are added to the exported metrics once a second.

    To look up a series of a metric for each message would be too slow. `sent` and `received` count
    payload bytes to and from the tunnel by kind (`tcp`, `udp`); `active` counts open flows by kind.
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
        """Returns the counts of a counter that are not exported yet."""
        return self._counts[metric, labels]

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts datagrams that were dropped."""
        self._counts["udp_dropped_total", (reason,)] += count

    def totals(self, *, gateway: bool) -> Counter[tuple[str, str]]:
        """Returns payload bytes by direction (`up`, `down`) and kind (`tcp`, `udp`).

        Up is from the client to the target: a gateway sends these bytes, an endpoint receives them.
        """
        up, down = (self.sent, self.received) if gateway else (self.received, self.sent)
        kinds = ("tcp", "udp")
        return Counter({("up", k): up[k] for k in kinds} | {("down", k): down[k] for k in kinds})

    def totals_to_keep(self) -> dict[str, dict[str, int]]:
        """Returns the payload bytes so far, for the program that takes this one's place."""
        return {"sent": dict(self.sent), "received": dict(self.received)}

    def keep_totals(self, sent: dict[str, int], received: dict[str, int], *, gateway: bool) -> None:
        """Goes on from the payload bytes of the previous program, which has exported them."""
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

    In :data:`NOTICE_SECONDS`, the same sentence of a kind is logged once, and at most
    :data:`NOTICES_MAX` different sentences of that kind. After that, the log says how many more
    there were. `clock` returns seconds on any monotonic clock.
    """

    __slots__ = ("_clock", "_kinds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[str, _Repetition] = {}

    def warn(self, kind: str, message: str, *args: object) -> None:
        """Logs a warning, unless the same was logged within :data:`NOTICE_SECONDS`."""
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
        """Logs the repetitions of warnings whose time is over. Called each second."""
        now = self._clock()
        for kind, repetition in list(self._kinds.items()):
            if now - repetition.since >= NOTICE_SECONDS:
                repetition.tell()
                del self._kinds[kind]


class _Repetition:
    """The warnings of one kind since a point in time."""

    __slots__ = ("_more", "_others", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self._more: dict[str, int] = {}
        self._others = 0

    def first(self, sentence: str) -> bool:
        """Returns whether a sentence is to be logged; counts it if not."""
        if sentence in self._more:
            self._more[sentence] += 1
        elif len(self._more) < NOTICES_MAX:
            self._more[sentence] = 0
            return True
        else:
            self._others += 1
        return False

    def tell(self) -> None:
        """Logs how many warnings were only counted."""
        for sentence, count in self._more.items():
            if count:
                logger.warning(
                    "%d more like this within %.0f s: %s", count, NOTICE_SECONDS, sentence
                )
        if self._others:
            logger.warning(
                "%d more warnings of this kind, but about something else, within %.0f s: %s",
                self._others,
                NOTICE_SECONDS,
                next(iter(self._more)),
            )


class Charge:
    """The part of an account that one holder uses. :meth:`end` gives all of it back."""

    __slots__ = ("_account", "used")

    def __init__(self, account: Account) -> None:
        self._account = account
        self.used = 0

    def set(self, amount: int) -> None:
        """Sets the holder's part to `amount`."""
        self._account.used += amount - self.used
        self.used = amount

    def end(self) -> None:
        """Gives everything back; harmless if that was done before."""
        self.set(0)


class Account:
    """An amount of something that all holders share, such as bytes or flows.

    The account does not enforce the limit: its users look at :attr:`over`, and decide which holder
    has to give way. The sum is right by construction, because only a :class:`Charge` changes it.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def over(self) -> bool:
        """Whether more is in use than the limit allows."""
        return self.used > self.limit

    def charge(self, amount: int = 0) -> Charge:
        """Returns a new holder's part, which uses `amount` at first."""
        charge = Charge(self)
        charge.set(amount)
        return charge


class Quota:
    """How many of something each client has. All clients have the same limit."""

    __slots__ = ("_held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()

    def held(self, client: str) -> int:
        """Returns how many the client has."""
        return self._held[client]

    @property
    def clients(self) -> dict[str, int]:
        """How many each client has; only clients that have any."""
        return dict(self._held)

    def take(self, client: str) -> QuotaSlot | None:
        """Returns a slot for one more of the client's, or None if it has reached its limit."""
        if self._held[client] >= self.limit:
            return None
        self._held[client] += 1
        return QuotaSlot(self, client)

    def _give_back(self, client: str) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]


class QuotaSlot:
    """One unit of a client's quota. :meth:`end` gives it back."""

    __slots__ = ("_client", "_quota")

    def __init__(self, quota: Quota, client: str) -> None:
        self._quota: Quota | None = quota
        self._client = client

    def end(self) -> None:
        """Gives it back; harmless if that was done before."""
        quota, self._quota = self._quota, None
        if quota is not None:
            quota._give_back(self._client)  # noqa: SLF001 - the two classes are one device
