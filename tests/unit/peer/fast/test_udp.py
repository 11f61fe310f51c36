"""How datagrams are sent when a kernel says no. With real sockets: integration/test_fast_udp.py."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import pytest

from socks_tunnel.peer.fast.udp import (
    SEND_QUEUE_MAX,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
    BatchedUdpTransport,
    take_over,
)

PEER = ("192.0.2.1", 4000)


class Sock:
    """A UDP socket without a kernel: `refuses` says what a send of so many bytes fails with."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, int]] = []
        """What was sent, each with the length of its segments."""
        self.refuses: Callable[[int, int], int] = lambda _size, _segment: 0
        self.options: dict[int, int] = {}
        self.joins = True
        self.closed = False

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        return 9

    def setsockopt(self, _level: int, option: int, value: int) -> None:
        if option == UDP_GRO and not self.joins:
            raise OSError(errno.ENOPROTOOPT, "scripted")
        self.options[option] = value

    def _take(self, data: bytes, segment: int) -> None:
        error = self.refuses(len(data), segment)
        if error:
            raise OSError(error, "scripted")
        self.sent.append((bytes(data), segment))

    def send(self, data: bytes) -> None:
        self._take(data, len(data))

    def sendto(self, data: bytes, address: object) -> None:
        assert address == PEER
        self._take(data, len(data))

    def sendmsg(self, parts: tuple[bytes], ancillary: Any, _flags: int, address: object) -> None:
        assert address in (PEER, None)
        ((level, kind, value),) = ancillary
        assert (level, kind) == (SOL_UDP, UDP_SEGMENT)
        self._take(parts[0], struct.unpack("=H", value)[0])

    def close(self) -> None:
        self.closed = True


class Loop:
    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}
        self.soon: list[Callable[[], None]] = []

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        assert fd not in self.writers
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        del self.writers[fd]

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)


class Owner(asyncio.DatagramProtocol):
    """The protocol and the receiver."""

    def __init__(self) -> None:
        self.errors: list[int | None] = []
        self.too_big: list[int] = []
        self.resumed = 0
        self.ended = 0

    def error_received(self, exc: Exception) -> None:
        assert isinstance(exc, OSError)
        self.errors.append(exc.errno)

    def packet_too_big(self, size: int) -> None:
        self.too_big.append(size)

    def send_resumed(self) -> None:
        self.resumed += 1

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.ended += 1


class Scene:
    def __init__(self, *, joins: bool = True) -> None:
        self.loop, self.sock, self.owner = Loop(), Sock(), Owner()
        self.sock.joins = joins
        self.transport = BatchedUdpTransport(
            cast("Any", self.loop), cast("Any", self.sock), self.owner, cast("Any", self.owner)
        )

    def writable(self) -> None:
        self.loop.writers[9]()

    def blocked(self) -> bool:
        return self.transport.blocked


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_kernel_that_joins_nothing_is_no_error() -> None:
    assert Scene().transport.joins
    assert not Scene(joins=False).transport.joins


def test_segments_are_one_call_and_a_lone_datagram_needs_no_segmentation(scene: Scene) -> None:
    scene.transport.send_segments(b"a" * 25, 10, PEER)
    scene.transport.sendto(b"lone", PEER)
    scene.transport.sendto(b"connected")
    assert scene.sock.sent == [(b"a" * 25, 10), (b"lone", 4), (b"connected", 9)]
    counters = scene.transport.counters
    assert (counters.send_calls, counters.sent_datagrams, counters.sent_bytes) == (3, 5, 38)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_kernel_without_segmentation_is_asked_once(scene: Scene, code: int) -> None:
    scene.sock.refuses = lambda size, segment: code if size > segment else 0
    scene.transport.send_segments(b"abcdef", 4, PEER)
    assert scene.sock.sent == [(b"abcd", 4), (b"ef", 2)]
    assert not scene.transport.segments
    scene.transport.send_segments(b"ghi", 2, PEER)
    assert scene.sock.sent[2:] == [(b"gh", 2), (b"i", 1)]


def test_segments_over_the_mtu_go_as_fragments_and_are_told(scene: Scene) -> None:
    probing = scene.sock.options[10]

    def refuses(size: int, segment: int) -> int:
        too_big = scene.sock.options[10] == probing and segment > 3
        return errno.EMSGSIZE if too_big else 0

    scene.sock.refuses = refuses
    scene.transport.send_segments(b"abcdef", 4, PEER)
    assert scene.sock.sent == [(b"abcd", 4), (b"ef", 2)]
    assert scene.owner.too_big == [4]
    assert scene.transport.segments, "the size was the fault"
    assert scene.sock.options[10] == probing, "DF is set again"


def test_a_probe_says_whether_the_interface_takes_it(scene: Scene) -> None:
    assert scene.transport.send_probe(b"abc", PEER)
    scene.sock.refuses = lambda _size, _segment: errno.EMSGSIZE
    assert not scene.transport.send_probe(b"abc", PEER)
    assert scene.owner.too_big == []
    scene.sock.refuses = lambda _size, _segment: errno.ENETUNREACH
    assert scene.transport.send_probe(b"abc", PEER), "it counts as lost"


def test_what_the_socket_does_not_take_waits_in_order_within_a_bound(scene: Scene) -> None:
    scene.sock.refuses = lambda _size, _segment: errno.EAGAIN
    half = SEND_QUEUE_MAX // 2
    for number in range(3):
        scene.transport.send_segments(bytes([number]) * half, half, PEER)
    assert scene.blocked()
    assert scene.transport.drops == {"socket-full": 1, "unreachable": 0}
    scene.writable()
    assert scene.blocked()
    scene.sock.refuses = lambda _size, _segment: 0
    scene.writable()
    assert [data[0] for data, _ in scene.sock.sent] == [0, 1]
    assert not scene.blocked()
    assert scene.loop.writers == {}
    assert scene.owner.resumed == 1


def test_a_failure_in_the_queue_does_not_hold_it_up(scene: Scene) -> None:
    scene.sock.refuses = lambda _size, _segment: errno.ENOBUFS
    for data in (b"a", b"bb", b"ccc"):
        scene.transport.sendto(data, PEER)
    scene.sock.refuses = lambda size, _segment: errno.ENETUNREACH if size == 2 else 0
    scene.writable()
    assert [data for data, _ in scene.sock.sent] == [b"a", b"ccc"]
    assert scene.owner.errors == [errno.ENETUNREACH]
    assert scene.transport.counters.send_errors == 1
    assert scene.transport.drops == {"socket-full": 0, "unreachable": 1}


def test_after_the_end_nothing_is_sent_and_what_waited_is_counted(scene: Scene) -> None:
    scene.sock.refuses = lambda _size, _segment: errno.EAGAIN
    scene.transport.sendto(b"waits", PEER)
    scene.transport.close()
    scene.transport.abort()
    scene.transport.sendto(b"late", PEER)
    assert scene.transport.counters.dropped_datagrams == 1
    assert scene.loop.readers == {}
    assert scene.loop.writers == {}
    (closed,) = scene.loop.soon
    closed()
    assert scene.sock.closed
    assert scene.owner.ended == 1


def test_a_transport_without_a_udp_socket_is_left_alone() -> None:
    class Relay(asyncio.DatagramTransport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return default

    owner = Owner()
    assert take_over(owner, Relay(), cast("Any", owner), cast("Any", Loop())) is None
