"""The association's life: handshakes that collide or repeat, restarts, resets, ends."""

import asyncio
import struct
from typing import Any

import pytest
from aiortc import RTCDataChannel, RTCSctpTransport
from aiortc.rtcsctptransport import InitChunk
from google_crc32c import value as crc32c

from socks_tunnel.peer.fast.association import T1_FIRST, T1_LONGEST, FastAssociation
from socks_tunnel.peer.fast.wire import SACK_BATCH, ZERO_CHECKSUM_ACCEPTABLE
from support.sctp_network import FakeDtls, Path, dtls_pair, run_virtual
from support.sctp_transfer import Sink, channel, fast, opened, started


def kind_of(packet: bytes) -> int:
    return packet[12]


def with_checksum(packet: bytes) -> bytes:
    zero = packet[:8] + bytes(4) + packet[12:]
    return packet[:8] + struct.pack("<L", crc32c(zero)) + packet[12:]


def chunk(kind: int, value: bytes, flags: int = 0) -> bytes:
    return struct.pack("!BBH", kind, flags, 4 + len(value)) + value + bytes(-len(value) % 4)


def packet_to(transport: Any, *chunks: bytes, tag: int | None = None) -> bytes:
    tag = transport._local_verification_tag if tag is None else tag
    return with_checksum(struct.pack("!HHLL", 5000, 5000, tag, 0) + b"".join(chunks))


async def connected(
    delay: float = 0.001,
) -> tuple[Any, Any, Sink, Sink, RTCDataChannel, list[RTCDataChannel]]:
    client, server = dtls_pair(Path(delay=delay), Path(delay=delay))
    client.log, server.log = [], []
    a, b = fast(client), fast(server)
    arrived: list[RTCDataChannel] = []
    b.on("datachannel", arrived.append)
    left, right = Sink(a), Sink(b)
    left.keep = right.keep = True
    await started(a, b)
    one = channel(a)
    await opened(one)
    return a, b, left, right, one, arrived


def test_both_announce_what_they_can() -> None:
    async def main() -> None:
        a, b, *_ = await connected()
        for side in (a, b):
            figures = side.snapshot()
            assert figures.interleaved
            assert figures.batch_sacks
            assert side.path.sender.partial_reliability
            assert side.path.stamps

    run_virtual(main)


