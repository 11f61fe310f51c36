"""One end of a bare data channel of aiortc's: what the whole tunnel is measured against.

    rawpeer.py dial|answer stock|fast|fast-bbr

`stock` is aiortc with nothing changed, `fast` the fast path (its controller: CUBIC, or the one for
lossy paths), both on uvloop. rawload.py has the commands.
"""

import asyncio
import sys
from typing import Any

import uvloop
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from bench.rawload import Answerer, Dialler, carry_out, lines, say, serve


async def gathered(connection: RTCPeerConnection) -> str:
    """The complete local description."""
    while connection.iceGatheringState != "complete":
        await asyncio.sleep(0.01)
    return connection.localDescription.sdp


def connect(kind: str) -> RTCPeerConnection:
    """A peer connection of that kind."""
    configuration = RTCConfiguration(iceServers=[])
    if kind == "stock":
        return RTCPeerConnection(configuration)
    from socks_tunnel.peer.fast.connection import FastPeerConnection
    from socks_tunnel.peer.fast.sctp import FastSctpTransport

    congestion: Any = "bbr" if kind == "fast-bbr" else "cubic"
    return FastPeerConnection(
        configuration, sctp=lambda dtls: FastSctpTransport(dtls, congestion=congestion)
    )


async def main(role: str, kind: str) -> None:
    following = await lines()
    connection = connect(kind)
    if role == "answer":
        answerer = Answerer()
        connection.on("datachannel", answerer.opened)
        offer = await following()
        await connection.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        say(sdp=await gathered(connection))
        await serve(answerer, following)
    else:
        first = connection.createDataChannel("first")
        opened = asyncio.Event()
        first.on("open", opened.set)
        await connection.setLocalDescription(await connection.createOffer())
        say(sdp=await gathered(connection))
        answer = await following()
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await asyncio.wait_for(opened.wait(), 30)
        await carry_out(Dialler(connection.createDataChannel), following)
    await connection.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2]))
