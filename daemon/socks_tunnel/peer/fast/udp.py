"""One UDP socket that is read and written in batches, in the place of the event loop's transport.

A kernel that knows UDP segmentation offload takes up to 64 datagrams of one size in one call
(``UDP_SEGMENT``) and gives them back joined (``UDP_GRO``)::

    one buffer, one call        +-----------+-----------+-----------+-----+
    (`size` bytes)              |  segment  |  segment  |  segment  | <=  |
                                +-----------+-----------+-----------+-----+
    on the wire                  datagram 1  datagram 2  datagram 3   ...

Everything works without it too, with a system call for each datagram.

The socket carries a DTLS association and the STUN checks of aioice beside it (RFC 7983 section 7
tells them apart by the first byte), so it stands where aioice expects an
:class:`asyncio.DatagramTransport`. It has the methods of that class that aioice calls, but does not
inherit from it: all packets pass here, and attributes of a compiled class are fast only if none of
its bases is interpreted (docs/adr/0028).
"""

import asyncio
import errno
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, Protocol

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
"""linux/udp.h: Python's socket module has no names for these."""

_DISCOVERY: Final = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (41, 23)}
"""Level and option of IP_MTU_DISCOVER and IPV6_MTU_DISCOVER (linux/in.h, linux/in6.h)."""
_DISCOVERY_DONT: Final = 0
_DISCOVERY_PROBE: Final = 3

SEGMENTS_MAX: Final = 64
"""Datagrams in one segmented send: UDP_MAX_SEGMENTS of kernels before 6.9."""

SEGMENTED_BYTES_MAX: Final = 65_000
"""Bytes in one segmented send. The kernel's limit is a UDP datagram's: 65,507 over IPv4."""

RECEIVE_BUFFER: Final = 65_536
"""Bytes taken in one call: the longest datagram, or what GRO joined."""

READ_CALLS_MAX: Final = 64
"""Receiving calls in one turn of the event loop; datagrams that are not joined take one each."""

READ_SECONDS_MAX: Final = 0.002
"""Seconds of receiving in one turn, looked at after each call. The socket stays readable, so the
loop comes back after everybody else had a turn: one flooded link costs another at most this."""

LONE_TURNS: Final = 8
"""Turns in which a lone datagram is taken for all that there is, after one in which it was. Asking
for a second one would be a system call for nothing; if it is there, the loop comes back at once."""

SEND_QUEUE_MAX: Final = 262_144
"""Bytes that wait for a socket that takes nothing (EAGAIN). What comes beyond is dropped and
counted, as a full interface queue would."""

SOCKET_BUFFER: Final = 4 * 1024 * 1024
"""Bytes asked for as the kernel's buffers; it gives at most net.core.rmem_max and wmem_max."""

_INT: Final = Struct("=i")
_SHORT: Final = Struct("=H")
"""The values of UDP_GRO and UDP_SEGMENT, in the host's byte order."""

_WAIT: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})

Address = tuple[Any, ...]


class DatagramReceiver(Protocol):
    """Takes what the socket received: plain calls on the event loop."""

    def datagrams_received(
        self, buffer: bytearray, size: int, segment: int, address: Address
    ) -> None:
        """Takes `size` bytes of `buffer`: datagrams of `segment` bytes, the last maybe shorter.

        The buffer is reused after the call.
        """

    def turn_ended(self) -> None:
        """Learns that no more is read in this turn of the event loop."""

    def packet_too_big(self, size: int) -> None:
        """Learns that a datagram of `size` bytes is over the MTU of this machine's interface."""

    def send_resumed(self) -> None:
        """Learns that the socket takes datagrams again and none waits."""


@dataclass(slots=True)
class UdpCounters:
    """What one socket did. `calls` against `datagrams` shows how well batching works."""

    receive_calls: int = 0
    received_datagrams: int = 0
    received_bytes: int = 0
    send_calls: int = 0
    sent_datagrams: int = 0
    sent_bytes: int = 0
    waits: int = 0
    """How often the socket took nothing."""
    dropped_datagrams: int = 0
    """Datagrams given up because :data:`SEND_QUEUE_MAX` bytes waited."""
    send_errors: int = 0
    """Sends that the system refused for another reason, such as ENETUNREACH."""
    refused_datagrams: int = 0
    """Datagrams in those that were not sent in another way either."""


_scratch = threading.local()
"""The receive buffer: one for each thread, as a callback uses it only until it returns.

No subclass of `local`: compiled by mypyc, its instances crash the process in `isinstance`."""


def _receive_buffer() -> bytearray:
    """Returns the receive buffer of this thread."""
    buffer: bytearray | None = getattr(_scratch, "buffer", None)
    if buffer is None:
        buffer = _scratch.buffer = bytearray(RECEIVE_BUFFER)
    return buffer


