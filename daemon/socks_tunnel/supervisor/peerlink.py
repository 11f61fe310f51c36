"""One link of a peer, from its first SDP to its end, as the supervisor sees it.

It observes its :class:`~socks_tunnel.peer.link.Link`, takes part in routing from `link_up` to
`link_down`, and logs what an operator wants to know about it.
"""

import asyncio
import logging
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from socks_tunnel.config.settings import Peer
from socks_tunnel.ops.labels import ReconnectCause
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.peer.link import EndedBy, Link
from socks_tunnel.peer.transport import Transport
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.keepalive import Timing
from socks_tunnel.protocol.link import DEFAULT_TIMING
from socks_tunnel.protocol.messages import Hello, Resume
from socks_tunnel.supervisor.attachment import Attachments
from socks_tunnel.supervisor.router import Waiting
from socks_tunnel.supervisor.routing import AttachedLink

_log = logging.getLogger(__name__)

EXPELLED: Final = "the peer does not accept this host any more"

_GOAWAY_REASONS: Final[dict[int, str]] = {
    CloseReason.SHUTTING_DOWN: "it is shutting down",
    CloseReason.NOT_ALLOWED: "it does not accept this host any more",
}

REPLACED: Final = "replaced by a newer link of the same peer"


class PeerLinkOwner(Protocol):
    """The owner of the links of all peers."""

    metrics: Metrics
    attachments: Attachments

    def on_up(self, link: "PeerLink") -> None:
        """Called when a link takes part in routing."""

    def on_down(self, link: "PeerLink", reason: str) -> None:
        """Called when a link has ended, or did not come up."""

    def linked_beside(self, link: "PeerLink") -> bool:
        """Returns whether the peer has another link that is up."""


