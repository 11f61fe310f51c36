"""A worker's hand-over: its flows go on in another program, in the same process.

The old program writes its state to a file in memory (memfd_create(2)), leaves its sockets open, and
replaces itself (execve(2)). The new program reads the file and goes on. The format of the file is
in :mod:`socks_tunnel.protocol.handover`. The packages `frontends`, `relay` and `targets` write and
read the records of their own flows.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import socks_tunnel
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.handover import (
    STATE_VERSION,
    Head,
    StateReader,
    StateWriter,
    export_session,
    restore_session,
)
from socks_tunnel_workers.frontends.clients import Clients
from socks_tunnel_workers.frontends.forward import ForwardAssociation, UdpForward
from socks_tunnel_workers.frontends.handover import (
    export_forward_association,
    export_gateway_association,
    export_routed_association,
    restore_forward_association,
    restore_gateway_association,
    restore_routed_association,
)
from socks_tunnel_workers.relay.handover import export_relay, restore_client_relay
from socks_tunnel_workers.relay.routed_udp import RoutedAssociation
from socks_tunnel_workers.relay.session import Flow, WorkerSession
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.relay.udp import GatewayAssociation
from socks_tunnel_workers.services import Counters
from socks_tunnel_workers.targets.handover import (
    export_endpoint_association,
    export_target_relay,
    restore_endpoint_association,
    restore_target_relay,
)
from socks_tunnel_workers.targets.services import TargetServices
from socks_tunnel_workers.targets.tcp import TargetRelay
from socks_tunnel_workers.targets.udp import EndpointAssociation

logger = logging.getLogger(__name__)

OPTION: Final = "--take-over"
"""The option that tells the new program the descriptor of the state."""


def record_of(flow: Flow) -> dict[str, Any] | None:
    """Returns a flow as a record, or None if it has no record of its own.

    That is the case for a name question and for a probe, which are asked again, and for the leg of
    a routed association, which is part of the association's record.
    """
    match flow:
        case TargetRelay():
            return {"kind": "target-stream", **export_target_relay(flow)}
        case TcpRelay():
            return {"kind": "client-stream", **export_relay(flow)}
        case EndpointAssociation():
            return {"kind": "endpoint-association", **export_endpoint_association(flow)}
        case GatewayAssociation():
            return {"kind": "gateway-association", **export_gateway_association(flow)}
        case ForwardAssociation():
            return {"kind": "forward-association", **export_forward_association(flow)}
        case _:
            return None


def write_state(
    sessions: Mapping[int, WorkerSession],
    counters: Counters,
    relays: Iterable[RoutedAssociation] = (),
) -> tuple[int, int]:
    """Writes the state to a file in memory; returns its descriptor and the number of flows in it.

    The sessions must have no link. `relays` are associations whose flows are in several sessions;
    their records come after all sessions. Raises :class:`OSError` if memory or descriptors are
    short, and :class:`ValueError` for a flow that is longer than a record may be.
    """
    fd = os.memfd_create("socks-tunnel-worker", 0)
    flows = 0
    with os.fdopen(fd, "wb", closefd=False) as file:
        writer = StateWriter(file, Head(STATE_VERSION, socks_tunnel.__version__))
        writer.write({"kind": "counters", **counters.totals_to_keep()})
        for session in sessions.values():
            writer.write(
                {
                    "kind": "session",
                    "number": session.number,
                    "peer": session.peer,
                    "detached_at": session.detached_at,
                    **export_session(session.core),
                }
            )
            for flow in (*session.flows, *session.lingering):
                record = record_of(flow)
                if record is not None:
                    flows += 1
                    writer.write(record)
        for relay in relays:
            record = {"kind": "routed-association", **export_routed_association(relay)}
            flows += len(record["legs"])
            writer.write(record)
        writer.finish()
    return fd, flows


@dataclass(frozen=True, slots=True)
class Heirs:
    """The parts that take over the previous program's flows. `targets` is None on a gateway."""

    counters: Counters
    clients: Clients
    targets: TargetServices | None
    forwards: Sequence[UdpForward]


