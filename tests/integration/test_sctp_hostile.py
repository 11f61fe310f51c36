"""Peers that make SCTP expensive: whatever they send, the event loop is free again at once.

Each packet is one that an authenticated peer can send. The floods go through real sockets; what is
asserted is the processor time of one iteration of the victim's event loop, in which every other
link has its turn, and what the victim holds afterwards.
"""

import asyncio
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google_crc32c import value as crc32c

from integration.fast_pair import Kind, Peer, pair, receiver_task
from socks_tunnel.peer.fast.sctp import FastSctpTransport
from socks_tunnel.peer.plain.bounds import FRAGMENTS_END
from socks_tunnel.protocol.errors import RemoteProtocolError
from support.heap import set_heap_aside

ITERATION_MAX = 0.020
"""Seconds of processor time that one iteration of the loop may take in 99 of 100 cases."""
ITERATION_WORST = 0.060
PACKETS = 400
BURST = 50
"""Packets that the hostile peer sends between two iterations of the loop."""


def chunk(kind: int, body: bytes, flags: int = 0) -> bytes:
    length = 4 + len(body)
    return struct.pack("!BBH", kind, flags, length) + body + bytes(-length % 4)


def data(tsn: int, stream: int, flags: int, body: bytes = b"x", ppid: int = 53) -> bytes:
    return chunk(0, struct.pack("!LHHL", tsn & 0xFFFFFFFF, stream, 0, ppid) + body, flags)


def sack(cumulative: int, gaps: list[tuple[int, int]]) -> bytes:
    body = struct.pack("!LLHH", cumulative & 0xFFFFFFFF, 1 << 20, len(gaps), 0)
    return chunk(3, body + b"".join(struct.pack("!HH", *gap) for gap in gaps))


class Hostile:
    """Makes packets on the association of a peer that is connected."""

    def __init__(self, peer: Peer) -> None:
        sctp: Any = peer.pc.sctp
        self.sctp = sctp
        self.tsn: int = sctp._local_tsn
        self.heard: int = sctp._last_received_tsn
        self.stream: int = peer.open().id or 0

    def packet(self, *chunks: bytes, tag: int | None = None) -> bytes:
        tag = self.sctp._remote_verification_tag if tag is None else tag
        header = struct.pack("!HHL", 5000, 5000, tag)
        body = b"".join(chunks)
        return header + struct.pack("<L", crc32c(header + bytes(4) + body)) + body

    def next_tsn(self, step: int = 1) -> int:
        self.tsn += step
        return self.tsn - step


