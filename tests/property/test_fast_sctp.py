"""Whatever the path does: what was sent arrives once, in order where that was promised.

Two transports of ours, or one of ours and one of aiortc's, over a simulated path that loses,
reorders, duplicates, corrupts and limits; in virtual time. TSNs, SSNs and MIDs wrap around at
random places. In the end nothing is left anywhere.
"""

import asyncio
import random
from typing import Any
from unittest import mock

import aiortc.rtcsctptransport
from aiortc import RTCDataChannel, RTCSctpTransport
from hypothesis import given, settings
from hypothesis import strategies as st

from socks_tunnel.peer.fast.reassembly import _Track
from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import channel, fast, opened, started

paths = st.builds(
    Path,
    delay=st.sampled_from((0.0, 0.001, 0.02)),
    rate=st.sampled_from((0.0, 250_000.0, 2_000_000.0)),
    queue=st.integers(12, 200),
    jitter=st.sampled_from((0.0, 0.0, 0.003, 0.03)),
    loss=st.sampled_from((0.0, 0.0, 0.01, 0.1)),
    duplicate=st.sampled_from((0.0, 0.05)),
    corrupt=st.sampled_from((0.0, 0.02)),
    batch=st.sampled_from((1, 64)),
    seed=st.integers(0, 1 << 30),
)
sizes = st.lists(st.sampled_from((1, 2, 100, 1_100, 1_116, 3_000, 40_000)), min_size=1, max_size=25)
tsns = st.sampled_from((1, 0x7FFF_FFF0, 0xFFFF_FFF0, 0xFFFF_FFFF))
LABELS = ("lane-0", "lane-1", "unordered", "datagram")


def number(at: int, size: int, label: str) -> bytes:
    """Returns a message that names itself, and whose bytes depend on what it is."""
    head = f"{label}:{at}:{size}:".encode()
    return (head + random.Random(head).randbytes(size))[: max(size, len(head))]


class Clock:
    """aiortc's `time` module, on the virtual clock."""

    @staticmethod
    def time() -> float:
        return asyncio.get_event_loop().time()


def near_the_end(transports: list[Any], start: int) -> None:
    """Has the numbers of ordered and unordered messages begin shortly before they wrap around."""
    for transport in transports:
        for stream in [way.stream for way in transport.exchange._ways.values()]:
            stream.next_ssn += start
            stream.next_mid += start
            stream.next_unordered += start
        reassembly = transport.path.receiver.reassembly
        for tracks in (reassembly._ordered, reassembly._unordered):
            for stream_id in range(12):
                tracks.setdefault(stream_id, _Track()).next += start


async def exchange(
    there: Path, back: Path, plan: dict[str, list[int]], peer_is_aiortc: bool, start: int
) -> None:
    client, server = dtls_pair(there, back)
    a = fast(client)
    b: Any = RTCSctpTransport(server) if peer_is_aiortc else fast(server)  # type: ignore[arg-type]
    got: dict[tuple[str, str], list[bytes]] = {}

    def listen(side: str, one: RTCDataChannel) -> None:
        got[side, one.label] = []
        one.on("message", got[side, one.label].append)

    theirs: dict[str, RTCDataChannel] = {}

    def arrive(one: RTCDataChannel) -> None:
        theirs[one.label] = one
        listen("b", one)

    b.on("datachannel", arrive)
    await started(a, b)
    mine = {
        "lane-0": channel(a, "lane-0"),
        "lane-1": channel(a, "lane-1"),
        "unordered": channel(a, "unordered", ordered=False),
        "datagram": channel(a, "datagram", ordered=False, maxRetransmits=0),
    }
    for one in mine.values():
        listen("a", one)
    await opened(*mine.values())
    await asyncio.sleep(1)
    if start and not peer_is_aiortc:
        near_the_end([a, b], start)
    sent: dict[tuple[str, str], list[bytes]] = {}
    for at in range(max(map(len, plan.values()))):
        for label, messages in plan.items():
            if at < len(messages):
                for side, channels in (("b", mine), ("a", theirs)):
                    message = number(at, messages[at], side + label)
                    sent.setdefault((side, label), []).append(message)
                    channels[label].send(message)
        if at % 4 == 0:
            await asyncio.sleep(0.003)
    reliable = [key for key in sent if key[1] != "datagram"]
    async with asyncio.timeout(600):
        while any(len(got[key]) < len(sent[key]) for key in reliable):
            await asyncio.sleep(0.05)
        for transport in (a, b):
            while getattr(transport, "has_unsent", False):
                await asyncio.sleep(0.05)
    await asyncio.sleep(3)
    for key in reliable:
        if key[1] == "unordered":
            assert sorted(got[key]) == sorted(sent[key])
        else:
            assert got[key] == sent[key]
    for side in "ab":
        datagrams = got[side, "datagram"]
        assert len(datagrams) == len(set(datagrams))
        assert set(datagrams) <= set(sent.get((side, "datagram"), []))
        clean = not (there.loss or there.corrupt or there.rate or there.jitter)
        if clean and not (back.loss or back.corrupt or back.rate or back.jitter):
            assert len(datagrams) == len(sent.get((side, "datagram"), []))
    for transport in (a,) if peer_is_aiortc else (a, b):
        assert not transport.has_unsent
        assert transport.queued_bytes == 0
        assert transport.path.sender.recovery.flight == 0
        reassembly = transport.path.receiver.reassembly
        assert (reassembly.held, reassembly.fragments) == (0, 0)
        assert len(transport.path.receiver.gaps) == 0
    for one in (*mine.values(), *theirs.values()):
        assert one.bufferedAmount == 0
    await a.stop()
    await b.stop()


@settings(max_examples=40)
@given(
    there=paths,
    back=paths,
    plan=st.fixed_dictionaries(dict.fromkeys(LABELS, sizes)),
    first=st.tuples(tsns, tsns),
    peer_is_aiortc=st.sampled_from((False, False, True)),
    start=st.sampled_from((0, 65_530, 2**32 - 6)),
)
def test_everything_arrives_once_and_in_order(
    there: Path,
    back: Path,
    plan: dict[str, list[int]],
    first: tuple[int, int],
    peer_is_aiortc: bool,
    start: int,
) -> None:
    numbers = iter((0x1111_1111, first[0], 0x2222_2222, first[1]))
    with (
        mock.patch.object(aiortc.rtcsctptransport, "random32", numbers.__next__),
        mock.patch.object(aiortc.rtcsctptransport, "time", Clock),
    ):
        run_virtual(lambda: exchange(there, back, plan, peer_is_aiortc, start))
