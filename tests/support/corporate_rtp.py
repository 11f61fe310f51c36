"""Watches RTP (RFC 3550) on an interface from outside: what arrived, in which order, how evenly.

A packet socket with the kernel's timestamps, so that the programs that talk are left alone.
"""

import contextlib
import ctypes
import itertools
import math
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from support.hosts import Host

PACKET_BYTES = 172
"""An RTP packet of 20 ms G.711: a header of 12 bytes and 160 samples."""

INTERVAL = 0.02
"""Seconds between two of them."""

CLOCK = 8000
"""Units of the RTP timestamp in a second, for G.711."""

_ETH_P_IP = 0x0800
_PACKET_HOST = 0
_SO_ATTACH_FILTER = 26
_SO_TIMESTAMPNS = 35
_IP_UDP_BYTES = 28

# Classic BPF (linux/filter.h): load half-word or byte, jump if equal, return how much to keep.
_LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_IP_TOTAL_LENGTH, _IP_PROTOCOL = 2, 9


@dataclass
class Stream:
    """The packets of one direction: sequence numbers and arrival times (seconds) as they came."""

    numbers: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def received(self) -> int:
        """Packets, without those that came twice."""
        return len(set(self.numbers))

    @property
    def repeated(self) -> int:
        """Packets that came again."""
        return len(self.numbers) - self.received

    @property
    def out_of_order(self) -> int:
        """Packets that came after a later one."""
        return sum(b < a for a, b in itertools.pairwise(self.numbers))

    def interarrival(self, share: float) -> float:
        """Milliseconds between two arrivals that this share of them does not exceed."""
        gaps = sorted(b - a for a, b in itertools.pairwise(self.times))
        return gaps[min(len(gaps) - 1, math.ceil(share * len(gaps)) - 1)] * 1000

    @property
    def jitter(self) -> float:
        """Interarrival jitter in milliseconds (RFC 3550 section 6.4.1) after the last packet."""
        jitter = 0.0
        transit = [t - s / CLOCK for t, s in zip(self.times, self.stamps, strict=True)]
        for before, after in itertools.pairwise(transit):
            jitter += (abs(after - before) - jitter) / 16
        return jitter * 1000

    def delay(self, since: "Stream", share: float) -> float:
        """Milliseconds that this share of the packets took at most since they were in another stream."""
        start = dict(zip(since.numbers, since.times, strict=True))
        taken = sorted(t - start[n] for n, t in zip(self.numbers, self.times, strict=True))
        return taken[math.ceil(share * len(taken)) - 1] * 1000

    def __str__(self) -> str:
        return (
            f"{self.received} packets, {self.out_of_order} out of order, jitter {self.jitter:.2f} ms, "
            f"interarrival p50 {self.interarrival(0.5):.1f} p99 {self.interarrival(0.99):.1f} "
            f"max {self.interarrival(1):.1f} ms"
        )


class RtpMeter:
    """The RTP packets that reach an interface: `streams` by (source port, destination port).

    `header` bytes stand before each RTP packet: 10 where it is a SOCKS5 UDP packet of an IPv4 address.
    """

    def __init__(self, host: Host, interface: str, header: int = 0) -> None:
        self.header = header
        self.streams: dict[tuple[int, int], Stream] = {}
        # Of no protocol until it is bound: what comes before the filter is there would be taken too.
        self._sock = host.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        self._attach(_IP_UDP_BYTES + header + PACKET_BYTES)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sock.bind((interface, _ETH_P_IP))
        self._wake, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name=f"RTP on {interface}")
        self._thread.start()

    def _attach(self, total_length: int) -> None:
        """Let the kernel keep UDP packets of exactly this length: a bulk transfer is not looked at."""
        code = b"".join(
            _INSTRUCTION.pack(*instruction)
            for instruction in (
                (_LOAD_HALF, 0, 0, _IP_TOTAL_LENGTH),
                (_JUMP_EQUAL, 0, 3, total_length),
                (_LOAD_BYTE, 0, 0, _IP_PROTOCOL),
                (_JUMP_EQUAL, 0, 1, socket.IPPROTO_UDP),
                (_RETURN, 0, 0, 0xFFFF),
                (_RETURN, 0, 0, 0),
            )
        )
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("HL", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._sock, self._end], [], [])
            if self._sock in ready:
                self._take()
            elif ready:
                return

    def _take(self) -> None:
        packet, ancillary, _, (_, _, kind, *_) = self._sock.recvmsg(2048, 64)
        if kind != _PACKET_HOST:  # its own packets, on their way out
            return
        source, destination = struct.unpack_from("!HH", packet, 20)
        rtp = packet[_IP_UDP_BYTES + self.header :]
        if rtp[0] >> 6 != 2:
            return
        number, stamp = struct.unpack_from("!HI", rtp, 2)
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
        stream = self.streams.setdefault((source, destination), Stream())
        stream.numbers.append(number)
        stream.stamps.append(stamp)
        stream.times.append(seconds + nanoseconds / 1e9)

    def close(self) -> None:
        """Stop watching; what was seen stays."""
        self._wake.close()
        self._thread.join()
        self._end.close()
        self._sock.close()

    @property
    def sent(self) -> Stream:
        """The direction that was seen first: on a client's host, what it sent."""
        return next(iter(self.streams.values()))

    @property
    def returned(self) -> Stream:
        """The direction against :attr:`sent`."""
        source, destination = next(iter(self.streams))
        return self.streams[destination, source]

    def call_to(self, port: int) -> tuple[Stream, Stream]:
        """What a client sent to this port, and what came back, where several calls are seen."""
        source = next(source for source, destination in self.streams if destination == port)
        return self.streams[source, port], self.streams[port, source]


@contextlib.contextmanager
def rtp_on(host: Host, interface: str, header: int = 0) -> Iterator[RtpMeter]:
    """Watch the RTP that reaches an interface during this block."""
    meter = RtpMeter(host, interface, header)
    try:
        yield meter
    finally:
        meter.close()