class PeerLink:
    """One link of `peer`, which uses the public key `key` on it.

    `hello` is the HELLO of this side, which names the session.
    """

    def __init__(
        self,
        owner: PeerLinkOwner,
        peer: Peer,
        hello: Hello,
        transport: Transport,
        key: bytes,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.peer = peer
        self.key = key
        self.session = hello.session
        self.session_id = secrets.token_hex(16)
        """The id by which a goodbye names this link (signaling, not a session of flows)."""
        self.attached: AttachedLink | None = None
        """Its place in the router while it is up."""
        self.up_at: float | None = None
        """Unix time at which it came up; None before that."""
        self.came_up: asyncio.Future[None] = loop.create_future()
        """Done once the link is up or has ended."""
        self.ended: asyncio.Future[str] = loop.create_future()
        """Done with the reason once the link has ended."""
        self.in_doubt = False
        """Whether another link should be tried besides this one."""
        self.change: asyncio.Future[None] = loop.create_future()
        """Done, and replaced by a new one, when `in_doubt` changes; done when the link ends."""
        self.doubted: ReconnectCause | None = None
        """The reason for the doubt, for metrics; None if there is none."""
        self._owner = owner
        self._closing = False
        self._closed_for: ReconnectCause | None = None
        self._goaway = False
        self._expelled = False
        metrics = owner.metrics
        self.link = Link(
            self,
            transport,
            name=peer.name,
            hello=hello,
            timing=timing,
            on_protocol_error=lambda kind: metrics.protocol_errors_total.labels(kind).inc(),
            on_unknown=metrics.messages_unknown_total.inc,
            on_rtt=metrics.link_rtt_seconds.observe,
        )

    def __repr__(self) -> str:
        return f"<PeerLink {self.peer.name} {self.link.state}>"

    # --- LinkObserver -------------------------------------------------------------------------

    def link_up(self) -> None:
        """Takes part in routing."""
        link = self.link
        remote = link.protocol.remote_hello
        assert remote is not None, "a link is up only after HELLO"
        self.up_at = time.time()
        self.attached = self._owner.attachments.attach(
            link, self.peer.name, remote, link.protocol.hello
        )
        if self._goaway:  # GOAWAY came before all channels were open
            self.attached.goaway()
        self._owner.metrics.links_total.labels("up").inc()
        path = link.transport.path
        kind = "" if path is None else f" ({path.kind})"
        _log.info("link %s is up: %s, %s%s", self.peer.name, remote.software, path, kind)
        self._owner.on_up(self)
        if not self.came_up.done():
            self.came_up.set_result(None)

    def link_messages(self, messages: list[bytes]) -> None:
        """Routes a batch of messages."""
        if self.attached is not None:
            self.attached.messages(messages)

    def link_drained(self, drained: int) -> None:
        """Gives credit back for bytes that have left the link's queues."""
        if self.attached is not None:
            self.attached.drained(drained)

    def link_resume(self, resume: Resume) -> None:
        """Passes a RESUME of the peer on."""
        if self.attached is not None:
            self.attached.resume(resume)

    def link_goaway(self, reason: int) -> None:
        """Lets no new flows use the link.

        With the reason NOT_ALLOWED, this host is no peer any more, and its session ends too.
        """
        why = _GOAWAY_REASONS.get(reason, f"reason {reason:#x}")
        _log.info("link %s: the peer takes no new flows (%s)", self.peer.name, why)
        self._goaway = True
        self._expelled = reason == CloseReason.NOT_ALLOWED
        if self.attached is not None:
            self.attached.goaway()

    def link_suspected(self, seconds: float) -> None:
        """Lets another link be tried besides this one."""
        self.doubt(f"its peer has not answered for {seconds:.1f} s", "unanswered")

    def link_trusted(self) -> None:
        """Ends the doubt: the peer has answered."""
        if self.in_doubt:
            _log.info("link %s: its peer answers again", self.peer.name)
            self._set_doubt(None)

    def link_down(self, reason: str) -> None:
        """Leaves routing."""
        try:
            self._leave(reason)
        finally:  # a dialler that waits for the end must not wait for ever
            self.ended.set_result(reason)
            self.change.set_result(None)
            if not self.came_up.done():
                self.came_up.set_result(None)
            self._owner.on_down(self, reason)

    def cut_off(self, reason: str) -> None:
        """Takes a link that does not end by itself out of its session. It carries nothing more."""
        self._closing = True
        self._leave(reason)

    def _leave(self, reason: str) -> None:
        attached, self.attached = self.attached, None
        if attached is not None:
            waiting, replaced = attached.flows, attached.session.link is not attached
            ended = self._owner.attachments.detach(attached, reason)
            expected = self._closing or self._goaway
            level = logging.INFO if expected else logging.WARNING
            what = f"{waiting} flows wait for the next link"
            if ended or not waiting:
                what = f"{ended} flows ended"
            if replaced:
                what = "its flows go on with the newer one"
            _log.log(level, "link %s is down: %s; %s", self.peer.name, reason, what)
            if self._expelled:
                self._owner.attachments.forget(self.peer.name, EXPELLED, self.session)
        # An attempt besides a link that works disturbs nobody if it fails, so it is only vain.
        vain = "vain" if self._owner.linked_beside(self) else "failed"
        outcome = vain if self.up_at is None else "ended"
        self._owner.metrics.links_total.labels(outcome).inc()

    # --- for its owner --------------------------------------------------------------------------

    def doubt(self, why: str, cause: ReconnectCause) -> None:
        """Notes and logs that the link may be lost. It goes on, and another one may be dialled."""
        if not self.in_doubt and not self.ended.done():
            _log.info("link %s: %s", self.peer.name, why)
            self._set_doubt(cause)

    def ask(self, why: str) -> None:
        """Asks the peer for an answer, because of a change that hardly concerns the link.

        This is logged also for a link that is in doubt already.
        """
        if not self.ended.done():
            _log.info("link %s: %s; the peer is asked whether it is heard", self.peer.name, why)
            self.link.ask()

    def _set_doubt(self, cause: ReconnectCause | None) -> None:
        self.doubted = cause
        self.in_doubt = cause is not None
        if self.attached is not None:
            self.attached.doubt(to=self.in_doubt)
        change, self.change = self.change, asyncio.get_running_loop().create_future()
        change.set_result(None)

    async def close(self, reason: str, cause: ReconnectCause | None = None) -> None:
        """Ends the link in order, because this side wants it to end.

        `cause` is the cause under which a link that takes its place is counted. It is None if that
        link is counted already, or if there will be none.
        """
        if not self._closing:
            self._closed_for = cause
        self._closing = True
        await self.link.close(reason)

    async def expel(self, reason: str, cause: ReconnectCause | None = None) -> None:
        """Ends the link because its host is no peer any more, so that it keeps no flows either."""
        self.link.goaway(CloseReason.NOT_ALLOWED)
        await self.close(reason, cause)

    @property
    def lost_because(self) -> ReconnectCause | None:
        """The cause of its end, under which a link that takes its place is counted."""
        if self._closing:
            return self._closed_for
        if self._goaway:
            return "peer-restarted"
        # The peer may have closed this link for a newer one before that one was up here.
        by_transport = self.link.ended_by == "transport"
        return self.doubted if by_transport and self.doubted else _CAUSES[self.link.ended_by]

    def status(self) -> dict[str, Any]:
        """Returns the link as `status` shows it."""
        link, attached = self.link, self.attached
        path = link.transport.path
        remote, rtt = link.protocol.remote_hello, link.protocol.keepalive.rtt
        return {
            "peer": self.peer.name,
            "state": "up" if attached is not None else "connecting",
            "since": None if self.up_at is None else _iso(self.up_at),
            "weight": self.peer.weight if attached is None else attached.weight,
            "rtt_ms": None if rtt is None else round(rtt * 1000, 2),
            "remote_software": None if remote is None else remote.software,
            "flows": 0 if attached is None else attached.flows,
            "buffered": link.transport.buffered,
            "path": None if path is None else str(path),
            "path_kind": None if path is None else path.kind,
            "path_family": None if path is None else path.family,
        }


_CAUSES: Final[dict[EndedBy, ReconnectCause]] = {
    "owner": "configuration",
    "transport": "path-lost",
    "silence": "silence",
    "protocol": "protocol",
    "bug": "bug",
}


def absent_status(peer: Peer) -> dict[str, Any]:
    """Returns how `status` shows a peer that has no link."""
    return {
        "peer": peer.name,
        "state": "down",
        "since": None,
        "weight": peer.weight,
        "rtt_ms": None,
        "remote_software": None,
        "flows": 0,
        "buffered": 0,
        "path": None,
        "path_kind": None,
        "path_family": None,
    }


def waiting_status(waiting: Waiting | None, held: int) -> dict[str, Any]:
    """Returns how `status` shows the flows that wait for a link to a peer, and hold `held` bytes.

    `held` is 0 in the result if the link is back: the workers were asked a moment before.
    """
    return {
        "waiting_flows": 0 if waiting is None else waiting.flows,
        "waiting_held": 0 if waiting is None else held,
        **waiting_times(waiting),
    }


def waiting_times(waiting: Waiting | None) -> dict[str, Any]:
    """Returns since when flows wait for a link, and after how many seconds they will be ended."""
    return {
        "waiting_since": None if waiting is None else _iso(time.time() - waiting.seconds),
        "waiting_left": None if waiting is None else round(waiting.left),
    }


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
