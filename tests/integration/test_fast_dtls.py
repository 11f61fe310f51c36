"""Batched DTLS between real peers: aiortc's own SCTP above it, and strangers beside it."""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import aioice
import pytest
import uvloop
from aiortc.stats import RTCTransportStats
from OpenSSL import SSL

from integration.fast_pair import Kind, Peer, pair, receiver_task
from integration.link_pair import PATIENCE
from socks_tunnel.peer.fast import recordpath
from socks_tunnel.peer.fast.dtls import FastDtlsTransport, PinnedCertificate
from socks_tunnel.peer.fast.recordpath import PACKETS_MAX, SocketHandler
from socks_tunnel.peer.fast.records import DTLS_1_2
from socks_tunnel.peer.fast.udp import BatchedUdpTransport

MESSAGES = 300
SIZE = 16_384
SCTP_PORTS = bytes.fromhex("13881388")


def uvloop_and_asyncio(test: Callable[..., Any]) -> Any:
    return pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])(test)


async def send_all(peer: Peer, seed: int) -> str:
    """Sends messages as fast as the channel takes them; returns the hash of what was sent."""
    channel = peer.open()
    low = asyncio.Event()
    channel.bufferedAmountLowThreshold = 1 << 18
    channel.on("bufferedamountlow", low.set)
    block = os.urandom(SIZE)
    digest = hashlib.sha256()
    for number in range(MESSAGES):
        message = block[: 1 + (number * 977 + seed) % SIZE]
        if channel.bufferedAmount > 1 << 20:
            low.clear()
            await low.wait()
        channel.send(message)
        digest.update(message)
    return digest.hexdigest()


@uvloop_and_asyncio
@pytest.mark.parametrize(
    ("offerer", "answerer"),
    [("fast-dtls", "fast-dtls"), ("fast-dtls", "plain"), ("plain", "fast-dtls")],
)
def test_both_ways_at_once(loop: Any, offerer: Kind, answerer: Kind) -> None:
    async def scenario() -> None:
        async with pair(offerer, answerer) as peers:
            sent = await asyncio.gather(*(send_all(peer, n) for n, peer in enumerate(peers)))
            for digest, peer in zip(reversed(sent), peers, strict=True):
                got = await peer.messages(MESSAGES)
                assert len(got) == MESSAGES
                assert hashlib.sha256(b"".join(got)).hexdigest() == digest
            for kind, peer in zip((offerer, answerer), peers, strict=True):
                if kind == "plain":
                    continue
                assert peer.dtls.fast
                assert peer.dtls.udp is not None
                assert peer.dtls.packet_overhead == 20 + 8 + 37
                assert peer.dtls.counters.refused_records == 0
                assert peer.dtls.udp.counters.send_errors == 0
                report = await peer.pc.getStats()
                stats = next(iter(report.values()))
                assert isinstance(stats, RTCTransportStats)
                # ICE sends through the same socket, the more the longer it lasts: no equality here.
                assert stats.packetsSent > MESSAGES
                assert peer.dtls.udp.counters.sent_datagrams > MESSAGES
                assert stats.bytesReceived >= peer.dtls.counters.received_bytes > 0

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


@uvloop_and_asyncio
def test_either_end_may_close_first(loop: Any) -> None:
    async def scenario() -> None:
        for closer in (0, 1):
            async with pair("fast-dtls", "fast-dtls") as peers:
                await peers[closer].pc.close()
                other = peers[1 - closer]
                await other.closed()
                async with asyncio.timeout(PATIENCE):
                    while not (receiver_task(other) is None or receiver_task(other).done()):
                        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


