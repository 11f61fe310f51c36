"""Adds up the figures of the transports of all links, for metrics.

The counters of a transport begin with it and end with it. Here they become counters of the
instance, to which each look adds the differences since the last one. Gauges are sums over all
links. If there are thousands of links, each look takes only some of them, so that it is short.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from socks_tunnel.ops.labels import TRANSPORT_DROPS
from socks_tunnel.ops.meters import Counter, Gauge, Value
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.peer.transport import TransportStats

LOOKS_MAX: Final = 200
"""Links in one look, which takes a few milliseconds."""


class Measured(Protocol):
    """A transport."""

    @property
    def stats(self) -> TransportStats:
        """Its present figures."""


@dataclass(slots=True)
class _Seen:
    """The last figures of one link: its counters in the order of `_COUNTERS`, and its gauges."""

    counted: list[int]
    cwnd: int = 0
    outstanding: int = 0


def _dropped(stats: TransportStats, *, reason: str) -> int | None:
    if reason == "too-long":
        return stats.datagrams_dropped
    return None if stats.dropped is None else stats.dropped.get(reason)


_COUNTERS: Final[tuple[Callable[[TransportStats], int | None], ...]] = (
    lambda stats: stats.retransmissions,
    lambda stats: stats.timeouts,
    lambda stats: stats.sacks_sent,
    lambda stats: stats.sacks_received,
    lambda stats: stats.packets_sent,
    lambda stats: stats.packets_received,
    lambda stats: stats.bytes_sent,
    lambda stats: stats.bytes_received,
    *(partial(_dropped, reason=reason) for reason in TRANSPORT_DROPS),
)


class TransportMeter:
    """Adds up the figures of links. Call :meth:`look` once a second, :meth:`ended` for each end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: dict[Measured, _Seen] = {}
        self._at = 0
        self._counters: tuple[Counter | Value, ...] = (
            metrics.transport_retransmissions_total,
            metrics.transport_timeouts_total,
            metrics.transport_sacks_total.labels("sent"),
            metrics.transport_sacks_total.labels("received"),
            metrics.transport_packets_total.labels("sent"),
            metrics.transport_packets_total.labels("received"),
            metrics.transport_bytes_total.labels("sent"),
            metrics.transport_bytes_total.labels("received"),
            *map(metrics.transport_dropped_total.labels, TRANSPORT_DROPS),
        )

    def look(self, links: Sequence[Measured]) -> None:
        """Looks at the links that are up, or at some of them. The next call takes the others."""
        if len(links) > LOOKS_MAX:
            begin = self._at % len(links)
            looked_at = [*links[begin : begin + LOOKS_MAX]]
            looked_at += links[: LOOKS_MAX - len(looked_at)]
            self._at = begin + LOOKS_MAX
        else:
            looked_at = [*links]
        for link in looked_at:
            stats = self._take(link)
            if stats.rtt is not None:
                self._metrics.transport_rtt_seconds.observe(stats.rtt)
            if stats.rtt_variation is not None:
                self._metrics.transport_rtt_variation_seconds.observe(stats.rtt_variation)
        self._show()

    def ended(self, link: Measured) -> None:
        """Takes the last figures of a link, and forgets it."""
        self._take(link)
        del self._seen[link]
        self._show()

    def _take(self, link: Measured) -> TransportStats:
        stats = link.stats
        seen = self._seen.setdefault(link, _Seen([0] * len(_COUNTERS)))
        for number, (figure, counter) in enumerate(zip(_COUNTERS, self._counters, strict=True)):
            # A transport that is being closed may not know its figures any more.
            now = max(figure(stats) or 0, seen.counted[number])
            counter.inc(now - seen.counted[number])
            seen.counted[number] = now
        seen.cwnd, seen.outstanding = stats.cwnd or 0, stats.outstanding or 0
        return stats

    def _show(self) -> None:
        gauges: tuple[tuple[Gauge, int], ...] = (
            (self._metrics.transport_cwnd_bytes, sum(seen.cwnd for seen in self._seen.values())),
            (
                self._metrics.transport_outstanding_bytes,
                sum(seen.outstanding for seen in self._seen.values()),
            ),
        )
        for gauge, value in gauges:
            gauge.set(value)
