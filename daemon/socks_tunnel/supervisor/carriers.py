"""Makes the carriers of envelopes that the configuration names.

Only this module knows the kinds of carriers. The dialler and the answerer use them through
:mod:`socks_tunnel.signaling.carrier`.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.settings import Config, Peer
from socks_tunnel.ops.files import open_regular
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.signaling.carrier import Handlers, OutgoingCarrier, SignalingError
from socks_tunnel.signaling.clock import SignalingClock
from socks_tunnel.signaling.direct import DirectClient, DirectServer
from socks_tunnel.signaling.either import DirectFirst
from socks_tunnel.signaling.identity import PrivateIdentity, parse_public_key
from socks_tunnel.signaling.joining import ENROLMENT_MAX
from socks_tunnel.signaling.tls import ServerCertificate, TlsFileError, read_server_certificate
from socks_tunnel.supervisor.backoff import Backoff, Hastened
from socks_tunnel.supervisor.peers import keys_of

if TYPE_CHECKING:  # it imports aiohttp, which is loaded only if a service is configured
    from socks_tunnel.signaling.rendezvous import Rendezvous

_log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 15.0
"""Bounds of the delay between two attempts to reach a rendezvous service, in seconds."""

_Way: TypeAlias = tuple[str, Path | None, str | None]
"""URL, certificate authorities and proxy. Peers for which these are equal share a connection."""


class ConfiguredCarrier(Protocol):
    """A way on which offers come in, if the configuration has it."""

    async def prepare(self, config: Config) -> None:
        """Reads the files that the carrier needs. Raises :class:`ConfigError`."""

    async def start(self, config: Config) -> None:
        """Begins to take offers. Raises :class:`OSError`."""

    def apply(self, config: Config) -> None:
        """Takes offers of the peers of a configuration, and uses the files read last."""

    def doubt(self) -> None:
        """Checks that offers still arrive, because the network or the host may have changed."""

    async def stop(self) -> None:
        """Takes no more offers. Bounded in time."""

    def export(self) -> dict[str, Any]:
        """Takes no more offers; returns the values for :meth:`inherit` in the next program."""

    def inherit(self, fields: Mapping[str, Any]) -> None:
        """Takes what :meth:`export` returned, before :meth:`start`. Raises Malformed."""


class Outgoing:
    """The carriers to all peers of a gateway. Peers behind one service share one connection to it.

    `waited` returns for how many seconds flows have waited for a link; None if none do.
    """

    def __init__(
        self,
        identity: PrivateIdentity,
        metrics: Metrics,
        clock: SignalingClock,
        waited: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._waited = waited
        self._identity = identity
        self._metrics = metrics
        self._clock = clock
        self._proxy: str | None = None
        self._services: dict[_Way, Rendezvous] = {}
        self._peers: list[Peer] = []

    def apply(self, config: Config) -> None:
        """Connects to the services that the peers name, and leaves all others."""
        self._proxy = config.ice.proxy
        self._peers = [peer for peer in config.peers if peer.rendezvous is not None]
        loads = any(route.policy == "least-loaded" for route in config.routes)
        watched: dict[_Way, list[bytes]] = {}
        enrolments: dict[_Way, bytes] = {}
        for peer in config.peers:
            if peer.rendezvous is not None:
                way = self._way(peer)
                watched.setdefault(way, []).append(parse_public_key(peer.public_key))
                if peer.enrolment_file is not None:
                    enrolments[way] = read_enrolment(peer.enrolment_file)
        for way in self._services.keys() - watched.keys():
            spawn("leave a rendezvous", self._services.pop(way).stop())
        for way, keys in watched.items():
            service = self._services.get(way)
            if service is None:
                service = self._services[way] = _rendezvous(
                    way,
                    self._identity,
                    self._metrics,
                    self._clock,
                    self._waited,
                    enrolment=enrolments.get(way, b""),
                )
                service.watch(keys, loads=loads)
                service.start()
            else:
                service.watch(keys, loads=loads)

    def flows(self) -> dict[str, int]:
        """Returns the flows that peers have in all, for the peers that have reported them."""
        found = {}
        for peer in self._peers:
            service = self._services.get(self._way(peer))
            key = parse_public_key(peer.public_key)
            load = None if service is None else service.presence.loads.get(key)
            if load is not None:
                found[peer.name] = load.flows
        return found

    def carrier_for(self, peer: Peer) -> OutgoingCarrier:
        """Returns the carrier to a peer of the configuration that was applied last."""
        if peer.rendezvous is None:
            return direct(peer)
        from socks_tunnel.signaling.rendezvous_peer import RendezvousCarrier  # noqa: PLC0415 - as above

        service = self._services[self._way(peer)]
        carrier = RendezvousCarrier(service, parse_public_key(peer.public_key))
        return carrier if peer.url is None else DirectFirst(direct(peer), carrier)

    def renew(self, identity: PrivateIdentity, config: Config) -> None:
        """Connects to all services anew, with another key."""
        self._identity = identity
        services, self._services = self._services, {}
        for service in services.values():
            spawn("leave a rendezvous", service.stop())
        self.apply(config)

    def doubt(self) -> None:
        """Checks the connections to the services, because the network or the host has changed."""
        for service in self._services.values():
            service.doubt()

    async def stop(self) -> None:
        """Leaves all services."""
        services, self._services = self._services, {}
        await asyncio.gather(*(service.stop() for service in services.values()))

    def _way(self, peer: Peer) -> _Way:
        assert peer.rendezvous is not None
        proxy = peer.proxy if peer.proxy is not None else self._proxy
        return peer.rendezvous, peer.tls_ca, proxy


def read_enrolment(path: Path) -> bytes:
    """Returns the enrolment in a file, for the rendezvous service.

    If the file cannot be read, logs a warning and returns b"".
    """
    try:
        with open_regular(path) as file:
            return file.read(ENROLMENT_MAX)
    except OSError as error:
        _log.warning(
            "the enrolment %s cannot be read: %s; a service that wants one refuses this host",
            path,
            error.strerror or error,
        )
        return b""


def direct(peer: Peer) -> OutgoingCarrier:
    """Returns the direct carrier to a peer that has a url."""
    assert peer.url is not None, "the loader wants a url or a rendezvous for each peer of a gateway"
    ca = peer.tls_ca if peer.url.startswith("https:") else None
    return DirectClient(peer.url, ca=ca, proxy=peer.proxy)


def incoming(
    handlers: Handlers,
    metrics: Metrics,
    identity: PrivateIdentity,
    clock: SignalingClock,
    waited: Callable[[], float | None],
    load: Callable[[], Load],
    revoked: Callable[[], Sequence[bytes]],
) -> list[ConfiguredCarrier]:
    """Returns the carriers on which an endpoint takes offers and requests to join.

    `waited` is as for :class:`Outgoing`. `load` returns the load of the endpoint, and `revoked` the
    keys whose enrolment it has revoked.
    """
    return [
        DirectListener(handlers, metrics),
        RendezvousListener(handlers, metrics, identity, clock, waited, load, revoked),
    ]


def _rendezvous(
    way: _Way,
    identity: PrivateIdentity,
    metrics: Metrics,
    clock: SignalingClock,
    waited: Callable[[], float | None],
    handlers: Handlers | None = None,
    enrolment: bytes = b"",
    load: Callable[[], Load] | None = None,
    revoked: Callable[[], Sequence[bytes]] | None = None,
) -> "Rendezvous":
    from socks_tunnel.signaling.rendezvous import Rendezvous  # noqa: PLC0415 - as above
    from socks_tunnel.signaling.rendezvous_relay import ServiceRelay  # noqa: PLC0415 - as above

    url, ca, proxy = way
    delays = Hastened(Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True), waited)

    def dropped(reason: str) -> None:
        metrics.parcels_dropped_total.labels(reason).inc()

    def relayed(direction: str, datagrams: int) -> None:
        metrics.relay_datagrams_total.labels(direction).inc(datagrams)

    def unrelayed(reason: str, datagrams: int) -> None:
        metrics.relay_dropped_total.labels(reason).inc(datagrams)

    return Rendezvous(
        url,
        identity,
        delays,
        ca=ca,
        proxy=proxy,
        handlers=handlers,
        enrolment=enrolment,
        dropped=dropped,
        clock=clock,
        relay=ServiceRelay(url, passed=relayed, dropped=unrelayed),
        load=load,
        revoked=revoked,
    )


class RendezvousListener:
    """Takes offers through a rendezvous service. Does nothing if none is configured."""

    def __init__(
        self,
        handlers: Handlers,
        metrics: Metrics,
        identity: PrivateIdentity,
        clock: SignalingClock,
        waited: Callable[[], float | None],
        load: Callable[[], Load],
        revoked: Callable[[], Sequence[bytes]],
    ) -> None:
        self._load = load
        self._revoked = revoked
        self._handlers = handlers
        self._metrics = metrics
        self._clock = clock
        self._waited = waited
        self._identity = identity
        self._service: Rendezvous | None = None

    async def prepare(self, config: Config) -> None:
        """Does nothing: no files are needed."""

    async def start(self, config: Config) -> None:
        """Connects in the background. It goes on trying if the service cannot be reached."""
        signaling = config.signaling
        if signaling is None or signaling.rendezvous is None:
            return
        way = signaling.rendezvous, signaling.tls_ca, config.ice.proxy
        self._service = _rendezvous(
            way,
            self._identity,
            self._metrics,
            self._clock,
            self._waited,
            self._handlers,
            load=self._load,
            revoked=self._revoked,
        )
        self.apply(config)
        self._service.start()
        _log.info("taking offers through %s", signaling.rendezvous)

    def apply(self, config: Config) -> None:
        """Lets the gateways of a configuration send offers, and no others."""
        if self._service is not None:
            keys = [key for peer in config.peers for key in keys_of(peer)]
            group = config.join.group
            others = () if group is None else group.endpoints
            keys += [parse_public_key(each.public_key) for each in others]
            self._service.watch(set(keys) - {self._identity.public})
            self._service.revoked.changed()

    async def ask(self, to: bytes, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Sends a request to another endpoint; returns the answer. Raises SignalingError."""
        if self._service is None:
            raise SignalingError("this endpoint has no rendezvous service (signaling.rendezvous)")
        return await self._service.join(to, request, timeout)

    def doubt(self) -> None:
        """Checks that the service still hears this host."""
        if self._service is not None:
            self._service.doubt()

    async def stop(self) -> None:
        """Takes no more offers."""
        if self._service is not None:
            await self._service.stop()

    def export(self) -> dict[str, Any]:
        """Returns nothing: the next program connects again."""
        return {}

    def inherit(self, fields: Mapping[str, Any]) -> None:
        """Does nothing."""


