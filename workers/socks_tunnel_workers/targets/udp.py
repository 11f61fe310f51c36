"""The endpoint's side of UDP associations: the sockets toward the targets.

It removes the SOCKS header of datagrams from the tunnel, and puts one with the true sender before
replies. The policy in force decides which destinations may be reached, and
:mod:`socks_tunnel_workers.targets.routes` which address of a destination gets a datagram.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.messages import Message, UdpAssociateClosed, UdpAssociateOpened
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.socks5 import udp_header
from socks_tunnel_workers.relay.client_socket import parse_from_peer
from socks_tunnel_workers.relay.udp import Association
from socks_tunnel_workers.sockets import DATAGRAMS_PER_TURN, SockAddr, is_shortage, udp_socket
from socks_tunnel_workers.targets.access import (
    AccessDeniedError,
    Allowed,
    Asker,
    UnresolvedError,
)
from socks_tunnel_workers.targets.routes import ATTEMPT_DELAY, Refusal, Route, Routes
from socks_tunnel_workers.targets.services import TargetServices

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerSession

PENDING_PER_NAME_MAX: Final = 16
"""Datagrams to one destination that wait while its name is looked up."""

PENDING_NAMES_MAX: Final = 64
"""New names of one association that may be looked up at once."""

PENDING_BYTES_MAX = 262_144
"""Bytes of an association's datagrams that wait for names."""

RESOLVE_SECONDS: Final = 5.0
"""Seconds after which a datagram to a name that is not resolved is dropped. Its sender will have
sent it again by then."""

UNRESOLVED_SECONDS: Final = 2.0
"""Seconds for which a destination gets nothing after its name could not be resolved. The resolver
caches for how long a name does not exist (RFC 2308), so asking it again often sends no packet."""

TTL_MIN: Final = 1.0
"""Seconds for which an answer holds at least, also if its TTL is shorter."""

STALE_SECONDS: Final = 300.0
"""Seconds for which addresses stay in use after their TTL while no name server answers (RFC 8767).
"""

IDLE_GRACE: Final = 30.0
"""Seconds that the endpoint waits beyond the gateway's idle time, so that the gateway ends the
association first."""

_NEVER: Final = float("inf")


