"""The worker: owns a slice of the flows wholly, and talks to the supervisor alone."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from socks_tunnel.config.users import PasswordChecker
from socks_tunnel.ipc.stream import Channel
from socks_tunnel.ops import audit
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.flow import ConnIdAllocator
from socks_tunnel.protocol.messages import (
    INITIAL_WINDOW,
    Bind,
    Message,
    OpenConnection,
    UdpAssociate,
)
from socks_tunnel.protocol.policies import PolicySet, build_policies
from socks_tunnel.protocol.policy import Policy, Verdict
from socks_tunnel.protocol.settings import WorkerSettings
from socks_tunnel_workers.frontends.accepting import Listener
from socks_tunnel_workers.frontends.forward import TcpForwardSession, UdpForward
from socks_tunnel_workers.frontends.socks import SocksSession
from socks_tunnel_workers.relay.flow import Flow
from socks_tunnel_workers.relay.ranking import rank
from socks_tunnel_workers.relay.session import WorkerLink
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.targets.access import Access
from socks_tunnel_workers.targets.resolver import Resolver
from socks_tunnel_workers.targets.room import Targets

logger = logging.getLogger(__name__)

Session: TypeAlias = SocksSession | TcpForwardSession
"""A client whose flow is not open yet."""

SWEEP_SECONDS = 2.0
"""How often timers of flows are looked at: idle times are kept to within this."""

SWEEP_FLOWS = 500
"""Flows looked at in one go."""

METRICS_SECONDS = 1.0
"""How often counters of the data path are added to the metrics."""

EXIT_CONFIG = 78
"""Exit status that tells the supervisor not to try again (sysexits.h, EX_CONFIG)."""

LOG_SECONDS = 10.0
"""At most one warning of a kind in this time; what happens meanwhile is in the metrics."""

ROWS_PER_FRAME = 100
"""Flows in one frame of an answer to `connections`, so that it stays far below the frame limit."""


class Worker(Channel):
    """One worker process. Its base is its end of the IPC stream.

    `on_exit` is called once with the exit status when the worker is done.
    """

    def __init__(
        self,
        index: int,
        listening: Sequence[socket.socket],
        on_exit: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.index = index
        self.channel: Channel = self
        self.config: WorkerSettings
        self.policies: PolicySet
        self.passwords: PasswordChecker | None = None
        self.metrics = Metrics()
        self.resolver = Resolver(warn=self._warn, metrics=self.metrics)
        self.targets = Targets(
            settings=self,
            resolver=self.resolver,
            access=Access(self.resolver, self.count, lambda: self.config.targets.search),
            warn=self._warn,
            flows=self.flows,
        )
        self.links: dict[int, WorkerLink] = {}
        self.sessions: set[Session] = set()
        self.lingering: set[TcpRelay] = set()
        self.pending_bytes = 0
        self.receive_window = INITIAL_WINDOW
        self.draining = False
        self._listening = {sock.fileno(): sock for sock in listening}
        self._listeners: list[Listener | UdpForward] = []
        self._waiting: dict[Session, None] = {}
        self._associations: Counter[str] = Counter()
        self._allocators: dict[int, ConnIdAllocator] = {}
        self._count = 1
        self._on_exit = on_exit
        self._exited = False
        self._drained_told = False
        self._logged: dict[str, float] = {}
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._active: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._reported_bytes: Counter[tuple[str, str]] = Counter()
        self._password_threads = ThreadPoolExecutor(2, thread_name_prefix="password")

    # --- IPC ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello to the supervisor."""
        super().connection_made(transport)
        self.send_control(0, {"op": "hello", "index": self.index, "pid": os.getpid()})

    def on_message(self, link: int, body: memoryview) -> None:
        """Take a tunnel message for one of our flows."""
        owner = self.links.get(link)
        if owner is not None:  # else: the link went down while it was under way
            owner.on_message(body)

    def on_control(self, link: int, fields: dict[str, Any]) -> None:
        """Take a control frame of the supervisor."""
        match fields["op"]:
            case "credit":
                owner = self.links.get(link)
                if owner is not None:
                    owner.grant(fields["bytes"])
            case "ping":
                # Answered from the loop that moves the bytes: a stuck loop does not answer.
                self.send_control(0, {"op": "pong", "id": fields["id"]})
            case "config":
                self._configure(fields)
            case "reload":
                self._reload(fields)
            case "link-up":
                self._link_up(link, fields)
            case "link-down":
                self._link_down(link, fields["reason"])
            case "link-goaway":
                if link in self.links:
                    self.links[link].accepts = False
            case "stats":
                self._stats(fields)
            case "drain":
                self.drain()
            case "shutdown":
                self._shutdown()
            case other:
                raise RemoteProtocolError(f"unknown control '{clip(other)}'", kind="ipc-control")

    def on_closed(self, error: Exception | None) -> None:
        """The supervisor is gone: nothing is left to do."""
        if error is not None:
            logger.error("worker %d lost the supervisor: %s", self.index, error)
        status = 0 if self.draining and error is None else 1
        self._release()
        self._exit(status)

    # --- configuration --------------------------------------------------------------------------

    def _configure(self, fields: dict[str, Any]) -> None:
        self._count = fields["count"]
        try:
            self._apply(WorkerSettings.from_map(fields["config"]))
        except ValueError as error:
            # The supervisor has checked it: this is two versions at work, which no restart mends.
            logger.error("worker %d cannot use its configuration: %s", self.index, error)  # noqa: TRY400 - the sentence says it all
            self._release()
            self._exit(EXIT_CONFIG)
            return
        for number, listener in enumerate(fields["listeners"]):
            # An association belongs to one worker: the socket of a UDP forward is read by one.
            if listener["kind"] == "forward-udp" and number % self._count != self.index:
                continue
            accepting = self._listener(listener)
            self._listeners.append(accepting)
            accepting.start()
        self.loop.call_later(SWEEP_SECONDS, self._sweep)
        self.loop.call_later(METRICS_SECONDS, self._flush_metrics)
        self.send_control(0, {"op": "ready"})

    def _listener(self, fields: dict[str, Any]) -> Listener | UdpForward:
        sock = self._listening[fields["fd"]]
        if fields["kind"] == "socks":
            return Listener(self, sock, partial(SocksSession, self))
        host, port = fields["target"]
        target = HostPort(host, port)
        if fields["kind"] == "forward-udp":
            return UdpForward(self, sock, target)
        return Listener(
            self, sock, lambda client, name: TcpForwardSession(self, client, name, target)
        )

    def _reload(self, fields: dict[str, Any]) -> None:
        """Take a changed configuration; flows that it forbids are ended."""
        self._apply(WorkerSettings.from_map(fields["config"]))
        for link in self.links.values():
            link.policy = self.policies.for_peer(link.peer)
            link.flows.limit = self.config.limits.flows_per_worker
        if self.config.role == "endpoint":
            self.targets.reload()

    def _apply(self, config: WorkerSettings) -> None:
        self.config = config
        self.policies = build_policies(config)
        self.passwords = PasswordChecker(config.users) if config.users else None
        ops_logging.set_level(config.log.level)

    # --- links ----------------------------------------------------------------------------------

    def _link_up(self, link_id: int, fields: dict[str, Any]) -> None:
        link = WorkerLink(self, link_id, fields)
        self.links[link_id] = link
        waiting, self._waiting = list(self._waiting), {}
        for session in waiting:
            session.open_on(link)

    def _link_down(self, link_id: int, reason: str) -> None:
        link = self.links.pop(link_id, None)
        self._allocators.pop(link_id, None)
        if link is not None:
            link.down(reason)
            self._check_drained()

    def best_link(self) -> WorkerLink | None:
        """Give the link that takes new flows: of those that are up, the first configured peer's."""
        links = [link for link in self.links.values() if link.accepts]
        return min(links, key=lambda link: (link.rank, -link.id), default=None)

    def wait_for_link(self, session: Session) -> None:
        """Open the session's flow as soon as a link comes up."""
        self._waiting[session] = None

    def stop_waiting(self, session: Session) -> None:
        """Forget a session that waits for a link; harmless if it does not."""
        self._waiting.pop(session, None)

    def allocate(self, link: WorkerLink) -> int:
        """Give a CONN_ID for a new flow of ours on `link`."""
        allocator = self._allocators.get(link.id)
        if allocator is None:
            # A restarted worker does not know what the one before it handed out: start anywhere.
            allocator = ConnIdAllocator(self.index, self._count, start=secrets.randbits(32))
            self._allocators[link.id] = allocator
        return allocator.allocate(link.flows)

    # --- flows ----------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether this worker holds as many flows and handshakes as it may."""
        held = self._active["tcp"] + self._active["udp"] + len(self.sessions)
        return held >= self.config.limits.flows_per_worker

    def open_from_peer(self, link: WorkerLink, message: Message) -> None:
        """Open a flow that the gateway asks for. Raises :class:`RemoteProtocolError`."""
        if self.config.role != "endpoint":
            raise RemoteProtocolError(
                f"{type(message).__name__} came from an endpoint", kind="unexpected-message"
            )
        assert isinstance(message, OpenConnection | Bind | UdpAssociate)
        udp = isinstance(message, UdpAssociate)
        if self.draining:
            link.close_flow(message.conn_id, CloseReason.SHUTTING_DOWN, udp=udp)
            return
        if self.full:
            self.log_full()
            link.close_flow(message.conn_id, CloseReason.RESOURCE_LIMIT, udp=udp)
            return
        flow = self.targets.make(link, message)
        link.flows.add(message.conn_id, flow)
        self.flow_started(flow)
        self.targets.start(flow)

    def allowed_early(self, flow: Flow, policy: Policy, destination: HostPort) -> bool:
        """Ask the gateway's own policy; what it cannot tell is left to the endpoint."""
        decision = policy.check(destination)
        self.count("policy_decisions_total", decision.verdict.value)
        audit.decision(
            peer=flow.link.peer,
            conn_id=flow.conn_id,
            command=flow.command,
            destination=destination,
            verdict=decision.verdict.value,
            rule=decision.rule,
        )
        return decision.verdict is not Verdict.DENIED

    def take_association_slot(self, client: str) -> bool:
        """Count an association of this client; False if it has as many as it may."""
        if self._associations[client] >= self.config.limits.associations_per_client:
            self._warn(
                "associations",
                "client %s has %d UDP associations in this worker (limits.associations_per_client)"
                "; refusing more",
                client,
                self._associations[client],
            )
            return False
        self._associations[client] += 1
        return True

    def free_association_slot(self, client: str) -> None:
        """Give the slot of an ended association back."""
        self._associations[client] -= 1
        if not self._associations[client]:
            del self._associations[client]

    def check_password(self, session: SocksSession, username: str, password: str) -> None:
        """Answer the session at once if this login was right before, else from a thread."""
        checker = self.passwords
        if checker is None:  # a reload took the users away: nobody can be let in on old terms
            session.password_checked(ok=False)
        elif checker.remembers(username, password):
            session.password_checked(ok=True)
        else:
            spawn("check a password", self._check_password(checker, session, username, password))

    async def _check_password(
        self, checker: PasswordChecker, session: SocksSession, username: str, password: str
    ) -> None:
        ok = await self.loop.run_in_executor(
            self._password_threads, checker.check, username, password
        )
        if not ok:
            logger.warning("client %s offered a wrong user name or password", session.client)
        session.password_checked(ok=ok)

    # --- counting -------------------------------------------------------------------------------

    def flow_started(self, flow: Flow) -> None:
        """Count a flow that entered its table."""
        self._active[flow.kind] += 1
        self.count("flows_total", flow.kind)

    def flow_ended(self, flow: Flow) -> None:
        """Count a flow that left its table."""
        self._active[flow.kind] -= 1
        self._check_drained()

    def count(self, metric: str, *labels: str) -> None:
        """Add one to a counter of :class:`Metrics`, with the others once a second."""
        self._counts[metric, labels] += 1

    def count_drop(self, reason: str) -> None:
        """Count one datagram that was dropped."""
        self._counts["udp_dropped_total", (reason,)] += 1

    def flows(self) -> Iterator[Flow]:
        """Iterate over all flows."""
        for link in self.links.values():
            yield from link.flows

    def _byte_totals(self) -> Counter[tuple[str, str]]:
        """Give payload bytes by direction and kind; what a gateway sends goes up."""
        gateway = self.config.role == "gateway"
        up, down = (self.sent, self.received) if gateway else (self.received, self.sent)
        kinds = ("tcp", "udp")
        return Counter({("up", k): up[k] for k in kinds} | {("down", k): down[k] for k in kinds})

    def _flush_metrics(self) -> None:
        metrics = self.metrics
        totals = self._byte_totals()
        for key, total in totals.items():
            metrics.bytes_total.labels(*key).inc(total - self._reported_bytes[key])
            self._reported_bytes[key] = total
        for link in self.links.values():
            scheduler = link.scheduler
            self._counts["udp_dropped_total", ("expired",)] += scheduler.expired
            self._counts["udp_dropped_total", ("queue-full",)] += scheduler.overflowed
            scheduler.expired = scheduler.overflowed = 0
        for (metric, labels), count in self._counts.items():
            if count:
                getattr(metrics, metric).labels(*labels).inc(count)
        self._counts.clear()
        for kind in ("tcp", "udp"):
            metrics.flows_active.labels(kind).set(self._active[kind])
        metrics.buffered_bytes.labels("worker").set(self.pending_bytes)
        if not self._exited:
            self.loop.call_later(METRICS_SECONDS, self._flush_metrics)

    def _stats(self, fields: dict[str, Any]) -> None:
        answer = {"op": "stats", "id": fields["id"]}
        if fields["what"] == "status":
            totals = self._byte_totals()
            self.send_control(
                0,
                answer
                | {
                    "more": False,
                    "fields": {
                        "flows_tcp": self._active["tcp"],
                        "flows_udp": self._active["udp"],
                        "sessions": len(self.sessions),
                        "bytes_up": totals["up", "tcp"] + totals["up", "udp"],
                        "bytes_down": totals["down", "tcp"] + totals["down", "udp"],
                        "buffered": self.pending_bytes,
                    },
                },
            )
            return
        limit = fields.get("limit")
        if limit is None:
            self._send_rows(answer, self.flows())
        else:
            rank(
                self.loop, list(self.flows()), limit, fields["by"], partial(self._send_rows, answer)
            )

    def _send_rows(self, answer: dict[str, Any], flows: Iterable[Flow]) -> None:
        now = self.loop.time()
        rows = [flow.row(now) for flow in flows]
        for start in range(0, max(len(rows), 1), ROWS_PER_FRAME):
            part = rows[start : start + ROWS_PER_FRAME]
            more = start + ROWS_PER_FRAME < len(rows)
            self.send_control(0, answer | {"more": more, "rows": part})

    # --- timers and limits ----------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweep_some([*self.flows(), *self.lingering])

    def _sweep_some(self, left: list[Flow]) -> None:
        """Look at some flows, then let the others' bytes move before the next ones."""
        now = self.loop.time()
        for flow in left[-SWEEP_FLOWS:]:
            flow.sweep(now)
        del left[-SWEEP_FLOWS:]
        if self._exited:
            return
        if left:
            self.loop.call_soon(self._sweep_some, left)
        else:
            self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def _warn(self, kind: str, message: str, *args: object) -> None:
        now = self.loop.time()
        if now - self._logged.get(kind, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[kind] = now
            logger.warning(message, *args)

    def log_full(self) -> None:
        """Tell the operator that flows are refused."""
        self._warn(
            "full",
            "worker %d holds %d flows (limits.flows_per_worker); refusing more",
            self.index,
            self.config.limits.flows_per_worker,
        )

    def log_flow_limit(self, link: WorkerLink, error: RemoteProtocolError) -> None:
        """Tell the operator that a flow could not be added to a link."""
        self._warn("flow-limit", "no new flow on the link to %s: %s", link.peer, error)

    def log_memory_limit(self, flow: Flow) -> None:
        """Tell the operator that a flow was closed for its bytes."""
        self._warn(
            "memory",
            "worker %d buffers %d bytes (limits.memory_per_worker is %d); closed flow %d to %s",
            self.index,
            self.pending_bytes,
            self.config.limits.memory_per_worker,
            flow.conn_id,
            flow.destination,
        )

    def log_resource_error(self, error: OSError) -> None:
        """Tell the operator that the system refuses something, such as file descriptors."""
        self._warn("resource", "worker %d cannot serve a client: %s", self.index, error)

    def log_socket_error(self, flow: Flow, error: OSError) -> None:
        """Note an unusual error of a local socket."""
        self._warn("socket", "flow %d to %s: %s", flow.conn_id, flow.destination, error)

    # --- the end --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Accept nothing new; tell the supervisor when the last flow has ended."""
        self.draining = True
        for listener in self._listeners:
            listener.stop()
        self._check_drained()

    def _check_drained(self) -> None:
        if self.draining and not self._drained_told and not any(True for _ in self.flows()):
            self._drained_told = True
            self.send_control(0, {"op": "drained"})

    def _shutdown(self) -> None:
        """Close everything now and exit with status 0."""
        self._release()
        self._flush_metrics()
        self.close()  # what was sent leaves first; on_closed ends the process

    def _release(self) -> None:
        """Ends all flows and handshakes, and closes the listening sockets of this process."""
        self.draining = self._drained_told = True
        for listener in self._listeners:
            listener.stop()
        for flow in list(self.flows()):
            flow.abort(CloseReason.SHUTTING_DOWN)
        for session in list(self.sessions):
            session.close()
        for sock in self._listening.values():
            sock.close()

    def _exit(self, status: int) -> None:
        if not self._exited:
            self._exited = True
            self.resolver.close()
            self._password_threads.shutdown(wait=False, cancel_futures=True)
            self._on_exit(status)
