"""The batched UDP transport, on sockets of loopback and in both event loops."""

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from socks_tunnel.peer.fast import udp
from socks_tunnel.peer.fast.udp import (
    LONE_TURNS,
    SEGMENTED_BYTES_MAX,
    SEGMENTS_MAX,
    SEND_QUEUE_MAX,
    BatchedUdpTransport,
    take_over,
)
from support.compiled import pure_only

LOOPBACK = "127.0.0.1"


class Listener(asyncio.DatagramProtocol):
    """Both the protocol and the receiver of a transport: writes all down."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.calls: list[tuple[int, int]] = []
        self.turns = 0
        self.too_big: list[int] = []
        self.resumed = 0
        self.errors: list[Exception] = []
        self.lost = asyncio.Event()
        self.on_batch: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()

    def datagrams_received(self, buffer: bytearray, size: int, segment: int, address: Any) -> None:
        self.calls.append((size, segment))
        self.datagrams += [
            bytes(buffer[start : min(start + segment, size)]) for start in range(0, size, segment)
        ]
        self.on_batch()

    def turn_ended(self) -> None:
        self.turns += 1
        self._changed.set()

    def packet_too_big(self, size: int) -> None:
        self.too_big.append(size)

    def send_resumed(self) -> None:
        self.resumed += 1
        self._changed.set()

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class ScriptedSocket(socket.socket):
    """A real socket whose next sends fail with the errors that are due."""

    failures: list[int]
    segmented_fails: int = 0

    def sendto(self, *args: Any) -> int:
        if self.failures:
            raise OSError(self.failures.pop(0), "scripted")
        return super().sendto(*args)

    def sendmsg(self, *args: Any) -> int:
        if self.segmented_fails:
            raise OSError(self.segmented_fails, "scripted")
        if self.failures:
            raise OSError(self.failures.pop(0), "scripted")
        return super().sendmsg(*args)


def bound() -> ScriptedSocket:
    sock = ScriptedSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.failures = []
    sock.bind((LOOPBACK, 0))
    return sock


@pytest.fixture
async def pair() -> AsyncIterator[Any]:
    """A sender and a receiver with their listeners, and the receiver's address."""
    loop = asyncio.get_running_loop()
    here, there = Listener(), Listener()
    sock = bound()
    address = sock.getsockname()
    receiver = BatchedUdpTransport(loop, sock, there, there)
    sender = BatchedUdpTransport(loop, bound(), here, here)
    yield sender, here, receiver, there, address
    sender.close()
    receiver.close()
    await here.lost.wait()
    await there.lost.wait()


def scripted(transport: BatchedUdpTransport) -> ScriptedSocket:
    sock = transport.get_extra_info("socket")
    assert isinstance(sock, ScriptedSocket)
    return sock


async def test_segments_arrive_as_datagrams(pair: Any) -> None:
    sender, _, receiver, there, address = pair
    datagrams = [bytes([number]) * 1200 for number in range(20)] + [b"short"]
    sender.send_segments(b"".join(datagrams), 1200, address)
    await there.until(lambda: len(there.datagrams) == len(datagrams))
    assert there.datagrams == datagrams
    assert sender.counters.send_calls == 1
    assert sender.counters.sent_datagrams == 21
    assert receiver.counters.received_datagrams == 21
    assert receiver.counters.received_bytes == sender.counters.sent_bytes == 20 * 1200 + 5


async def test_the_most_that_one_send_takes(pair: Any) -> None:
    sender, _, _, there, address = pair
    size = SEGMENTED_BYTES_MAX // SEGMENTS_MAX
    sender.send_segments(bytes(SEGMENTS_MAX * size), size, address)
    await there.until(lambda: len(there.datagrams) == SEGMENTS_MAX)
    assert sender.segments, "the kernel refused what the limits say that it takes"


async def test_an_empty_datagram_is_no_datagram(pair: Any) -> None:
    sender, _, receiver, there, address = pair
    sender.sendto(b"", address)
    sender.sendto(b"after", address)
    await there.until(lambda: there.datagrams == [b"after"])
    assert receiver.counters.received_datagrams == 1


async def test_a_kernel_without_segmentation_gets_datagrams(pair: Any) -> None:
    sender, _, _, there, address = pair
    scripted(sender).segmented_fails = errno.EIO  # what an interface without checksum offload says
    for _ in range(2):
        sender.send_segments(b"a" * 100 + b"b" * 100 + b"c", 100, address)
    await there.until(lambda: len(there.datagrams) == 6)
    assert there.datagrams == [b"a" * 100, b"b" * 100, b"c"] * 2
    assert not sender.segments
    assert sender.counters.send_errors == 0


async def test_too_big_for_the_interface_is_fragmented_and_reported(pair: Any) -> None:
    sender, here, _, there, address = pair
    scripted(sender).segmented_fails = errno.EMSGSIZE
    scripted(sender).failures = [errno.EMSGSIZE]
    sender.send_segments(b"a" * 100 + b"b" * 50, 100, address)
    await there.until(lambda: len(there.datagrams) == 2)
    assert here.too_big == [100]
    assert sender.segments, "a packet that is too big says nothing about segmentation"


async def test_a_probe_that_does_not_fit_says_so_and_is_not_sent(pair: Any) -> None:
    sender, here, _, there, address = pair
    scripted(sender).failures = [errno.EMSGSIZE]
    assert not sender.send_probe(bytes(1500), address)
    assert sender.send_probe(bytes(1400), address)
    await there.until(lambda: len(there.datagrams) == 1)
    assert len(there.datagrams[0]) == 1400
    assert here.too_big == []


async def test_a_probe_longer_than_any_datagram_does_not_fit(pair: Any) -> None:
    sender, _, _, _, address = pair
    assert not sender.send_probe(bytes(65_508), address)


