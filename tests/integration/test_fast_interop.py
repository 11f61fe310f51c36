"""The fast path towards others, each way at once and in both roles: every byte is compared.

Peers: the fast path itself, unmodified aiortc, and libdatachannel (C++, the stack behind many
programs). libdatachannel comes from npm, as node-datachannel, and from PyPI, as aiolibdatachannel. That one
needs Python 3.12 or later, and has an environment of its own in .tools/libdatachannel; the environment
variable LIBDATACHANNEL_PYTHON names another interpreter that can import it.

A libdatachannel that made the offer has a race in itself (0.24, PeerConnection::setRemoteDescription).
It gives the answer to ICE first and stores it afterwards. Our checks reach it before the answer does,
so a pair may work at once. DTLS then begins without the answer: libdatachannel takes sha-256 for the
hash of our fingerprint, and refuses the certificate ("DTLS alert: unknown CA") if the fingerprint that
it stores is of another hash, or if it has stored none when the certificate comes. With four busy
loops beside it on two cores, 7 of 38 links failed so. Since our descriptions name sha-256 alone
(socks_tunnel.peer.layered), 1 of 48 did, of the second kind. So here our side learns libdatachannel's
candidates only after libdatachannel has taken the answer, as with trickle ICE (RFC 8838). None of 106
links failed since.

Nothing is sent before libdatachannel's program has said that it watches the channel. Its library lets
two threads hand on messages then: the one that sets the callback, those that came before, and the one
that receives, those that come now. Each takes a message out of one queue and calls the callback after
that (Channel::flushPendingMessages), so two of them may change places. Where the callback was set 30 ms
late, in one of 60 links on a busy machine the 8th message came after the 15th, and the 16th after
the 25th; all were whole.
"""

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiortc import RTCIceCandidate, RTCSessionDescription
from aiortc.sdp import candidate_from_sdp

from integration.fast_pair import Kind, Peer, pair
from integration.link_pair import PATIENCE
from socks_tunnel.peer.ice import IceSettings, candidate_addresses
from support.peers import libdatachannel_python, no_peer

ROOT = Path(__file__).parents[2]
NODE_SCRIPT = ROOT / "tests/support/npm/libdatachannel.js"
PYTHON_SCRIPT = Path(__file__).with_name("libdatachannel_peer.py")
SIZES = [1, 2, 1171, 1172, 1173, 16_384, 65_535, 65_536, 100, 5_000]
MESSAGES = 300


def messages(seed: int) -> list[bytes]:
    """What one side sends: sizes around every bound, contents that repeat nowhere."""
    stream = hashlib.shake_256(bytes([seed])).digest(1 << 20)
    sizes = [SIZES[number % len(SIZES)] for number in range(MESSAGES)]
    return [
        stream[(start := number * 7919 % ((1 << 20) - size)) : start + size]
        for number, size in enumerate(sizes)
    ]


def digest(parts: list[bytes]) -> str:
    """A hash of messages and of where each ends."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(4) + part)
    return whole.hexdigest()


async def send_all(peer: Peer, parts: list[bytes]) -> None:
    channel = peer.open()
    low = asyncio.Event()
    channel.bufferedAmountLowThreshold = 1 << 18
    channel.on("bufferedamountlow", low.set)
    for part in parts:
        if channel.bufferedAmount > 1 << 20:
            low.clear()
            await low.wait()
        channel.send(part)


def run(loop: Callable[[], asyncio.AbstractEventLoop], scenario: Any) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("offerer", ["fast", "plain", "fenced"])
@pytest.mark.parametrize("answerer", ["fast", "plain", "fenced"])
def test_every_pair_of_paths(loop: Any, offerer: Kind, answerer: Kind) -> None:
    async def scenario() -> None:
        async with pair(offerer, answerer) as peers:
            await asyncio.gather(*(send_all(peer, messages(n)) for n, peer in enumerate(peers)))
            for number, peer in enumerate(peers):
                assert digest(await peer.messages(MESSAGES)) == digest(messages(1 - number))

    run(loop, scenario)


# --- libdatachannel ---------------------------------------------------------------------------


def libdatachannel(driver: str) -> list[str]:
    """Returns the command that runs a peer of libdatachannel; leaves the test where there is none."""
    if driver == "python":
        python = libdatachannel_python()
        if not python:
            no_peer(
                "aiolibdatachannel is missing (make test installs it, if there is a Python 3.12)"
            )
        return [python, str(PYTHON_SCRIPT)]
    node = shutil.which("node")
    if node is None or not (NODE_SCRIPT.parent / "node_modules/node-datachannel").exists():
        no_peer("Node.js or the npm package node-datachannel is missing (make test installs both)")
    return [node, str(NODE_SCRIPT)]


class Other:
    """The process with libdatachannel, and JSON lines to and from it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        assert line, "libdatachannel's process ended"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def say(self, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(fields).encode() + b"\n")


def apart(sdp: str) -> tuple[str, list[RTCIceCandidate]]:
    """Takes the candidates out of a description with one section."""
    lines = sdp.splitlines(keepends=True)
    marks = "a=candidate:", "a=end-of-candidates"
    candidates = []
    for line in lines:
        if line.startswith(marks[0]):
            candidate = candidate_from_sdp(line.removeprefix(marks[0]).rstrip())
            candidate.sdpMLineIndex = 0
            candidates.append(candidate)
    assert candidates
    return "".join(line for line in lines if not line.startswith(marks)), candidates


@pytest.mark.parametrize("kind", ["fast", "fenced"])
@pytest.mark.parametrize("role", ["offer", "answer"])
@pytest.mark.parametrize("driver", ["node", "python"])
async def test_libdatachannel(kind: Kind, role: str, driver: str) -> None:
    """`role` is libdatachannel's."""
    process = await asyncio.create_subprocess_exec(
        *libdatachannel(driver),
        role,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 20,
    )
    other, peer = Other(process), Peer(kind)
    try:
        # libdatachannel never offers loopback, and so neither do we.
        with candidate_addresses(IceSettings()):
            if role == "offer":
                offer, candidates = apart((await other.hear())["sdp"])
                await peer.pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
                await peer.pc.setLocalDescription(await peer.pc.createAnswer())
                other.say(sdp=peer.pc.localDescription.sdp)
                assert await other.hear() == {"answered": True}
                for candidate in [*candidates, None]:
                    await peer.pc.addIceCandidate(candidate)
            else:
                peer.adopt(peer.pc.createDataChannel("bulk"))
                await peer.pc.setLocalDescription(await peer.pc.createOffer())
                other.say(sdp=peer.pc.localDescription.sdp)
                answer = (await other.hear())["sdp"]
                await peer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await peer.until(peer.is_open)
        assert await other.hear() == {"opened": True}
        await send_all(peer, messages(0))
        report = await other.hear()
        assert report == {"messages": MESSAGES, "digest": digest(messages(0))}
        assert digest(await peer.messages(MESSAGES)) == digest(messages(1))
    finally:
        process.kill()
        await process.wait()
        await peer.pc.close()
