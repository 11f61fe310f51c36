"""The peer connection of the fast path: its transports, and the version of DTLS."""

import contextlib

from aiortc import RTCCertificate, RTCConfiguration, RTCSctpTransport
from aiortc.rtcdtlstransport import SRTP_PROFILES
from OpenSSL import SSL

from socks_tunnel.peer.fast.connection import FastPeerConnection
from socks_tunnel.peer.fast.dtls import FastDtlsTransport, PinnedCertificate
from socks_tunnel.peer.fast.records import DTLS_1_2


class OtherSctp(RTCSctpTransport):
    """An SCTP transport to be recognized."""


async def test_its_transports_are_ours_and_the_given_one() -> None:
    pc = FastPeerConnection(RTCConfiguration(iceServers=[]), sctp=OtherSctp)
    pc.createDataChannel("x")
    assert isinstance(pc.sctp, OtherSctp)
    assert isinstance(pc.sctp.transport, FastDtlsTransport)
    await pc.close()


async def test_its_certificate_speaks_dtls_1_2_only() -> None:
    pc = FastPeerConnection(RTCConfiguration(iceServers=[]), sctp=OtherSctp)
    (certificate,) = vars(pc)["_RTCPeerConnection__certificates"]
    assert isinstance(certificate, PinnedCertificate)
    stock = RTCCertificate.generateCertificate()
    ends = [SSL.Connection(one._create_ssl_context(SRTP_PROFILES)) for one in (certificate, stock)]
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    for _ in range(4):
        for here, there in (ends, reversed(ends)):
            with contextlib.suppress(SSL.WantReadError):
                here.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                there.bio_write(here.bio_read(65_536))
    assert [end.get_protocol_version() for end in ends] == [DTLS_1_2] * 2
    assert ends[0].get_finished() == ends[1].get_peer_finished() is not None
    await pc.close()
