"""The peer connection of the fast path makes its own transports and stays aiortc's otherwise."""

import re

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSctpTransport

from socks_tunnel.peer.fast.connection import FastPeerConnection
from socks_tunnel.peer.fast.dtls import FastDtlsTransport


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


async def test_the_offer_is_as_unmodified_aiortc_makes_it() -> None:
    """A peer cannot tell the paths apart by the description."""

    async def offer(pc: RTCPeerConnection) -> str:
        pc.createDataChannel("x")
        description = await pc.createOffer()
        await pc.close()
        return re.sub(
            r"[0-9A-F:]{40,}|[0-9]{5,}|(?<=ice-)\S+|\b[0-9a-f-]{36}\b", "-", description.sdp
        )

    stock = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    assert await offer(make()) == await offer(stock)


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