class Inheritance:
    """The state that the previous program has left in the descriptor `fd`."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        os.lseek(fd, 0, os.SEEK_SET)
        self._file = os.fdopen(fd, "rb")
        self.flows = 0
        """Flows that go on."""
        self.lost = 0
        """Records that could not be used. Their flows have ended."""
        self._session: WorkerSession | None = None
        self._sessions: dict[int, WorkerSession] = {}

    def close(self) -> None:
        """Closes the file without reading the state."""
        self._file.close()

    def restore(self, heirs: Heirs, open_session: Any) -> str | None:
        """Restores all sessions and flows; returns why the state cannot be read, or None.

        `open_session` is called with the number and the peer of each session, and returns the
        session. A record that cannot be used ends its own flow and no other.
        """
        with self._file as file:
            try:
                for record in StateReader(file).records():
                    self._take(record, heirs, open_session)
            except bounded.Malformed as error:
                return str(error)
        return None

    def _take(self, record: dict[str, Any], heirs: Heirs, open_session: Any) -> None:
        kind = bounded.text(record, "kind")
        try:
            match kind:
                case "counters":
                    heirs.counters.keep_totals(
                        _counts(record, "sent"),
                        _counts(record, "received"),
                        gateway=heirs.targets is None,
                    )
                case "session":
                    number = bounded.integer(record, "number", 1, 0xFFFF)
                    self._session = session = open_session(number, bounded.text(record, "peer"))
                    self._sessions[number] = session
                    session.detached_at = bounded.number(record, "detached_at")
                    restore_session(session.core, record)
                case "routed-association" if heirs.targets is None:
                    routed = restore_routed_association(heirs.clients, self._sessions, record)
                    self.flows += len(routed.legs)
                case _:
                    self._flow(kind, record, heirs)
                    self.flows += 1
        except (bounded.Malformed, RemoteProtocolError, OSError) as error:
            self.lost += 1
            logger.warning(
                "a flow of the previous program is lost: its %s record cannot be used: %s",
                bounded.clip(kind),
                error,
            )
            close_lent(record)

    def _flow(self, kind: str, record: Mapping[str, Any], heirs: Heirs) -> None:
        session, targets, clients = self._session, heirs.targets, heirs.clients
        if session is None:
            raise bounded.Malformed("it comes before the record of its session")
        match kind:
            case "client-stream" if targets is None:
                restore_client_relay(session, record)
            case "gateway-association" if targets is None:
                restore_gateway_association(clients, session, record)
            case "forward-association" if targets is None:
                restore_forward_association(_forward(record, heirs.forwards), session, record)
            case "target-stream" if targets is not None:
                restore_target_relay(targets, session, record)
            case "endpoint-association" if targets is not None:
                restore_endpoint_association(targets, session, record)
            case _:
                role = "a gateway" if targets is None else "an endpoint"
                raise bounded.Malformed(f"{role} has no flows of this kind")


def _counts(record: Mapping[str, Any], key: str) -> dict[str, int]:
    counts = bounded.table(record, key)
    return {kind: bounded.integer(counts, kind, 0, (1 << 64) - 1) for kind in counts}


def _forward(record: Mapping[str, Any], forwards: Iterable[UdpForward]) -> UdpForward:
    for forward in forwards:
        if list(forward.sock.getsockname()) == record.get("forward"):
            return forward
    raise bounded.Malformed(
        f"no UDP forward of this worker listens on {bounded.clip(str(record.get('forward')))}"
    )


def close_lent(record: Mapping[str, Any]) -> None:
    """Closes the descriptors of a record that no flow has adopted.

    Those are still inheritable: :func:`~socks_tunnel_workers.sockets.adopt` ends that.
    """
    sockets = record.get("sockets")
    numbers = [record.get(key) for key in ("fd", "control", "listener")]
    if isinstance(sockets, list):
        numbers += [row[1] for row in sockets if isinstance(row, list) and len(row) == 2]
    for fd in numbers:
        if isinstance(fd, int):
            # There is no such descriptor if its flow closed it, or if the record was wrong.
            with contextlib.suppress(OSError):
                if os.get_inheritable(fd):
                    os.close(fd)
