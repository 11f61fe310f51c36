"""Where a link that is up meets the router.

A link attaches when both HELLOs are done and detaches when it has ended. In between, messages
cross here in batches. Nothing else of the supervisor knows how the router wants it.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import DATA_MAX, HEADER, Hello, MessageType, Resume
from socks_tunnel.supervisor.router import RoutedLink, Router

_UDP_PACKET = int(MessageType.UDP_PACKET)


class Port(Protocol):
    """What the router needs of a link."""

    @property
    def max_message(self) -> int:
        """Longest message in bytes that the peer takes."""

    def send_many(self, messages: list[bytes]) -> None:
        """Sends flow messages; the list stays the caller's."""

    def send_resume(self, resume: Resume) -> None:
        """Tells the peer where our flows stand."""


class Attached:
    """A link in the router, as the link sees it."""

    def __init__(self, port: Port) -> None:
        self.routed: RoutedLink
        self._port = port
        self._outbox: list[bytes] = []
        self._open = True

    @property
    def flows(self) -> int:
        """How many flows are open."""
        return self.routed.flows

    # --- from the link ------------------------------------------------------------------------

    def messages(self, messages: list[bytes]) -> None:
        """Routes what came from the peer."""
        route = self.routed.from_link
        for message in messages:
            if not self._open:
                return
            route(message)

    def drained(self, count: int) -> None:
        """Gives credit back."""
        self.routed.drained(count)

    def resume(self, resume: Resume) -> None:
        """Never comes: we do not offer the feature yet."""
        raise LocalProtocolError(f"{resume!r:.80} on a router that keeps no sessions")

    def goaway(self) -> None:
        """Lets nothing new be opened."""
        self.routed.goaway()

    def close(self) -> None:
        """Takes and sends nothing any more."""
        self._open = False
        self._outbox.clear()

    # --- from the router: LinkPort --------------------------------------------------------------

    def send(self, message: bytes) -> bool:
        """Collects a flow message; those of one turn of the event loop leave together."""
        if not self._open:
            return False
        limit = self._port.max_message
        if len(message) > limit and message[0] != _UDP_PACKET:
            raise LocalProtocolError(
                f"a message of {len(message)} bytes is over the peer's limit of {limit}"
            )
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)
        return True

    def _flush(self) -> None:
        if self._outbox:
            batch, self._outbox = self._outbox, []
            self._port.send_many(batch)


class Attachments:
    """The way to the router. `rank` says which peer of several is used first."""

    def __init__(self, router: Router, rank: Callable[[str], int]) -> None:
        self._router = router
        self._rank = rank

    def attach(self, port: Port, peer: str, hello: Hello, local: Hello) -> Attached:
        """Lets a link take part in routing. `hello` is the peer's, `local` is ours."""
        attached = Attached(port)
        attached.routed = self._router.link_up(
            attached,
            peer,
            {
                "peer": peer,
                "rank": self._rank(peer),
                "window": hello.window,
                "max_data": min(hello.max_data, DATA_MAX, port.max_message - HEADER.size),
                "idle_udp": hello.idle_udp,
                "features": list(hello.features),
                "session": local.session,
            },
        )
        return attached

    def detach(self, attached: Attached, reason: str) -> None:
        """Takes a link out of routing, because it has ended."""
        attached.close()
        self._router.link_down(attached.routed, reason)
