"""FastSctpTransport against itself and against aiortc's own, over a simulated path."""

import asyncio
import hashlib
import random
from typing import Any

import pytest
from aiortc import RTCDataChannel, RTCSctpTransport

from socks_tunnel.peer.fast.receiver import Receiver
from socks_tunnel.protocol.lone import LONE_BYTES
from support.compiled import pure_only
from support.sctp_network import Path, dtls_pair, run_virtual, virtual_aiortc
from support.sctp_transfer import Sink, channel, fast, opened, started

KINDS: dict[str, Any] = {"fast": fast, "aiortc": RTCSctpTransport}


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_hashes_are_equal_both_ways(left: str, right: str, loss: float, monkeypatch: Any) -> None:
    async def main() -> None:
        client, server = dtls_pair(
            Path(delay=0.01, loss=loss, seed=2), Path(delay=0.01, loss=loss, seed=3)
        )
        a, b = KINDS[left](client), KINDS[right](server)
        got: dict[str, Any] = {"a": hashlib.sha256(), "b": hashlib.sha256()}
        count = {"a": 0, "b": 0}

        def listen(side: str, one: RTCDataChannel) -> None:
            def message(data: bytes) -> None:
                got[side].update(data)
                count[side] += len(data)

            one.on("message", message)

        arrived: list[RTCDataChannel] = []

        def arrive(one: RTCDataChannel) -> None:
            arrived.append(one)
            listen("b", one)

        b.on("datachannel", arrive)
        await started(a, b)
        mine = channel(a)
        listen("a", mine)
        await opened(mine)
        rng = random.Random(4)
        sent = {"a": hashlib.sha256(), "b": hashlib.sha256()}
        total = {"a": 0, "b": 0}
        for _ in range(60):
            for side, one in (("a", mine), ("b", arrived[0])):
                data = rng.randbytes(rng.choice((1, 100, 1_160, 5_000, 40_000)))
                sent[side].update(data)
                total[side] += len(data)
                one.send(data)
            await asyncio.sleep(0.002)
        async with asyncio.timeout(200):
            while count["a"] < total["b"] or count["b"] < total["a"]:
                await asyncio.sleep(0.05)
        assert got["a"].digest() == sent["b"].digest()
        assert got["b"].digest() == sent["a"].digest()
        await asyncio.sleep(1)
        assert mine.bufferedAmount == 0
        await asyncio.gather(a.stop(), b.stop())

    with virtual_aiortc(monkeypatch):
        run_virtual(main)


def test_text_and_empty_messages_are_what_they_were() -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.001), Path(delay=0.001))
        a, b = fast(client), fast(server)
        got: list[Any] = []
        b.on("datachannel", lambda one: one.on("message", got.append))
        await started(a, b)
        one = channel(a)
        await opened(one)
        sent: list[Any] = ["", b"", "text \N{SNOWMAN}", b"\0", "after"]
        for message in sent:
            one.send(message)
        await asyncio.sleep(0.1)
        assert got == sent
        assert one.bufferedAmount == 0
        with pytest.raises(ValueError, match="the peer takes 262144"):
            one.send(bytes(262_145))
        with pytest.raises(ValueError, match="the peer takes 262144"):
            one.send("x" * 262_145)

    run_virtual(main)


@pytest.mark.parametrize("right", KINDS)
def test_a_message_behind_the_openings_does_not_wait_for_their_acknowledgement(
    right: str, monkeypatch: Any
) -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.05), Path(delay=0.05))
        a, b = fast(client), KINDS[right](server)
        got: list[tuple[str, Any, str]] = []

        def arrive(other: RTCDataChannel) -> None:
            other.on("message", lambda message: got.append((other.label, message, one.readyState)))

        b.on("datachannel", arrive)
        one = channel(a, "control")
        lane = channel(a, "lane-0")
        a.send_after_openings(one, b"hello")
        await started(a, b)
        await opened(one, lane)
        assert got == [("control", b"hello", "connecting")]
        one.send(b"more")
        await asyncio.sleep(1)
        assert got[1:] == [("control", b"more", "open")]
        await asyncio.gather(a.stop(), b.stop())

    with virtual_aiortc(monkeypatch):
        run_virtual(main)


