"""What the rendezvous service shows at `/metrics`. No socket and no clock.

The registry, the relay and the door count by words, which also appear in the log. This module maps
each word to a metric and the value of its label. docs/metrics.md describes them. No label
holds a key, a name or an address of a client.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from socks_tunnel.ops import labels
from socks_tunnel.ops.meters import AnyFamily, Counter, Gauge
from socks_tunnel.ops.metrics import Metrics

PROCESS: Final = "rendezvous"
"""The label `process`, the label `kind` of the certificate, and the role of `build_info`."""

_JOINS: Final[Mapping[str, str]] = {"joined": "client", "guests": "guest"}


class Counting(Protocol):
    """The parts of the service that count."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts of the registry, the relay and the bus between nodes."""

    @property
    def door_counts(self) -> Mapping[str, int]:
        """Counts of connections that were closed before their key was proved."""

    @property
    def clients(self) -> int:
        """The number of clients."""

    @property
    def channels(self) -> int:
        """Connections between two clients that are relayed."""

    @property
    def redis_is_up(self) -> bool | None:
        """Whether the other nodes can be reached; None if there are none."""


class Figures:
    """All metrics of a node, as attributes. `common` are those that every process has."""

    def __init__(self) -> None:
        def counter(name: str, help_text: str, **known: tuple[str, ...]) -> Counter:
            return Counter(f"socks_tunnel_rendezvous_{name}", help_text, tuple(known), known)

        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(f"socks_tunnel_rendezvous_{name}", help_text)

        self.common = Metrics()
        self.common.process = PROCESS
        # --- clients
        self.clients = gauge("clients", "Clients that are connected")
        self.joins_total = counter(
            "joins_total", "Clients that were let in", kind=labels.RENDEZVOUS_JOINS
        )
        self.replaced_total = counter(
            "replaced_total", "Connections that gave way to a newer one with the same key"
        )
        self.refused_total = counter(
            "refused_total",
            "Clients that were refused or sent away",
            reason=labels.RENDEZVOUS_REFUSALS,
        )
        self.connections_refused_total = counter(
            "connections_refused_total",
            "Connections that were closed before their key was proved",
            reason=labels.RENDEZVOUS_DOOR,
        )
        self.protocol_errors_total = counter(
            "protocol_errors_total",
            "Connections and messages that broke the protocol",
            kind=labels.RENDEZVOUS_ERRORS,
        )
        self.bugs_total = counter("bugs_total", "Connections that a fault of this program ended")
        # --- what is passed on
        self.parcels_total = counter(
            "parcels_total", "Offers, answers and requests that were passed on"
        )
        self.parcels_dropped_total = counter(
            "parcels_dropped_total",
            "Offers, answers and requests that were not passed on, or not sent",
            reason=labels.RENDEZVOUS_PARCEL_DROPS,
        )
        # --- the relay
        self.relayed_connections = gauge(
            "relayed_connections", "Connections between two clients that are relayed"
        )
        self.relay_datagrams_total = counter("relay_datagrams_total", "Datagrams that were relayed")
        self.relay_bytes_total = counter("relay_bytes_total", "Bytes of those datagrams")
        self.relay_dropped_total = counter(
            "relay_dropped_total",
            "Datagrams that were not relayed",
            reason=labels.RENDEZVOUS_RELAY_DROPS,
        )
        # --- several nodes
        self.redis_up = gauge("redis_up", "1 while Redis is reached")
        self.redis_commands_total = counter("redis_commands_total", "Commands to Redis")
        self.redis_dropped_total = counter(
            "redis_dropped_total", "Commands to Redis that were dropped"
        )
        self.node_messages_total = counter(
            "node_messages_total", "Offers, answers and requests of clients at other nodes"
        )
        self._whole: Mapping[str, Counter] = {
            "bugs": self.bugs_total,
            "replaced": self.replaced_total,
            "passed": self.parcels_total,
            "relayed datagrams": self.relay_datagrams_total,
            "relayed bytes": self.relay_bytes_total,
            "redis: commands": self.redis_commands_total,
            "redis: dropped": self.redis_dropped_total,
            "from other nodes": self.node_messages_total,
        }
        self._by_reason: Mapping[str, Counter] = {
            "refused": self.refused_total,
            "ended": self.refused_total,
            "not passed": self.parcels_dropped_total,
            "dropped": self.parcels_dropped_total,
            "protocol": self.protocol_errors_total,
            "relay dropped": self.relay_dropped_total,
        }

    def families(self) -> list[AnyFamily]:
        """Returns the metrics that only this service has."""
        return [f for f in vars(self).values() if isinstance(f, Counter | Gauge)]

    def exported(self, counting: Counting) -> list[AnyFamily]:
        """Returns all metrics with the present counts."""
        self._take(counting)
        common = self.common
        common.measure()
        return [
            common.up,
            common.build_info,
            *self._families_of(counting),
            common.http_refused_total,
            common.loop_lag_seconds,
            common.process_cpu_seconds_total,
            common.process_resident_bytes,
            common.process_open_fds,
            common.process_max_fds,
            common.process_start_time_seconds,
            common.log_dropped_total,
            common.tls_certificate_expires_seconds,
        ]

    def _families_of(self, counting: Counting) -> list[AnyFamily]:
        alone = counting.redis_is_up is None
        of_nodes = (
            self.redis_up,
            self.redis_commands_total,
            self.redis_dropped_total,
            self.node_messages_total,
        )
        return [family for family in self.families() if not (alone and family in of_nodes)]

    def _take(self, counting: Counting) -> None:
        sums: dict[tuple[Counter, str], int] = {}
        for what, count in list(counting.counts.items()):
            counter, reason = self._place(what)
            sums[counter, reason] = sums.get((counter, reason), 0) + count
        for reason, count in list(counting.door_counts.items()):
            sums[self.connections_refused_total, reason] = count
        for (counter, reason), total in sums.items():
            (counter.labels(reason) if reason else counter.alone).set(total)
        self.clients.set(counting.clients)
        self.relayed_connections.set(counting.channels)
        self.redis_up.set(bool(counting.redis_is_up))

    def _place(self, what: str) -> tuple[Counter, str]:
        """Returns the metric for a word of the registry, and the value of its label."""
        if what in self._whole:
            return self._whole[what], ""
        if what in _JOINS:
            return self.joins_total, _JOINS[what]
        kind, _, reason = what.partition(": ")
        return self._by_reason[kind], reason.replace(" ", "-")
