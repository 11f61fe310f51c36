"""A peer connection of aiortc whose DTLS and SCTP transports are made by given factories.

aiortc makes its transports in two private methods. A subclass replaces these two. Nothing else of
aiortc is changed, and no global of it. The guard (:mod:`socks_tunnel.peer.fast.guard`) compares the
source of the replaced methods with the version for which this was written.

A method named `__create…` in :class:`RTCPeerConnection` is the attribute
`_RTCPeerConnection__create…` of its instances (Python reference, "Private name mangling"); so are
its fields.
"""

import logging
from collections.abc import Callable
from typing import Any

from aiortc import (
    RTCBundlePolicy,
    RTCCertificate,
    RTCConfiguration,
    RTCDataChannel,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    RTCIceGatherer,
    RTCIceTransport,
    RTCPeerConnection,
    RTCSctpTransport,
)
from aiortc.rtcdtlstransport import SRTPProtectionProfile, State
from aiortc.stats import RTCStatsReport
from OpenSSL import SSL

_log = logging.getLogger(__name__)

SctpFactory = Callable[[RTCDtlsTransport], RTCSctpTransport]
DtlsFactory = Callable[[RTCIceTransport, Any], RTCDtlsTransport]


class Sha256Certificate(RTCCertificate):
    """A certificate with one fingerprint in the description, and without renegotiation.

    The fingerprint is its sha-256 digest.

    aiortc also writes those of sha-384 and sha-512, as RFC 8122 section 5 allows. Many stacks keep
    only the last line. If a candidate pair already works, libdatachannel starts DTLS before it has
    stored the description. Then it assumes sha-256, and refuses the certificate because it kept the
    line of sha-512. RFC 8842 section 5.1 requires every endpoint to support sha-256, and prefers
    it.
    """

    def getFingerprints(self) -> list[RTCDtlsFingerprint]:  # noqa: N802 - aiortc's name
        """Returns the one fingerprint."""
        return [one for one in super().getFingerprints() if one.algorithm == "sha-256"]

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        """Returns a context that rejects renegotiation, as RFC 8827 section 6.5 requires.

        Only the first handshake's certificate is compared with the fingerprint, and each further
        handshake would cost the time of a signature.
        """
        context = super()._create_ssl_context(srtp_profiles)
        context.set_options(SSL.OP_NO_RENEGOTIATION)
        return context


class CheckedDtlsTransport(RTCDtlsTransport):
    """A DTLS transport that fails if the peer's certificate cannot be read."""

    def _validate_peer_identity(self, remoteParameters: RTCDtlsParameters) -> None:  # noqa: N803 - aiortc's name
        """Compares the certificate with the fingerprints of the peer's description.

        OpenSSL takes certificates that cryptography refuses to parse. aiortc's task would end with
        that error, and the link would wait for its time-out.
        """
        try:
            super()._validate_peer_identity(remoteParameters)
        except Exception as error:  # noqa: BLE001 - the parser may raise anything for bytes of a peer
            _log.debug("the peer's DTLS certificate cannot be read: %r", error)
            self._set_state(State.FAILED)


class LayeredPeerConnection(RTCPeerConnection):
    """An :class:`RTCPeerConnection` whose DTLS and SCTP transports are made by given factories.

    `certificate` is the class of which its certificate is made.
    """

    def __init__(
        self,
        configuration: RTCConfiguration,
        *,
        sctp: SctpFactory,
        dtls: DtlsFactory,
        certificate: type[RTCCertificate] = Sha256Certificate,
    ) -> None:
        super().__init__(configuration)
        self._RTCPeerConnection__certificates = [certificate.generateCertificate()]
        self._make_sctp = sctp
        self._make_dtls = dtls

    async def getStats(self) -> RTCStatsReport:  # noqa: N802 - aiortc's name
        """Returns aiortc's statistics and those of the DTLS transport.

        aiortc leaves out the transport if the connection has only data channels. The report of a
        transport is part of every connection's (W3C webrtc-stats section 8.1).
        """
        report = await super().getStats()
        if self.sctp is not None:
            report.update(self.sctp.transport._get_stats())  # noqa: SLF001 - as aiortc's senders do
        return report

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:  # noqa: N802 - aiortc's name
        private = vars(self)
        configuration = private["_RTCPeerConnection__configuration"]
        gatherer = RTCIceGatherer(
            iceServers=configuration.iceServers,
            iceTransportPolicy=configuration.iceTransportPolicy,
            **self._local_credentials(),
        )
        update_ice = self._RTCPeerConnection__updateIceConnectionState  # type: ignore[attr-defined]
        update_state = self._RTCPeerConnection__updateConnectionState  # type: ignore[attr-defined]
        update_gathering = self._RTCPeerConnection__updateIceGatheringState  # type: ignore[attr-defined]
        gatherer.on("statechange", update_gathering)
        ice = RTCIceTransport(gatherer)
        ice.on("statechange", update_ice)
        ice.on("statechange", update_state)
        private["_RTCPeerConnection__iceTransports"].add(ice)
        dtls = self._make_dtls(ice, private["_RTCPeerConnection__certificates"])
        dtls.on("statechange", update_state)
        private["_RTCPeerConnection__dtlsTransports"].add(dtls)
        update_gathering()
        update_ice()
        update_state()
        return dtls

    def _local_credentials(self) -> dict[str, Any]:
        """Returns the ICE credentials of an existing transport: a description has one pair."""
        first: Any = next(iter(self.getTransceivers()), None)
        dtls: Any = first.receiver.transport if first else self.sctp and self.sctp.transport
        if dtls is None:
            return {}
        parameters = dtls.transport.iceGatherer.getLocalParameters()
        return {
            "local_username": parameters.usernameFragment,
            "local_password": parameters.password,
        }

    def _RTCPeerConnection__createSctpTransport(self) -> None:  # noqa: N802 - aiortc's name
        private = vars(self)
        transceivers = self.getTransceivers()
        configuration = private["_RTCPeerConnection__configuration"]
        bundled = configuration.bundlePolicy == RTCBundlePolicy.MAX_BUNDLE and bool(transceivers)
        dtls = (
            transceivers[0].receiver.transport
            if bundled
            else self._RTCPeerConnection__createDtlsTransport()
        )
        sctp = self._make_sctp(dtls)
        sctp._bundled = bundled  # noqa: SLF001 - "only used by RTCPeerConnection", says aiortc
        sctp.mid = None
        private["_RTCPeerConnection__sctp"] = sctp

        def emit(channel: RTCDataChannel) -> None:
            self.emit("datachannel", channel)

        sctp.on("datachannel", emit)
