"""The model of `socks-tunnel top`: answers of the instance and the time go in, rows come out.

Rates are computed from two samples. The rate of a flow is measured by the flow's own age, which its
worker sends with the byte counts, so the delay of an answer does not matter. A flow has no rate
until it was seen twice, unless it began after the previous sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, get_args

Order: TypeAlias = Literal["rate", "total", "age"]
"""What flows are sorted by: bytes per second, bytes, or seconds. The largest value comes first."""

ORDERS: Final[tuple[Order, ...]] = get_args(Order)

SEEN_MAX: Final = 20_000
"""Number of flows whose byte counts are remembered.

Those seen least recently are forgotten first.
"""

Rows: TypeAlias = Sequence[Mapping[str, Any]]
_FlowKey: TypeAlias = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class FlowRow:
    """A flow. Rates are bytes per second, None where they are not known yet."""

    peer: str
    conn_id: int
    kind: str
    client: str
    destination: str
    state: str
    seconds: float
    up: int
    down: int
    up_rate: float | None
    down_rate: float | None
    worker: int

    @property
    def rate(self) -> float:
        """Bytes per second, both directions added up, as far as they are known."""
        return (self.up_rate or 0.0) + (self.down_rate or 0.0)


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link. `rtt_ms` is None if it is not known; `detail` says why the link is down."""

    peer: str
    state: str
    rtt_ms: float | None
    flows: int
    buffered: int
    detail: str


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A peer of a route.

    `why` says why it is passed over; "" if new flows of the route may go to it.
    """

    route: str
    peer: str
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker. Rates are bytes per second."""

    index: int
    pid: int
    state: str
    restarts: int
    flows: int
    buffered: int
    up_rate: float | None
    down_rate: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The instance as a whole."""

    instance: str
    role: str
    version: str
    state: str
    uptime: float
    listen: tuple[str, ...]
    flows_tcp: int
    flows_udp: int
    up: int
    down: int
    up_rate: float | None
    down_rate: float | None

    @property
    def flows(self) -> int:
        """All flows."""
        return self.flows_tcp + self.flows_udp


@dataclass(frozen=True, slots=True)
class _Counts:
    """Byte counts and the time at which they were read, in seconds of one clock."""

    at: float
    up: int
    down: int

    def rates(self, now: "_Counts") -> tuple[float, float] | None:
        """Returns the bytes per second, up and down, since then.

        None if they cannot be computed.
        """
        took = now.at - self.at
        if took <= 0 or now.up < self.up or now.down < self.down:
            return None  # the counts started again at 0: it is another flow, or another worker
        return (now.up - self.up) / took, (now.down - self.down) / took


_UNKNOWN: Final = (None, None)


class Model:
    """The state of one watch. `now` is a monotonic clock in seconds."""

    def __init__(self, order: Order = "rate") -> None:
        self.order: Order = order
        self.summary: Summary | None = None
        self.links: list[LinkRow] = []
        self.routes: list[RouteRow] = []
        self.workers: list[WorkerRow] = []
        self.lost_because: str | None = None
        """Why the instance does not answer; None while it does."""
        self._flows: list[FlowRow] = []
        self._seen: dict[_FlowKey, _Counts] = {}
        self._of_workers: dict[tuple[int, int], _Counts] = {}
        self._pid = 0
        self._sampled: float | None = None

    # --- in -------------------------------------------------------------------------------------

    def sample(self, now: float, status: Mapping[str, Any], flows: Rows) -> None:
        """Takes the answers to `status` and `connections`."""
        if status["pid"] != self._pid:
            self._pid = status["pid"]
            self._seen.clear()
            self._of_workers.clear()
            self._sampled = None
        since = None if self._sampled is None else now - self._sampled
        self.lost_because = None
        self.links = [_link(row) for row in status["links"]]
        self.routes = [
            RouteRow(row["route"], row["peer"], row["state"], row["why"] or "")
            for row in status.get("routes", ())
        ]
        self._take_workers(now, status["workers"])
        self._summarize(status)
        self._flows = [self._flow(row, since) for row in flows]
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        self._sampled = now

    def lost(self, reason: str) -> None:
        """Remembers that the instance does not answer."""
        self.lost_because = reason

    def next_order(self) -> None:
        """Sorts flows by the next order."""
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]

    def _take_workers(self, now: float, rows: Rows) -> None:
        """Takes the workers' rows, and computes the rates of each from its previous row."""
        before, self._of_workers = self._of_workers, {}
        self.workers = []
        for row in rows:
            key = row["index"], row["pid"] or 0
            counts = _Counts(now, row["bytes_up"], row["bytes_down"])
            last = before.get(key)
            if row["state"] == "running":
                self._of_workers[key] = counts
            up_rate, down_rate = (last.rates(counts) if last else None) or _UNKNOWN
            self.workers.append(
                WorkerRow(
                    *key,
                    state=row["state"],
                    restarts=row["restarts"],
                    flows=row["flows_tcp"] + row["flows_udp"],
                    buffered=row["buffered"],
                    up_rate=up_rate,
                    down_rate=down_rate,
                )
            )

    def _summarize(self, status: Mapping[str, Any]) -> None:
        counters = status["counters"]
        # Rates of the workers, because the counts of the instance fall when a worker ends.
        known = [worker for worker in self.workers if worker.up_rate is not None]
        self.summary = Summary(
            instance=status["instance"],
            role=status["role"],
            version=status["version"],
            state=status["state"],
            uptime=status["uptime"],
            listen=tuple(status["listen"]),
            flows_tcp=counters["flows_tcp"],
            flows_udp=counters["flows_udp"],
            up=counters["bytes_up"],
            down=counters["bytes_down"],
            up_rate=sum(worker.up_rate or 0.0 for worker in known) if known else None,
            down_rate=sum(worker.down_rate or 0.0 for worker in known) if known else None,
        )

    def _flow(self, row: Mapping[str, Any], since: float | None) -> FlowRow:
        """Returns a flow's row. `since` is the age of the previous sample in seconds."""
        key = row["peer"], row["conn_id"], row["worker"]
        counts = _Counts(row["seconds"], row["up"], row["down"])
        last = self._seen.pop(key, None)  # and put back as the most recent one
        self._seen[key] = counts
        if last is not None:
            rates = last.rates(counts)
        elif since is not None and counts.at <= since:
            # It began after the previous sample. Its bytes are divided by the time since then, not
            # by its age: a small answer within a millisecond would look like a very high rate.
            rates = _Counts(0.0, 0, 0).rates(_Counts(since, counts.up, counts.down))
        else:
            rates = None
        up_rate, down_rate = rates or _UNKNOWN
        return FlowRow(
            peer=row["peer"],
            conn_id=row["conn_id"],
            kind=row["kind"],
            client=row["client"],
            destination=row["destination"],
            state=row["state"] if row.get("linked", True) else "no link",
            seconds=row["seconds"],
            up=row["up"],
            down=row["down"],
            up_rate=up_rate,
            down_rate=down_rate,
            worker=row["worker"],
        )

    # --- out ------------------------------------------------------------------------------------

    def flows(self, limit: int) -> tuple[list[FlowRow], int]:
        """Returns at most `limit` flows in the chosen order, and the number of all others.

        Flows with equal values keep their places from one sample to the next.
        """
        match self.order:
            case "rate":
                flows = sorted(self._flows, key=lambda f: (-f.rate, -f.up - f.down, f.conn_id))
            case "total":
                flows = sorted(self._flows, key=lambda f: (-f.up - f.down, f.conn_id))
            case "age":
                flows = sorted(self._flows, key=lambda f: (-f.seconds, f.conn_id))
        # The instance sends only the first flows, and the number of all.
        total = max(len(flows), 0 if self.summary is None else self.summary.flows)
        shown = flows[: max(limit, 0)]
        return shown, total - len(shown)


def _link(row: Mapping[str, Any]) -> LinkRow:
    waiting = row.get("waiting_flows") or 0
    detail = row.get("detail") or row.get("path") or ""
    if waiting:
        flows = "1 flow waits" if waiting == 1 else f"{waiting} flows wait"
        since = datetime.fromisoformat(row["waiting_since"])
        detail = (
            f"{flows}, for another {row['waiting_left']} s, with {row['waiting_held']:,} bytes, "
            f"since {since:%H:%M:%S %Z}; {detail}"
        )
    return LinkRow(
        peer=row["peer"],
        state=row["state"],
        rtt_ms=row.get("rtt_ms"),
        flows=row.get("flows") or waiting,
        buffered=row.get("buffered") or 0,
        detail=detail.removesuffix("; "),
    )
