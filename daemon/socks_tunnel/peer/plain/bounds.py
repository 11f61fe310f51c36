"""Checks SCTP packets before aiortc handles them, and drops those that would cost too much.

aiortc visits every TSN of a gap block, sorts all out-of-order TSNs at each chunk, visits all
fragments of a stream at each fragment, and loops for ever at a parameter of length zero. The peer
is authenticated but not trusted, and all links share one event loop. So each packet (RFC 9260
section 3) is checked here first::

    | source port, destination port, tag, checksum | chunk | chunk | ...

    chunk: | type | flags | length | value | padding to 4 |

A packet that no honest peer sends ends the link (:class:`RemoteProtocolError`). A packet that an
honest peer may send, but for which there is no room, is dropped, as RFC 9260 section 6.2 allows.
The peer sends it again.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from socks_tunnel.protocol.errors import RemoteProtocolError

MISORDERED_MAX: Final = 2048
"""Chunks that may wait for a missing one. aiortc's windows of 1 MiB hold 900 full ones."""

FRAGMENTS_MAX: Final = 2048
"""Chunks that may wait for the rest of their messages or for earlier messages. A message of the
tunnel is at most 65,536 bytes (docs/protocol.md section 1), 57 chunks of aiortc's size."""

FRAGMENTS_END: Final = 2 * FRAGMENTS_MAX
"""Number of waiting chunks at which the link ends although no chunk is missing. Dropping would not
help: it would drop the next chunk in order, without which no message is ever complete."""

GAP_MAX: Final = 65_535
"""How far a TSN may be ahead of the cumulative one. No gap block can name one beyond that (RFC 9260
section 3.3.4)."""

STREAMS_MAX: Final = 1024
"""Numbers of streams. A link has at most 66 channels, whose streams peers number from 0 or 1 on."""

CHUNKS_MAX: Final = 512
"""Chunks in one packet; the smallest has four bytes."""

_HEADER: Final = 12
_CHUNK = Struct("!BBH")
_TSN = Struct("!L")
_DATA = Struct("!LH")
_SACK = Struct("!LLHH")
_PAIR = Struct("!HH")

_DATA_TYPE: Final = 0
_SACK_TYPE: Final = 3
_FORWARD_TSN: Final = 192
_PARAMETERS: Final = {1: 16, 2: 16, 4: 0, 5: 0, 6: 0, 9: 0, 130: 0}
"""Chunks whose value is a list of parameters, and the bytes before the list: INIT, INIT ACK,
HEARTBEAT, HEARTBEAT ACK, ABORT, ERROR, RE-CONFIG."""


@dataclass(slots=True)
class Association:
    """What an association holds at present."""

    last_received: int | None
    """Cumulative TSN received; None before the peer's INIT."""
    last_sent: int
    """Highest TSN given to a chunk that was sent or is queued."""
    misordered: int
    """Chunks received beyond a missing one."""
    fragments: int
    """Chunks that wait for the rest of their messages, or for a message before theirs."""


def admit(packet: bytes, association: Association) -> bool:
    """Returns whether aiortc may have this packet. False: it is dropped for lack of room.

    Packets that aiortc drops by itself (too short, a false length) are not checked. Raises
    :class:`RemoteProtocolError` for a packet that no honest peer sends.
    """
    position, end = _HEADER, len(packet)
    chunks = 0
    while position + _CHUNK.size <= end:
        kind, _, length = _CHUNK.unpack_from(packet, position)
        if length < _CHUNK.size or position + length > end:
            return True  # aiortc drops the whole packet for it
        chunks += 1
        if chunks > CHUNKS_MAX:
            raise _abuse("packet", f"sent over {CHUNKS_MAX} chunks in one packet")
        start, stop = position + _CHUNK.size, position + length
        if kind == _DATA_TYPE:
            if not _admit_data(packet, start, stop, association):
                return False
        elif kind == _SACK_TYPE:
            _check_sack(packet, start, stop, association)
        elif kind == _FORWARD_TSN:
            _check_forward_tsn(packet, start, stop)
        elif kind in _PARAMETERS:
            check_parameters(kind, packet[start:stop])
        position += (length + 3) & ~3
    return True


def _admit_data(packet: bytes, start: int, stop: int, association: Association) -> bool:
    if stop - start < 12 or association.last_received is None:
        return True
    tsn, stream = _DATA.unpack_from(packet, start)
    if stream >= STREAMS_MAX:
        raise _abuse("streams", f"sent on stream {stream}; a link needs fewer than {STREAMS_MAX}")
    ahead = (tsn - association.last_received) & 0xFFFFFFFF
    if ahead == 1:
        if association.fragments >= FRAGMENTS_END:
            raise _abuse("fragments", f"sent {FRAGMENTS_END} fragments of messages without an end")
        return True
    if ahead == 0 or ahead >= 0x80000000:
        return True
    if ahead > GAP_MAX:
        return False
    return association.misordered < MISORDERED_MAX and association.fragments < FRAGMENTS_MAX


def _check_sack(packet: bytes, start: int, stop: int, association: Association) -> None:
    """Checks that only sent chunks are acknowledged (RFC 9260 sections 3.3.4 and 6.2.1).

    Gap blocks are offsets from the cumulative TSN, in ascending order, and do not overlap. So the
    TSNs in them are at most those that are outstanding.
    """
    if stop - start < _SACK.size:
        return
    cumulative, _, blocks, duplicates = _SACK.unpack_from(packet, start)
    if start + _SACK.size + 4 * (blocks + duplicates) > stop:
        raise _abuse("sack", "sent a SACK that is shorter than it says")
    beyond = (association.last_sent - cumulative) & 0xFFFFFFFF
    if beyond >= 0x80000000:
        raise _abuse("sack", "acknowledged what was never sent")
    last = 0
    for number in range(blocks):
        first, final = _PAIR.unpack_from(packet, start + _SACK.size + 4 * number)
        if not last < first <= final:
            raise _abuse("sack", "sent gap blocks that overlap or are out of order")
        last = final
    if last > beyond:
        raise _abuse("sack", "acknowledged in a gap block what was never sent")


def _check_forward_tsn(packet: bytes, start: int, stop: int) -> None:
    """Checks that the streams can exist (RFC 3758 section 3.2)."""
    if (stop - start) % 4 or stop - start < _TSN.size:
        raise _abuse("forward-tsn", "sent a FORWARD TSN of an impossible length")
    for position in range(start + _TSN.size, stop, _PAIR.size):
        stream, _ = _PAIR.unpack_from(packet, position)
        if stream >= STREAMS_MAX:
            raise _abuse("streams", f"sent a FORWARD TSN for stream {stream}")


def check_parameters(kind: int, value: bytes) -> None:
    """Checks that each parameter of a chunk is as long as its header (RFC 9260 section 3.2.1).

    Raises :class:`RemoteProtocolError`. Nothing is checked of chunks that have no parameters.
    """
    position = _PARAMETERS.get(kind, len(value))
    while position + 4 <= len(value):
        _, length = _PAIR.unpack_from(value, position)
        if length < 4:
            raise _abuse("parameter", f"sent a parameter of {length} bytes")
        position += (length + 3) & ~3


def _abuse(kind: str, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the peer {what}", kind=f"sctp-{kind}")