class Collector:
    """Takes the place of the SCTP association at one end."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.turns = 0
        self.work: Callable[[], None] = lambda: None

    def receive_packets(self, packets: list[bytes]) -> None:
        # A SACK of the association that was there before may be on its way still.
        packets = [packet for packet in packets if not packet.startswith(SCTP_PORTS)]
        if packets:
            self.batches.append(packets)
            self.work()

    def turn_ended(self) -> None:
        self.turns += 1

    def path_changed(self) -> None:
        """Nothing here depends on the path."""

    def path_mtu_exceeded(self, size: int) -> None:
        raise AssertionError(f"{size} bytes do not fit loopback")

    def transport_writable(self) -> None:
        raise AssertionError("nothing was ever blocked")

    @property
    def packets(self) -> list[bytes]:
        return [packet for batch in self.batches for packet in batch]


def collect(transport: FastDtlsTransport) -> Collector:
    collector = Collector()
    transport.path.receiver = collector
    transport.path.batch = PACKETS_MAX  # whatever the handshake has taken on a busy machine
    return collector


def encrypt(transport: FastDtlsTransport, packet: bytes) -> bytes:
    """One record, as the transport would send it."""
    return bytes(transport.open_records().write((packet,)))


def corrupt(record: bytes, at: int, value: int | None = None) -> bytes:
    changed = bytearray(record)
    changed[at] = changed[at] ^ 0x55 if value is None else value
    return bytes(changed)


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "bad tag": lambda record: corrupt(record, -1),
    "bad contents": lambda record: corrupt(record, 40),
    "bad nonce": lambda record: corrupt(record, 14),
    "sequence number of another record": lambda record: corrupt(record, 10),
    "sequence number far ahead": lambda record: corrupt(record, 6),
    "zeros": lambda record: record[:13] + bytes(len(record) - 13),
    "length too long": lambda record: corrupt(record, 11, 0x3F),
    "length over the limit": lambda record: corrupt(record, 11, 0xFF),
    "length too short": lambda record: corrupt(record, 12, 1),
    "length zero": lambda record: record[:11] + bytes(2) + record[13:],
    "another version": lambda record: corrupt(record, 2),
    "next epoch": lambda record: corrupt(record, 4, 2),
    "epoch zero": lambda record: corrupt(record, 4, 0),
    "alert": lambda record: corrupt(record, 0, 21),
    "alert in the clear": lambda record: corrupt(corrupt(record, 0, 21), 4, 0),
    "handshake": lambda record: corrupt(record, 0, 22),
    "handshake in the clear": lambda record: corrupt(corrupt(record, 0, 22), 4, 0),
    "change cipher spec": lambda record: corrupt(record, 0, 20),
    "unknown type": lambda record: corrupt(record, 0, 60),
    "DTLS 1.3 header": lambda record: corrupt(record, 0, 0x2C),
    "cut header": lambda record: record[:7],
    "cut contents": lambda record: record[:30],
    "one byte": lambda record: record[:1],
    "two records": lambda record: record + record,
    "no DTLS": lambda record: b"\xff" + record[1:],
    "STUN that is none": lambda record: b"\x00" + record[1:],
}


@pytest.mark.parametrize("kind", FORGERIES)
@pytest.mark.parametrize("position", [0, 3, 7])
async def test_a_forged_record_costs_only_itself(kind: str, position: int) -> None:
    """All ten genuine packets of a joined batch arrive, each once, whatever is put among them."""
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        packets = [bytes([number]) * 200 for number in range(8)]
        records = [encrypt(sender.dtls, packet) for packet in packets]
        spare = encrypt(sender.dtls, b"never delivered as it is".ljust(200))
        forged = FORGERIES[kind](spare)
        size = len(records[0])
        protocol = taker.dtls.path.pair.protocol
        if len(forged) == size:
            joined = b"".join([*records[:position], forged, *records[position:]])
            batches = [(joined, size)]
        else:  # the kernel joins no datagrams of other sizes, but a shorter one at the end
            batches = [(b"".join([*records, forged[:size]]), size), (forged, len(forged))]
        for data, segment in batches:
            taker.dtls.path.datagrams_received(
                bytearray(data), len(data), segment, ("127.0.0.1", 9), protocol
            )
        taker.dtls.path.turn_ended()
        got = [packet for packet in collector.packets if packet in packets]
        assert got == packets
        # What is left of the forgery is at most the packet that the attacker has copied.
        assert len(collector.packets) <= len(packets) + 1
        # And the association goes on.
        record = encrypt(sender.dtls, b"on")
        taker.dtls.path.datagrams_received(
            bytearray(record), len(record), len(record), (), protocol
        )
        taker.dtls.path.turn_ended()
        assert collector.packets[-1] == b"on"
        assert taker.dtls.state == "connected"


async def test_a_repeated_record_is_delivered_once() -> None:
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        refused = taker.dtls.counters.refused_records
        records = [encrypt(sender.dtls, bytes([number]) * 100) for number in range(4)]
        joined = bytearray(b"".join([*records, records[1], records[2]]))
        taker.dtls.path.datagrams_received(joined, len(joined), len(records[0]), (), None)
        taker.dtls.path.turn_ended()
        assert collector.packets == [bytes([number]) * 100 for number in range(4)]
        assert taker.dtls.counters.refused_records == refused + 2
        assert collector.turns == 1


async def test_several_records_in_one_datagram_are_all_read() -> None:
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        odd = taker.dtls.counters.odd_datagrams  # a flight of the handshake may have come twice
        datagram = bytearray(b"".join(encrypt(sender.dtls, b"%d" % n) for n in range(5)))
        taker.dtls.path.datagrams_received(datagram, len(datagram), len(datagram), (), None)
        taker.dtls.path.turn_ended()
        assert collector.packets == [b"%d" % number for number in range(5)]
        assert taker.dtls.counters.odd_datagrams == odd + 1


async def test_packets_of_all_sizes_cross_in_order() -> None:
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        packets = [os.urandom(1 + number * 37 % 1400) for number in range(200)]
        packets += [os.urandom(1200)] * 150
        sender.dtls.send_packets(packets)
        async with asyncio.timeout(60):
            while len(collector.packets) < len(packets):
                await asyncio.sleep(0)
        assert collector.packets == packets
        assert sender.dtls.udp is not None
        assert sender.dtls.udp.counters.send_calls < 260, "equal sizes share a system call"


async def test_probes_and_fragmentable_packets_arrive() -> None:
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        assert sender.dtls.probing_allowed
        assert sender.dtls.send_probe(bytes(9000))
        sender.dtls.send_packets([bytes(3000)] * 2, fragment=True)
        async with asyncio.timeout(60):
            while len(collector.packets) < 3:
                await asyncio.sleep(0)
        assert [len(packet) for packet in collector.packets] == [9000, 3000, 3000]


async def test_a_costly_receiver_yields_to_the_loop() -> None:
    """One link whose packets are dear: another callback waits for a turn's bound, not for all."""
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        spent = 0.0

        def slow() -> None:
            nonlocal spent
            cost = 0.0005 * len(collector.batches[-1])
            spent += cost
            until = time.perf_counter() + cost
            while time.perf_counter() < until:
                pass

        collector.work = slow
        for _ in range(10):
            sender.dtls.send_packets([bytes(500)] * 64)
        longest = 0.0
        async with asyncio.timeout(60):
            while len(collector.packets) < 640:
                before = spent
                await asyncio.sleep(0)
                longest = max(longest, spent - before)
        assert taker.dtls.counters.deferred_turns > 0
        # The first batch is a full one; after it, the number adapts.
        assert longest <= PACKETS_MAX * 0.0005 + recordpath.TURN_SECONDS + 0.001
        sizes = [len(batch) for batch in collector.batches]
        assert sizes[-1] <= 4
        assert len(collector.packets) == 640, "the bytes wait in the socket and are not lost"


