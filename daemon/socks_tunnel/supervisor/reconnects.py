"""Counts links that take the place of another, by what was wrong with the other one.

No socket and no clock. The list of causes is :data:`socks_tunnel.ops.labels.RECONNECT_CAUSES`.

=================== ==============================================================================
`unanswered`        its peer did not answer for a moment, and another link was made beside it
`silence`           nothing was heard of its peer until it was given up
`path-lost`         the transport ended: no path, an error of DTLS or SCTP, the peer closed it
`network-changed`   addresses or routes of this host changed
`host-slept`        this host was suspended
`peer-restarted`    its peer shut down, or said goodbye
`better-path`       its path was relayed, and a direct one was found
`replaced`          the peer made another one, and its own metrics say why
`configuration`     the key or the url of the peer changed
`protocol`          its peer broke the protocol
`bug`               a message met a fault of this program
=================== ==============================================================================
"""

from typing import Final

from socks_tunnel.ops.labels import ReconnectCause
from socks_tunnel.ops.metrics import Metrics

REMEMBERED_MAX: Final = 10_000
"""Peers without a link whose cause is remembered. The first to lose its link is forgotten first."""


class Reconnects:
    """Counts links that come up in place of another."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lost: dict[str, ReconnectCause] = {}

    def lost(self, peer: str, cause: ReconnectCause) -> None:
        """Remembers why the last link of a peer has ended."""
        self._lost.pop(peer, None)
        self._lost[peer] = cause
        if len(self._lost) > REMEMBERED_MAX:
            del self._lost[next(iter(self._lost))]

    def up(self, peer: str, replaced: ReconnectCause | None) -> None:
        """Counts a link that is up; `replaced` says why, if it came up beside another one."""
        cause = self._lost.pop(peer, None)
        if replaced is not None:
            cause = replaced
        if cause is not None:
            self._metrics.link_reconnects_total.labels(cause).inc()