def test_an_owner_gets_what_arrived_in_one_list_a_turn() -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01), Path(delay=0.01))
        a, b = fast(client), fast(server)
        batches: list[list[tuple[str, bytes]]] = []
        drained: list[tuple[str, int]] = []

        class Owner(Sink):
            def sctp_messages(self, batch: Any) -> None:
                batches.append([(one.label, message) for one, message in batch])

            def sctp_drained(self, report: Any) -> None:
                drained.extend((one.label, count) for one, count in report)

        Owner(a)
        Owner(b)
        await started(a, b)
        one, other = channel(a, "lane-0"), channel(a, "lane-1")
        await opened(one, other)
        a.send_many(one, [b"alone"])
        a.send_many(one, [b"1", b"22"])
        a.send_many(other, [b"333"])
        assert a.queued_bytes == 6
        await asyncio.sleep(0.1)
        assert batches == [
            [("lane-0", b"alone"), ("lane-0", b"1"), ("lane-0", b"22"), ("lane-1", b"333")],
        ]
        assert sorted(drained) == [("lane-0", 8), ("lane-1", 3)]

    run_virtual(main)


def test_a_small_message_that_comes_alone_is_sent_before_the_call_returns() -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01), Path(delay=0.01))
        a, b = fast(client), fast(server)
        drained: list[int] = []

        class Owner(Sink):
            def sctp_drained(self, report: Any) -> None:
                drained.extend(count for _, count in report)

        Owner(a)
        await started(a, b)
        one = channel(a)
        await opened(one)
        await asyncio.sleep(1)
        client.log = []
        a.send_many(one, [b"keystroke"])
        assert len(client.log) == 1
        assert b"keystroke" in client.log[0]
        assert (a.queued_bytes, one.bufferedAmount, drained) == (0, 9, [])
        await asyncio.sleep(1)
        assert (one.bufferedAmount, drained) == (0, [9])
        client.log = []
        a.send_many(one, [bytes(LONE_BYTES + 1)])  # part of a transfer: it waits for more
        assert client.log == []
        assert a.queued_bytes == LONE_BYTES + 1

    run_virtual(main)


def test_what_came_alone_is_handed_on_before_its_sack_is_dealt_with() -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01), Path(delay=0.01))
        a, b = fast(client), fast(server)
        flights: list[int] = []

        class Asks(Sink):
            def sctp_turn_ended(self) -> None:
                if self.messages:
                    flights.append(a.path.sender.recovery.flight)

        class Answers(Sink):
            def sctp_messages(self, batch: Any) -> None:
                for one, message in batch:
                    b.send_many(one, [message])

        Asks(a).keep = True
        Answers(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        await asyncio.sleep(1)
        a.send_many(one, [b"keystroke"])
        in_flight = a.path.sender.recovery.flight
        assert in_flight > 0
        await asyncio.sleep(1)
        assert flights[0] == in_flight
        assert a.path.sender.recovery.flight == 0

    run_virtual(main)


@pure_only("socks_tunnel.peer.fast.receiver")
def test_a_closed_window_is_probed_and_goes_on_when_it_opens(monkeypatch: Any) -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01), Path(delay=0.01))
        a, b = fast(client), fast(server)
        right = Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        receiver = b.path.receiver
        receiver.window = 0
        one.send(b"tells of the closed window")
        await asyncio.sleep(0.5)
        assert a.path.sender.peer_window == 0
        before = right.received
        log: list[bytes] = []
        client.log = log

        def closed(self: Receiver, *chunk: Any) -> None:
            """Drops what there is no room for, and says so (RFC 9260 section 6.2)."""
            self.sack_now = True

        with monkeypatch.context() as patch:
            patch.setattr(Receiver, "interleaved_data", closed)
            for _ in range(50):
                one.send(bytes(10_000))
            await asyncio.sleep(300)
        # Section 6.1 A: one chunk at a time, ever more seldom, and no reason to give up.
        assert 8 <= len(log) <= 20
        assert a.state == "connected"
        receiver.window = 1_048_576
        await asyncio.sleep(90)
        assert right.received == before + 500_000

    run_virtual(main)


