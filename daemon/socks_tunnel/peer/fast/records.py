"""Records of one DTLS 1.2 association, many at a time, through OpenSSL's memory BIOs.

pyOpenSSL costs three microseconds a record; the calls of its binding, with one BIO call a batch,
less than one::

    packets -- SSL_write each --> out BIO -- one BIO_read --> joined records
    joined records -- one BIO_write --> in BIO -- SSL_read each --> packets

A DTLS 1.2 record (RFC 6347 section 4.1), of which a batch has one in each datagram::

    +------+---------+-------+-----------------+--------+------------- - -
    | type | version | epoch | sequence number | length | fragment
    |  1   |    2    |   2   |        6        |   2    |
    +------+---------+-------+-----------------+--------+------------- - -

The memory BIO joins what is written to it, so a record with a false length would swallow those
behind it. Only datagrams that are exactly one record of application data are therefore joined; any
other goes through OpenSSL alone, where it costs nobody but itself.
"""

import threading
from collections.abc import Sequence
from typing import Any, Final

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from socks_tunnel.peer.fast.udp import SEGMENTED_BYTES_MAX, SEGMENTS_MAX
from socks_tunnel.protocol.errors import RemoteProtocolError

DTLS_1_2: Final = 0xFEFD
APPLICATION_DATA: Final = 23
RECORD_HEADER: Final = 13

BIO_BYTES_MAX: Final = 16_384
"""Bytes written to the in BIO before they are read: OpenSSL takes one buffer, a little over the
longest record, out of the BIO at a time, and what the buffer cuts off is lost."""

PLAINTEXT_MAX: Final = 16_384
"""Bytes of one record's contents (RFC 6347 section 4.1)."""

RECORD_OVERHEAD_MAX: Final = RECORD_HEADER + 16 + 20 + 16
"""Bytes of a record beyond its contents in the CBC suites of aiortc: header, IV, MAC and padding
(RFC 5246 section 6.2.3.2)."""


class RecordError(RemoteProtocolError):
    """OpenSSL takes no more records for this association, because of what the peer has sent."""

    def __init__(self) -> None:
        super().__init__(
            "the peer's alerts or handshake messages have ended the DTLS association", kind="dtls"
        )


class _Buffers:
    """Buffers for records on their way: one set for each thread, used only within a call."""

    def __init__(self) -> None:
        self.cipher = ffi.new("char[]", 2 * SEGMENTED_BYTES_MAX)
        self.cipher_view = memoryview(ffi.buffer(self.cipher))
        self.plain = ffi.new("char[]", PLAINTEXT_MAX)
        self.plain_view = ffi.buffer(self.plain)


_scratch = threading.local()


def _buffers() -> _Buffers:
    """Returns the buffers of this thread."""
    buffers: _Buffers | None = getattr(_scratch, "buffers", None)
    if buffers is None:
        buffers = _scratch.buffers = _Buffers()
    return buffers


def count_single_records(data: bytes | bytearray, size: int, segment: int) -> int:
    """Returns the number of datagrams if each of them is one record of application data, else 0.

    `data` holds datagrams of `segment` bytes in its first `size` bytes, the last one maybe shorter.
    Each check looks at one byte of all headers at a time, so the cost for a datagram is small.
    """
    whole = size // segment if segment < size else 0  # a lone datagram is the rest
    end = whole * segment
    rest = size - end
    length = segment - RECORD_HEADER
    if whole and (
        length <= 0
        or data[0:end:segment] != b"\x17" * whole
        or data[1:end:segment] != b"\xfe" * whole
        or data[2:end:segment] != b"\xfd" * whole
        or data[3:end:segment] != bytes(whole)
        or data[4:end:segment] != b"\x01" * whole
        or data[11:end:segment] != bytes((length >> 8,)) * whole
        or data[12:end:segment] != bytes((length & 0xFF,)) * whole
    ):
        return 0
    if rest == 0:
        return whole
    length = rest - RECORD_HEADER
    if (
        length <= 0
        or data[end : end + 5] != b"\x17\xfe\xfd\x00\x01"
        or data[end + 11] << 8 | data[end + 12] != length
    ):
        return 0
    return whole + 1


