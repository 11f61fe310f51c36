"""The peer connection of the fast path makes its own transports and stays aiortc's otherwise."""

import re

from aiortc import RTCConfiguration, RTCDtlsTransport, RTCPeerConnection, RTCSctpTransport
from aiortc.rtcdtlstransport import certificate_digest

from socks_tunnel.peer.fast.connection import FastPeerConnection
from socks_tunnel.peer.fast.dtls import FastDtlsTransport
from socks_tunnel.peer.layered import LayeredPeerConnection


class OtherSctp(RTCSctpTransport):
    """An SCTP transport to be recognized."""


def make() -> FastPeerConnection:
    return FastPeerConnection(RTCConfiguration(iceServers=[]), sctp=OtherSctp)


async def test_transports_are_of_the_given_kinds() -> None:
    pc = make()
    pc.createDataChannel("x")
    assert isinstance(pc.sctp, OtherSctp)
    assert isinstance(pc.sctp.transport, FastDtlsTransport)
    await pc.close()
    assert pc.connectionState == "closed"
    assert pc.iceConnectionState == "closed"


async def offer(pc: RTCPeerConnection) -> str:
    """The offer without what is random in it."""
    pc.createDataChannel("x")
    description = await pc.createOffer()
    await pc.close()
    return re.sub(r"[0-9A-F:]{40,}|[0-9]{5,}|(?<=ice-)\S+|\b[0-9a-f-]{36}\b", "-", description.sdp)


async def test_the_offer_is_as_unmodified_aiortc_makes_it_but_for_the_fingerprints() -> None:
    """A peer cannot tell the paths apart by the description."""
    stock = await offer(RTCPeerConnection(RTCConfiguration(iceServers=[])))
    others = re.compile(r"a=fingerprint:sha-(384|512) -\r\n")
    assert len(others.findall(stock)) == 2
    expected = others.sub("", stock)
    assert await offer(make()) == expected
    plain = LayeredPeerConnection(
        RTCConfiguration(iceServers=[]), sctp=OtherSctp, dtls=RTCDtlsTransport
    )
    assert await offer(plain) == expected


async def test_the_fingerprint_is_that_of_the_certificate() -> None:
    """One line, of sha-256: many stacks keep only the last one."""
    pc = make()
    pc.createDataChannel("x")
    description = await pc.createOffer()
    assert pc.sctp is not None
    (certificate,) = vars(pc)["_RTCPeerConnection__certificates"]
    (line,) = re.findall(r"a=fingerprint:(.*)\r\n", description.sdp)
    assert line == f"sha-256 {certificate_digest(certificate._cert, 'sha-256')}"
    assert pc.sctp.transport.getLocalParameters().fingerprints == certificate.getFingerprints()
    await pc.close()


async def test_a_second_transport_shares_the_credentials_of_the_first() -> None:
    pc = make()
    pc.createDataChannel("x")
    assert pc.sctp is not None
    first = pc.sctp.transport.transport.iceGatherer.getLocalParameters()
    pc.addTransceiver("audio")  # balanced policy: a transport of its own until the answer bundles
    second = pc.getTransceivers()[0].receiver.transport
    assert isinstance(second, FastDtlsTransport)
    assert second is not pc.sctp.transport
    parameters = second.transport.iceGatherer.getLocalParameters()
    assert (parameters.usernameFragment, parameters.password) == (
        first.usernameFragment,
        first.password,
    )
    await pc.close()


async def test_channels_that_the_peer_opens_are_announced() -> None:
    pc = make()
    pc.createDataChannel("x")
    assert pc.sctp is not None
    seen: list[object] = []
    pc.on("datachannel", seen.append)
    channel = object()
    pc.sctp.emit("datachannel", channel)
    assert seen == [channel]
    await pc.close()
