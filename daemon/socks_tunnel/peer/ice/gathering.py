"""Gathers the candidates of a connection: own addresses, and those from STUN and TURN servers.

All servers are asked in parallel. The offer waits for them, but not for dead ones: if there are
host candidates, a server has half a second for its first answer (RFC 8445 section 5.1.1 leaves the
time to us). After that, the link is made without it, but its answer is still awaited. Only a server
that is silent for :data:`LONGEST` is called dead. For a server that answered late, the next link
waits longer.

All these times are seconds in which this process ran (:class:`~.patience.Patience`).
"""

import asyncio
import errno
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import aioice
from aioice import stun, turn

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.ice.addresses import (
    LocalAddress,
    choose_addresses,
    local_addresses,
    order_addresses,
    preferred_sources,
)
from socks_tunnel.peer.ice.datagram_relay import (
    ChannelTransport,
    choose_channel,
    is_channel_address,
)
from socks_tunnel.peer.ice.names import resolve
from socks_tunnel.peer.ice.pairs import (
    COMPONENT,
    LOCAL_PREFERENCE_MAX,
    CandidateType,
    candidate_priority,
)
from socks_tunnel.peer.ice.patience import TICK, Patience
from socks_tunnel.peer.ice.relay import RelayError, RelayTransport, open_relay, release
from socks_tunnel.peer.ice.servers import DEAD_AFTER, LONGEST, MEMORY, Inquiry
from socks_tunnel.peer.ice.settings import IceServer, IceSettings, parse_servers
from socks_tunnel.protocol.addresses import IPAddress, parse_ip
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.urls import Proxy, Url, proxy_for
from socks_tunnel.signaling.tls import client_context

_log = logging.getLogger(__name__)

ADDRESS_STAGGER: Final = 0.1
"""Seconds until a server's next address is tried in parallel (similar to RFC 8305)."""

REFLEXIVE_MAX: Final = 8
RELAYED_MAX: Final = 4
"""Most candidates of these types."""

BASES_ASKED: Final = 4
"""Local addresses of each family from which STUN servers are asked."""

PORT_TRIES_MAX: Final = 1024
"""Ports of a range that are tried for one address."""

_T = TypeVar("_T")


# --- local sockets ----------------------------------------------------------------------------