async def test_what_the_socket_does_not_take_waits_in_order(pair: Any) -> None:
    sender, here, _, there, address = pair
    scripted(sender).failures = [errno.EAGAIN]
    sender.send_segments(b"11" + b"22", 2, address)
    assert sender.blocked
    sender.sendto(b"3", address)
    await here.until(lambda: here.resumed == 1)
    assert not sender.blocked
    await there.until(lambda: len(there.datagrams) == 3)
    assert there.datagrams == [b"11", b"22", b"3"]
    assert sender.counters.waits == 1
    assert sender.counters.dropped_datagrams == 0


async def test_what_waits_is_bounded_and_drops_are_counted(pair: Any) -> None:
    sender, here, _, _, address = pair
    scripted(sender).failures = [errno.EAGAIN]
    size = 1000
    kept = SEND_QUEUE_MAX // size
    for _ in range(kept + 10):
        sender.sendto(bytes(size), address)
    assert sender.counters.dropped_datagrams == 10
    await here.until(lambda: here.resumed == 1)
    assert sender.counters.sent_datagrams == kept


async def test_a_failure_in_the_queue_does_not_hold_it_up(pair: Any) -> None:
    sender, here, _, there, address = pair
    scripted(sender).failures = [errno.EAGAIN, errno.ENETUNREACH]
    sender.sendto(b"lost", address)
    sender.sendto(b"kept", address)
    await there.until(lambda: there.datagrams == [b"kept"])
    await here.until(lambda: here.resumed == 1)
    assert [getattr(error, "errno", None) for error in here.errors] == [errno.ENETUNREACH]
    assert sender.counters.send_errors == 1


async def test_a_paused_transport_reads_later(pair: Any) -> None:
    sender, _, receiver, there, address = pair
    there.on_batch = receiver.pause_reading
    sender.sendto(b"1" * 10, address)
    await there.until(lambda: len(there.datagrams) == 1)
    sender.sendto(b"2" * 10, address)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(there.datagrams) == 1
    receiver.resume_reading()
    await there.until(lambda: len(there.datagrams) == 2)


async def test_a_lone_datagram_is_not_asked_for_another(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)  # a busy machine ends no turn early
    sender, _, receiver, there, address = pair
    asked: list[int] = []
    receive = receiver._socket.recvmsg_into

    def count(*arguments: Any) -> Any:
        asked[-1] += 1
        return receive(*arguments)

    receiver._socket = SimpleNamespace(
        recvmsg_into=count, fileno=receiver._socket.fileno, close=receiver._socket.close
    )
    for number in range(LONE_TURNS + 2):
        asked.append(0)
        sender.sendto(b"%d" % number, address)
        await there.until(lambda number=number: len(there.datagrams) == number + 1)
    assert asked == [2, *[1] * LONE_TURNS, 2]
    # Datagrams of different sizes, which the kernel does not join: each gets its turn.
    sizes = [10, 200, 30, 400, 50]
    asked.append(0)
    for size in sizes:
        sender.sendto(bytes(size), address)
    await there.until(lambda: len(there.datagrams) == LONE_TURNS + 2 + len(sizes))
    assert [len(one) for one in there.datagrams[-len(sizes) :]] == sizes


@pure_only("socks_tunnel.peer.fast.udp")
async def test_a_turn_of_reading_is_bounded(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, _, _, there, address = pair
    monkeypatch.setattr(udp, "READ_SECONDS_MAX", -1.0)
    for number in range(10):  # datagrams of growing sizes are not joined
        sender.sendto(bytes(number + 1), address)
    await there.until(lambda: len(there.datagrams) == 10)
    assert there.turns >= len(there.calls) > 1, "the time is over after one call in each turn"


async def test_after_the_end_nothing_happens(pair: Any) -> None:
    sender, here, receiver, there, address = pair
    scripted(sender).failures = [errno.EAGAIN]
    sender.sendto(b"waits", address)
    sender.close()
    assert sender.is_closing()
    sender.close()
    sender.sendto(b"late", address)
    sender.send_fragmentable(b"late", address)
    assert sender.send_probe(b"late", address)
    await here.lost.wait()
    assert sender.counters.dropped_datagrams == 1
    assert sender.counters.sent_datagrams == 0
    receiver.close()
    receiver.resume_reading()
    await there.lost.wait()
    assert there.datagrams == []


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as running:
        yield running


def test_a_socket_is_taken_over_without_losing_a_datagram(runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        protocol = Listener()
        old, _ = await loop.create_datagram_endpoint(lambda: protocol, local_addr=(LOOPBACK, 0))
        address = old.get_extra_info("sockname")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"before", address)
            new = take_over(protocol, old, protocol, loop)
            assert new is not None
            assert new.get_extra_info("sockname") == address
            other.sendto(b"after", address)
            await protocol.until(lambda: len(protocol.datagrams) == 2)
            assert protocol.datagrams == [b"before", b"after"]
            for _ in range(10):  # the old transport ends meanwhile
                await asyncio.sleep(0)
            assert not protocol.lost.is_set(), "the protocol is not to learn of the old one's end"
            assert old.is_closing()
            other.sendto(b"and on", address)
            await protocol.until(lambda: len(protocol.datagrams) == 3)
        new.close()
        await protocol.lost.wait()

    runner.run(scenario())


def test_a_transport_without_a_socket_is_left_alone(runner: asyncio.Runner) -> None:
    class Relay(asyncio.DatagramTransport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return default

    async def scenario() -> None:
        protocol = Listener()
        assert take_over(protocol, Relay(), protocol, asyncio.get_running_loop()) is None

    runner.run(scenario())
