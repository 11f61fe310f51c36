"""Finds out from the kernel why a TCP connection stalls: packets may be too large for the path.

A path with a smaller MTU than its ends drops large packets; where ICMP is filtered too, nobody is
told (RFC 2923 section 2.1). Small packets pass, so the connection is made, and the first large
packet stalls it: in TLS that looks like a handshake that fails.
"""

import socket
import struct
from typing import Final

STALLED_AFTER: Final = 2
"""Retransmissions of the same packet in a row after which it counts as lost because of its size."""

# struct tcp_info of linux/tcp.h: offsets of the fields that are read.
_RETRANSMITS: Final = 2
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_SND_MSS, _UNACKED, _ADVMSS, _RCV_OOOPACK = 16, 24, 84, 224
_BYTES_ACKED, _BYTES_RECEIVED = 120, 128


def too_large(info: bytes) -> str | None:
    """Returns a clause about packets that are lost for their size, from TCP_INFO.

    Returns None if there is no sign of that. Packets that come out of order while earlier ones are
    missing are counted since Linux 5.4; an older kernel's shorter answer says nothing of them.
    """

    def field(offset: int) -> int:
        return int(_U32.unpack_from(info, offset)[0]) if len(info) >= offset + 4 else 0

    if len(info) > _RETRANSMITS and info[_RETRANSMITS] >= STALLED_AFTER and field(_UNACKED):
        return (
            f"the connection was made, but packets of up to {field(_SND_MSS)} bytes that we send "
            "are not acknowledged: is the MTU of the path smaller, and ICMP filtered?"
        )
    if field(_RCV_OOOPACK):
        return (
            "the connection was made, but larger packets of the other side (we take up to "
            f"{field(_ADVMSS)} bytes) are missing while smaller ones arrive: is the MTU of the "
            "path smaller, and ICMP filtered?"
        )
    return None


def silent(info: bytes) -> str | None:
    """Returns a clause about a peer that has only sent acknowledgements, from TCP_INFO.

    That is how it looks if all packets are too large, and also if the program there hangs.
    """

    def field(offset: int) -> int:
        return int(_U64.unpack_from(info, offset)[0]) if len(info) >= offset + 8 else 0

    if field(_BYTES_ACKED) <= 1 or field(_BYTES_RECEIVED):  # the SYN counts as one byte
        return None
    return (
        "the connection was made, but nothing came back: does the program there hang, or are its "
        "packets lost, because the MTU of the path is smaller and ICMP filtered?"
    )


def why_stalled(sock: socket.socket, *, waited: bool) -> str | None:
    """Returns why a connection without an answer may have stalled; None if that is unknown.

    `waited` says that the whole time for an answer has passed.
    """
    if sock.family == socket.AF_UNIX:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    except OSError:
        return None  # the connection has ended
    return too_large(info) or (silent(info) if waited else None)