class DirectListener:
    """Takes offers by HTTP or HTTPS. The certificate can be renewed."""

    def __init__(self, handlers: Handlers, metrics: Metrics) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._server: DirectServer | None = None
        self._certificate: ServerCertificate | None = None
        self._told: ServerCertificate | None = None
        self._listen: str | None = None
        self._inherited: tuple[str, socket.socket] | None = None

    async def prepare(self, config: Config) -> None:
        """Reads the certificate, unless HTTP is served already. Raises :class:`ConfigError`."""
        signaling = config.signaling
        if signaling is None or signaling.tls_certificate is None:
            return
        if self._server is not None and self._certificate is None:
            return
        try:
            self._certificate = await asyncio.to_thread(
                read_server_certificate, signaling.tls_certificate, signaling.tls_key
            )
        except TlsFileError as error:
            key = f"signaling.{error.key}"
            raise ConfigError([Problem(config.source, None, key, str(error))]) from None

    async def start(self, config: Config) -> None:
        """Listens. Raises :class:`OSError`."""
        signaling = config.signaling
        listening, self._inherited = self._inherited, None
        if signaling is None or signaling.listen is None:
            if listening is not None:
                listening[1].close()
            return  # the loader has checked that there is another carrier
        self._listen = str(signaling.listen)
        certificate = self._certificate
        tls = None if certificate is None else certificate.context
        handlers = self._handlers
        refusals = self._metrics.http_refused_total
        self._server = DirectServer(
            signaling.listen,
            handlers.offer,
            bye=handlers.bye,
            join=handlers.join,
            tls=tls,
            refused=lambda reason: refusals.labels("signaling", reason).inc(),
        )
        if listening is not None and listening[0] != str(signaling.listen):
            listening[1].close()  # another address is configured now
            listening = None
        await self._server.start(None if listening is None else listening[1])
        how = "" if certificate is None else " by HTTPS"
        _log.info("listening for offers on %s%s", self._server.address, how)
        if certificate is not None:
            self._tell(certificate)

    def apply(self, config: Config) -> None:
        """Serves a renewed certificate to new connections. Old ones keep the old certificate."""
        del config  # each offer proves which peer it comes from
        if self._server is not None and self._certificate is not None:
            self._server.tls = self._certificate.context
            if self._certificate is not self._told:  # also called when a host has joined
                self._tell(self._certificate)

    def doubt(self) -> None:
        """Does nothing: gateways connect for each offer."""

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            await self._server.stop()

    def export(self) -> dict[str, Any]:
        """Returns the listening socket. Gateways that connect wait in its queue meanwhile."""
        sock = None if self._server is None else self._server.release()
        if sock is None or self._listen is None:
            return {}
        sock.set_inheritable(True)
        return {"listen": self._listen, "fd": sock.fileno()}

    def inherit(self, fields: Mapping[str, Any]) -> None:
        """Takes the listening socket."""
        if "fd" in fields:
            sock = socket.socket(fileno=bounded.integer(fields, "fd", 0, 1 << 31))
            sock.set_inheritable(False)
            sock.setblocking(False)
            self._inherited = bounded.text(fields, "listen"), sock

    def _tell(self, certificate: ServerCertificate) -> None:
        """Logs and exports the time until which the certificate is valid."""
        self._told = certificate
        expires = self._metrics.tls_certificate_expires_seconds.labels("signaling")
        expires.set(certificate.not_after.timestamp())
        complaint = certificate.complaint(datetime.now(UTC))
        if complaint is None:
            _log.info("TLS certificate %s", certificate)
        else:
            _log.warning(
                "TLS certificate %s: it %s; gateways refuse it", certificate.path, complaint
            )
