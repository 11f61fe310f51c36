"""The history of the last quarter of an hour: throughput, flows and links every five seconds.

It has no clock and no files: it makes points of samples of the metrics and times. It is also kept
while no page is open, so that a new page shows what was before.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from socks_tunnel.ops.multiprocess import Sample

PERIOD: Final = 5.0
"""Seconds from one point to the next."""

POINTS: Final = 180
"""Points that are kept: a quarter of an hour."""

_UP: Final = "socks_tunnel_bytes_total", "up"
_DOWN: Final = "socks_tunnel_bytes_total", "down"


@dataclass(frozen=True, slots=True)
class Point:
    """One point: Unix time, bytes per second up and down (None if unknown), flows, links."""

    number: int
    time: float
    up: float | None
    down: float | None
    flows: int
    links: int

    def as_row(self) -> list[float | None]:
        """Returns the point in the form for the page."""
        rates = (None if rate is None else round(rate, 1) for rate in (self.up, self.down))
        return [round(self.time, 1), *rates, self.flows, self.links]


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over all processes: payload bytes, open flows, links that are up, other counters."""

    up: float
    down: float
    flows: int
    links: int
    totals: Mapping[str, dict[str, float]]


def add_up(samples: Iterable[Sample]) -> Sums:
    """Returns the sums of the samples of all processes."""
    sums: dict[tuple[str, str], float] = {}
    totals: dict[str, dict[str, float]] = {key: {} for key in _TOTALS.values()}
    flows = links = 0.0
    for metric, name, labels, value in samples:
        if metric == "socks_tunnel_bytes":
            sums[name, labels[1]] = sums.get((name, labels[1]), 0.0) + value
        elif metric == "socks_tunnel_flows_active":
            flows += value
        elif metric == "socks_tunnel_links" and labels[1] == "up":
            links += value
        elif metric in _TOTALS and value:
            # If there are several labels, the last one is shown.
            of = totals[_TOTALS[metric]]
            of[labels[-1]] = of.get(labels[-1], 0.0) + value
    return Sums(sums.get(_UP, 0.0), sums.get(_DOWN, 0.0), int(flows), int(links), totals)


class History:
    """Keeps the points, and the latest totals."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._before: tuple[float, float, float] | None = None
        self._last = 0
        self.totals: Mapping[str, dict[str, float]] = {}
        """Counts since the start: verdicts, replies, reasons of drops, causes of reconnects."""

    def take(self, sums: Sums, monotonic: float, unix: float) -> None:
        """Takes sums, with the monotonic and the Unix time in seconds."""
        self.totals = sums.totals
        rates: tuple[float | None, float | None] = None, None
        if self._before is not None:
            then, up_then, down_then = self._before
            took = monotonic - then
            if took > 0 and sums.up >= up_then and sums.down >= down_then:
                rates = (sums.up - up_then) / took, (sums.down - down_then) / took
        self._before = monotonic, sums.up, sums.down
        self._last += 1
        self._points.append(Point(self._last, unix, *rates, sums.flows, sums.links))

    def since(self, number: int) -> tuple[int, list[Point]]:
        """Returns the number of the last point, and the points after the one with `number`."""
        return self._last, [point for point in self._points if point.number > number]


_TOTALS: Final = {
    "socks_tunnel_policy_decisions": "decisions",
    "socks_tunnel_requests": "replies",
    "socks_tunnel_udp_dropped": "dropped",
    "socks_tunnel_link_reconnects": "reconnects",
    "socks_tunnel_resumes": "resumes",
}
