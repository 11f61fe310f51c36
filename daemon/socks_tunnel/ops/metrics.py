"""The metrics of all processes of an instance, and how the exporter adds them up.

Each process counts for itself and writes files (:mod:`socks_tunnel.ops.meters`); the exporter reads
the files of all slots and adds them up. No label holds a destination, a user or a peer: such values
are unbounded, and personal.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import socks_tunnel
from socks_tunnel.ops.meters import (
    AnyFamily,
    Counter,
    Files,
    Gauge,
    Histogram,
    Labels,
    Sample,
    live,
    read_all,
)

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The HTTP content type of what :func:`render` returns."""

_RTT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 15.0)
_CONNECT_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

_files: Files | None = None


def prepare_directory(directory: Path) -> None:
    """Makes `directory` (mode 0750) and empties it of an earlier run's files.

    Called by the supervisor once, before any process of the instance calls :func:`configure`.
    Raises :class:`OSError`.
    """
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    for pattern in ("*.db", "*.new", "*.damaged"):
        for file in directory.glob(pattern):
            file.unlink(missing_ok=True)


def configure(directory: Path, identity: str) -> Files:
    """Makes this process write its metrics to `directory` as the slot `identity`.

    It is called once, before the :class:`Metrics` of the process is made. `identity` is unique
    among the live processes of the instance. Live gauges that a predecessor in the slot left are
    removed; its counters go on.
    """
    global _files  # noqa: PLW0603 - where metrics go is a property of the process
    _files = Files(directory, identity)
    return _files


def slot_died(directory: Path, identity: str) -> None:
    """Removes the live gauges of a slot whose process has ended; its counters stay."""
    live(directory, identity).unlink(missing_ok=True)


class Metrics:
    """All metrics, as attributes.

    Without :func:`configure` they hold their values in this process only, which is what unit
    tests want. On a hot path, bind the labels once: `self._up = metrics.bytes_total.labels("up",
    "tcp")`, then `self._up.inc(n)`. `registry` is one of prometheus-client, for tests.
    """

    def __init__(self, registry: Any = None) -> None:
        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"socks_tunnel_{name}", help_text, labels)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"socks_tunnel_{name}", help_text, labels)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"socks_tunnel_{name}", help_text, buckets)

        self.up = gauge("up", "1 while the supervisor runs")
        self.build_info = gauge(
            "build_info", "1, labelled with the versions that run", "version", "python", "aiortc"
        )
        self.links = gauge("links", "Links by state", "state")
        self.link_paths = gauge(
            "link_paths", "Links that are up, by the kind of their path", "kind"
        )
        self.links_total = counter("link_events_total", "Links that ended or came up", "outcome")
        self.link_rtt_seconds = histogram(
            "link_rtt_seconds", "Round trip of PING on each link", _RTT_BUCKETS
        )
        self.sessions_detached = gauge("sessions_detached", "Sessions that wait for a link")
        self.resumes_total = counter(
            "resumes_total", "Sessions with flows that lost their link, by what became", "result"
        )
        self.resume_seconds = histogram(
            "resume_seconds", "From a new link until its flows go on", _CONNECT_BUCKETS
        )
        self.sessions_given_up_total = counter(
            "sessions_given_up_total", "Sessions without a link whose flows had to give way", "why"
        )
        self.flows_active = gauge("flows_active", "Open flows by kind", "kind")
        self.flows_total = counter("flows_total", "Flows opened by kind", "kind")
        self.requests_total = counter(
            "requests_total", "Requests of clients by command and reply", "command", "reply"
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
        self.fast_path = gauge("fast_path", "1 if new links use the fast path, 0 if plain aiortc")
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
            "socks_rejected_total",
            "Clients of the proxy without a request that can be served",
            "reason",
        )
        self.messages_unknown_total = counter(
            "messages_unknown_total", "Messages of an unknown type, ignored"
        )
        self.loop_lag_seconds = histogram(
            "loop_lag_seconds", "How late the event loop of the supervisor is", _LAG_BUCKETS
        )
        self.tls_certificate_expires_seconds = gauge(
            "tls_certificate_expires_seconds", "Unix time at which a certificate expires", "kind"
        )
        self.metrics_files_damaged = gauge(
            "metrics_files_damaged", "Files of metrics that were left out or set aside as damaged"
        )
        if registry is not None:
            registry.register(self)
        global _files
        self.files, _files = _files, None
        if self.files is not None:
            for family in self.families():
                self.files.add(family)
            self.files.start()

    def set_build_info(self) -> None:
        """Sets `up` and `build_info`; called by the supervisor alone."""
        import platform  # noqa: PLC0415 - these two cost each worker a megabyte
        from importlib.metadata import version  # noqa: PLC0415

        self.up.set(1)
        self.build_info.labels(
            socks_tunnel.__version__, platform.python_version(), version("aiortc")
        ).set(1)

    def flush(self) -> None:
        """Writes to the files what was counted; at the end of the process, and in tests."""
        if self.files is not None:
            self.files.flush()

    def families(self) -> list[AnyFamily]:
        """Returns all metrics."""
        return [f for f in vars(self).values() if isinstance(f, Counter | Gauge | Histogram)]

    def collect(self) -> "Iterator[Metric]":
        """Yields what was counted in the form of prometheus-client."""
        from prometheus_client.metrics_core import Metric  # noqa: PLC0415 - tests alone have it

        for family in self.families():
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in _added_up(family, family.samples()):
                metric.add_sample(name, _as_dict(labels), value)
            yield metric


