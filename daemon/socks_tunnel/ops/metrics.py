"""The metrics of all processes, in prometheus-client's multiprocess mode.

Each process writes its values to memory-mapped files in one directory, and the exporter adds them
up. The library names the files after the process id; here they are named after the *slot*
("supervisor", "worker-0", …), so that a restarted worker goes on counting in the files of the one
that it replaces: counters never fall, and two hundred restarts leave as many files as none.

No label holds a destination, a user or a peer: such values are unbounded, and personal.
"""

import os
import platform
import struct
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

import socks_tunnel

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST
"""The HTTP content type of what :func:`render` gives."""

_RTT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 15.0)
_CONNECT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_RENDER_ATTEMPTS = 5


def prepare_directory(directory: Path) -> None:
    """Make `directory` (mode 0750) and empty it of an earlier run's files.

    Called by the supervisor once, before any process of the instance calls :func:`configure`.
    Raises :class:`OSError`.
    """
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    for file in directory.glob("*.db"):
        file.unlink(missing_ok=True)


def configure(directory: Path, identity: str) -> None:
    """Make this process write its metrics to `directory` as the slot `identity`.

    Must be called before any metric object is made; `directory` must exist. `identity` is unique
    among the live processes of the instance and has no "_" (the library's file names are split
    there). Live gauges that a predecessor in the slot left are removed; its counters go on.
    """
    if "_" in identity or "/" in identity or not identity:
        raise ValueError(f"{identity!r} cannot name a metrics slot")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    # The library takes its one choice at import from the environment, by process id; this is its
    # documented way to another identifier, but these functions have no type hints.
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(  # type: ignore[no-untyped-call]
        process_identifier=lambda: identity
    )
    slot_died(directory, identity)


def slot_died(directory: Path, identity: str) -> None:
    """Remove the live gauges of a slot whose process has ended; its counters stay."""
    mark_process_dead(identity, str(directory))  # type: ignore[no-untyped-call]  # no hints


class Metrics:
    """All metric objects, as attributes.

    Without :func:`configure` they hold their values in this process only, which is what unit
    tests want. On a hot path, bind the labels once: `self._up = metrics.bytes_total.labels("up",
    "tcp")`, then `self._up.inc(n)`.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # A registry of its own: the global one refuses a second set of the same names, and what
        # is exported is read from the files, not from here.
        registry = registry or CollectorRegistry(auto_describe=True)

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"socks_tunnel_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            # "live": a process that ended takes its share of the sum with it.
            return Gauge(
                f"socks_tunnel_{name}",
                help_text,
                labels,
                registry=registry,
                multiprocess_mode="livesum",
            )

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"socks_tunnel_{name}", help_text, buckets=buckets, registry=registry)

        self.up = Gauge(
            "socks_tunnel_up",
            "1 while the supervisor runs",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.build_info = Gauge(
            "socks_tunnel_build_info",
            "1, labelled with the versions that run",
            ("version", "python", "aiortc"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.links = gauge("links", "Links by state", "state")
        self.links_total = counter("link_events_total", "Links that ended or came up", "outcome")
        self.link_rtt_seconds = histogram(
            "link_rtt_seconds", "Round trip of PING on each link", _RTT_BUCKETS
        )
        self.flows_active = gauge("flows_active", "Open flows by kind", "kind")
        self.flows_total = counter("flows_total", "Flows opened by kind", "kind")
        self.requests_total = counter(
            "requests_total", "SOCKS5 requests by command and reply", "command", "reply"
        )
        self.policy_decisions_total = counter(
            "policy_decisions_total", "Decisions of the access policy", "verdict"
        )
        self.bytes_total = counter(
            "bytes_total",
            "Payload bytes; up is from the SOCKS client to the target",
            "direction",
            "kind",
        )
        self.udp_dropped_total = counter("udp_dropped_total", "Datagrams dropped", "reason")
        self.connect_seconds = histogram(
            "connect_seconds",
            "From accepting a client (endpoint: from the request) until its flow is open",
            _CONNECT_BUCKETS,
        )
        self.dns_seconds = histogram(
            "dns_seconds",
            "From the question for a name (endpoint) until its answer or failure",
            _CONNECT_BUCKETS,
        )
        self.dns_failures_total = counter("dns_failures_total", "Name look-ups that failed", "kind")
        self.worker_restarts_total = counter("worker_restarts_total", "Workers started again")
        self.workers = gauge("workers", "Workers that are up")
        self.buffered_bytes = gauge(
            "buffered_bytes", "Bytes that wait, by the place where they do", "where"
        )
        self.protocol_errors_total = counter(
            "protocol_errors_total", "Messages of the peer that broke the protocol", "kind"
        )
        self.signaling_rejected_total = counter(
            "signaling_rejected_total", "Signalling envelopes rejected", "reason"
        )
        self.socks_rejected_total = counter(
            "socks_rejected_total", "SOCKS clients closed before a request", "reason"
        )
        self.messages_unknown_total = counter(
            "messages_unknown_total", "Messages of an unknown type, ignored"
        )

    def set_build_info(self) -> None:
        """Set `up` and `build_info`; called by the supervisor alone."""
        self.up.set(1)
        self.build_info.labels(
            socks_tunnel.__version__, platform.python_version(), version("aiortc")
        ).set(1)


class _Files(Collector):
    """Reads the files of a directory while other processes make and remove them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        for attempts_left in reversed(range(_RENDER_ATTEMPTS)):
            try:
                return self._read()
            except (FileNotFoundError, struct.error):
                # A file went away, or was made a moment ago and has no header yet.
                if not attempts_left:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read(self) -> Iterable[Metric]:
        # A process killed between making a file and filling it leaves an empty one for good.
        files = [str(file) for file in self._directory.glob("*.db") if file.stat().st_size]
        return MultiProcessCollector.merge(sorted(files))  # type: ignore[no-untyped-call, no-any-return]  # no hints


def render(directory: Path) -> bytes:
    """Give the sum over all slots in the Prometheus text format, of type :data:`CONTENT_TYPE`.

    Reads files: called in the exporter process, never on the supervisor's event loop. Raises
    :class:`OSError` if the directory cannot be read.
    """
    registry = CollectorRegistry()
    registry.register(_Files(directory))
    return generate_latest(registry)
