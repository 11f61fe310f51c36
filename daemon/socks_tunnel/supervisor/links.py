"""The links of all peers: the part that a gateway and an endpoint have in common.

It has the identity, HELLO, the links that are up or coming up, and the rule that a newer link of a
peer takes over. Links are made by dialler.py on a gateway, and by answerer.py on an endpoint.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import socks_tunnel
from socks_tunnel.config.settings import Config, Ice, Peer
from socks_tunnel.ops.labels import FAMILIES, PATH_KINDS, ReconnectCause
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.select import fast_path_active, new_transport
from socks_tunnel.peer.transport import Role, Transport
from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ice_urls import parse_udp_ports
from socks_tunnel.protocol.keepalive import Timing
from socks_tunnel.protocol.link import DEFAULT_TIMING
from socks_tunnel.protocol.messages import DATA_MAX, INITIAL_WINDOW, PROTOCOL_VERSION, Hello
from socks_tunnel.signaling.carrier import IceServers
from socks_tunnel.signaling.clock import SignalingClock
from socks_tunnel.signaling.envelope import EnvelopeRejected, Verifier
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor.attachment import RESUME, Attachments
from socks_tunnel.supervisor.peerlink import REPLACED, PeerLink, absent_status, waiting_status
from socks_tunnel.supervisor.peers import keys_of, share_a_key
from socks_tunnel.supervisor.reconnects import Reconnects
from socks_tunnel.supervisor.router import Router
from socks_tunnel.supervisor.routing import AttachedLink
from socks_tunnel.supervisor.transport_meter import TransportMeter

_log = logging.getLogger(__name__)

FEATURES: Final = ("udp", "bind", RESUME, "resolve")
"""The features that HELLO names."""

REJECTIONS_LOGGED: Final = 20
"""Rejected envelopes that are logged within :data:`REJECTIONS_PERIOD`. Others are only counted."""

REJECTIONS_PERIOD: Final = 10.0
"""Seconds."""


class TransportFactory(Protocol):
    """Makes the transport of a link; see :func:`socks_tunnel.peer.select.new_transport`."""

    def __call__(
        self,
        role: Role,
        ice: IceSettings,
        *,
        name: str,
        fast_path: Literal["auto", "off"],
        congestion: Literal["cubic", "bbr"],
    ) -> Transport:
        """Returns a transport. Raises :class:`ValueError` for ICE servers that cannot be used."""


class Links:
    """All links of this host. `transports` makes their transports.

    This class has many methods because both roles and all reports use it.
    """

    role: Literal["gateway", "endpoint"]

    def __init__(
        self,
        config: Config,
        identity: PrivateIdentity,
        router: Router,
        metrics: Metrics,
        *,
        transports: TransportFactory = new_transport,
    ) -> None:
        self.config = config
        self.identity = identity
        self.router = router
        self.metrics = metrics
        self.attachments = Attachments(router, self._rank, self._weight)
        self.verifier = Verifier(identity.public, _by_key(config.peers))
        self.clock = SignalingClock(trusts_service=config.rendezvous_clock)
        """The clock for the times in envelopes."""
        self.draining = False
        self.links: list[PeerLink] = []
        """The links that are up or coming up, the oldest first."""
        self._reconnects = Reconnects(metrics)
        self._meter = TransportMeter(metrics)
        self._transports = transports
        self._take(config)
        self._rejections = 0
        self._rejections_since = 0.0

    # --- its life -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Begins to dial or to listen.

        Raises :class:`OSError` if an endpoint cannot listen, and as :meth:`prepare`.
        """
        raise NotImplementedError

    async def prepare(self, config: Config) -> None:
        """Reads the files that :meth:`apply` needs for a changed configuration.

        Raises :class:`ConfigError`; then nothing has changed.
        """

    def apply(self, config: Config) -> None:
        """Takes a changed configuration that was prepared: peers, ICE settings."""
        before = self.peers
        self._take(config)
        for link in self.up():
            if link.attached is not None:
                link.attached.weight = self._weight(link.peer.name)
        self.verifier.update_peers(_by_key(config.peers))
        for name, peer in before.items():
            now = self.peers.get(name)
            if now is None or not share_a_key(peer, now):
                reason = "the peer was removed from the configuration, or has another key"
                self.attachments.forget(name, reason)

    def renew(self, identity: PrivateIdentity) -> bool:
        """Takes another private key of this host; returns False if that needs a restart."""
        return identity.public == self.identity.public

    def _take(self, config: Config) -> None:
        self.config = config
        self.ice = ice_settings(config.ice)
        self.metrics.fast_path.set(fast_path_active(config.transport.fast_path))
        self.peers = {peer.name: peer for peer in config.peers}
        self._ranks = {name: rank for rank, name in enumerate(self.peers)}

    def goaway(self) -> None:
        """Lets no side open new flows on any link."""
        self.draining = True
        for link in self.links:
            link.link.goaway(CloseReason.SHUTTING_DOWN)

    async def stop(self, reason: str) -> None:
        """Ends all links in order; bounded in time."""
        raise NotImplementedError

    # --- hand-over ----------------------------------------------------------------------------

    async def suspend(self, reason: str) -> None:
        """Ends all links so that the next program can resume their sessions.

        The peers notice at once. Bounded in time. No link is dialled or answered any more.
        """
        self.draining = True
        await asyncio.gather(*(link.close(reason) for link in list(self.links)))

    def export(self) -> dict[str, Any]:
        """Returns the values that the next program needs. Descriptors in them stay open there."""
        return {}

    def inherit(self, fields: Mapping[str, Any]) -> None:
        """Takes what :meth:`export` returned, before :meth:`start`. Raises Malformed."""

    # --- what there is ------------------------------------------------------------------------

    def up(self) -> list[PeerLink]:
        """Returns the links that are up."""
        return [link for link in self.links if link.attached is not None]

    @property
    def buffered(self) -> int:
        """Bytes that wait in the transports of all links."""
        return sum(link.link.transport.buffered for link in self.links)

    def status(self) -> list[dict[str, Any]]:
        """Returns rows of the links of each configured peer, in the order of the configuration."""
        return list(self.rows())

    def rows(self, held: Mapping[str, int] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
        """Yields the rows of :meth:`status`, as thousands of them take a while.

        `held` has the bytes that flows without a link hold, by their peer.
        """
        present: dict[str, list[dict[str, Any]]] = {}
        for link in self.links:
            present.setdefault(link.peer.name, []).append(link.status())
        waiting = self.router.waiting(time.monotonic())
        for peer in self.config.peers:
            waits = waiting_status(waiting.get(peer.name), held.get(peer.name, 0))
            for row in present.get(peer.name) or [self._absent(peer)]:
                yield {**row, **waits}

    def _absent(self, peer: Peer) -> dict[str, Any]:
        return absent_status(peer)

    def _rank(self, peer: str) -> int:
        """Returns the peer's place in the configuration. The first peer that is up is used."""
        return self._ranks.get(peer, len(self._ranks))

    def _weight(self, peer: str) -> int:
        """Returns the peer's `weight`: its share of this process while other peers are busy."""
        found = self.peers.get(peer)
        return 1 if found is None else found.weight

    def timing_of(self, peer: str) -> Timing:
        """Returns how closely the links of a peer are watched."""
        del peer
        return DEFAULT_TIMING

    # --- links come and go ----------------------------------------------------------------------

    def new_link(
        self,
        peer: Peer,
        session: bytes,
        offered: IceServers = (),
        key: bytes | None = None,
        *,
        direct: bool = False,
        relay: DatagramRelay | None = None,
    ) -> PeerLink:
        """Begins a link; with `direct`, over direct paths only.

        `offered` are ICE servers besides those of the configuration. `relay` carries datagrams
        through signalling if no other path works. `key` is the peer's public key on this link; with
        None it is the newest one. Raises :class:`ValueError` for ICE servers that cannot be used.
        """
        ice = replace(
            self.ice,
            servers=[*self.ice.servers, *offered],
            towards=signaling_host(peer.url or peer.rendezvous),
            relay=relay,
        )
        if direct:
            ice = replace(ice, policy="direct")
        chosen = self.config.transport
        transport = self._transports(
            self.role,
            ice,
            name=peer.name,
            fast_path=chosen.fast_path,
            congestion=chosen.congestion,
        )
        timing = self.timing_of(peer.name)
        link = PeerLink(
            self, peer, self._hello(session), transport, key or keys_of(peer)[0], timing
        )
        self.links.append(link)
        self._count_links()
        return link

    def on_up(self, link: PeerLink) -> None:
        """Closes the older links of the peer, because a newer one has taken over."""
        replaced: ReconnectCause | None = None
        # Without a doubt, a gateway dials a second link only to find a better path.
        undoubted: ReconnectCause = "better-path" if self.role == "gateway" else "replaced"
        for older in self.links[: self.links.index(link)]:
            if older.peer.name == link.peer.name:
                if older.attached is not None:
                    _log.info("link %s: a newer link replaces the older one", link.peer.name)
                    replaced = older.doubted or undoubted
                spawn(f"close link {link.peer.name}", older.close(REPLACED))
        self._reconnects.up(link.peer.name, replaced)
        self._count_links()

    def on_down(self, link: PeerLink, reason: str) -> None:
        """Forgets a link."""
        del reason
        if link in self.links:
            self.links.remove(link)
        if link.up_at is not None:
            self._meter.ended(link.link.transport)
            newer = any(other.peer.name == link.peer.name for other in self.up())
            if link.lost_because is not None and not newer:  # else the newer link was counted
                self._reconnects.lost(link.peer.name, link.lost_because)
        self._count_links()

    def linked_beside(self, link: PeerLink) -> bool:
        """Returns whether the peer has another link that is up."""
        return any(other.peer.name == link.peer.name for other in self.up() if other is not link)

    def abuse(self, attached: AttachedLink, reason: str) -> None:
        """Closes a link whose peer did something that no peer may do (see Router.on_abuse)."""
        for link in self.links:
            if link.attached is attached:
                _log.error("closing link %s: %s", link.peer.name, reason)
                spawn(f"close link {link.peer.name}", link.close(reason, "protocol"))

    def _hello(self, session: bytes) -> Hello:
        return Hello(
            version=PROTOCOL_VERSION,
            software=software(),
            session=session,
            window=INITIAL_WINDOW,
            max_data=DATA_MAX,
            features=FEATURES,
            idle_udp=self.config.socks.idle_udp,
        )

    def measure(self) -> None:
        """Takes the figures of the transports. Called once a second."""
        self._meter.look([link.link.transport for link in self.up()])

    def _count_links(self) -> None:
        up = len(self.up())
        absent = self.peers.keys() - {link.peer.name for link in self.links}
        self.metrics.links.labels("up").set(up)
        self.metrics.links.labels("connecting").set(len(self.links) - up)
        self.metrics.links.labels("down").set(len(absent))
        paths: Counter[tuple[str, str]] = Counter(
            (path.kind, path.family)
            for link in self.up()
            if (path := link.link.transport.path) is not None
        )
        for kind, family in product(PATH_KINDS, FAMILIES):
            self.metrics.link_paths.labels(kind, family).set(paths[kind, family])

    # --- envelopes that are refused -------------------------------------------------------------

    def rejected(self, what: str, rejection: EnvelopeRejected) -> None:
        """Counts a rejected envelope. Logs it within limits, so that nobody can fill the log."""
        self.metrics.signaling_rejected_total.labels(rejection.reason_code).inc()
        now = asyncio.get_running_loop().time()
        if now - self._rejections_since >= REJECTIONS_PERIOD:
            self._rejections, self._rejections_since = 0, now
        self._rejections += 1
        if self._rejections <= REJECTIONS_LOGGED:
            _log.warning("rejected %s: %s", what, rejection.sentence)
        if self._rejections == REJECTIONS_LOGGED:
            _log.warning("further rejections within %.0f s are only counted", REJECTIONS_PERIOD)


def software() -> str:
    """Returns name and version of this program for HELLO: `socks-tunnel/1.0.0`."""
    return f"socks-tunnel/{socks_tunnel.__version__}"


def ice_settings(ice: Ice) -> IceSettings:
    """Returns the settings of `[ice]` in the form for transports."""
    return IceSettings(
        servers=[
            {key: value for key, value in asdict(server).items() if value is not None}
            for server in ice.servers
        ],
        addresses=list(ice.addresses),
        policy=ice.policy,
        udp_ports=parse_udp_ports(ice.udp_ports),
        tls_ca=ice.tls_ca,
        proxy=ice.proxy,
    )


def signaling_host(url: str | None) -> str:
    """Returns the host of a url or rendezvous; "" if there is none or it is a Unix socket."""
    return "" if url is None or url.startswith("unix:") else urlsplit(url).hostname or ""


def route_of(peer: Peer) -> tuple[str, str | None, str | None]:
    """Returns the settings for reaching the peer. When they change, a new link has to be made."""
    return peer.public_key, peer.url, peer.rendezvous


def _by_key(peers: Iterable[Peer]) -> dict[bytes, str]:
    return {key: peer.name for peer in peers for key in keys_of(peer)}