def render(directory: Path) -> bytes:
    """Returns the sum over all slots in the Prometheus text format, of type :data:`CONTENT_TYPE`.

    Reads files: called in the exporter process, never on the supervisor's event loop. A damaged
    file is left out, and counted. Raises :class:`OSError` if the directory cannot be read.
    """
    samples, damaged = read_all(directory)
    by_family: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_family[sample.metric].append(sample)
    counted = Metrics()
    counted.metrics_files_damaged.set(damaged)
    by_family[counted.metrics_files_damaged.name] = list(counted.metrics_files_damaged.samples())
    lines: list[str] = []
    for family in counted.families():
        found = by_family.get(family.name)
        if not found:
            continue
        exposed = f"{family.name}_total" if family.kind == "counter" else family.name
        lines.append(f"# HELP {exposed} {_escaped(family.help)}")
        lines.append(f"# TYPE {exposed} {family.kind}")
        for name, labels, value in _added_up(family, found):
            texts = ",".join(f'{key}="{_escaped(text)}"' for key, text in _as_dict(labels).items())
            lines.append(f"{name}{{{texts}}} {value!r}" if texts else f"{name} {value!r}")
    return "".join(f"{line}\n" for line in lines).encode()


def _added_up(family: AnyFamily, samples: Iterable[Sample]) -> Iterator[tuple[str, Labels, float]]:
    """Yields the sums of samples with the same name and labels; of buckets, the running sums."""
    sums: dict[tuple[str, Labels], float] = defaultdict(float)
    for sample in samples:
        sums[sample.name, sample.labels] += sample.value
    if not isinstance(family, Histogram):
        for (name, labels), value in sums.items():
            yield name, labels, value
        return
    buckets: dict[Labels, list[tuple[float, str, float]]] = defaultdict(list)
    for (name, labels), value in sums.items():
        if name.endswith("_bucket"):
            buckets[labels[:-2]].append((float(labels[-1]), labels[-1], value))
    for labels, counts in buckets.items():
        running = 0.0
        for _, bound, count in sorted(counts):
            running += count
            yield f"{family.name}_bucket", (*labels, "le", bound), running
        yield f"{family.name}_count", labels, running
        yield f"{family.name}_sum", labels, sums[f"{family.name}_sum", labels]


def _as_dict(labels: Labels) -> dict[str, str]:
    return dict(zip(labels[::2], labels[1::2], strict=True))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
