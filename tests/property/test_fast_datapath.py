"""Whatever a peer sends: the data path takes it, drops it, or says in a sentence why it ends.

Packets have a right checksum and tag, so all of them get to the chunks. Nothing but
RemoteProtocolError may come out, and what is held stays within its bounds and its accounts.
"""

import struct

from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast import receiver as limits
from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.datapath import DataPath
from socks_tunnel.peer.fast.reassembly import FRAGMENTS_MAX, Reassembly
from socks_tunnel.peer.fast.streams import DATAGRAM, NORMAL, Message, OutboundStream
from socks_tunnel.protocol.errors import RemoteProtocolError

INBOUND = struct.pack("!HHL", 5000, 5000, 7)
PEER_TSN = 0xFFFF_FFF8
OUR_TSN = 0xFFFF_FFF0

near = st.integers(-4, 40)
"""TSNs near those that are expected: far ones are nearly always dropped, which tests little."""
words = st.one_of(st.integers(0, 6), st.integers(0, 0xFFFF_FFFF))
flags = st.integers(0, 15)
streams = st.integers(0, 3)
pieces = st.binary(min_size=0, max_size=20)


def chunk(kind: int, flag: int, value: bytes) -> bytes:
    return struct.pack("!BBH", kind, flag, 4 + len(value)) + value + bytes(-len(value) % 4)


def tsn(offset: int, base: int) -> int:
    return (base + offset) & 0xFFFF_FFFF


data = st.builds(
    lambda f, t, s, n, p: chunk(0, f, struct.pack("!LHHL", tsn(t, PEER_TSN), s, n, 53) + p),
    flags, near, streams, st.integers(0, 5), pieces,
)  # fmt: skip
idata = st.builds(
    lambda f, t, s, m, w, p: chunk(
        64, f, struct.pack("!LHHLL", tsn(t, PEER_TSN), s, 0, m & 0xFFFF_FFFF, w) + p
    ),
    flags, near, streams, words, words, pieces,
)  # fmt: skip
sacks = st.builds(
    lambda t, w, blocks, dups: chunk(
        3,
        0,
        struct.pack("!LLHH", tsn(t, OUR_TSN), w, len(blocks), len(dups))
        + b"".join(struct.pack("!HH", *block) for block in blocks)
        + b"".join(struct.pack("!L", tsn(d, OUR_TSN)) for d in dups),
    ),
    near,
    words,
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 0xFFFF)), max_size=6),
    st.lists(near, max_size=4),
)
forwards = st.builds(
    lambda t, entries: chunk(
        192,
        0,
        struct.pack("!L", tsn(t, PEER_TSN)) + b"".join(struct.pack("!HH", *e) for e in entries),
    ),
    near,
    st.lists(st.tuples(streams, st.integers(0, 9)), max_size=4),
)
iforwards = st.builds(
    lambda t, entries: chunk(
        194,
        0,
        struct.pack("!L", tsn(t, PEER_TSN)) + b"".join(struct.pack("!HHL", *e) for e in entries),
    ),
    near,
    st.lists(st.tuples(streams, st.integers(0, 1), words), max_size=4),
)
anything = st.builds(
    lambda kind, f, value: chunk(kind, f, value), st.integers(0, 255), flags, st.binary(max_size=40)
)
raw = st.binary(min_size=4, max_size=60)
chunks = st.one_of(data, idata, sacks, forwards, iforwards, anything, raw)
packets = st.lists(chunks, min_size=1, max_size=5).map(b"".join)


def held(reassembly: Reassembly) -> tuple[int, int]:
    """Returns bytes and pieces that are really there."""
    size = count = 0
    for run in reassembly._by_start.values():
        size += sum(map(len, run.pieces))
        count += len(run.pieces)
    for tracks in (reassembly._ordered, reassembly._unordered):
        for track in tracks.values():
            assert sorted(track.partial) == track.order
            for partial in track.partial.values():
                found = [*partial.pieces, *partial.later.values()]
                size += sum(map(len, found))
                count += len(found)
            size += sum(len(message) for _, message in track.waiting.values())
            count += len(track.waiting)
    return size, count


@given(st.lists(packets, max_size=30), st.booleans(), st.booleans())
def test_only_one_kind_of_error_comes_out(
    batch: list[bytes], interleaved: bool, batch_sacks: bool
) -> None:
    path = DataPath(
        local_tag=7,
        initial_tsn=OUR_TSN,
        overhead=65,
        congestion="cubic",
        budget=WindowBudget(),
        secret=bytes(8),
        rare=lambda kind, flag, body: None,
    )
    path.set_addressing(INBOUND, INBOUND)
    path.set_extensions(
        interleaved=interleaved,
        partial_reliability=True,
        batch_sacks=batch_sacks,
        stamps=True,
        zero_checksums=False,
    )
    path.receiver.start(PEER_TSN)
    path.sender.peer_window = 100_000
    path.established = True
    lane, voice = OutboundStream(1, NORMAL), OutboundStream(2, DATAGRAM)
    now = 1.0
    ended: RemoteProtocolError | None = None
    for body in batch:
        now += 0.05
        path.sender.scheduler.push(Message(lane, 53, bytes(900)))
        path.sender.scheduler.push(Message(voice, 53, b"x", unordered=True, retransmits=0))
        packet = INBOUND + struct.pack("<L", crc32c(INBOUND + bytes(4) + body)) + body
        try:
            due = path.receive([packet], now)
            path.timer(now)
            path.flush(now, due=due, blocked=False)
        except RemoteProtocolError as error:
            ended = error
            break
        reassembly = path.receiver.reassembly
        assert (reassembly.held, reassembly.fragments) == held(reassembly)
        assert reassembly.fragments <= FRAGMENTS_MAX
        assert len(path.receiver.gaps) <= limits.GAPS_MAX
        recovery = path.sender.recovery
        in_flight = [chunk for chunk in recovery._chunks if chunk.state == 0]
        assert recovery.flight == sum(chunk.size for chunk in in_flight)
        assert [chunk.tsn for chunk in recovery._chunks] == list(
            range(recovery.cumulative + 1, recovery.next_tsn)
        )
        assert recovery._sacked_count == sum(
            high - low + 1
            for low, high in zip(recovery._sacked.starts, recovery._sacked.ends, strict=True)
        )
    if ended is not None:
        assert ended.kind.startswith("sctp")
        assert str(ended).startswith("the peer")