def bind_udp(address: str, ports: tuple[int, int] | None) -> socket.socket:
    """Returns a UDP socket on a local address, with a port of the range if one is configured.

    Raises :class:`OSError` with a sentence if there is none.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise OSError(error.errno, f"no socket can be made: {error.strerror}") from None
    try:
        sock.setblocking(False)
        _bind(sock, address, ports)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, turn.UDP_SOCKET_BUFFER_SIZE)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, address: str, ports: tuple[int, int] | None) -> None:
    low, high = ports or (0, 0)
    count = high - low + 1
    # It begins at a random place, so that an attacker does not know the port of the next link.
    start = random.randrange(count)  # noqa: S311 - an attacker could try all ports of the range anyway
    for number in range(min(count, PORT_TRIES_MAX)):
        try:
            sock.bind((address, low + (start + number) % count))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"{address}: {error.strerror}") from None
        else:
            return
    which = f"{low}-{high} (ice.udp_ports)" if ports else "the net.ipv4.ip_local_port_range"
    raise OSError(errno.EADDRINUSE, f"{address}: no UDP port of {which} is free")


# --- gathering --------------------------------------------------------------------------------


class Gathering:
    """One run for one connection. It adds candidates and sockets to the connection's own lists.

    `protocol_factory` makes the protocol of a socket. Each protocol is added to `protocols` as soon
    as it has a socket, so that a close of the connection meanwhile finds it.
    """

    def __init__(
        self,
        settings: IceSettings,
        protocol_factory: Callable[[], Any],
        protocols: list[Any],
        remote: Iterable[IPAddress] = (),
    ) -> None:
        self.problems: list[str] = []
        """Problems as clauses, also if other candidates were found."""
        self._settings = settings
        self._factory = protocol_factory
        self._protocols = protocols
        self._remote = list(remote)
        self._loop = asyncio.get_running_loop()
        self._hosts: list[Any] = []
        self._reflexive: list[aioice.Candidate] = []
        self._relayed: list[aioice.Candidate] = []
        self._inquiries: list[Inquiry] = []
        self._changed = asyncio.Event()
        self._patience = Patience(self._loop.time())
        self._over = False
        self._late: asyncio.Task[None] | None = None

    async def run(self) -> list[aioice.Candidate]:
        """Returns the candidates, host candidates first."""
        servers = parse_servers(self._settings)
        if self._settings.policy == "relay":
            servers = [server for server in servers if server.url.scheme != "stun"]
        else:
            await self._open_hosts()
        if self._settings.policy == "direct":
            servers = [server for server in servers if server.url.scheme == "stun"]
        else:
            self._open_channel()
        if not self._over:  # otherwise the connection was closed meanwhile
            self._ask(servers)
            await self._wait(Inquiry.until)
            if not self._over:
                self._late = spawn("late answers of ICE servers", self._wait_for_late())
        self._over = True
        for inquiry in self._inquiries:
            self._conclude(inquiry)
        hosts = [protocol.local_candidate for protocol in self._hosts]
        return [*hosts, *self._reflexive, *self._relayed]

    def close(self) -> None:
        """Gives up the queries that are still under way."""
        self._over = True
        if self._late is not None:
            self._late.cancel()
        for inquiry in self._inquiries:
            if inquiry.task is not None:
                inquiry.task.cancel()

    async def _open_hosts(self) -> None:
        towards = [address for address in self._remote if not is_channel_address(address)]
        if self._settings.towards:
            try:
                towards += await asyncio.wait_for(resolve(self._settings.towards), DEAD_AFTER)
            except (OSError, TimeoutError) as error:
                _log.debug("no direction known: %s: %s", self._settings.towards, error)
        preferred = preferred_sources(towards)
        chosen = choose_addresses(self._settings.addresses, self._present(preferred))
        for address in order_addresses(chosen, preferred):
            try:
                sock = bind_udp(str(address), self._settings.udp_ports)
            except OSError as error:
                self.problems.append(str(error.strerror))
                continue
            try:
                _, protocol = await self._loop.create_datagram_endpoint(self._factory, sock=sock)
            except BaseException:
                sock.close()
                raise
            self._protocols.append(protocol)
            host, port = protocol.transport.get_extra_info("sockname")[:2]
            protocol.local_candidate = _candidate(
                "host", host, port, preference=LOCAL_PREFERENCE_MAX - len(self._hosts)
            )
            self._hosts.append(protocol)

    def _present(self, preferred: Iterable[IPAddress]) -> list[LocalAddress]:
        """Returns the addresses of this host, or only `preferred` if they cannot be listed.

        The kernel may refuse the list for lack of memory or descriptors, and the name of an
        interface may not be UTF-8.
        """
        try:
            return local_addresses()
        except (OSError, ValueError) as error:
            self.problems.append(f"the addresses of this host cannot be listed: {clip(error)}")
            return [LocalAddress("", address) for address in preferred]

    def _open_channel(self) -> None:
        """Makes a candidate from the relay that signalling offers."""
        relay, chosen = self._settings.relay, choose_channel(self._remote)
        if relay is None or chosen is None or self._over:
            return
        protocol = self._factory()
        transport = ChannelTransport(relay, *chosen, protocol, self.problems.append)
        host, port = transport.get_extra_info("sockname")
        protocol.local_candidate = _candidate(
            "relay", host, port, preference=0, base=relay.server, related=("::", 9)
        )
        self._protocols.append(protocol)
        self._relayed.append(protocol.local_candidate)

    # --- servers ------------------------------------------------------------------------------

    def _ask(self, servers: Sequence[IceServer]) -> None:
        now = self._patience.look(self._loop.time())
        for number, server in enumerate(servers):
            patience = MEMORY.patience(str(server)) if self._hosts else LONGEST
            inquiry = Inquiry(server, patience, now)
            self._inquiries.append(inquiry)
            inquiry.task = spawn(f"ask {server}", self._inquire(inquiry, number))

    async def _inquire(self, inquiry: Inquiry, number: int) -> None:
        try:
            if inquiry.server.url.scheme == "stun":
                await self._query(inquiry)
            else:
                await self._allocate(inquiry, number)
        except ssl.SSLError as error:
            inquiry.error = f"TLS fails: {getattr(error, 'verify_message', '') or error.reason}"
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            inquiry.error = why or "it does not answer in time"
        finally:
            inquiry.ended = True
            self._changed.set()

    def _answered(self, inquiry: Inquiry) -> None:
        now = self._patience.look(self._loop.time())
        if inquiry.answered is None:
            inquiry.answered = now
            MEMORY.answered(str(inquiry.server), now - inquiry.begun, in_time=not self._over)
        self._changed.set()

    async def _wait(self, until: Callable[[Inquiry], float]) -> None:
        """Waits until all servers have finished or their time is over."""
        while not all(inquiry.ended for inquiry in self._inquiries):
            self._changed.clear()
            spent = self._patience.look(self._loop.time())
            rest = max(until(inquiry) for inquiry in self._inquiries) - spent
            if rest <= 0:
                return
            try:
                await asyncio.wait_for(self._changed.wait(), min(rest, TICK))
            except TimeoutError:
                continue

    async def _wait_for_late(self) -> None:
        """Waits for answers that are too late for this link, and then logs the silent servers."""
        await self._wait(
            lambda inquiry: inquiry.begun if inquiry.ended else inquiry.begun + LONGEST
        )
        for inquiry in self._inquiries:
            if inquiry.task is not None:
                inquiry.task.cancel()
            if inquiry.answered is None:
                MEMORY.failed(
                    str(inquiry.server), inquiry.error or f"no answer within {LONGEST:g} s"
                )

    def _conclude(self, inquiry: Inquiry) -> None:
        """Notes why a server is not used for this link."""
        if inquiry.answered is None:
            waited = self._patience.spent - inquiry.begun
            why = inquiry.error or f"no answer within {waited:.1f} s"
            self.problems.append(f"{inquiry.server}: {why}")
            if inquiry.error is not None:
                MEMORY.failed(str(inquiry.server), inquiry.error)

    # --- STUN ---------------------------------------------------------------------------------

    async def _query(self, inquiry: Inquiry) -> None:
        addresses = await resolve(inquiry.server.url.host)
        queries = []
        for version in (4, 6):
            bases = [p for p in self._hosts if _version(p) == version][:BASES_ASKED]
            asked = [address for address in addresses if address.version == version][:2]
            queries += [
                self._bind_request(inquiry, base, address) for base in bases for address in asked
            ]
        if not queries:
            raise OSError("no local address is of the same family as one of its own")
        await asyncio.gather(*queries)

    async def _bind_request(self, inquiry: Inquiry, base: Any, address: IPAddress) -> None:
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        try:
            response, _ = await base.request(request, (str(address), inquiry.server.url.port))
        except stun.TransactionError as error:
            inquiry.error = str(error)
            return
        mapped = response.attributes.get("XOR-MAPPED-ADDRESS")
        if mapped is None:
            inquiry.error = "its answer has no address"
            return
        self._answered(inquiry)
        own = base.local_candidate
        # RFC 8445 section 5.1.3: a candidate with the address of another is redundant.
        known = {(c.host, c.port) for c in self._reflexive}
        known |= {(p.local_candidate.host, p.local_candidate.port) for p in self._hosts}
        if self._over or mapped in known or len(self._reflexive) >= REFLEXIVE_MAX:
            return
        self._reflexive.append(
            _candidate(
                "srflx",
                *mapped,
                preference=(own.priority >> 8) & LOCAL_PREFERENCE_MAX,
                base=f"{own.host} {inquiry.server.url}",
                related=(own.host, own.port),
            )
        )

    # --- TURN ---------------------------------------------------------------------------------

    async def _allocate(self, inquiry: Inquiry, number: int) -> None:
        url = inquiry.server.url
        proxy = None
        if url.transport == "tcp":
            way = Url("https", url.host, url.port, "/")
            proxy = proxy_for(way, self._settings.proxy, os.environ)
        tls = None
        if url.scheme == "turns":
            # In a thread, because reading the system's many CA certificates takes time.
            tls = await asyncio.to_thread(client_context, self._settings.tls_ca)
        addresses = await resolve(proxy.host if proxy else url.host)
        # Each family of relayed addresses needs an allocation of its own. Over a stream that needs
        # a connection of its own, so IPv6 is asked for there only if IPv4 is not available.
        preference = LOCAL_PREFERENCE_MAX - 2 * number - (url.transport == "tcp") * 1000
        if url.transport == "udp":
            outcomes = await asyncio.gather(
                *(
                    self._relay(inquiry, addresses, family, preference - (family == 6), tls, proxy)
                    for family in (4, 6)
                ),
                return_exceptions=True,
            )
            errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if len(errors) == len(outcomes):
                raise errors[0]
            return
        try:
            await self._relay(inquiry, addresses, 4, preference, tls, proxy)
        except RelayError as error:
            if "(440)" not in str(error):
                raise
            await self._relay(inquiry, addresses, 6, preference, tls, proxy)

    async def _relay(
        self,
        inquiry: Inquiry,
        addresses: Sequence[IPAddress],
        family: int,
        preference: int,
        tls: ssl.SSLContext | None,
        proxy: Proxy | None,
    ) -> None:
        def alive() -> None:
            inquiry.alive = True
            self._changed.set()

        client = await first_success(
            [
                lambda address=address: open_relay(  # type: ignore[misc] # the default binds it
                    inquiry.server, address, family, tls=tls, proxy=proxy, alive=alive
                )
                for address in addresses
            ],
            ADDRESS_STAGGER,
            lambda loser: spawn("end of a spare TURN allocation", release(loser)),
        )
        protocol = self._factory()
        transport = RelayTransport(client, protocol)
        self._answered(inquiry)
        if self._over or len(self._relayed) >= RELAYED_MAX + (self._settings.relay is not None):
            transport.close()
            return
        host, port = transport.get_extra_info("sockname")
        related = transport.get_extra_info("related_address")
        if self._settings.policy == "relay":
            # RFC 9429 section 3.5.3: the related address must not show what the policy hides; the
            # form is that of RFC 8839 section 5.1.
            related = ("0.0.0.0" if ":" not in host else "::", 9)  # noqa: S104 - nothing is bound
        protocol.local_candidate = _candidate(
            "relay",
            host,
            port,
            preference=preference,
            base=f"{host} {inquiry.server.url}",
            related=related,
        )
        self._protocols.append(protocol)
        self._relayed.append(protocol.local_candidate)


async def first_success(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, _T]]],
    stagger: float,
    release: Callable[[_T], object],
) -> _T:
    """Returns the first result of several attempts, each begun `stagger` seconds after the last.

    A failure begins the next one at once. Attempts that still run at the end are cancelled.
    `release` gets the results that are not returned: those of later attempts, and all if the caller
    is cancelled. Raises the first error if all fail.
    """
    if not attempts:
        raise OSError("it has no address")
    waiting = list(attempts)
    begun: list[asyncio.Task[_T]] = []
    running: set[asyncio.Task[_T]] = set()
    errors: list[BaseException] = []
    winner: asyncio.Task[_T] | None = None
    try:
        while waiting or running:
            if waiting:
                begun += [asyncio.get_running_loop().create_task(waiting.pop(0)())]
                running.add(begun[-1])
            done, running = await asyncio.wait(
                running,
                timeout=stagger if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    winner = task
                    return task.result()
                errors.append(error)
    finally:
        for task in begun:
            task.cancel()
        try:
            await asyncio.wait(begun)
        except asyncio.CancelledError:
            winner = None  # its result is not needed any more
            raise
        finally:
            for task in begun:
                if task is not winner:
                    task.add_done_callback(partial(_release, release))
    raise errors[0]


def _release(release: Callable[[_T], object], task: "asyncio.Task[_T]") -> None:
    if not task.cancelled() and task.exception() is None:
        release(task.result())


def _candidate(
    kind: CandidateType,
    host: str,
    port: int,
    *,
    preference: int,
    base: str | None = None,
    related: tuple[str, int] | None = None,
) -> aioice.Candidate:
    return aioice.Candidate(
        foundation=aioice.candidate.candidate_foundation(kind, "udp", base or host),
        component=COMPONENT,
        transport="udp",
        priority=candidate_priority(kind, preference),
        host=host,
        port=port,
        type=kind,
        related_address=related[0] if related else None,
        related_port=related[1] if related else None,
    )


def _version(protocol: Any) -> int:
    address = parse_ip(protocol.local_candidate.host)
    return 0 if address is None else address.version