class BatchedUdpTransport:
    """A datagram transport on a non-blocking UDP socket of its own, with batches both ways.

    `protocol` is told of errors and of the end, as by any transport; datagrams go to `receiver`.
    The transport owns `sock` and closes it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        receiver: DatagramReceiver,
    ) -> None:
        sock.setblocking(False)
        self.counters = UdpCounters()
        self.segments = True
        """Whether the kernel is asked to segment; False once it has refused to."""
        self._loop = loop
        self._socket = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._receiver = receiver
        self._closing = False
        self._reading = False
        self._lone_turns = 0
        self._waiting: deque[tuple[bytes, int, Address | None]] = deque()
        self._waiting_bytes = 0
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        self._discover_mtu(_DISCOVERY_PROBE)
        self.joins = self._ask_for_gro()
        """Whether the kernel joins received datagrams."""
        self.resume_reading()

    def _ask_for_gro(self) -> bool:
        try:
            self._socket.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError:  # before Linux 5.0, or no Linux
            return False
        return True

    def _discover_mtu(self, how: int) -> None:
        """Sets whether datagrams have DF and must fit the interface's MTU (RFC 8899 4.1)."""
        level, option = _DISCOVERY[self._socket.family]
        self._socket.setsockopt(level, option, how)

    # --- asyncio.DatagramTransport ------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Returns the socket or its addresses, as the transports of the event loop do."""
        if name == "socket":
            return self._socket
        if name == "sockname" and not self._closing:
            return self._socket.getsockname()
        return default

    @property
    def drops(self) -> Mapping[str, int]:
        """What was not sent, by reason."""
        counters = self.counters
        return {
            "socket-full": counters.dropped_datagrams,
            "unreachable": counters.refused_datagrams,
        }

    def is_closing(self) -> bool:
        """Returns whether the transport was closed."""
        return self._closing

    def close(self) -> None:
        """Closes the socket; what still waits for it is dropped. The protocol learns it soon."""
        if self._closing:
            return
        self._closing = True
        self.pause_reading()
        if self._waiting:
            self._loop.remove_writer(self._fd)
            self.counters.dropped_datagrams += len(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0
        self._loop.call_soon(self._closed)

    def abort(self) -> None:
        """Closes the socket, as :meth:`close` does: what waits is dropped in either case."""
        self.close()

    def _closed(self) -> None:
        self._socket.close()
        self._protocol.connection_lost(None)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Sends one datagram. Never raises: the protocol's `error_received` is told of errors."""
        self.send_segments(data, len(data), addr)

    # --- receiving ----------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Leaves what comes in the socket until :meth:`resume_reading`."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Reads again, from the next turn of the event loop on."""
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        buffer = _receive_buffer()
        receive = self._socket.recvmsg_into
        counters = self.counters
        deadline = time.perf_counter() + READ_SECONDS_MAX
        buffers = (buffer,)
        for call in range(READ_CALLS_MAX):
            try:
                size, ancillary, _, address = receive(buffers, 64)
            except OSError as error:
                if error.errno not in _WAIT:  # an ICMP error that was queued on the socket
                    self._protocol.error_received(error)
                elif call == 1:
                    self._lone_turns = LONE_TURNS
                break
            segment = size
            for level, kind, value in ancillary:
                if level == SOL_UDP and kind == UDP_GRO:
                    segment = int(_INT.unpack_from(value)[0])
            counters.receive_calls += 1
            if size == 0:
                continue  # an empty datagram means nothing here (RFC 7983), and costs no more
            counters.received_datagrams += -(-size // segment)
            counters.received_bytes += size
            self._receiver.datagrams_received(buffer, size, segment, address)
            if not self._reading or time.perf_counter() > deadline:
                break
            if self._lone_turns and not call and segment == size:
                self._lone_turns -= 1
                break
        self._receiver.turn_ended()

    # --- sending ------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """Whether datagrams wait because the socket takes nothing."""
        return bool(self._waiting)

    def send_segments(self, data: Any, segment: int, address: Address | None) -> None:
        """Sends `data` as datagrams of `segment` bytes, the last one maybe shorter.

        At most :data:`SEGMENTS_MAX` of them and :data:`SEGMENTED_BYTES_MAX` bytes. `data` may be
        reused after the call.
        """
        if self._closing:
            return
        if self._waiting:
            self._wait(data, segment, address)
            return
        try:
            self._send(data, segment, address)
        except OSError as error:
            if error.errno in _WAIT:
                self.counters.waits += 1
                self._wait(data, segment, address)
            else:
                self._refused(error, data, segment, address)

    def send_probe(self, data: Any, address: Address | None) -> bool:
        """Sends one datagram with DF; returns whether the interface's MTU allows it."""
        if self._closing or self._waiting:
            return True  # it counts as lost, as any probe may be
        try:
            self._send(data, len(data), address)
        except OSError as error:
            return error.errno != errno.EMSGSIZE
        return True

    def _send(self, data: Any, segment: int, address: Address | None) -> None:
        size = len(data)
        if segment >= size:
            if address is None:
                self._socket.send(data)
            else:
                self._socket.sendto(data, address)
            datagrams = 1
        elif self.segments:
            ancillary = ((SOL_UDP, UDP_SEGMENT, _SHORT.pack(segment)),)
            self._socket.sendmsg((data,), ancillary, 0, address)
            datagrams = -(-size // segment)
        else:
            self._send_singly(data, segment, address)
            return
        counters = self.counters
        counters.send_calls += 1
        counters.sent_datagrams += datagrams
        counters.sent_bytes += size

    def _send_singly(self, data: Any, segment: int, address: Address | None) -> None:
        view = memoryview(data)
        for start in range(0, len(view), segment):
            self.send_segments(view[start : start + segment], segment, address)

    def _refused(self, error: OSError, data: Any, segment: int, address: Address | None) -> None:
        """Deals with a send that failed: by its size, by segmentation, or by the network."""
        code = error.errno
        if segment < len(data) and code in {errno.EMSGSIZE, errno.EINVAL, errno.EIO}:
            # Kernels say EINVAL or EMSGSIZE for segments above the MTU, EIO for an interface
            # without checksum offload, EINVAL if they do not know the option. Single datagrams
            # tell which it is: if they are not too big, segmentation is what does not work.
            too_big = self.counters.send_errors
            self._send_singly(data, segment, address)
            if self.counters.send_errors == too_big and code != errno.EMSGSIZE:
                self.segments = False
        elif code == errno.EMSGSIZE:
            self.counters.send_errors += 1
            self.send_fragmentable(data, address)
            self._receiver.packet_too_big(len(data))
        else:
            self.counters.send_errors += 1
            self.counters.refused_datagrams += -(-len(data) // segment)
            self._protocol.error_received(error)

    def send_fragmentable(self, data: Any, address: Address | None) -> None:
        """Sends a datagram without DF, as IP fragments if it is over the MTU.

        For what cannot be cut anew: an SCTP chunk that has its TSN keeps its bounds (RFC 9260
        section 6.9).
        """
        if self._closing:
            return
        self._discover_mtu(_DISCOVERY_DONT)
        try:
            self._send(data, len(data), address)
        except OSError as error:
            self.counters.refused_datagrams += 1
            self._protocol.error_received(error)
        finally:
            self._discover_mtu(_DISCOVERY_PROBE)

    def _wait(self, data: Any, segment: int, address: Address | None) -> None:
        size = len(data)
        if self._waiting_bytes + size > SEND_QUEUE_MAX:
            self.counters.dropped_datagrams += -(-size // segment)
            return
        if not self._waiting:
            self._loop.add_writer(self._fd, self._writable)
        self._waiting.append((bytes(data), segment, address))
        self._waiting_bytes += size

    def _writable(self) -> None:
        waiting = self._waiting
        while waiting:
            data, segment, address = waiting[0]
            try:
                self._send(data, segment, address)
            except OSError as error:
                if error.errno in _WAIT:
                    return
                waiting.popleft()
                self._waiting_bytes -= len(data)
                if not waiting:
                    self._loop.remove_writer(self._fd)
                self._refused(error, data, segment, address)
                continue
            waiting.popleft()
            self._waiting_bytes -= len(data)
            if not waiting:
                self._loop.remove_writer(self._fd)
        self._receiver.send_resumed()


def take_over(
    protocol: asyncio.DatagramProtocol,
    transport: asyncio.DatagramTransport,
    receiver: DatagramReceiver,
    loop: asyncio.AbstractEventLoop,
) -> BatchedUdpTransport | None:
    """Moves the UDP socket of `transport` to a :class:`BatchedUdpTransport` of the same `protocol`.

    Returns None if there is no such socket: a TURN allocation has none. The old transport ends as
    if it had been closed, but `protocol` does not hear of that. Datagrams that have arrived wait in
    the kernel meanwhile. Works with the transports of asyncio and of uvloop.
    """
    original = transport.get_extra_info("socket")
    if original is None or original.type != socket.SOCK_DGRAM or original.family not in _DISCOVERY:
        return None
    sock = socket.socket(original.family, socket.SOCK_DGRAM, fileno=os.dup(original.fileno()))
    transport.set_protocol(asyncio.DatagramProtocol())
    transport.abort()
    return BatchedUdpTransport(loop, sock, protocol, receiver)
