"""The links of a gateway: a :class:`Dialler` for each configured peer (see dialler.py).

It also lets all of them dial at once when the network has changed or the host has slept.
"""

import asyncio
import logging
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from socks_tunnel.config.for_workers import route_settings
from socks_tunnel.config.settings import Config, Peer
from socks_tunnel.ops.labels import ReconnectCause
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.select import fast_path_active
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.keepalive import FAILOVER_TIMING, FAST_FAILOVER_TIMING, Timing
from socks_tunnel.protocol.link import DEFAULT_TIMING
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor import carriers
from socks_tunnel.supervisor.dialler import CarrierFactory, Dialler
from socks_tunnel.supervisor.links import Links, route_of
from socks_tunnel.supervisor.netlink import PathWatcher, only_addresses, source_towards
from socks_tunnel.supervisor.pauses import PauseWatcher
from socks_tunnel.supervisor.peerlink import PeerLink
from socks_tunnel.supervisor.peers import share_a_key

_log = logging.getLogger(__name__)


class GatewayLinks(Links):
    """Keeps a link to each configured peer. `carrier_for` returns the way to one."""

    role = "gateway"

    def __init__(
        self, *args: Any, carrier_for: CarrierFactory | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._outgoing = carriers.Outgoing(
            self.identity, self.metrics, self.clock, self.router.longest_wait
        )
        self.router.chooser.reported = self._outgoing.flows
        self.carrier_for = carrier_for or self._outgoing.carrier_for
        self._diallers: dict[str, Dialler] = {}
        self._inherited: dict[str, bytes] = {}
        self._paths = PathWatcher(self.host_changed)
        self._pauses = PauseWatcher(lambda why: self.path_changed(why, "host-slept"))

    def _take(self, config: Config) -> None:
        super()._take(config)
        routes = route_settings(config)
        self._shared = {peer for route in routes if len(route.peers) > 1 for peer in route.peers}
        self.router.route(routes)

    def timing_of(self, peer: str) -> Timing:
        """Returns a closer watch for peers that share a route, as new flows can go elsewhere."""
        if peer not in self._shared:
            return DEFAULT_TIMING
        fast = fast_path_active(self.config.transport.fast_path)
        return FAST_FAILOVER_TIMING if fast else FAILOVER_TIMING

    async def start(self) -> None:
        """Dials all peers."""
        self._outgoing.apply(self.config)
        for peer in self.config.peers:
            self._dial(peer)
        self._count_links()
        self._paths.start()
        self._pauses.start()

    def apply(self, config: Config) -> None:
        """Ends the links of removed peers, dials new peers, and dials moved peers again."""
        super().apply(config)
        self._outgoing.apply(config)
        for name, dialler in list(self._diallers.items()):
            peer = self.peers.get(name)
            if peer is None or not share_a_key(peer, dialler.peer):
                del self._diallers[name]
                reason = "the peer was removed from the configuration"
                if peer is not None:
                    reason = "the peer's key has changed in the configuration"
                spawn(f"stop dialling {name}", dialler.stop(reason))
                continue
            moved = route_of(peer) != route_of(dialler.peer)
            dialler.update(peer)
            if moved:
                self._dial_anew(dialler, "its key, url or rendezvous has changed")
        for peer in config.peers:
            if peer.name not in self._diallers:
                self._dial(peer)
        for link in self.links:
            link.link.protocol.keepalive.retime(self.timing_of(link.peer.name))
        self._count_links()

    def renew(self, identity: PrivateIdentity) -> bool:
        """Takes another key for the next links. Links that are up go on with the old key.

        When an endpoint does not accept the old key any more, it ends them, and their flows go on
        with new links.
        """
        if identity.public != self.identity.public:
            _log.info(
                "the private key has changed: the next links use the public key %s",
                identity.public_text,
            )
            self.identity = identity
            self.verifier.renew(identity.public)
            self._outgoing.renew(identity, self.config)
            for dialler in self._diallers.values():
                dialler.update(dialler.peer)
        return True

    def goaway(self) -> None:
        """Also stops dialling."""
        super().goaway()
        for dialler in self._diallers.values():
            dialler.hold()

    async def stop(self, reason: str) -> None:
        """Stops dialling, ends all links in order, and sends all peers a goodbye."""
        self.draining = True
        self._paths.stop()
        self._pauses.stop()
        await asyncio.gather(*(dialler.stop(reason) for dialler in self._diallers.values()))
        await self._outgoing.stop()

    async def suspend(self, reason: str) -> None:
        """Ends the links without a goodbye: the next program dials with the same sessions."""
        self.draining = True
        self._paths.stop()
        self._pauses.stop()
        for dialler in self._diallers.values():
            dialler.hold()
        await super().suspend(reason)

    def export(self) -> dict[str, Any]:
        """Returns the names of the sessions, which this side has chosen."""
        return {"sessions": {name: d.session for name, d in self._diallers.items()}}

    def inherit(self, fields: Mapping[str, Any]) -> None:
        """Takes the names of the sessions of the previous program."""
        sessions = bounded.table(fields, "sessions")
        self._inherited = {name: bounded.binary(sessions, name, 16) for name in sessions}

    def host_changed(self, why: str) -> None:
        """Tries other links besides those that a change of addresses or routes concerns.

        A link is not concerned if the kernel still sends to its peer from the same address, for
        instance when a container has started here. The peer of such a link is asked for an answer,
        and the link is in doubt if none comes soon.
        """
        concerned = self.up()
        if only_addresses(why):
            concerned = [link for link in concerned if not _sends_as_before(link)]
        self.path_changed(why, links=concerned)

    def path_changed(
        self,
        why: str,
        cause: ReconnectCause = "network-changed",
        *,
        links: Collection[PeerLink] | None = None,
    ) -> None:
        """Tries another link besides each one, because the network has changed or the host slept.

        With `links`, only besides these; the peers of the others are asked for an answer. `why`
        ends the sentence "link office: …". Diallers that wait dial now. An attempt under way is
        made anew, because it has old addresses.
        """
        if self.draining:
            return
        self._outgoing.doubt()
        for link in self.up():
            if links is None or link in links:
                link.doubt(why, cause)
            else:
                link.ask(why)
        for dialler in self._diallers.values():
            dialler.hurry()

    def _dial_anew(self, dialler: Dialler, why: str) -> None:
        """Lets a new link be made with the present settings; the flows go on with it."""
        for link in self.up():
            if link.peer.name == dialler.peer.name:
                link.doubt(why, "configuration")
        dialler.hurry()

    def _dial(self, peer: Peer) -> None:
        if not self.draining:
            session = self._inherited.pop(peer.name, None) or secrets.token_bytes(16)
            self._diallers[peer.name] = dialler = Dialler(self, self.carrier_for, peer, session)
            dialler.start()

    def _absent(self, peer: Peer) -> dict[str, Any]:
        dialler = self._diallers.get(peer.name)
        detail = dialler.last_failure if dialler is not None else None
        return {**super()._absent(peer), "detail": detail}


def _sends_as_before(link: PeerLink) -> bool:
    """Returns whether the kernel would send to the peer from the local address of the link."""
    path = link.link.transport.path
    return (
        path is not None
        and path.kind != "relay"
        and source_towards(path.remote[:2]) == path.local[0]
    )