def run_length(packets: Sequence[bytes], start: int, record_overhead: int) -> int:
    """Returns how many of `packets` from `start` on can leave in one segmented send.

    All have the size of the first but the last, which may be shorter.
    """
    size = len(packets[start])
    limit = min(
        len(packets), start + min(SEGMENTS_MAX, SEGMENTED_BYTES_MAX // (size + record_overhead))
    )
    end = start + 1
    while end < limit and len(packets[end]) == size:
        end += 1
    if end < limit and len(packets[end]) < size:
        end += 1
    return end - start


class Records:
    """The record layer of a connection whose handshake is over.

    `connection` must not be used otherwise between a write and the :meth:`written` after it.
    """

    def __init__(self, connection: SSL.Connection) -> None:
        private: Any = connection
        self._ssl = private._ssl  # noqa: SLF001
        self._in = private._into_ssl  # noqa: SLF001
        self._out = private._from_ssl  # noqa: SLF001
        self._connection = connection  # what owns the handles
        self.closed = False
        """Whether the peer has ended the association. Nothing more is read then."""
        self.failure: RecordError | None = None
        """Set if the peer has ended it by something else than close_notify."""
        name = connection.get_cipher_name() or ""
        # AES-GCM: 13 + 8 + 16 (RFC 5288). ChaCha20-Poly1305: 13 + 16 (RFC 7905).
        self.overhead = 37 if "GCM" in name else 29 if "CHACHA20" in name else RECORD_OVERHEAD_MAX
        """Bytes that a record has beyond its contents, at most."""

    def write(self, packets: Sequence[bytes]) -> memoryview:
        """Encrypts packets, a record each, and returns all records, joined, as :meth:`written`.

        At most :data:`SEGMENTED_BYTES_MAX` bytes. Raises :class:`RecordError`.
        """
        write, ssl = lib.SSL_write, self._ssl
        for packet in packets:
            if write(ssl, packet, len(packet)) <= 0:
                lib.ERR_clear_error()
                raise RecordError
        return self.written()

    def written(self) -> memoryview:
        """Returns what OpenSSL has written to the out BIO; valid until the next call."""
        buffers = _buffers()
        view = buffers.cipher_view
        size = lib.BIO_read(self._out, buffers.cipher, len(view))
        return view[: max(size, 0)]

    def read_joined(
        self, data: bytes | bytearray, size: int, segment: int, packets: list[bytes]
    ) -> int:
        """Appends the contents of datagrams that are one record each; returns how many were taken.

        `data` is as :func:`count_single_records` has approved it. Records that are forged,
        repeated or too old are passed over by OpenSSL.
        """
        if self.closed:
            return 0
        buffers = _buffers()
        read, plain, view = lib.SSL_read, buffers.plain, buffers.plain_view
        ssl, append = self._ssl, packets.append
        source = ffi.from_buffer(data)
        step = max(1, BIO_BYTES_MAX // segment) * segment
        taken = 0
        for start in range(0, size, step):
            length = min(step, size - start)
            lib.BIO_write(self._in, source + start, length)
            for _ in range(-(-length // segment)):
                count = read(ssl, plain, PLAINTEXT_MAX)
                if count <= 0:  # the BIO is empty now
                    self._stopped(count)
                    break
                append(view[:count])
                taken += 1
        return taken

    def read_datagram(self, datagram: bytes, packets: list[bytes]) -> int:
        """Appends the contents of the records of one datagram, and returns how many they were.

        Nothing is known of it but that its first byte means DTLS. RFC 6347 section 4.1.1 allows
        several records in one. All are read: those that stayed in OpenSSL would be delivered in the
        place of later ones, and the memory of ever more of them has no bound. OpenSSL may answer:
        see :meth:`written`.
        """
        if self.closed or len(datagram) > BIO_BYTES_MAX:
            return 0
        lib.BIO_write(self._in, datagram, len(datagram))
        buffers = _buffers()
        taken = 0
        while (count := lib.SSL_read(self._ssl, buffers.plain, PLAINTEXT_MAX)) > 0:
            packets.append(buffers.plain_view[:count])
            taken += 1
        self._stopped(count)
        return taken

    def _stopped(self, result: int) -> None:
        """Finds out why OpenSSL gave no record: nothing is left, the peer's end, or an error."""
        code = lib.SSL_get_error(self._ssl, result)
        if code == lib.SSL_ERROR_ZERO_RETURN:
            self.closed = True
        elif code != lib.SSL_ERROR_WANT_READ:
            lib.ERR_clear_error()  # the queue of errors is the thread's, not this connection's
            fatal_alert = lib.SSL_get_shutdown(self._ssl) & SSL.RECEIVED_SHUTDOWN
            if code == lib.SSL_ERROR_SSL or fatal_alert:
                # OpenSSL reads nothing more, so its BIO would keep whatever comes.
                self.closed = True
                self.failure = RecordError()


def cut(records: memoryview) -> list[memoryview]:
    """Returns the records that are joined in `records`, whatever their types and lengths."""
    pieces = []
    start = 0
    while start + RECORD_HEADER <= len(records):
        end = start + RECORD_HEADER + int.from_bytes(records[start + 11 : start + 13])
        pieces.append(records[start:end])
        start = end
    return pieces
