"""What all flows of a worker have in common: TCP relays, UDP associations, BINDs."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final, Protocol

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import Message, WindowUpdate
from socks_tunnel_workers.services import Counters

_REASONS: Final = {int(each): each.name.lower().replace("_", "-") for each in CloseReason}


def reason_name(reason: int) -> str:
    """Returns the name of a close reason for logs, also of one that this version does not know."""
    return _REASONS.get(reason) or f"0x{reason:02x}"


class FlowSession(Protocol):
    """What every flow needs of its session; subclasses know the whole one."""

    peer: str
    loop: asyncio.AbstractEventLoop
    counters: Counters

    def leave(self, flow: Flow) -> None:
        """Takes a flow out of the table, and counts its end."""


class Flow:
    """One flow of a session, owned wholly by this worker.

    Handlers raise :class:`RemoteProtocolError` when the peer breaks the protocol; the session then
    closes the flow with 0x15. Whatever a subclass does not expect is such an error.
    """

    __slots__ = (
        "active",
        "client",
        "command",
        "conn_id",
        "destination",
        "ended",
        "queued",
        "ranked",
        "served",
        "session",
        "started",
    )

    kind: ClassVar[str]
    """`tcp` or `udp`: the metrics' label."""

    def __init__(self, session: FlowSession, conn_id: int, *, command: str, client: str) -> None:
        self.session = session
        self.conn_id = conn_id
        self.command = command
        self.client = client
        self.destination: HostPort | None = None
        self.started: float = session.loop.time()
        self.active = self.started
        self.ended = False
        self.served = 0
        self.queued = 0
        self.ranked = 0
        """Bytes that it had carried when flows were last compared by that."""

    @property
    def udp(self) -> bool:
        """Whether it is a UDP association."""
        return self.kind == "udp"

    # --- from the peer --------------------------------------------------------------------------

    def on_data(self, data: memoryview) -> None:  # noqa: ARG002 - subclasses use it
        """DATA came; `data` is valid only during the call."""
        raise self.unexpected("DATA")

    def on_window(self, update: WindowUpdate) -> None:  # noqa: ARG002 - subclasses use it
        """WINDOW_UPDATE came."""
        raise self.unexpected("WINDOW_UPDATE")

    def on_datagram(self, packet: memoryview) -> None:  # noqa: ARG002 - subclasses use it
        """UDP_PACKET came; `packet` is valid only during the call."""
        raise self.unexpected("UDP_PACKET")

    def on_message(self, message: Message) -> None:
        """Any other message of this flow came."""
        raise self.unexpected(type(message).__name__)

    def unexpected(self, name: str) -> RemoteProtocolError:
        """Returns the error for a message that has no place in this flow's state."""
        return RemoteProtocolError(
            f"{name} has no place in a {self.command} flow in its state",
            kind="unexpected-message",
            conn_id=self.conn_id,
        )

    # --- from the session -----------------------------------------------------------------------

    def on_turn(self) -> None:
        """Transmits: the scheduler gives this flow its turn."""

    def on_detached(self) -> None:
        """The link is gone."""

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        """The peer has said in RESUME where it is with this flow."""

    def on_missing(self) -> bool:
        """The peer does not know this flow. Returns whether the flow was asked for again."""
        return False

    def on_repeated(self, opening: Message) -> None:
        """The opening message came again after a resume: its answer may have been lost."""
        raise self.unexpected(type(opening).__name__)

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME for this flow."""
        raise NotImplementedError

    def sweep(self, now: float) -> None:
        """Looks at the timers; called every few seconds."""

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the flow at once. `reason` goes to the peer, unless it is gone or said so itself."""
        raise NotImplementedError

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Payload bytes from the client to the target so far."""
        raise NotImplementedError

    @property
    def down(self) -> int:
        """Payload bytes from the target to the client so far."""
        raise NotImplementedError

    @property
    def receive_window(self) -> int:
        """Bytes that the peer may send before any of it is consumed; 0: nothing counts them."""
        return 0

    @property
    def held(self) -> int:
        """Bytes of it that wait in this process, or are kept until the peer has them."""
        return 0

    @property
    def state(self) -> str:
        """The state in a word or two, for `socks-tunnel connections`."""
        raise NotImplementedError

    def as_row(self, now: float) -> dict[str, object]:
        """Returns this flow's line for `socks-tunnel connections`."""
        return {
            "peer": self.session.peer,
            "conn_id": self.conn_id,
            "kind": self.kind,
            "command": self.command,
            "client": self.client,
            "destination": str(self.destination) if self.destination else "",
            "state": self.state,
            "seconds": round(now - self.started, 3),
            "up": self.up,
            "down": self.down,
            "held": self.held,
        }

    def end(self, reason: int) -> bool:
        """Leaves the table, once, and writes the audit record. False if that was done before."""
        if self.ended:
            return False
        self.ended = True
        session = self.session
        session.leave(self)
        audit.flow_end(
            peer=session.peer,
            conn_id=self.conn_id,
            command=self.command,
            destination=str(self.destination) if self.destination else "",
            up=self.up,
            down=self.down,
            seconds=session.loop.time() - self.started,
            reason=reason_name(reason),
        )
        return True
