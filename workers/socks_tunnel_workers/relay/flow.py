"""What all flows of a worker have in common: TCP relays, UDP associations, BINDs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import Message, WindowUpdate

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerLink


def reason_name(reason: int) -> str:
    """Give the name of a close reason for logs, also of one that this version does not know."""
    try:
        return CloseReason(reason).name.lower().replace("_", "-")
    except ValueError:
        return f"0x{reason:02x}"


class Flow:
    """One flow of a link, owned wholly by this worker.

    Handlers raise :class:`RemoteProtocolError` when the peer breaks the protocol; the link then
    closes the flow with 0x15. Whatever a subclass does not expect is such an error.
    """

    __slots__ = (
        "active",
        "client",
        "command",
        "conn_id",
        "destination",
        "ended",
        "link",
        "ranked",
        "started",
    )

    kind: ClassVar[str]
    """`tcp` or `udp`: the metrics' label."""

    def __init__(self, link: WorkerLink, conn_id: int, *, command: str, client: str) -> None:
        self.link = link
        self.conn_id = conn_id
        self.command = command
        self.client = client
        self.destination: HostPort | None = None
        self.started: float = link.worker.loop.time()
        self.active = self.started
        self.ended = False
        self.ranked = 0
        """Bytes that it had carried when flows were last compared by that."""

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
        """Make the error for a message that has no place in this flow's state."""
        return RemoteProtocolError(
            f"{name} has no place in a {self.command} flow in its state",
            kind="unexpected-message",
            conn_id=self.conn_id,
        )

    # --- from the worker ------------------------------------------------------------------------

    def pump(self) -> None:
        """Transmit: the scheduler gives this flow its turn."""

    def sweep(self, now: float) -> None:
        """Look at the timers; called every few seconds."""

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """End the flow at once. `reason` goes to the peer, unless it is gone or said so itself."""
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
    def state(self) -> str:
        """The state in a word or two, for `socks-tunnel connections`."""
        raise NotImplementedError

    def row(self, now: float) -> dict[str, object]:
        """Give this flow's line for `socks-tunnel connections`."""
        return {
            "peer": self.link.peer,
            "conn_id": self.conn_id,
            "kind": self.kind,
            "command": self.command,
            "client": self.client,
            "destination": str(self.destination) if self.destination else "",
            "state": self.state,
            "seconds": round(now - self.started, 3),
            "up": self.up,
            "down": self.down,
        }

    def end(self, reason: int) -> bool:
        """Leave the table, once; write the audit record. False if that was done before."""
        if self.ended:
            return False
        self.ended = True
        link = self.link
        link.flows.remove(self.conn_id)
        link.scheduler.cancel(self)
        worker = link.worker
        worker.flow_ended(self)
        audit.flow_end(
            peer=link.peer,
            conn_id=self.conn_id,
            command=self.command,
            destination=str(self.destination) if self.destination else "",
            up=self.up,
            down=self.down,
            seconds=worker.loop.time() - self.started,
            reason=reason_name(reason),
        )
        return True