def test_a_datagram_is_sent_once_and_never_again() -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01, loss=0.2, seed=8), Path(delay=0.01, loss=0.1))
        a, b = fast(client), fast(server)
        right = Sink(b)
        right.keep = True
        await started(a, b)
        voice, lane = channel(a, "datagram", ordered=False, maxRetransmits=0), channel(a)
        await opened(voice, lane)
        await asyncio.sleep(5)
        client.log = []
        for number in range(300):
            a.send_many(voice, [b"%d " % number + bytes(150)])
            if number % 10 == 0:
                a.send_many(lane, [bytes(3_000)])
            await asyncio.sleep(0.01)
        await asyncio.sleep(20)
        for number in range(300):
            assert sum(b"\0\0\0\x35%d \0" % number in packet for packet in client.log) == 1
        got = [message for label, message in right.messages if label == "datagram"]
        assert 200 <= len(got) == len(set(got)) < 300
        assert sum(label == "lane-0" for label, _ in right.messages) == 30
        assert not a.has_unsent

    run_virtual(main)


def test_ten_minutes_both_ways_with_losses_leave_nothing_behind() -> None:
    """Ten minutes of virtual time, 40 MB each way: the same bytes, and no more memory."""

    async def main() -> None:
        rate = 0.6e6 / 8
        paths = [
            Path(delay=0.02, rate=rate, queue=60, loss=0.01, duplicate=0.001, corrupt=0.001, seed=n)
            for n in (1, 2)
        ]
        client, server = dtls_pair(paths[0], paths[1])
        a, b = fast(client), fast(server)
        left, right = Sink(a), Sink(b)
        hashes = {side: (hashlib.sha256(), hashlib.sha256()) for side in (left, right)}

        def take(self: Sink, batch: Any) -> None:
            for _, message in batch:
                self.received += len(message)
                hashes[self][1].update(message)

        await started(a, b)
        one = channel(a)
        arrived: list[RTCDataChannel] = []
        b.on("datachannel", arrived.append)
        await opened(one)
        rng = random.Random(6)
        sizes: list[int] = []
        for sink in (left, right):
            sink.sctp_messages = lambda batch, sink=sink: take(sink, batch)  # type: ignore[method-assign,misc]
        for minute in range(10):
            end = asyncio.get_running_loop().time() + 60
            while asyncio.get_running_loop().time() < end:
                for sink, other, lane in ((left, right, one), (right, left, arrived[0])):
                    if sink.transport.queued_bytes < 65_536:
                        message = rng.randbytes(rng.choice((100, 1_400, 30_000)))
                        hashes[other][0].update(message)
                        sink.transport.send_many(lane, [message])
                await asyncio.sleep(0.05)
            sizes.append(sum(len(t.path.sender.recovery._transmissions) for t in (a, b)))
            assert minute < 1 or max(sizes[1:]) < 4_000
        while a.has_unsent or b.has_unsent:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        for sink in (left, right):
            assert hashes[sink][0].digest() == hashes[sink][1].digest()
            assert sink.received > 20_000_000
            path = sink.transport.path
            assert path.receiver.reassembly.held == 0
            assert not path.sender.recovery._chunks
            assert not path.sender.recovery.lost or path.sender.recovery.next_lost() is None

    run_virtual(main)


def test_a_socket_that_takes_nothing_is_waited_for_without_work(monkeypatch: Any) -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01), Path(delay=0.01))
        a, b = fast(client), fast(server)
        right = Sink(b)
        await started(a, b)
        voice, lane = channel(a, "datagram", ordered=False, maxRetransmits=0), channel(a)
        await opened(voice, lane)
        await asyncio.sleep(1)
        client.path.loss = 1.0
        a.send_many(voice, [b"lost"])
        a.send_many(lane, [bytes(100_000)])
        await asyncio.sleep(0)
        client.blocked = True
        fired = 0
        timer = a.path.timer

        def count(now: float) -> Any:
            nonlocal fired
            fired += 1
            return timer(now)

        with monkeypatch.context() as patch:
            patch.setattr(type(a.path), "timer", lambda _, now: count(now))
            await asyncio.sleep(2)
        assert fired <= 5
        client.path.loss = 0.0
        client.blocked = False
        a.transport_writable()
        await asyncio.sleep(5)
        assert right.received == 100_000

    run_virtual(main)


def test_probing_waits_for_the_association() -> None:
    async def main() -> None:
        client, _ = dtls_pair(Path(), Path(), probing=True)
        a = fast(client)
        a.path_changed()
        assert a.exchange.timer is None
        assert a.path.wake_at == 0.0
        await asyncio.sleep(1)

    run_virtual(main)
