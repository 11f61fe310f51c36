"""Which carriers bring envelopes, by the configuration: the only part that knows them by name.

The dialler and the answerer see carriers through :mod:`socks_tunnel.signaling.carrier` alone.
"""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Protocol

from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.models import Config, Peer
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling.carrier import ByeHandler, OfferHandler, OutgoingCarrier
from socks_tunnel.signaling.direct import DirectClient, DirectServer
from socks_tunnel.signaling.tls import ServerCertificate, TlsFileError, read_server_certificate

_log = logging.getLogger(__name__)


class ConfiguredCarrier(Protocol):
    """A way for offers to come in, as its part of the configuration says."""

    async def prepare(self, config: Config) -> None:
        """Reads what it needs besides the configuration. Raises :class:`ConfigError`."""

    async def start(self, config: Config) -> None:
        """Begins to take offers. Raises :class:`OSError`."""

    def apply(self) -> None:
        """Uses what was prepared last."""

    async def stop(self) -> None:
        """Takes no more offers; bounded in time."""


def outgoing(peer: Peer) -> OutgoingCarrier:
    """Returns the way to a peer of a gateway."""
    assert peer.url is not None, "the loader wants a url for each peer of a gateway"
    return DirectClient(peer.url, ca=peer.tls_ca, proxy=peer.proxy)


def incoming(offer: OfferHandler, bye: ByeHandler, metrics: Metrics) -> list[ConfiguredCarrier]:
    """Returns the ways on which an endpoint takes offers."""
    return [DirectListener(offer, bye, metrics)]


class DirectListener:
    """The direct carrier's listener, with its certificate, which may be renewed."""

    def __init__(self, offer: OfferHandler, bye: ByeHandler, metrics: Metrics) -> None:
        self._offer = offer
        self._metrics = metrics
        self._bye = bye
        self._server: DirectServer | None = None
        self._certificate: ServerCertificate | None = None

    async def prepare(self, config: Config) -> None:
        """Reads the certificate. HTTP stays HTTP while it listens. Raises :class:`ConfigError`."""
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
        assert signaling is not None, "the loader wants a listener for an endpoint"
        assert signaling.listen is not None, "as above"
        certificate = self._certificate
        tls = None if certificate is None else certificate.context
        self._server = DirectServer(signaling.listen, self._offer, bye=self._bye, tls=tls)
        await self._server.start()
        how = "" if certificate is None else " by HTTPS"
        _log.info("listening for offers on %s%s", self._server.address, how)
        if certificate is not None:
            self._tell(certificate)

    def apply(self) -> None:
        """Serves a renewed certificate to new connections; old ones go on with what they have."""
        if self._server is not None and self._certificate is not None:
            self._server.tls = self._certificate.context
            self._tell(self._certificate)

    async def stop(self) -> None:
        """Listens no more."""
        if self._server is not None:
            await self._server.stop()

    def _tell(self, certificate: ServerCertificate) -> None:
        """Says in log and metric until when the certificate is good."""
        expires = self._metrics.tls_certificate_expires_seconds.labels("signaling")
        expires.set(certificate.not_after.timestamp())
        complaint = certificate.complaint(datetime.now(UTC))
        if complaint is None:
            _log.info("TLS certificate %s", certificate)
        else:
            _log.warning(
                "TLS certificate %s: it %s; gateways refuse it", certificate.path, complaint
            )