async def test_no_socket_is_read_while_packets_wait() -> None:
    """Also not that of a path which was left: what comes there is packets of this association too."""
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        left = taker.dtls.udp
        assert left is not None
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        handler = SocketHandler(taker.dtls.path, None)
        other = BatchedUdpTransport(loop, sock, asyncio.DatagramProtocol(), handler)
        taker.dtls.path.sockets.append(other)
        pair_now = taker.dtls._ice._nominated[1]
        chosen = SimpleNamespace(
            protocol=SimpleNamespace(transport=other),
            remote_addr=pair_now.remote_addr,
            local_candidate=pair_now.local_candidate,
        )
        readings = []

        def work() -> None:
            if len(collector.batches) == 1:
                taker.dtls._ice._nominated[1] = chosen
                taker.dtls.follow_pair()
            spent = time.perf_counter() + 2 * recordpath.TURN_SECONDS
            while time.perf_counter() < spent:
                pass

        collector.work = work
        try:
            sender.dtls.send_packets([bytes(500)] * 2 * PACKETS_MAX)
            async with asyncio.timeout(60):
                while len(collector.packets) < 2 * PACKETS_MAX:
                    await asyncio.sleep(0)
                    if taker.dtls.path.pending:
                        readings.append((left._reading, other._reading))
            assert readings
            assert set(readings) == {(False, False)}
            assert (left._reading, other._reading) == (True, True)
        finally:
            taker.dtls._ice._nominated[1] = pair_now
            other.close()
            await asyncio.sleep(0)