@pytest.mark.parametrize(
    ("value", "batches", "stamps"),
    [
        (None, False, False),
        (b"", True, False),
        (b"\x00\x00\x00\x01", True, False),
        (b"\x00\x00\x00\x02", True, True),
        (b"\x00\x00\x00\x03", True, True),
    ],
)
def test_stamps_are_for_whoever_announces_them(
    value: bytes | None, batches: bool, stamps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version before 2 was released, and announces batch SACKs alone."""

    def announce(self: Any, params: list[tuple[int, bytes]]) -> None:
        RTCSctpTransport._set_extensions(self, params)
        if value is not None:
            params.append((SACK_BATCH, value))

    async def main() -> None:
        monkeypatch.setattr(FastAssociation, "_set_extensions", announce)
        a, b, *_ = await connected()
        for side in (a, b):
            assert side.snapshot().batch_sacks is batches
            assert side.path.stamps is stamps

    run_virtual(main)


def checksum_of(packet: bytes) -> int:
    return int(struct.unpack_from("<L", packet, 8)[0])


@pytest.mark.parametrize("authentic", [(True, True), (True, False), (False, True), (False, False)])
def test_checksums_are_left_out_if_both_are_above_what_finds_errors(
    authentic: tuple[bool, bool],
) -> None:
    """RFC 9653. INIT and COOKIE ECHO have one in any case (section 5.2)."""

    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.001), Path(delay=0.001))
        for end, value in zip((client, server), authentic, strict=True):
            end.authentic = value
            end.log = []
        a, b = fast(client), fast(server)
        left, right = Sink(a), Sink(b)
        right.keep = True
        await started(a, b)
        one = channel(a)
        await opened(one)
        left.transport.send_many(one, [bytes(100_000)])
        await asyncio.sleep(1)
        assert right.messages == [("lane-0", bytes(100_000))]
        for side, end in ((a, client), (b, server)):
            assert side.path.takes_zero_checksums is end.authentic
            assert side.path.malformed == 0
            assert end.log is not None
            data = [packet for packet in end.log if kind_of(packet) in (0, 3, 64)]
            assert data
            assert all((checksum_of(packet) == 0) is all(authentic) for packet in data)
            begin = [packet for packet in end.log if kind_of(packet) in (1, 2, 10, 11)]
            assert begin
            assert all(with_checksum(packet) == packet for packet in begin)

    run_virtual(main)


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        (None, False),
        (b"", False),
        (b"\0\0\0\0", False),
        (b"\0\0\0\1", True),
        (b"\0\0\0\2", False),
        (b"\0\0\0\1\0\0\0\0", False),
    ],
)
def test_a_peer_takes_zero_if_it_trusts_dtls(value: bytes | None, taken: bool) -> None:
    """RFC 9653 section 5.2: only by the method that both know."""

    async def main() -> None:
        one, _ = dtls_pair(Path(), Path())
        side = fast(one)
        params = [] if value is None else [(ZERO_CHECKSUM_ACCEPTABLE, value)]
        side._get_extensions(params)
        assert side._peer_takes_zero is taken

    run_virtual(main)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.5])
def test_inits_that_cross_make_one_association(delay: float) -> None:
    async def main() -> None:
        _, _, left, right, one, arrived = await connected(delay)
        one.send(b"there")
        arrived[0].send(b"back")
        await asyncio.sleep(3)
        assert right.messages == [("lane-0", b"there")]
        assert left.messages == [("lane-0", b"back")]

    run_virtual(main)


@pytest.mark.parametrize("lost", [1, 2, 10, 11])
def test_a_handshake_survives_the_loss_of_each_of_its_packets(lost: int) -> None:
    async def main() -> None:
        dropped: set[int] = set()

        def drop(packet: bytes) -> bool:
            if kind_of(packet) == lost and not dropped:
                dropped.add(lost)
                return True
            return False

        client, server = dtls_pair(Path(delay=0.01, drop=drop), Path(delay=0.01))
        a, b = fast(client), fast(server)
        await started(a, b)
        one = channel(a)
        await opened(one)

    run_virtual(main)


@pytest.mark.parametrize("lost", [1, 2, 10, 11])
def test_a_packet_of_the_handshake_that_is_lost_either_way_is_soon_sent_again(lost: int) -> None:
    """Of INIT, INIT ACK, COOKIE ECHO and COOKIE ACK, the first one of each side."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()

        def dropping() -> Any:
            left = [1]

            def drop(packet: bytes) -> bool:
                if kind_of(packet) == lost and left:
                    left.pop()
                    return True
                return False

            return drop

        client, server = dtls_pair(
            Path(delay=0.025, drop=dropping()), Path(delay=0.025, drop=dropping())
        )
        await started(fast(client), fast(server))
        return loop.time() - begun

    assert run_virtual(main) < T1_FIRST + 0.2


def test_a_path_that_is_gone_for_a_while_is_soon_noticed_by_the_handshake() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()

        def drop(_: bytes) -> bool:
            return loop.time() - begun < 6

        client, server = dtls_pair(Path(delay=0.025, drop=drop), Path(delay=0.025, drop=drop))
        await started(fast(client), fast(server))
        return loop.time() - begun

    assert 6 < run_virtual(main) < 6 + T1_LONGEST + 0.2


def test_an_init_that_comes_late_changes_nothing() -> None:
    """aiortc's handler would set the expected TSN back, and all that follows would be a gap."""

    async def main() -> None:
        a, b, _, right, one, arrived = await connected()
        init = next(p for p in a.transport.log if kind_of(p) == InitChunk.type)
        for number in range(20):
            one.send(b"%d" % number)
        await asyncio.sleep(0.1)
        before = b.path.receiver.cumulative
        a.transport.log.clear()
        b.receive_packets([init, init])
        await asyncio.sleep(0.1)
        assert b.path.receiver.cumulative == before
        one.send(b"after")
        arrived[0].send(b"back")
        await asyncio.sleep(0.5)
        assert [message for _, message in right.messages][-1] == b"after"
        assert a.path.sender.recovery.timeouts_total == 0
        assert not right.failed

    run_virtual(main)


def test_a_peer_that_restarts_ends_the_association_and_says_why() -> None:
    async def main() -> None:
        a, b, left, right, one, _ = await connected()
        one.send(b"before")
        await asyncio.sleep(0.1)
        # The peer has forgotten everything, and begins anew on the same DTLS connection.
        again = FakeDtls("client", a.transport.path)
        again.peer = b.transport
        b.transport.peer = again
        c = fast(again)
        fresh = Sink(c)
        await c.start(c.getCapabilities(), 5000)
        await asyncio.sleep(1)
        assert right.failed == ["the peer's SCTP has restarted, and what was under way is lost"]
        assert fresh.failed == ["the peer ended the association"]
        assert b.state == c.state == "closed"
        assert left.failed == []

    run_virtual(main)


def test_an_init_of_a_restart_alone_changes_nothing() -> None:
    async def main() -> None:
        _, b, _, right, one, _ = await connected()
        forged = InitChunk()
        forged.initiate_tag, forged.advertised_rwnd = 77, 1_000_000
        forged.outbound_streams = forged.inbound_streams = 10
        forged.initial_tsn = 12345
        b.receive_packets([packet_to(b, bytes(forged), tag=0)])
        one.send(b"still here")
        await asyncio.sleep(0.2)
        assert right.messages == [("lane-0", b"still here")]
        assert right.failed == []

    run_virtual(main)


RARE_AND_BROKEN = [
    chunk(1, b""),
    chunk(1, bytes(16) + b"\x00\x00\x00\x00"),
    chunk(2, b"\x01"),
    chunk(4, b"\x00\x01\x00\x00"),
    chunk(4, b"\x00\x01\x00\x03" * 200),
    chunk(5, b""),
    chunk(5, b"\x00\x01\x00\x14PMTU" + bytes(12)),
    chunk(6 + 3, b"\x00\x00\x00\x00"),
    chunk(10, b"cookie"),
    chunk(11, b""),
    chunk(14, b""),
    chunk(130, b"\x00\x0d\x00\x04"),
    chunk(130, b"\x00\x0d\x00\x00" * 300),
    chunk(130, struct.pack("!HHLL", 16, 12, 1, 1) * 70),
    chunk(130, struct.pack("!HHLHH", 17, 12, 1, 5, 0)),
    chunk(192, b"\x00"),
    chunk(194, b"\x00\x00"),
    chunk(3, b"\x00\x00\x00\x01" * 2),
    chunk(3, struct.pack("!LLHH", 1, 1, 500, 500)),
    chunk(0x84, bytes(900)),
    chunk(200, b"unknown"),
    b"\x00\x00\x00\x01",
    b"\x00\x00\xff\xff",
    b"",
]


@pytest.mark.parametrize("broken", RARE_AND_BROKEN)
def test_chunks_that_cannot_be_read_do_no_harm(broken: bytes) -> None:
    async def main() -> None:
        _, b, left, right, one, arrived = await connected()
        for _ in range(3):
            b.receive_packets([packet_to(b, broken), packet_to(b, broken, broken)])
        one.send(b"there")
        arrived[0].send(b"back")
        await asyncio.sleep(0.5)
        assert right.messages == [("lane-0", b"there")]
        assert left.messages == [("lane-0", b"back")]

    run_virtual(main)


def test_packets_of_others_are_counted_and_ignored() -> None:
    async def main() -> None:
        _, b, _, right, one, _ = await connected()
        abort = chunk(6, b"")
        good = packet_to(b, abort)
        broken = good[:-1] + bytes((good[-1] ^ 1,))
        before = b.path.malformed
        b.receive_packets(
            [packet_to(b, abort, tag=0), packet_to(b, abort, tag=99), broken, b"", good[:15]]
        )
        assert b.path.malformed == before + 5
        one.send(b"still here")
        await asyncio.sleep(0.2)
        assert right.messages == [("lane-0", b"still here")]

    run_virtual(main)


def test_one_packet_of_heartbeats_is_not_answered_by_hundreds() -> None:
    async def main() -> None:
        _, b, *_ = await connected()
        b.transport.log.clear()
        beat = chunk(4, struct.pack("!HHL", 1, 8, 7))
        b.receive_packets([packet_to(b, *[beat] * 90)])
        assert len(b.transport.log) == 8

    run_virtual(main)


def test_streams_are_reset_under_load_and_used_again() -> None:
    async def main() -> None:
        a, b, _, right, one, arrived = await connected(0.01)
        busy = channel(a, "lane-1")
        await opened(busy)
        for round_ in range(4):
            for _ in range(40):
                busy.send(bytes(20_000))
            short = channel(a, f"short-{round_}")
            await opened(short)
            for number in range(10):
                short.send(b"%d" % number + bytes(3_000))
            short.close()
            while short.readyState != "closed":
                await asyncio.sleep(0.01)
        while a.has_unsent:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        for round_ in range(4):
            got = [m for label, m in right.messages if label == f"short-{round_}"]
            assert got == [b"%d" % number + bytes(3_000) for number in range(10)]
        assert sum(label == "lane-1" for label, _ in right.messages) == 160
        assert {one.readyState, busy.readyState} == {"open"}
        # The identifiers of the short ones were free again, one after the other.
        assert len(b._data_channels) == 2
        assert len(arrived) == 6

    run_virtual(main)


def test_a_close_in_flight_leaves_nothing_behind() -> None:
    async def main() -> None:
        a, b, left, right, one, _ = await connected(0.02)
        for _ in range(100):
            one.send(bytes(60_000))
        await asyncio.sleep(0.05)
        assert a.has_unsent
        await a.stop()
        assert (a.state, one.readyState) == ("closed", "closed")
        assert a.exchange.timer is None
        assert a.queued_bytes == 0
        await asyncio.sleep(1)
        assert b.state == "closed"
        assert right.failed == ["the peer ended the association"]
        assert left.failed == []
        assert b.exchange.timer is None
        assert b.path.receiver.reassembly.held == 0
        received = right.received
        b.receive_packets([packet_to(b, chunk(0, bytes(13)))])
        assert right.received == received

    run_virtual(main)


def test_a_shutdown_of_the_peer_ends_the_association() -> None:
    async def main() -> None:
        _, b, _, right, *_ = await connected()
        b.transport.log.clear()
        b.receive_packets([packet_to(b, chunk(7, bytes(4)))])
        assert [kind_of(p) for p in b.transport.log] == [8]
        b.receive_packets([packet_to(b, chunk(14, b""))])
        assert b.state == "closed"
        assert right.failed == ["the peer ended the association"]

    run_virtual(main)
