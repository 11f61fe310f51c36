"""Links from the first envelope to the last: dialling on a gateway, answering on an endpoint.

A gateway has one :class:`_Dialler` task for each configured peer, which has at most one link at a
time. An endpoint answers offers; a newer link of a peer that has come up replaces the older one.
Either way a link takes part in routing from `link_up` to `link_down`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import socks_tunnel
from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.models import Config, Ice, Peer
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.link import Link, LinkError
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ice_urls import parse_udp_ports
from socks_tunnel.protocol.messages import (
    DATA_MAX,
    HEADER,
    INITIAL_WINDOW,
    PROTOCOL_VERSION,
    Hello,
)
from socks_tunnel.signaling.direct import (
    Answered,
    DirectClient,
    DirectServer,
    SignalingError,
    remote_address,
)
from socks_tunnel.signaling.envelope import (
    EnvelopeRejected,
    Verifier,
    new_body,
    seal,
)
from socks_tunnel.signaling.identity import PrivateIdentity, parse_public_key
from socks_tunnel.signaling.tls import ServerCertificate, TlsFileError, read_server_certificate
from socks_tunnel.supervisor.backoff import Backoff
from socks_tunnel.supervisor.router import RoutedLink, Router

_log = logging.getLogger(__name__)

FEATURES: Final = ("udp", "bind")

OFFER_TIMEOUT: Final = 15.0
"""Seconds for a peer to answer an offer."""

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
"""Bounds of the delay between two attempts to reach a peer, in seconds."""

LIVED_LONG: Final = 30.0
"""Seconds after which a link that ends does not count as a failure in a row."""

HANDSHAKES_PER_PEER: Final = 2
"""Links of one peer that may be coming up at a time; a further offer ends the oldest."""

HANDSHAKES_MAX: Final = 64
"""Links that may be coming up at a time; further offers are refused."""

REJECTIONS_LOGGED: Final = 20
REJECTIONS_PERIOD: Final = 10.0
"""So many rejected envelopes are logged within so many seconds; the rest is counted."""

LinkStatus = Literal["connecting", "up", "down"]


class Attempt:
    """One link of a peer, from its first SDP to its end. It is the link's observer."""

    def __init__(self, links: "Links", peer: Peer, session: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.peer = peer
        self.session = session
        self.routed: RoutedLink | None = None
        self.up_at: float | None = None
        """When it came up: Unix time."""
        self.came_up: asyncio.Future[None] = loop.create_future()
        """Done once the link is up or has ended."""
        self.ended: asyncio.Future[str] = loop.create_future()
        """Done with the reason once the link has ended."""
        self.session_id = secrets.token_hex(16)
        """Names an endpoint's session in its Location."""
        self._links = links
        self._closing = False
        self._goaway = False
        metrics = links.metrics
        self.link = Link(
            self,
            name=peer.name,
            role=links.role,
            hello=links.hello(session),
            ice=replace(links.ice, towards=signaling_host(peer.url)),
            on_protocol_error=lambda kind: metrics.protocol_errors_total.labels(kind).inc(),
            on_unknown=metrics.messages_unknown_total.inc,
            on_rtt=metrics.link_rtt_seconds.observe,
        )

    def link_up(self, link: Link) -> None:
        """Take part in routing."""
        remote = link.remote_hello
        assert remote is not None, "a link is up only after HELLO"
        self.up_at = time.time()
        self.routed = self._links.router.link_up(
            link,
            self.peer.name,
            {
                "peer": self.peer.name,
                "rank": self._links.rank(self.peer),
                "policy": self.peer.policy or "",
                "window": remote.window,
                "max_data": min(remote.max_data, DATA_MAX, link.max_message - HEADER.size),
                "idle_udp": remote.idle_udp,
                "features": list(remote.features),
                "session": remote.session,
            },
        )
        self._links.metrics.links_total.labels("up").inc()
        path = link.selected_path
        kind = "" if path is None else f" ({path.kind})"
        _log.info("link %s is up: %s, %s%s", self.peer.name, remote.software, path, kind)
        self._links.on_up(self)
        if not self.came_up.done():
            self.came_up.set_result(None)

    def link_message(self, link: Link, message: bytes) -> None:  # noqa: ARG002 - there is only one
        """Route a message."""
        if self.routed is not None:
            self.routed.from_link(message)

    def link_drained(self, link: Link, drained: int) -> None:  # noqa: ARG002 - as above
        """Give credit back."""
        if self.routed is not None:
            self.routed.drained(drained)

    def link_goaway(self, link: Link, reason: int) -> None:  # noqa: ARG002 - as above
        """Open nothing new."""
        _log.info(
            "link %s: the peer takes no new flows (%s)",
            self.peer.name,
            "it is shutting down" if reason == CloseReason.SHUTTING_DOWN else f"reason {reason:#x}",
        )
        self._goaway = True
        if self.routed is not None:
            self.routed.goaway()

    def link_down(self, link: Link, reason: str) -> None:  # noqa: ARG002 - as above
        """Leave routing."""
        routed, self.routed = self.routed, None
        if routed is not None:
            flows = routed.flows
            self._links.router.link_down(routed, reason)
            expected = self._closing or self._goaway
            level = logging.INFO if expected else logging.WARNING
            _log.log(level, "link %s is down: %s; %d flows ended", self.peer.name, reason, flows)
        self._links.metrics.links_total.labels("failed" if self.up_at is None else "ended").inc()
        self.ended.set_result(reason)
        if not self.came_up.done():
            self.came_up.set_result(None)
        self._links.on_down(self, reason)

    async def close(self, reason: str) -> None:
        """End the link in order, because we want it to."""
        self._closing = True
        await self.link.close(reason)

    def status(self) -> dict[str, Any]:
        """Describe the link for `status`."""
        link, routed = self.link, self.routed
        path = link.selected_path
        return {
            "peer": self.peer.name,
            "state": "up" if routed is not None else "connecting",
            "since": None if self.up_at is None else _iso(self.up_at),
            "rtt_ms": None if link.rtt is None else round(link.rtt * 1000, 2),
            "remote_software": None if link.remote_hello is None else link.remote_hello.software,
            "flows": 0 if routed is None else routed.flows,
            "buffered": link.buffered,
            "path": None if path is None else str(path),
            "path_kind": None if path is None else path.kind,
            "path_family": None if path is None else path.family,
        }


class Links:
    """What both roles have in common: identity, HELLO, and the links that are up or coming up."""

    role: Literal["gateway", "endpoint"]

    def __init__(
        self,
        config: Config,
        identity: PrivateIdentity,
        router: Router,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self.identity = identity
        self.router = router
        self.metrics = metrics
        self.ice = ice_settings(config.ice)
        self.peers = {peer.name: peer for peer in config.peers}
        self._ranks = {name: rank for rank, name in enumerate(self.peers)}
        self.verifier = Verifier(identity.public, _by_key(config.peers))
        self.draining = False
        self.attempts: list[Attempt] = []
        self._rejections = 0
        self._rejections_since = 0.0

    async def start(self) -> None:
        """Begin. Raises :class:`OSError` if an endpoint cannot listen, and as :meth:`prepare`."""
        raise NotImplementedError

    async def prepare(self, config: Config) -> None:
        """Read what else :meth:`apply` needs of a changed configuration, as it stands in the file.

        Raises :class:`ConfigError`; nothing has changed then.
        """

    async def stop(self, reason: str) -> None:
        """End all links in order; bounded in time."""
        raise NotImplementedError

    def apply(self, config: Config) -> None:
        """Take a changed configuration that was prepared: peers, ICE settings."""
        self.config = config
        self.ice = ice_settings(config.ice)
        self.peers = {peer.name: peer for peer in config.peers}
        self._ranks = {name: rank for rank, name in enumerate(self.peers)}
        self.verifier.update_peers(_by_key(config.peers))

    def goaway(self) -> None:
        """Let nothing new be opened, on any link, from either side."""
        self.draining = True
        for attempt in self.attempts:
            attempt.link.goaway(CloseReason.SHUTTING_DOWN)

    def status(self) -> list[dict[str, Any]]:
        """Describe each configured peer's links, in the order of the configuration."""
        present: dict[str, list[dict[str, Any]]] = {}
        for attempt in self.attempts:
            present.setdefault(attempt.peer.name, []).append(attempt.status())
        return [
            row
            for peer in self.config.peers
            for row in present.get(peer.name) or [self._absent(peer)]
        ]

    def up(self) -> list[Attempt]:
        """Give the links that are up."""
        return [attempt for attempt in self.attempts if attempt.routed is not None]

    def abuse(self, routed: RoutedLink, reason: str) -> None:
        """Close a link that the router wants no more of."""
        for attempt in self.attempts:
            if attempt.routed is routed:
                _log.error("closing link %s: %s", attempt.peer.name, reason)
                spawn(f"close link {attempt.peer.name}", attempt.close(reason))

    def hello(self, session: bytes) -> Hello:
        """Give what we say of ourselves."""
        return Hello(
            version=PROTOCOL_VERSION,
            software=software(),
            session=session,
            window=INITIAL_WINDOW,
            max_data=DATA_MAX,
            features=FEATURES,
            idle_udp=self.config.socks.idle_udp,
        )

    def rank(self, peer: Peer) -> int:
        """Give the peer's place in the configuration: the first one that is up is used."""
        return self._ranks.get(peer.name, len(self._ranks))

    def on_up(self, attempt: Attempt) -> None:
        """Take note of a link that has come up."""
        del attempt
        self._changed()

    def on_down(self, attempt: Attempt, reason: str) -> None:
        """Take note of a link that has ended, or did not come up."""
        del reason
        if attempt in self.attempts:
            self.attempts.remove(attempt)
        self._changed()

    def new_attempt(self, peer: Peer, session: bytes) -> Attempt:
        """Begin a link. Raises :class:`ValueError` for ICE servers that cannot be used."""
        attempt = Attempt(self, peer, session)
        self.attempts.append(attempt)
        self._changed()
        return attempt

    def _changed(self) -> None:
        up = len(self.up())
        absent = self.peers.keys() - {attempt.peer.name for attempt in self.attempts}
        self.metrics.links.labels("up").set(up)
        self.metrics.links.labels("connecting").set(len(self.attempts) - up)
        self.metrics.links.labels("down").set(len(absent))

    def _absent(self, peer: Peer) -> dict[str, Any]:
        return {
            "peer": peer.name,
            "state": "down",
            "since": None,
            "rtt_ms": None,
            "remote_software": None,
            "flows": 0,
            "buffered": 0,
            "path": None,
            "path_kind": None,
            "path_family": None,
        }

    def rejected(self, what: str, rejection: EnvelopeRejected) -> None:
        """Count and log an envelope that was rejected; strangers cannot fill the log."""
        self.metrics.signaling_rejected_total.labels(rejection.reason_code).inc()
        now = asyncio.get_running_loop().time()
        if now - self._rejections_since >= REJECTIONS_PERIOD:
            self._rejections, self._rejections_since = 0, now
        self._rejections += 1
        if self._rejections <= REJECTIONS_LOGGED:
            _log.warning("rejected %s: %s", what, rejection.sentence)
        if self._rejections == REJECTIONS_LOGGED:
            _log.warning("further rejections within %.0f s are only counted", REJECTIONS_PERIOD)


# --- gateway ----------------------------------------------------------------------------------


class GatewayLinks(Links):
    """Keeps a link to each configured peer."""

    role = "gateway"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._diallers: dict[str, _Dialler] = {}

    async def start(self) -> None:
        """Dial all peers."""
        for peer in self.config.peers:
            self._dial(peer)
        self._changed()

    def apply(self, config: Config) -> None:
        """End what leads to peers that are gone or changed, and dial the new ones."""
        super().apply(config)
        for name, dialler in list(self._diallers.items()):
            peer = self.peers.get(name)
            if peer is None or _route_of(peer) != _route_of(dialler.peer):
                del self._diallers[name]
                reason = "the peer was removed from the configuration"
                if peer is not None:
                    reason = "the peer's key or url has changed in the configuration"
                spawn(f"stop dialling {name}", dialler.stop(reason))
            else:
                dialler.update(peer)
        for peer in config.peers:
            if peer.name not in self._diallers:
                self._dial(peer)
        self._changed()

    def goaway(self) -> None:
        """Also dial no more."""
        super().goaway()
        for dialler in self._diallers.values():
            dialler.hold()

    async def stop(self, reason: str) -> None:
        """Say goodbye to all peers."""
        self.draining = True
        await asyncio.gather(*(dialler.stop(reason) for dialler in self._diallers.values()))

    def _dial(self, peer: Peer) -> None:
        if not self.draining:
            self._diallers[peer.name] = dialler = _Dialler(self, peer)
            dialler.start()

    def _absent(self, peer: Peer) -> dict[str, Any]:
        dialler = self._diallers.get(peer.name)
        detail = dialler.last_failure if dialler is not None else None
        return {**super()._absent(peer), "detail": detail}


class _Dialler:
    """Keeps dialling one peer. The session is its own and lasts as long as the process."""

    def __init__(self, links: GatewayLinks, peer: Peer) -> None:
        self.last_failure: str | None = None
        self._links = links
        self._session = secrets.token_bytes(16)
        self._key = parse_public_key(peer.public_key)
        self.update(peer)
        self._task: asyncio.Task[None] | None = None
        self._attempt: Attempt | None = None
        self._location: str | None = None

    def update(self, peer: Peer) -> None:
        """Take changes of the peer that its link does not depend on; the next attempt has them."""
        assert peer.url is not None, "the loader wants a url for each peer of a gateway"
        self.peer = peer
        self._client = DirectClient(peer.url, ca=peer.tls_ca, proxy=peer.proxy)

    def start(self) -> None:
        """Dial until :meth:`hold` or :meth:`stop`."""
        self._task = spawn(f"dial {self.peer.name}", self._dial_forever())

    def hold(self) -> None:
        """Dial no more; a link that is up stays."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self, reason: str) -> None:
        """Dial no more, end the link in order, and say goodbye to the endpoint."""
        self.hold()
        if self._task is not None:
            await asyncio.wait([self._task])
        attempt, self._attempt = self._attempt, None
        if attempt is None or attempt.ended.done():
            return
        await attempt.close(reason)
        if self._location is None:
            return
        body = new_body(
            "bye", self._links.identity, self._key, session=self._session, now=time.time()
        )
        try:
            await self._client.bye(self._location, seal(self._links.identity, body))
        except SignalingError as error:
            # The endpoint has usually noticed by the closing of the link itself.
            _log.debug("no goodbye to %s: %s", self.peer.name, error)

    async def _dial_forever(self) -> None:
        backoff = Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True)
        name = self.peer.name
        while True:
            try:
                attempt = await self._dial()
            except (SignalingError, EnvelopeRejected, LinkError, ValueError) as error:
                delay = self._failed(str(error), backoff)
                _log.warning("cannot reach %s: %s; trying again in %.1f s", name, error, delay)
            except Exception as error:  # noqa: BLE001 - reported, and no reason to give the peer up
                delay = self._failed(repr(error), backoff)
                _log.exception("dialling %s failed; trying again in %.1f s", name, delay)
            else:
                up_at = asyncio.get_running_loop().time()
                # Shielded, as below: hold() cancels this task, not what others look at too.
                reason = await asyncio.shield(attempt.ended)
                if asyncio.get_running_loop().time() - up_at >= LIVED_LONG:
                    backoff.reset()
                delay = self._failed(reason, backoff)
                _log.info("dialling %s again in %.1f s", name, delay)
            await asyncio.sleep(delay)

    def _failed(self, reason: str, backoff: Backoff) -> float:
        self.last_failure = reason
        return backoff.next()

    async def _dial(self) -> Attempt:
        """Make one attempt; give it once its link is up. Raises what says why it failed."""
        self._location = None
        attempt = self._attempt = self._links.new_attempt(self.peer, self._session)
        try:
            await self._shake_hands(attempt)
        except EnvelopeRejected as rejection:
            self._links.metrics.signaling_rejected_total.labels(rejection.reason_code).inc()
            await attempt.close("the answer was rejected")
            raise
        except asyncio.CancelledError:
            raise  # after hold() a link that is coming up may still do so; stop() closes it
        except Exception as error:
            await attempt.close(str(error))
            raise
        return attempt

    async def _shake_hands(self, attempt: Attempt) -> None:
        links = self._links
        sdp = await attempt.link.create_offer()
        offer = new_body(
            "offer", links.identity, self._key, session=self._session, now=time.time(), sdp=sdp
        )
        envelope, self._location = await self._client.offer(
            seal(links.identity, offer), OFFER_TIMEOUT
        )
        answer, name = links.verifier.open(
            envelope, time.time(), kinds={"answer"}, in_reply_to=offer.nonce
        )
        if name != self.peer.name or answer.session != self._session:
            raise EnvelopeRejected(
                "unexpected-reply", f"the answer is {name}'s, or of another session", name
            )
        await attempt.link.accept_answer(answer.sdp)
        await asyncio.shield(attempt.came_up)
        if attempt.ended.done():
            raise LinkError(attempt.ended.result())


# --- endpoint ---------------------------------------------------------------------------------


class EndpointLinks(Links):
    """Answers the offers of the configured gateways."""

    role = "endpoint"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server: DirectServer | None = None
        self._certificate: ServerCertificate | None = None

    async def start(self) -> None:
        """Listen for offers."""
        signaling = self.config.signaling
        assert signaling is not None, "the loader wants a listener for an endpoint"
        assert signaling.listen is not None, "as above"
        await self.prepare(self.config)
        certificate = self._certificate
        tls = None if certificate is None else certificate.context
        self._server = DirectServer(signaling.listen, self._offer, bye=self._bye, tls=tls)
        await self._server.start()
        how = "" if certificate is None else " by HTTPS"
        _log.info("listening for offers on %s%s", self._server.address, how)
        if certificate is not None:
            _log_certificate(certificate)
        self._changed()

    async def prepare(self, config: Config) -> None:
        """Read the certificate, which may have been renewed. HTTP stays HTTP while it listens."""
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

    def apply(self, config: Config) -> None:
        """End the links of peers that are gone or have another key; serve a renewed certificate."""
        super().apply(config)
        if self._server is not None and self._certificate is not None:
            # Connections that are there go on with what they began with.
            self._server.tls = self._certificate.context
            _log_certificate(self._certificate)
        for attempt in list(self.attempts):
            peer = self.peers.get(attempt.peer.name)
            if peer is None or _route_of(peer) != _route_of(attempt.peer):
                reason = "the peer was removed from the configuration, or has another key now"
                spawn(f"close link {attempt.peer.name}", attempt.close(reason))
        self._changed()

    async def stop(self, reason: str) -> None:
        """Take no more offers, end all links."""
        self.draining = True
        if self._server is not None:
            await self._server.stop()
        await asyncio.gather(*(attempt.close(reason) for attempt in list(self.attempts)))

    def on_up(self, attempt: Attempt) -> None:
        """End what was before: a gateway has one link, and knows best which."""
        for other in self.attempts[: self.attempts.index(attempt)]:
            if other.peer.name == attempt.peer.name:
                if other.routed is not None:
                    _log.info("link %s: a newer link replaces the older one", attempt.peer.name)
                reason = "replaced by a newer link of the same peer"
                spawn(f"close link {attempt.peer.name}", other.close(reason))
        super().on_up(attempt)

    def on_down(self, attempt: Attempt, reason: str) -> None:
        """Say why, also if it did not come up: at the other end they see only that."""
        if attempt.up_at is None:
            _log.warning("link %s did not come up: %s", attempt.peer.name, reason)
        super().on_down(attempt, reason)

    async def _offer(self, envelope: bytes) -> Answered | None:
        origin = remote_address.get()
        try:
            offer, name = self.verifier.open(envelope, time.time(), kinds={"offer"})
        except EnvelopeRejected as rejection:
            self.rejected(f"an offer from {origin}", rejection)
            return None
        if self.draining:
            _log.info("refused an offer of %s: shutting down", name)
            return None
        if not self._make_room(name):
            return None
        attempt = self.new_attempt(self.peers[name], offer.session)
        try:
            sdp = await attempt.link.accept_offer(offer.sdp)
        except LinkError:
            return None  # on_down has said why
        except BaseException:
            spawn(f"close link {name}", attempt.close("its offer was not answered"))
            raise
        answer = new_body(
            "answer",
            self.identity,
            offer.sender,
            session=offer.session,
            now=time.time(),
            sdp=sdp,
            in_reply_to=offer.nonce,
        )
        _log.debug("answered an offer of %s from %s", name, origin)
        return Answered(seal(self.identity, answer), attempt.session_id)

    def _make_room(self, name: str) -> bool:
        """Keep the links that are coming up within their bounds; False if there is no room."""
        pending = [attempt for attempt in self.attempts if not attempt.came_up.done()]
        if len(pending) >= HANDSHAKES_MAX:
            _log.warning("refused an offer of %s: %d links are coming up", name, len(pending))
            return False
        own = [attempt for attempt in pending if attempt.peer.name == name]
        # A gateway that dials again has given up its earlier attempt.
        for attempt in own[: len(own) - HANDSHAKES_PER_PEER + 1]:
            spawn(f"close link {name}", attempt.close("the peer has dialled again"))
        return True

    async def _bye(self, session_id: str, envelope: bytes) -> bool:
        try:
            bye, name = self.verifier.open(envelope, time.time(), kinds={"bye"})
        except EnvelopeRejected as rejection:
            self.rejected(f"a goodbye from {remote_address.get()}", rejection)
            return False
        for attempt in self.attempts:
            if (attempt.peer.name, attempt.session_id, attempt.session) == (
                name,
                session_id,
                bye.session,
            ):
                spawn(f"close link {name}", attempt.close("the peer said goodbye"))
        return True  # also if the link has ended by itself meanwhile


# --- helpers ----------------------------------------------------------------------------------


def software() -> str:
    """Give name and version as HELLO has them."""
    return f"socks-tunnel/{socks_tunnel.__version__}"


def ice_settings(ice: Ice) -> IceSettings:
    """Returns the form that a link takes."""
    return IceSettings(
        servers=[server.model_dump(exclude_none=True) for server in ice.servers],
        addresses=list(ice.addresses),
        policy=ice.policy,
        udp_ports=parse_udp_ports(ice.udp_ports),
        tls_ca=ice.tls_ca,
        proxy=ice.proxy,
    )


def signaling_host(url: str | None) -> str:
    """Returns the host of a gateway's peer's url; empty where that is no host of a network."""
    return "" if url is None or url.startswith("unix:") else urlsplit(url).hostname or ""


def _log_certificate(certificate: ServerCertificate) -> None:
    complaint = certificate.complaint(datetime.now(UTC))
    if complaint is None:
        _log.info("TLS certificate %s", certificate)
    else:
        _log.warning("TLS certificate %s: it %s; gateways refuse it", certificate.path, complaint)


def _by_key(peers: Iterable[Peer]) -> dict[bytes, str]:
    return {parse_public_key(peer.public_key): peer.name for peer in peers}


def _route_of(peer: Peer) -> tuple[str, str | None]:
    """What a link of the peer depends on."""
    return peer.public_key, peer.url


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
