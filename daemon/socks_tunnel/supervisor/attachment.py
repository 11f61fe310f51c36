"""Attaches a link to the router, with the features on which both HELLOs agree.

A link attaches when both HELLOs are done and detaches when it has ended. In between, messages cross
to the session that it carries in batches.
"""

from collections.abc import Callable
from typing import Final, Protocol

from socks_tunnel.protocol.messages import DATA_MAX, HEADER, Hello
from socks_tunnel.supervisor.ports import LinkPort, LinkTerms
from socks_tunnel.supervisor.router import Router
from socks_tunnel.supervisor.routing import AttachedLink

RESUME: Final = "resume"
"""The feature of a host that keeps its flows when a link is lost."""


class Port(LinkPort, Protocol):
    """A link, as far as it has to be known here."""

    @property
    def max_message(self) -> int:
        """Longest message in bytes that the peer takes."""


class Attachments:
    """Attaches links to the router and detaches them.

    `rank` returns a peer's place in the configuration, and `weight` its share of this process.
    """

    def __init__(
        self, router: Router, rank: Callable[[str], int], weight: Callable[[str], int]
    ) -> None:
        self._router = router
        self._rank = rank
        self._weight = weight

    def attach(self, port: Port, peer: str, hello: Hello, local: Hello) -> AttachedLink:
        """Lets a link carry its session. `hello` is the peer's, `local` is ours."""
        terms = LinkTerms(
            session=hello.session,
            window=hello.window,
            max_data=min(hello.max_data, DATA_MAX, port.max_message - HEADER.size),
            idle_udp=hello.idle_udp,
            features=hello.features,
            resume=RESUME in hello.features and RESUME in local.features,
            rank=self._rank(peer),
            weight=self._weight(peer),
        )
        return self._router.attach(port, peer, terms)

    def detach(self, attached: AttachedLink, reason: str) -> int:
        """Detaches a link that has ended; returns how many flows ended with it."""
        return self._router.detach(attached, reason)

    def forget(self, peer: str, reason: str, session: bytes | None = None) -> None:
        """Ends the sessions of a peer that was removed, or one that its peer has given up."""
        self._router.forget_peer(peer, reason, session)
