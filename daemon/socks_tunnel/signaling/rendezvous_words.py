"""Sentences about a rendezvous service: its TURN servers, its clock, and failures."""

import logging
import math
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import aiohttp

from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.ice_urls import parse_ice_url
from socks_tunnel.protocol.rendezvous import CLOSE_MEANINGS, TurnServer
from socks_tunnel.protocol.rendezvous_states import SKEW_TOLD
from socks_tunnel.signaling.carrier import IceServers
from socks_tunnel.signaling.clock import SignalingClock
from socks_tunnel.signaling.portal import PORTAL_WORDS, is_portal
from socks_tunnel.signaling.rendezvous_socket import TCP_TIMEOUT

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT: Final = 15.0
"""Seconds from the start of an attempt until the service must have accepted our key."""

WARNED_EACH: Final = 3600.0
"""Seconds in which the log has once that TURN servers of a service cannot be used."""


class Offers:
    """The TURN servers that a service offers, again and again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._warned_at = -math.inf

    def usable(self, offered: Sequence[TurnServer], now: float) -> IceServers:
        """Returns those of a welcome in the form of a configuration; `now` is Unix time.

        URLs that are not those of a TURN server are left out, because one mistake of the service
        must not prevent a link. That is a warning, but only once in a while: the service is not
        trusted, and can send a welcome at any time.
        """
        wrong, servers = [], []
        for server in offered:
            urls = []
            for text in server.urls:
                try:
                    parsed = parse_ice_url(text)
                except ValueError as error:
                    wrong.append(f"the TURN server {clip(text)}: {error}")
                    continue
                if parsed.scheme == "stun":
                    wrong.append(f"{clip(text)}, which is no TURN server")
                else:
                    urls.append(text)
            if urls:
                servers.append(
                    {"urls": urls, "username": server.username, "credential": server.credential}
                )
        if wrong and not 0 <= now - self._warned_at < WARNED_EACH:
            self._warned_at = now
            for each in wrong:
                _log.warning("rendezvous %s offers %s", self._url, each)
        return servers


def clock_advice(clock: SignalingClock | None) -> str:
    """Returns the consequence of different clocks and what to do, as the end of a sentence."""
    if clock is not None and clock.trusts_service:
        return (
            "offers and answers go by the service's (rendezvous_clock); set this one all the same"
        )
    return (
        "one of them is wrong, and peers reject what comes from a host whose clock is: run a time "
        "service (systemd-timesyncd, chrony)"
    )


class SkewTold:
    """Logs how far the clocks of this host and of a service differ, without repetition."""

    def __init__(self, url: str, clock: SignalingClock | None) -> None:
        self.seconds = 0
        """Seconds that the service's clock was ahead of ours when it last said its time."""
        self._url = url
        self._clock = clock
        self._told: int | None = None

    def tell(self, skew: int) -> None:
        """Takes how far the service's clock is ahead.

        Warns if that is much and was not logged yet.
        """
        self.seconds = skew
        if self._clock is not None:
            self._clock.service_said(skew)
        if abs(skew) <= SKEW_TOLD:
            self._told = None
        elif self._told is None or abs(skew - self._told) > SKEW_TOLD:
            self._told = skew
            _log.warning(
                "this host's clock is %d s %s that of the rendezvous service %s; %s",
                abs(skew),
                "behind" if skew > 0 else "ahead of",
                self._url,
                clock_advice(self._clock),
            )


def failure_sentence(error: Exception) -> str:
    """Returns why there is no connection, as the end of a sentence about the service."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not trusted here: {clip(error.certificate_error)}"
        case aiohttp.WSServerHandshakeError(status=status) if is_portal(status):
            return f"{PORTAL_WORDS} (HTTP status {status})"
        case aiohttp.WSServerHandshakeError():
            return f"it answered with HTTP status {error.status}"
        case aiohttp.ClientHttpProxyError(status=407):
            return "the HTTP proxy answered with status 407; it wants a user and a password"
        case aiohttp.ClientHttpProxyError():
            return f"the HTTP proxy answered with status {error.status}"
        case aiohttp.ClientConnectorDNSError():
            return f"its name cannot be resolved: {_words(error.os_error)}"
        case aiohttp.ClientConnectorError():
            return f"it cannot be reached: {_words(error.os_error)}"
        case aiohttp.ConnectionTimeoutError():
            return f"it cannot be reached: no answer within {TCP_TIMEOUT:g} s"
        case TimeoutError():
            return f"no answer within {CONNECT_TIMEOUT:g} s"
        case _:
            return clip(error)


def _words(error: OSError) -> str:
    """Returns the system's words, because asyncio replaces those for a refused connection."""
    if isinstance(error, socket.gaierror) or not error.errno or error.errno < 0:
        return clip(error.strerror or error)
    return os.strerror(error.errno)


def end_sentence(ws: aiohttp.ClientWebSocketResponse, message: Any) -> str:
    """Returns the sentence for a WebSocket that has ended."""
    code = ws.close_code
    if message.type is aiohttp.WSMsgType.TEXT:
        return "it broke the protocol: a text message came"
    if message.type is aiohttp.WSMsgType.ERROR:
        return f"the connection broke: {clip(ws.exception() or 'no reason given')}"
    if code is not None and code in CLOSE_MEANINGS:
        return CLOSE_MEANINGS[code]
    return "the connection was closed" if code is None else f"the connection was closed ({code})"