async def test_an_exception_of_the_receiver_ends_the_connection() -> None:
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        task = receiver_task(taker)
        collector = collect(taker.dtls)

        def fail() -> None:
            raise ZeroDivisionError("a bug above")

        collector.work = fail
        sender.dtls.send_packets([b"one", b"two"])
        with pytest.raises(ZeroDivisionError, match="a bug above"):
            await asyncio.wait_for(asyncio.shield(task), 60)
        assert taker.dtls.state == "closed"
        with pytest.raises(ConnectionError):
            taker.dtls.send_packets([b"late"])
        with pytest.raises(ConnectionError):
            taker.dtls.send_probe(b"late")


async def test_a_peer_with_dtls_1_3_gets_1_2() -> None:
    certificate = PinnedCertificate.generateCertificate()
    assert isinstance(certificate, PinnedCertificate)
    async with pair("plain", "fast-dtls") as (_, taker):
        connection = taker.dtls._ssl
        assert connection is not None
        assert connection.get_protocol_version() == DTLS_1_2


async def test_what_comes_another_way_is_taken_too() -> None:
    """Datagrams that aioice received itself, as through TURN or on another pair's socket."""
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        packets = [bytes([number]) * 50 for number in range(20)]
        for packet in packets:
            taker.dtls._ice.data_received(encrypt(sender.dtls, packet), 1)
        async with asyncio.timeout(60):
            while len(collector.packets) < len(packets):
                await asyncio.sleep(0)
        assert collector.packets == packets
        # One call a turn; on a busy machine a turn that takes too long hands up in portions.
        assert len(collector.batches) < len(packets) // 2


async def test_what_comes_another_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordpath, "RELAYED_PACKETS_MAX", 10)
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        collector = collect(taker.dtls)
        for number in range(15):
            taker.dtls._ice.data_received(encrypt(sender.dtls, bytes([number])), 1)
        taker.dtls.path.turn_ended()
        await asyncio.sleep(0)
        assert len(collector.packets) == 10
        assert taker.dtls.counters.dropped_packets == 5


async def test_each_flight_of_the_handshake_is_repeated_before_openssl_does_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first datagrams of all flights are lost, and OpenSSL's own timer never fires."""
    lost = []

    async def lose(_: aioice.Connection, data: bytes) -> None:
        lost.append(data)

    monkeypatch.setattr(aioice.Connection, "send", lose)
    monkeypatch.setattr(SSL.Connection, "DTLSv1_get_timeout", lambda _: None)
    async with pair("fast", "fast") as (one, other):
        assert len(lost) >= 4
        one.open().send(b"there")
        other.open().send(b"back")
        assert await other.messages(1) == [b"there"]
        assert await one.messages(1) == [b"back"]
        async with asyncio.timeout(PATIENCE):
            while one.dtls._repeating or other.dtls._repeating:
                await asyncio.sleep(0.01)
        assert one.dtls._flight.datagrams == other.dtls._flight.datagrams == []


async def test_copies_of_flights_that_have_arrived_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each datagram of the handshake comes three times, and once more when it is long over."""
    sent: list[tuple[aioice.Connection, bytes]] = []
    send = aioice.Connection.send

    async def repeat(ice: aioice.Connection, data: bytes) -> None:
        sent.append((ice, data))
        for _ in range(3):
            await send(ice, data)

    monkeypatch.setattr(aioice.Connection, "send", repeat)
    async with pair("fast", "fast") as peers:
        assert len(sent) >= 4
        for ice, data in sent:
            await send(ice, data)
        one, other = peers
        for number in range(5):
            one.open().send(b"there %d" % number)
            other.open().send(b"back %d" % number)
        assert await other.messages(5) == [b"there %d" % number for number in range(5)]
        assert await one.messages(5) == [b"back %d" % number for number in range(5)]
