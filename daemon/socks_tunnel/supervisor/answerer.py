"""Answering, on an endpoint: offers of configured gateways become links."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import socks_tunnel
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.transport import TransportError
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.signaling.carrier import (
    Answered,
    Handlers,
    SignalingError,
    offered_relay,
    offered_servers,
    remote_address,
)
from socks_tunnel.signaling.envelope import EnvelopeRejected, new_body, seal
from socks_tunnel.supervisor import carriers
from socks_tunnel.supervisor.enroller import Enroller
from socks_tunnel.supervisor.links import Links
from socks_tunnel.supervisor.netlink import PathWatcher
from socks_tunnel.supervisor.pauses import PauseWatcher
from socks_tunnel.supervisor.peerlink import PeerLink
from socks_tunnel.supervisor.peers import keys_of

_log = logging.getLogger(__name__)

SAID_GOODBYE: Final = "the peer said goodbye"

HANDSHAKES_PER_PEER: Final = 2
"""Links of one peer that may be coming up at a time. A further offer ends the oldest attempt."""

HANDSHAKES_MAX: Final = 64
"""Links that may be coming up at a time. Further offers are refused."""


class EndpointLinks(Links):
    """Answers the offers of the configured gateways."""

    role = "endpoint"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.enroller: Enroller | None = None
        """Answers requests to join; with None, nobody can join."""
        self._carriers = carriers.incoming(
            Handlers(self._offer, self._bye, self._join),
            self.metrics,
            self.identity,
            self.clock,
            self.router.longest_wait,
            self._load,
            self._revoked,
        )
        self._paths = PathWatcher(self.path_changed)
        self._pauses = PauseWatcher(self.path_changed)

    def _load(self) -> Load:
        """Returns the load of this endpoint."""
        sessions = self.router.sessions.values()
        links = sum(session.link is not None for session in sessions)
        return Load(self.router.flows, links, socks_tunnel.__version__)

    def _revoked(self) -> list[bytes]:
        return [] if self.enroller is None else self.enroller.revoked_keys()

    async def start(self) -> None:
        """Listens for offers."""
        for carrier in self._carriers:
            await carrier.prepare(self.config)
            await carrier.start(self.config)
        if self.enroller is not None:
            self.enroller.start(self._ask)
        self._count_links()
        self._paths.start()
        self._pauses.start()

    async def _ask(self, to: bytes, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Sends a request to another endpoint of the group; returns the answer."""
        for carrier in self._carriers:
            if isinstance(carrier, carriers.RendezvousListener):
                return await carrier.ask(to, request, timeout)
        raise SignalingError("there is no rendezvous service")

    def path_changed(self, why: str) -> None:
        """Checks that offers still arrive. Gateways make new links themselves."""
        _log.debug("checking that offers still arrive: %s", why)
        for carrier in self._carriers:
            carrier.doubt()

    async def prepare(self, config: Config) -> None:
        """Reads what the carriers need."""
        for carrier in self._carriers:
            await carrier.prepare(config)

    def apply(self, config: Config) -> None:
        """Ends the links of peers that were removed or have another key."""
        super().apply(config)
        for carrier in self._carriers:
            carrier.apply(config)
        for link in list(self.links):
            peer = self.peers.get(link.peer.name)
            if peer is not None and link.key in keys_of(peer):
                link.peer = peer
            else:
                reason = "the peer was removed from the configuration, or has another key now"
                spawn(f"close link {link.peer.name}", link.expel(reason, "configuration"))
        self._count_links()

    async def stop(self, reason: str) -> None:
        """Takes no more offers, and ends all links."""
        self.draining = True
        if self.enroller is not None:
            await self.enroller.stop()
        self._paths.stop()
        self._pauses.stop()
        # The links end before the carriers, because a carrier may relay the links' last messages.
        await asyncio.gather(*(link.close(reason) for link in list(self.links)))
        for carrier in self._carriers:
            await carrier.stop()
        await asyncio.gather(*(link.close(reason) for link in list(self.links)))

    async def suspend(self, reason: str) -> None:
        """Also stops watching the network."""
        self._paths.stop()
        self._pauses.stop()
        await super().suspend(reason)

    def on_up(self, link: PeerLink) -> None:
        """Also notes the time at which a host that has joined was here."""
        super().on_up(link)
        if self.enroller is not None:
            self.enroller.seen(link.peer.name)

    def export(self) -> dict[str, Any]:
        """Returns the values of the carriers for the next program."""
        return {"carriers": [carrier.export() for carrier in self._carriers]}

    def inherit(self, fields: Mapping[str, Any]) -> None:
        """Gives the carriers the values of the previous program."""
        for carrier, left in zip(self._carriers, bounded.tables(fields, "carriers"), strict=False):
            carrier.inherit(left)

    def on_down(self, link: PeerLink, reason: str) -> None:
        """Also logs why a link did not come up, which the gateway cannot know."""
        if link.up_at is None:
            expected = self.draining or reason == SAID_GOODBYE or self.linked_beside(link)
            level = logging.INFO if expected else logging.WARNING
            _log.log(level, "link %s did not come up: %s", link.peer.name, reason)
        else:
            if self.enroller is not None:
                self.enroller.seen(link.peer.name)
            if link.lost_because is not None:  # the network may have failed that brings offers
                self.path_changed(f"link {link.peer.name} was lost")
        super().on_down(link, reason)

    async def _offer(self, envelope: bytes) -> Answered | None:
        origin = remote_address.get()
        try:
            offer, name = self.verifier.open(envelope, self.clock.now(), kinds={"offer"})
        except EnvelopeRejected as rejection:
            self.rejected(f"an offer from {origin}", rejection)
            return None
        if self.draining:
            _log.info("refused an offer of %s: this endpoint is shutting down", name)
            return None
        if not self._make_room(name):
            return None
        link = self.new_link(
            self.peers[name],
            offer.session,
            offered_servers.get(),
            offer.sender,
            relay=offered_relay.get()(offer.sender),
        )
        try:
            sdp = await link.link.accept_offer(offer.sdp)
        except TransportError:
            return None  # on_down has logged why
        except BaseException:
            spawn(f"close link {name}", link.close("its offer was not answered"))
            raise
        answer = new_body(
            "answer",
            self.identity,
            offer.sender,
            session=offer.session,
            now=self.clock.now(),
            sdp=sdp,
            in_reply_to=offer.nonce,
        )
        _log.debug("answered an offer of %s from %s", name, origin)
        return Answered(seal(self.identity, answer), link.session_id)

    async def _join(self, request: bytes) -> bytes | None:
        if self.enroller is None or self.draining:
            return None
        return await self.enroller.handle(request)

    def _make_room(self, name: str) -> bool:
        """Returns whether one more link of this peer may come up. Ends older attempts for it."""
        pending = [link for link in self.links if not link.came_up.done()]
        if len(pending) >= HANDSHAKES_MAX:
            # No flow waits for an attempt besides a link that works, so it can be made later.
            spare = next((link for link in pending if self.linked_beside(link)), None)
            if spare is not None:
                pending.remove(spare)
                why = "room was needed for a peer without a link"
                spawn(f"close link {spare.peer.name}", spare.close(why))
        if len(pending) >= HANDSHAKES_MAX:
            _log.warning(
                "refused an offer of %s: %d links are coming up already; it will try again",
                name,
                len(pending),
            )
            return False
        own = [link for link in pending if link.peer.name == name]
        # A gateway that dials again has given up its earlier attempt.
        for link in own[: len(own) - HANDSHAKES_PER_PEER + 1]:
            spawn(f"close link {name}", link.close("the peer has dialled again"))
        return True

    async def _bye(self, session_id: str, envelope: bytes) -> bool:
        try:
            bye, name = self.verifier.open(envelope, self.clock.now(), kinds={"bye"})
        except EnvelopeRejected as rejection:
            self.rejected(f"a goodbye from {remote_address.get()}", rejection)
            return False
        own = [link for link in self.links if (link.peer.name, link.session) == (name, bye.session)]
        for link in own:
            if link.session_id == session_id:
                spawn(f"close link {name}", self._part(link))
            elif link.attached is None:  # the gateway has given this attempt up, too
                spawn(f"close link {name}", link.close(SAID_GOODBYE))
        if all(link.attached is None for link in own):  # the link has ended before the goodbye
            self.attachments.forget(name, SAID_GOODBYE, bye.session)
        return True

    async def _part(self, link: PeerLink) -> None:
        """Ends a link together with its session, which will not be resumed."""
        await link.close(SAID_GOODBYE, "peer-restarted")
        self.attachments.forget(link.peer.name, SAID_GOODBYE, link.session)