class EndpointAssociation(Association):
    """The endpoint's side: one socket for each address family, for all destinations.

    So the mapping is endpoint-independent (RFC 4787 REQ-1): all targets see the same source port,
    as SIP, RTP and STUN need it. `udp_filtering` says which senders may answer.

    This class has many methods because a datagram may wait for its name, go to several addresses or
    be refused, and because names are looked up again.
    """

    __slots__ = ("lookups", "pending", "pending_bytes", "routes", "sockets", "targets")

    def __init__(self, targets: TargetServices, session: WorkerSession, conn_id: int) -> None:
        super().__init__(session, conn_id, client=session.peer)
        self.opened = True
        self.targets = targets
        self.sockets: dict[int, socket.socket] = {}
        self.routes = Routes(targets.settings.config.udp_filtering)
        self.pending: dict[HostPort, list[bytes]] = {}
        self.pending_bytes = 0
        self.lookups: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Opens the IPv4 socket and answers the gateway. Raises :class:`OSError` if it cannot."""
        self._socket(socket.AF_INET)
        self.session.send(UdpAssociateOpened(self.conn_id, self.bound).encode())

    def on_repeated(self, opening: Message) -> None:
        """Answers UDP_ASSOCIATE again: the answer may have been lost with a link."""
        del opening
        self.session.send(UdpAssociateOpened(self.conn_id, self.bound).encode())

    @property
    def bound(self) -> HostPort:
        """The address of the IPv4 socket."""
        host, port = self.sockets[socket.AF_INET].getsockname()
        return HostPort(host, port)

    @property
    def _now(self) -> float:
        return self.session.loop.time()

    def _asker(self) -> Asker:
        return Asker(self.session.peer, self.conn_id, self.command)

    def _policy(self) -> Policy:
        return self.targets.policy(self.session.peer)

    def _socket(self, family: int) -> socket.socket:
        sock = self.sockets.get(family)
        if sock is None:
            sock = udp_socket(family, ("0.0.0.0" if family == socket.AF_INET else "::", 0))  # noqa: S104 - it talks to any target; replies are filtered
            self.adopt(family, sock)
        return sock

    def adopt(self, family: int, sock: socket.socket) -> None:
        """Reads a socket of the association from now on."""
        self.sockets[family] = sock
        session = self.session
        session.loop.add_reader(sock, session.core.guard, self, self._readable, sock)

    # --- client -> target -----------------------------------------------------------------------

    def on_datagram(self, packet: memoryview) -> None:
        """Sends a datagram to its target, once the policy has allowed that destination."""
        now = self.active = self._now
        frag, destination, offset = parse_from_peer(packet, self.conn_id)
        if frag:
            self.drop("fragment")
            return
        entry = self.routes.get(destination, now)
        if entry is None:
            self._new_destination(destination, bytes(packet[offset:]))
        elif isinstance(entry, Refusal):
            self.drop(entry.reason)
        else:
            if entry.expired(now) and not entry.refreshing:
                entry.refreshing = True
                self._spawn(self._refresh(destination, entry))
            self._forward(destination, entry, packet[offset:], now)

    def _forward(
        self, destination: HostPort, route: Route, data: bytes | memoryview, now: float
    ) -> None:
        """Sends a datagram to the addresses that the route chooses, or drops and counts it."""
        if route.holds(now):
            sock, sockaddr = route.direct
            try:
                sock.sendto(data, sockaddr)
            except OSError as error:
                self._send_failed(error)
                return
            self._up += len(data)
            self.session.counters.received["udp"] += len(data)
            return
        errors: list[OSError] = []
        addresses = route.send(data, now)
        for address in addresses:
            failure = self._send(route, address, destination.port, data)
            if failure is not None:
                errors.append(failure)
                if not isinstance(failure, BlockingIOError) and failure.errno != errno.EMSGSIZE:
                    route.failed(address, now)
        if len(errors) == len(addresses):
            self._send_failed(errors[0])
            return
        self._up += len(data)
        self.session.counters.received["udp"] += len(data)

    def _send(
        self, route: Route, address: IPAddress, port: int, data: bytes | memoryview
    ) -> OSError | None:
        host = str(address)
        sockaddr: SockAddr = (host, port) if address.version == 4 else (host, port, 0, 0)
        try:
            sock = self._socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
            sock.sendto(data, sockaddr)
        except OSError as error:
            if is_shortage(error):
                self.targets.warn("resource", "cannot serve a UDP association: %s", error)
            return error
        self.routes.reached(route, address, port)
        if not route.racing and address == route.current:
            route.direct = (sock, sockaddr)
        return None

    def _race(self, destination: HostPort, route: Route) -> None:
        """Adds one more address to a race, which gets the datagrams that the others got."""
        if self.ended or self.routes.get(destination, self._now) is not route:
            return
        attempt = route.attempt(self._now)
        if attempt is None:
            return
        address, datagrams = attempt
        for data in datagrams:
            error = self._send(route, address, destination.port, data)
            if error is not None:
                break
        self.session.loop.call_later(ATTEMPT_DELAY, self._race, destination, route)

    # --- decisions ------------------------------------------------------------------------------

    def _new_destination(self, destination: HostPort, data: bytes) -> None:
        """Decides about a new destination and sends a datagram there; looks a name up first."""
        waiting = self.pending.get(destination)
        if waiting is None:
            try:
                allowed = self.targets.access.literal(self._asker(), self._policy(), destination)
            except AccessDeniedError:
                self._refuse(destination, "policy", _NEVER, 1)
                return
            if allowed is not None:
                self._forward(destination, self._route(destination, allowed), data, self._now)
                return
            if len(self.pending) >= PENDING_NAMES_MAX:
                self.drop("resolving")
                return
        elif len(waiting) >= PENDING_PER_NAME_MAX:
            self.drop("resolving")
            return
        if self.pending_bytes + len(data) > PENDING_BYTES_MAX:
            self.drop("resolving")
            return
        self.pending_bytes += len(data)
        if waiting is not None:
            waiting.append(data)
            return
        self.pending[destination] = [data]
        self._spawn(self._resolve(destination), lambda _error: self._unresolved(destination))

    def _spawn(
        self,
        work: Coroutine[Any, Any, None],
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Starts a look-up, which ends with the association at the latest."""
        task = spawn(f"udp {self.conn_id} resolve", work, on_failure=on_failure)
        self.lookups.add(task)
        task.add_done_callback(self.lookups.discard)

    async def _resolve(self, destination: HostPort) -> None:
        try:
            allowed = await self.targets.access.decide(
                self._asker(), self._policy, destination, seconds=RESOLVE_SECONDS
            )
        except AccessDeniedError:
            self._refuse(destination, "policy", _NEVER, len(self._take_pending(destination)))
        except UnresolvedError:
            self._unresolved(destination)
        else:
            waiting = self._take_pending(destination)
            route = self._route(destination, allowed)
            for data in waiting:
                self._forward(destination, route, data, self._now)
            if route.racing:
                self.session.loop.call_later(ATTEMPT_DELAY, self._race, destination, route)

    def _take_pending(self, destination: HostPort) -> list[bytes]:
        """Returns the datagrams that wait for a name, and forgets them."""
        waiting = self.pending.pop(destination, [])
        self.pending_bytes -= sum(map(len, waiting))
        return waiting

    def _unresolved(self, destination: HostPort) -> None:
        """Refuses a destination for :data:`UNRESOLVED_SECONDS`, and drops what waits for it."""
        dropped = len(self._take_pending(destination))
        self._refuse(destination, "unresolved", self._now + UNRESOLVED_SECONDS, dropped)

    def _refuse(self, destination: HostPort, reason: str, until: float, dropped: int) -> None:
        self.routes.put(destination, Refusal(reason, until))
        for _ in range(dropped):
            self.drop(reason)

    def _route(self, destination: HostPort, allowed: Allowed) -> Route:
        now = self._now
        expires = None if allowed.ttl is None else now + max(float(allowed.ttl), TTL_MIN)
        route = Route(
            allowed.addresses,
            now=now,
            expires=expires,
            name=allowed.name,
            mapped=":" in destination.host and allowed.addresses[0].version == 4,
        )
        self.routes.put(destination, route)
        return route

    async def _refresh(self, destination: HostPort, route: Route) -> None:
        """Looks a name up again, because its TTL is over and datagrams still go there."""
        expired = self._now
        try:
            allowed = await self.targets.access.decide(
                self._asker(),
                self._policy,
                destination,
                seconds=RESOLVE_SECONDS,
                known=route.addresses,
            )
        except AccessDeniedError:
            self._replace(destination, route, Refusal("policy", _NEVER))
        except UnresolvedError as error:
            assert route.expires is not None, "only names are looked up again"
            if not error.soft or expired - route.expires > STALE_SECONDS:
                self._replace(
                    destination, route, Refusal("unresolved", self._now + UNRESOLVED_SECONDS)
                )
        else:
            assert allowed.ttl is not None, "it was a name"
            expires = self._now + max(float(allowed.ttl), TTL_MIN)
            if not route.renew(allowed.addresses, expires=expires):
                fresh = Route(allowed.addresses, now=self._now, expires=expires, name=allowed.name)
                if self._replace(destination, route, fresh) and fresh.racing:
                    self.session.loop.call_later(ATTEMPT_DELAY, self._race, destination, fresh)
        finally:
            self.session.loop.call_later(UNRESOLVED_SECONDS, route.refreshed)

    def _replace(self, destination: HostPort, old: Route, new: Route | Refusal) -> bool:
        """Replaces a route; returns False if that was done before."""
        if self.ended or self.routes.get(destination, self._now) is not old:
            return False
        self.routes.put(destination, new)
        return True

    def recheck(self) -> Iterator[None]:
        """Ends the routes that the policy in force forbids.

        It is a generator, so that a reload can stop between its steps. Destinations that were
        refused are decided anew when the next datagram comes.
        """
        self.routes.forget_refusals()
        for destination in self.routes.destinations():
            route = self.routes.get(destination, self._now)
            if isinstance(route, Route):
                permitted = self.targets.access.recheck(
                    self._asker(), self._policy(), destination, route.name, route.addresses
                )
                if not permitted:
                    self.routes.put(destination, Refusal("policy", _NEVER))
                elif len(permitted) < len(route.addresses) and not route.renew(permitted):
                    self.routes.put(
                        destination,
                        Route(permitted, now=self._now, expires=route.expires, name=route.name),
                    )
            yield

    # --- target -> client -----------------------------------------------------------------------

    def _readable(self, sock: socket.socket) -> None:
        routes = self.routes
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, sender = sock.recvfrom(65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # This is a pending ICMP error of an earlier datagram. No datagram is lost.
                return
            host, port = sender[0], sender[1]
            if not routes.admits(host, port):
                self.drop("filtered")
                continue
            answering = routes.answering(host, port)
            header = udp_header(HostPort(_as_asked(host, answering), port))
            if len(header) + len(data) > self.session.terms.max_data:
                self.drop("too-long")
                continue
            now = self.active = self._now
            for route in answering:
                if len(route.addresses) > 1:
                    address = parse_ip(host)
                    assert address is not None, "the kernel names senders by address"
                    route.answered(address, now)
            self._down += len(data)
            self.session.counters.sent["udp"] += len(data)
            self.session.send_datagram(self.conn_id, header, data)

    # --- end ------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        """Takes the gateway's CLOSE."""
        if not isinstance(message, UdpAssociateClosed):
            raise self.unexpected(type(message).__name__)
        self._close(message.reason)

    def sweep(self, now: float) -> None:
        """Ends the association if it is silent for longer than the gateway's idle time."""
        self._end_if_idle(now, self.session.terms.idle_udp + IDLE_GRACE)

    def _close(self, reason: int) -> None:
        if not self.end(reason):
            return
        for task in list(self.lookups):
            task.cancel()
        for destination in list(self.pending):
            for _ in self._take_pending(destination):
                self.drop("resolving")
        for sock in self.sockets.values():
            self.session.loop.remove_reader(sock)
            sock.close()


def _as_asked(host: str, routes: Sequence[Route]) -> str:
    """Returns a sender's address in the form that the client has used for it.

    A client with IPv6 only writes IPv4 addresses as `::ffff:192.0.2.1`.
    """
    if routes and all(route.mapped for route in routes):
        return f"::ffff:{host}"
    return host
