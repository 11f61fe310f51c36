"""The metrics of all processes of an instance.

Each process counts for itself and writes files (:mod:`socks_tunnel.ops.meters`). The exporter adds
up the files of all slots (:mod:`socks_tunnel.ops.exposition`). No label holds a destination, a user
or a client: such values are unbounded, and personal. A peer is named only beside a route of a
gateway, where the configuration bounds both.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import socks_tunnel
from socks_tunnel.ops import labels
from socks_tunnel.ops.logging import dropped_lines
from socks_tunnel.ops.meters import (
    AnyFamily,
    Counter,
    Files,
    Gauge,
    Histogram,
    discard,
)
from socks_tunnel.ops.multiprocess import Labels, Sample, file_of
from socks_tunnel.ops.process_figures import ProcessFigures, figures_of, process_figures

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_log = logging.getLogger(__name__)

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
            discard(file)


def configure(directory: Path, identity: str) -> Files:
    """Makes this process write its metrics to `directory` as the slot `identity`.

    It is called once, before the :class:`Metrics` of the process is made. `identity` is unique
    among the live processes of the instance. Live gauges that a predecessor in the slot left are
    removed; its counters go on.
    """
    global _files  # noqa: PLW0603 - a process has one place for its metrics
    _files = Files(directory, identity)
    return _files


def slot_died(directory: Path, identity: str) -> None:
    """Removes the live gauges of a slot whose process has ended; its counters stay."""
    discard(file_of(directory, "gauge", identity))


class Metrics:
    """All metrics, as attributes. docs/metrics.md says what each means and what to do about it.

    Without :func:`configure` they hold their values in this process only, which is what unit
    tests want. On a hot path, bind the labels once: `self._up = metrics.bytes_total.labels("up",
    "tcp")`, then `self._up.inc(n)`. `registry` is one of prometheus-client, for tests.
    """

    def __init__(self, registry: Any = None) -> None:
        def counter(name: str, help_text: str, **known: tuple[str, ...]) -> Counter:
            return Counter(f"socks_tunnel_{name}", help_text, tuple(known), _given(known))

        def gauge(name: str, help_text: str, **known: tuple[str, ...]) -> Gauge:
            return Gauge(f"socks_tunnel_{name}", help_text, tuple(known), _given(known))

        def histogram(
            name: str, help_text: str, buckets: tuple[float, ...], *names: str
        ) -> Histogram:
            return Histogram(f"socks_tunnel_{name}", help_text, buckets, names)

        # --- the instance
        self.up = gauge("up", "1 while the supervisor runs")
        self.build_info = gauge(
            "build_info",
            "1, labelled with the role and the versions that run",
            role=(),
            version=(),
            python=(),
            aiortc=(),
        )
        self.healthy = gauge("healthy", "1 while the supervisor speaks to the exporter (/healthz)")
        self.ready = gauge("ready", "1 while the instance can serve (/readyz)")
        self.config_hash = gauge(
            "config_hash", "Hash of the configuration in force, without its secrets"
        )
        self.config_reloads_total = counter(
            "config_reloads_total", "Reloads of the configuration", result=labels.RELOADS
        )
        self.config_reload_ok = gauge(
            "config_reload_ok", "1 if the last reload of the configuration succeeded"
        )
        self.config_loaded_timestamp_seconds = gauge(
            "config_loaded_timestamp_seconds", "Unix time at which the configuration was read"
        )
        # --- links
        self.links = gauge("links", "Links by state", state=labels.LINK_STATES)
        self.link_paths = gauge(
            "link_paths",
            "Links that are up, by the kind of their path",
            kind=labels.PATH_KINDS,
            family=labels.FAMILIES,
        )
        self.links_total = counter(
            "link_events_total", "Links that ended or came up", outcome=labels.LINK_OUTCOMES
        )
        self.link_reconnects_total = counter(
            "link_reconnects_total",
            "Links that came up in place of another, by what was wrong with that",
            cause=labels.RECONNECT_CAUSES,
        )
        self.link_rtt_seconds = histogram(
            "link_rtt_seconds", "Round trip of PING on each link", _RTT_BUCKETS
        )
        # --- what carries the links
        self.transport_cwnd_bytes = gauge(
            "transport_cwnd_bytes", "Congestion windows of all links together"
        )
        self.transport_outstanding_bytes = gauge(
            "transport_outstanding_bytes", "Bytes sent on all links that are not acknowledged yet"
        )
        self.transport_retransmissions_total = counter(
            "transport_retransmissions_total", "Fragments of messages that were sent again"
        )
        self.transport_timeouts_total = counter(
            "transport_timeouts_total", "Retransmission timers that expired"
        )
        self.transport_sacks_total = counter(
            "transport_sacks_total",
            "Selective acknowledgements",
            direction=labels.LINK_DIRECTIONS,
        )
        self.transport_packets_total = counter(
            "transport_packets_total",
            "Authenticated packets of all links",
            direction=labels.LINK_DIRECTIONS,
        )
        self.transport_bytes_total = counter(
            "transport_bytes_total",
            "Bytes of those packets, without UDP and IP headers",
            direction=labels.LINK_DIRECTIONS,
        )
        self.transport_dropped_total = counter(
            "transport_dropped_total",
            "What the transports of links dropped",
            reason=labels.TRANSPORT_DROPS,
        )
        self.transport_rtt_seconds = histogram(
            "transport_rtt_seconds", "Smoothed round trip of each link, sampled", _RTT_BUCKETS
        )
        self.transport_rtt_variation_seconds = histogram(
            "transport_rtt_variation_seconds", "Variation of that round trip, sampled", _RTT_BUCKETS
        )
        # --- sessions
        self.sessions_detached = gauge("sessions_detached", "Sessions that wait for a link")
        self.resumes_total = counter(
            "resumes_total",
            "Sessions with flows that lost their link, by what became",
            result=labels.RESUME_RESULTS,
        )
        self.resume_seconds = histogram(
            "resume_seconds", "From a new link until its flows go on", _CONNECT_BUCKETS
        )
        self.sessions_given_up_total = counter(
            "sessions_given_up_total",
            "Sessions without a link whose flows had to give way",
            why=labels.GIVEN_UP,
        )
        # --- flows
        self.flows_active = gauge("flows_active", "Open flows by kind", kind=labels.FLOW_KINDS)
        self.flows_total = counter("flows_total", "Flows opened by kind", kind=labels.FLOW_KINDS)
        self.requests_total = counter(
            "requests_total",
            "Requests of clients by command and reply",
            command=labels.COMMANDS,
            reply=labels.REPLIES,
        )
        self.route_flows_total = counter(
            "route_flows_total", "Flows asked for by route and peer (gateway)", route=(), peer=()
        )
        self.unrouted_total = counter(
            "unrouted_total", "Destinations that no route has", command=labels.ROUTED_COMMANDS
        )
        self.failovers_total = counter(
            "failovers_total",
            "Peers that came to be passed over for new flows, by cause",
            cause=labels.FAILOVER_CAUSES,
        )
        self.route_peer_preferred = gauge(
            "route_peer_preferred",
            "1 if new flows of the route may go to the peer, 0 if it is passed over",
            route=(),
            peer=(),
        )
        self.policy_decisions_total = counter(
            "policy_decisions_total", "Decisions of the access policy", verdict=labels.VERDICTS
        )
        self.bytes_total = counter(
            "bytes_total",
            "Payload bytes; up is from the SOCKS client to the target",
            direction=labels.DIRECTIONS,
            kind=labels.FLOW_KINDS,
        )
        self.udp_dropped_total = counter(
            "udp_dropped_total", "Datagrams dropped", reason=labels.UDP_DROPS
        )
        self.connect_seconds = histogram(
            "connect_seconds",
            "From accepting a client (endpoint: from the request) until its flow is open",
            _CONNECT_BUCKETS,
        )
        # --- names
        self.dns_seconds = histogram(
            "dns_seconds",
            "From the question for a name (endpoint) until its answer or failure",
            _CONNECT_BUCKETS,
        )
        self.dns_failures_total = counter(
            "dns_failures_total", "Name look-ups that failed", kind=labels.DNS_FAILURES
        )
        # --- what was refused or odd
        self.protocol_errors_total = counter(
            "protocol_errors_total",
            "Messages of the peer that broke the protocol",
            kind=labels.PROTOCOL_ERRORS,
        )
        self.messages_late_total = counter(
            "messages_late_total", "Messages for flows that have ended here meanwhile"
        )
        self.messages_unknown_total = counter(
            "messages_unknown_total", "Messages of an unknown type, ignored"
        )
        self.signaling_rejected_total = counter(
            "signaling_rejected_total",
            "Signalling envelopes rejected",
            reason=labels.SIGNALING_REJECTIONS,
        )
        self.http_refused_total = counter(
            "http_refused_total",
            "Connections and requests that the HTTP listeners refused",
            listener=labels.HTTP_LISTENERS,
            reason=labels.HTTP_REFUSALS,
        )
        self.parcels_dropped_total = counter(
            "parcels_dropped_total",
            "Offers, answers and requests of a rendezvous service that were dropped",
            reason=labels.PARCEL_DROPS,
        )
        self.relay_datagrams_total = counter(
            "relay_datagrams_total",
            "Datagrams of links that a rendezvous service relays",
            direction=labels.LINK_DIRECTIONS,
        )
        self.relay_dropped_total = counter(
            "relay_dropped_total",
            "Datagrams of such links that were dropped on this host",
            reason=labels.RELAY_DROPS,
        )
        self.joins_total = counter(
            "joins_total", "Requests to join (endpoint)", result=labels.JOIN_RESULTS
        )
        self.socks_rejected_total = counter(
            "socks_rejected_total",
            "Clients of the proxy without a request that can be served",
            reason=labels.CLIENT_REJECTIONS,
        )
        # --- processes
        self.workers = gauge("workers", "Workers that are up")
        self.worker_restarts_total = counter("worker_restarts_total", "Workers started again")
        self.loop_lag_seconds = histogram(
            "loop_lag_seconds", "How late the event loop of a process is", _LAG_BUCKETS, "process"
        )
        self.buffered_bytes = gauge(
            "buffered_bytes", "Bytes that wait, by the place where they do", where=labels.BUFFERS
        )
        self.window_bytes = gauge(
            "window_bytes", "Bytes that the windows of all flows allow their peers, all together"
        )
        self.worker_buffer_bytes = gauge(
            "worker_buffer_bytes", "Bytes that the flows of a worker hold", process=()
        )
        self.worker_buffer_limit_bytes = gauge(
            "worker_buffer_limit_bytes", "Bytes that the flows of a worker may hold", process=()
        )
        self.process_cpu_seconds_total = counter(
            "process_cpu_seconds_total", "Processor time of a process", process=()
        )
        self.process_resident_bytes = gauge(
            "process_resident_bytes", "Memory of a process that is in RAM", process=()
        )
        self.process_open_fds = gauge(
            "process_open_fds", "File descriptors that a process has open", process=()
        )
        self.process_max_fds = gauge(
            "process_max_fds", "File descriptors that a process may have open", process=()
        )
        self.process_start_time_seconds = gauge(
            "process_start_time_seconds", "Unix time at which a process started", process=()
        )
        self.fast_path = gauge("fast_path", "1 if new links use the fast path, 0 if plain aiortc")
        self.log_dropped_total = counter(
            "log_dropped_total", "Lines that could not be written", where=labels.LOGS
        )
        # --- what expires
        self.tls_certificate_expires_seconds = gauge(
            "tls_certificate_expires_seconds",
            "Unix time at which a certificate expires",
            kind=(),
        )
        self.ice_credential_expires_seconds = gauge(
            "ice_credential_expires_seconds",
            "Unix time at which the first credential of the TURN servers expires",
            kind=(),
        )
        self.membership_expires_seconds = gauge(
            "membership_expires_seconds",
            "Unix time at which the first host that has joined must leave (endpoint)",
            kind=(),
        )
        self.membership_list_heard_seconds = gauge(
            "membership_list_heard_seconds",
            "Unix time at which the owner of the group's list of members was heard last (endpoint)",
            kind=(),
        )
        self.metrics_files_damaged = gauge(
            "metrics_files_damaged", "Files of metrics that were left out or set aside as damaged"
        )
        if registry is not None:
            registry.register(self)
        global _files
        self.files, _files = _files, None
        self.others: dict[str, Callable[[], int | None]] = {}
        """Children that count nothing themselves: their process ids, if they run, by label."""
        self.process = "alone" if self.files is None else self.files.slot
        """The label of this process where a metric has one for each process."""
        if self.files is not None:
            for family in self.families():
                self.files.add(family)
            self.process_start_time_seconds.labels(self.process).set(time.time())
            self.files.measure = self.measure
            self.files.start()

    def set_build_info(self, role: str, aiortc: str) -> None:
        """Sets `up` and `build_info`; called by the supervisor alone. `aiortc` is a version."""
        import platform  # noqa: PLC0415 - the import costs each worker some memory

        self.up.set(1)
        python = platform.python_version()
        self.build_info.labels(role, socks_tunnel.__version__, python, aiortc).set(1)

    def measure(self) -> None:
        """Takes the figures of this process and of :attr:`others`.

        Without /proc, there are none.
        """
        try:
            self._take(self.process, process_figures())
        except OSError as error:
            _log.debug("no figures of this process: %s", error)
        for name, pid_of in self.others.items():
            pid = pid_of()
            try:
                if pid is not None:
                    self._take(name, figures_of(pid))
                elif (name,) in self.process_resident_bytes.series:  # it does not run any more
                    self.process_resident_bytes.labels(name).set(0)
                    self.process_open_fds.labels(name).set(0)
            except OSError as error:  # it has just ended
                _log.debug("no figures of %s: %s", name, error)
        for to, lines in dropped_lines.items():
            self.log_dropped_total.labels(to).set(lines)

    def _take(self, name: str, figures: ProcessFigures) -> None:
        self.process_cpu_seconds_total.labels(name).set(figures.cpu_seconds)
        self.process_resident_bytes.labels(name).set(figures.resident_bytes)
        self.process_open_fds.labels(name).set(figures.open_descriptors)
        self.process_max_fds.labels(name).set(figures.descriptor_limit)

    def observe_lag(self, seconds: float) -> None:
        """Counts how late the event loop of this process was."""
        self.loop_lag_seconds.labels(self.process).observe(seconds)

    def flush(self) -> None:
        """Writes the counts to the files, at the end of the process and in tests."""
        if self.files is not None:
            self.files.flush()

    def families(self) -> list[AnyFamily]:
        """Returns all metrics."""
        return [f for f in vars(self).values() if isinstance(f, Counter | Gauge | Histogram)]

    def collect(self) -> "Iterator[Metric]":
        """Yields what was counted in the form of prometheus-client."""
        from prometheus_client.metrics_core import Metric  # noqa: PLC0415 - only tests use it

        for family in self.families():
            metric = Metric(family.name, family.help, family.kind)
            for name, label_texts, value in added_up(family, family.samples()):
                metric.add_sample(name, as_dict(label_texts), value)
            yield metric


def _given(known: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns the labels whose values are all known."""
    return {name: values for name, values in known.items() if values}


def added_up(family: AnyFamily, samples: Iterable[Sample]) -> Iterator[tuple[str, Labels, float]]:
    """Yields the sums of samples with the same name and labels. Buckets become running sums."""
    sums: dict[tuple[str, Labels], float] = defaultdict(float)
    for sample in samples:
        sums[sample.name, sample.labels] += sample.value
    if not isinstance(family, Histogram):
        for (name, texts), value in sums.items():
            yield name, texts, value
        return
    buckets: dict[Labels, list[tuple[float, str, float]]] = defaultdict(list)
    for (name, texts), value in sums.items():
        if name.endswith("_bucket"):
            buckets[texts[:-2]].append((float(texts[-1]), texts[-1], value))
    for texts, counts in buckets.items():
        running = 0.0
        for _, bound, count in sorted(counts):
            running += count
            yield f"{family.name}_bucket", (*texts, "le", bound), running
        yield f"{family.name}_count", texts, running
        yield f"{family.name}_sum", texts, sums[f"{family.name}_sum", texts]


def as_dict(texts: Labels) -> dict[str, str]:
    """Returns labels by name."""
    return dict(zip(texts[::2], texts[1::2], strict=True))
