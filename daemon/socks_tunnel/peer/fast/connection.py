"""A peer connection of aiortc whose DTLS records go in batches, under a given SCTP transport."""

from aiortc import RTCConfiguration

from socks_tunnel.peer.fast.dtls import FastDtlsTransport, PinnedCertificate
from socks_tunnel.peer.layered import LayeredPeerConnection, SctpFactory


class FastPeerConnection(LayeredPeerConnection):
    """An :class:`RTCPeerConnection` on :class:`FastDtlsTransport`, which speaks DTLS 1.2 only."""

    def __init__(self, configuration: RTCConfiguration, *, sctp: SctpFactory) -> None:
        super().__init__(
            configuration, sctp=sctp, dtls=FastDtlsTransport, certificate=PinnedCertificate
        )