def gap_bomb(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(sack(hostile.heard, [(0, 65_535)] * 290))


def gap_bomb_of_one(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(sack(hostile.heard, [(2, 65_535)]))


def sacks_by_the_dozen(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*[sack(hostile.heard, [])] * 70)


def old_sacks(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*[sack(hostile.heard - 5, [(2, 3)])] * 50)


def endless_message(hostile: Hostile) -> Iterator[bytes]:
    yield hostile.packet(data(hostile.next_tsn(), hostile.stream, 2))
    while True:
        yield hostile.packet(*(data(hostile.next_tsn(), hostile.stream, 0) for _ in range(42)))


def endless_unordered_message(hostile: Hostile) -> Iterator[bytes]:
    yield hostile.packet(data(hostile.next_tsn(), hostile.stream, 6))
    while True:
        yield hostile.packet(*(data(hostile.next_tsn(), hostile.stream, 4) for _ in range(42)))


def fragments_without_a_beginning(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*(data(hostile.next_tsn(), hostile.stream, 4) for _ in range(42)))


def every_second_chunk(hostile: Hostile) -> Iterator[bytes]:
    hostile.next_tsn()
    while True:
        yield hostile.packet(*(data(hostile.next_tsn(2), hostile.stream, 3) for _ in range(42)))


def chunks_backwards(hostile: Hostile) -> Iterator[bytes]:
    top = hostile.tsn + 60_000
    while True:
        yield hostile.packet(*(data(top - 2 * n, hostile.stream, 3) for n in range(42)))
        top -= 84


def endless_behind_a_gap(hostile: Hostile) -> Iterator[bytes]:
    yield hostile.packet(data(hostile.tsn + 30_000, hostile.stream, 3))
    yield from endless_message(hostile)


def many_streams(hostile: Hostile) -> Iterator[bytes]:
    stream = 0
    while True:
        yield hostile.packet(
            *(data(hostile.next_tsn(), (stream + n) % 65_535, 2) for n in range(42))
        )
        stream += 42


def many_streams_within_bounds(hostile: Hostile) -> Iterator[bytes]:
    stream = 0
    while True:
        yield hostile.packet(*(data(hostile.next_tsn(), (stream + n) % 1000, 2) for n in range(42)))
        stream += 42


def forward_many_streams(hostile: Hostile) -> Iterator[bytes]:
    stream = 0
    while True:
        skipped = b"".join(struct.pack("!HH", (stream + n) % 65_535, n) for n in range(280))
        yield hostile.packet(chunk(192, struct.pack("!L", hostile.next_tsn()) + skipped))
        stream += 280


def forward_after_fragments(hostile: Hostile) -> Iterator[bytes]:
    hostile.next_tsn()
    for _ in range(50):
        yield hostile.packet(*(data(hostile.next_tsn(), hostile.stream, 2) for _ in range(42)))
    first = hostile.tsn - 42 * 50
    while True:
        skipped = struct.pack("!HH", hostile.stream, 0) * 280
        yield hostile.packet(chunk(192, struct.pack("!L", first) + skipped))


def forward_leaps(hostile: Hostile) -> Iterator[bytes]:
    while True:
        hostile.next_tsn(1_000_000)
        forward = chunk(192, struct.pack("!LHH", hostile.tsn & 0xFFFFFFFF, hostile.stream, 9))
        yield hostile.packet(*[forward] * 10)


def forward_from_fragment_to_fragment(hostile: Hostile) -> Iterator[bytes]:
    """Each FORWARD-TSN skips nearly all that may be ahead, and stops at a fragment that waits there."""
    while True:
        chunks = []
        for _ in range(40):
            tsn = hostile.next_tsn(32_768)
            chunks.append(data(tsn, hostile.stream, 2))
            chunks.append(chunk(192, struct.pack("!L", (tsn - 1) & 0xFFFFFFFF)))
        yield hostile.packet(*chunks)


def leaping_chunks(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(data(hostile.tsn + 0x7FFF0000, hostile.stream, 3))


def bundled_messages(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*(data(hostile.next_tsn(), hostile.stream, 7) for _ in range(55)))


def bundled_heartbeats(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*[chunk(4, struct.pack("!HH", 1, 4))] * 140)


def heartbeat_without_length(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(chunk(4, bytes(16)))


def reconfig_without_length(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(chunk(130, bytes(16)))


def abort_without_length(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(chunk(6, bytes(8)))


def init_without_length(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(chunk(1, struct.pack("!LLHHL", 1, 1500, 1, 1, 1) + bytes(8)), tag=0)


def reconfigs(hostile: Hostile) -> Iterator[bytes]:
    sequence = 0
    while True:
        sequence += 1
        streams = b"".join(struct.pack("!H", 700 + n) for n in range(100))
        body = struct.pack("!HHLLL", 13, 16 + len(streams), sequence, 0, hostile.tsn + 5) + streams
        yield hostile.packet(*[chunk(130, body)] * 5)


def unknown_chunks(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*[chunk(0x3F, b"")] * 290)


def duplicates(hostile: Hostile) -> Iterator[bytes]:
    while True:
        yield hostile.packet(*[data(hostile.tsn - 1, hostile.stream, 3)] * 55)


FLOODS: list[Callable[[Hostile], Iterator[bytes]]] = [
    gap_bomb,
    gap_bomb_of_one,
    sacks_by_the_dozen,
    old_sacks,
    endless_message,
    endless_unordered_message,
    fragments_without_a_beginning,
    every_second_chunk,
    chunks_backwards,
    endless_behind_a_gap,
    many_streams,
    many_streams_within_bounds,
    forward_many_streams,
    forward_after_fragments,
    forward_leaps,
    forward_from_fragment_to_fragment,
    leaping_chunks,
    bundled_messages,
    bundled_heartbeats,
    heartbeat_without_length,
    reconfig_without_length,
    abort_without_length,
    init_without_length,
    reconfigs,
    unknown_chunks,
    duplicates,
]

VICTIMS: list[Kind] = ["fenced", "fast"]


def held(victim: Peer) -> int:
    """Chunks that the victim keeps for later."""
    sctp: Any = victim.pc.sctp
    if isinstance(sctp, FastSctpTransport):
        return sctp.snapshot().held // 1000  # in bytes, of which each chunk of these floods has one
    return sum(len(stream.reassembly) for stream in sctp._inbound_streams.values())


@pytest.mark.parametrize("kind", VICTIMS)
@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
async def test_a_flood_leaves_the_loop_to_others(
    flood: Callable[[Hostile], Iterator[bytes]], kind: Kind
) -> None:
    """Counts what each turn of the loop takes of the thread while the packets of a flood come."""
    set_heap_aside()
    async with pair("plain", kind) as (peer, victim):
        peer.open().send(b"before")
        await victim.messages(1)
        task = receiver_task(victim)
        dtls: Any = peer.pc.sctp.transport  # type: ignore[union-attr]
        connection = dtls._ssl
        address = dtls.transport._connection._nominated[1].remote_addr
        socket = dtls.transport._connection._nominated[1].protocol.transport
        packets = flood(Hostile(peer))
        iterations: list[float] = []
        sent = 0
        while sent < PACKETS or len(iterations) < PACKETS // BURST + 100:
            if sent < PACKETS:
                for _ in range(BURST):
                    connection.send(next(packets))
                    socket.sendto(connection.bio_read(2000), address)
                sent += BURST
            before = time.thread_time()
            await asyncio.sleep(0)
            iterations.append(time.thread_time() - before)
        iterations.sort()
        assert iterations[-1] < ITERATION_WORST, f"{iterations[-1] * 1e3:.1f} ms at a time"
        assert iterations[len(iterations) * 99 // 100] < ITERATION_MAX
        assert held(victim) <= FRAGMENTS_END + 64
        if task.done():
            error = task.exception()
            assert error is None or isinstance(error, RemoteProtocolError), repr(error)
