"""Layouts of the SCTP packets and chunks of the data path (RFC 9260, RFC 8260, RFC 3758).

Only what is sent and received all the time is here. Chunks that are rare (INIT, COOKIE-ECHO,
RE-CONFIG and so on) are encoded and decoded by aiortc.

A packet, RFC 9260 section 3. The checksum is little-endian, all else is big-endian::

     0                   1                   2                   3
    +-------------------------------+-------------------------------+
    |          source port          |       destination port        |
    +-------------------------------+-------------------------------+
    |                       verification tag                        |
    +---------------------------------------------------------------+
    |       CRC32c of the packet, computed with this field zero     |
    +---------------------------------------------------------------+
    |  chunks, each padded with zeros to a multiple of 4 bytes ...  |

DATA, RFC 9260 section 3.3.1::

    +---------------+---------+-+-+-+-+-----------------------------+
    |   type = 0    |   res   |I|U|B|E|  length (16 + user data)    |
    +---------------+---------+-+-+-+-+-----------------------------+
    |                              TSN                              |
    +-------------------------------+-------------------------------+
    |       stream identifier       |    stream sequence number     |
    +-------------------------------+-------------------------------+
    |                  payload protocol identifier                  |
    +---------------------------------------------------------------+

I-DATA, RFC 8260 section 2.1. The last word is the payload protocol identifier if B is set, which
implies fragment 0, and the fragment sequence number if not::

    +---------------+---------+-+-+-+-+-----------------------------+
    |   type = 64   |   res   |I|U|B|E|  length (20 + user data)    |
    +---------------+---------+-+-+-+-+-----------------------------+
    |                              TSN                              |
    +-------------------------------+-------------------------------+
    |       stream identifier       |           reserved            |
    +-------------------------------+-------------------------------+
    |                      message identifier                       |
    +---------------------------------------------------------------+
    |    payload protocol identifier / fragment sequence number     |
    +---------------------------------------------------------------+

SACK, RFC 9260 section 3.3.4. Block starts and ends are offsets from the cumulative TSN::

    +---------------+---------------+-------------------------------+
    |   type = 3    |   flags = 0   |            length             |
    +---------------+---------------+-------------------------------+
    |                      cumulative TSN ack                       |
    +---------------------------------------------------------------+
    |            advertised receiver window credit (bytes)          |
    +-------------------------------+-------------------------------+
    |      number of gap blocks     |     number of duplicates      |
    +-------------------------------+-------------------------------+
    |  start : end of each block ...,  TSN of each duplicate ...    |

FORWARD-TSN, RFC 3758 section 3.2, has `[stream:2] [SSN:2]` after the new cumulative TSN;
I-FORWARD-TSN, RFC 8260 section 2.3.1, has `[stream:2] [reserved:15 bits, U:1 bit] [MID:4]`.

SACK-BATCH, a parameter of INIT and INIT ACK of our own. Its type's two high bits are `10`, so that
whoever does not know it skips it and does not report it (RFC 9260 section 3.2.1)::

    +-------------------------------+-------------------------------+
    |         type = 0x8F53         |          length = 8           |
    +-------------------------------+-------------------------------+
    |                          version = 2                          |
    +---------------------------------------------------------------+

It says: "my sender does not depend on one SACK for every two packets; one for each batch that you
have drained from your socket will do." From version 2 on, it also says: "I understand STAMP."

ZERO-CHECKSUM, a parameter of INIT and INIT ACK (RFC 9653 section 4). Whoever sends it takes packets
whose checksum is zero, where what carries them finds errors itself, as DTLS does (section 6). A
packet with INIT or COOKIE ECHO has a checksum nevertheless (section 5.2)::

    +-------------------------------+-------------------------------+
    |         type = 0x8001         |          length = 8           |
    +-------------------------------+-------------------------------+
    |         error detection method: 1, SCTP over DTLS             |
    +---------------------------------------------------------------+

STAMP, a chunk of our own, before a SACK for at least STAMPED_BYTES of user data. It says when the
packet was made. A peer gets none that did not announce version 2; the two high bits are `10`
nevertheless (RFC 9260 section 3.2)::

    +---------------+---------------+-------------------------------+
    |  type = 0x9D  |   flags = 0   |          length = 8           |
    +---------------+---------------+-------------------------------+
    |    microseconds of a clock that begins anywhere, modulo 2^32  |
    +---------------------------------------------------------------+
"""

from struct import Struct
from typing import Final

from google_crc32c import extend as crc32c

PACKET_HEADER: Final = 12
DATA: Final = 0
SACK: Final = 3
INIT: Final = 1
HEARTBEAT: Final = 4
HEARTBEAT_ACK: Final = 5
I_DATA: Final = 64
PAD: Final = 0x84
STAMP: Final = 0x9D
FORWARD_TSN: Final = 192
I_FORWARD_TSN: Final = 194

DATA_HEADER: Final = 16
I_DATA_HEADER: Final = 20
SACK_HEADER: Final = 16
STAMP_HEADER: Final = 8

LAST: Final = 1
"""Flag E of DATA and I-DATA: the last fragment of a message."""
FIRST: Final = 2
"""Flag B: the first fragment of a message."""
UNORDERED: Final = 4
"""Flag U: delivered as soon as it is complete."""
IMMEDIATE: Final = 8
"""Flag I: the sender wants a SACK at once (RFC 7053)."""

SACK_BATCH: Final = 0x8F53
SACK_BATCH_VALUE: Final = b"\x00\x00\x00\x02"
STAMP_VERSION: Final = 2
"""Version of SACK-BATCH from which on a peer understands STAMP."""

ZERO_CHECKSUM_ACCEPTABLE: Final = 0x8001
ZERO_CHECKSUM_OVER_DTLS: Final = b"\x00\x00\x00\x01"

WORD_MASK: Final = 0xFFFF_FFFF
TSN_MASK: Final = 0xFFFF_FFFF
TSN_HALF: Final = 0x8000_0000
"""A 32-bit distance from here on is a distance backwards (RFC 1982)."""

PADDING: Final = (b"", b"\x00\x00\x00", b"\x00\x00", b"\x00")
"""What follows a chunk, by the two low bits of its length."""

ADDRESSING: Final = Struct("!HHL")
"""Source port, destination port, verification tag."""
PACKET: Final = Struct("<8sL")
"""Addressing as bytes, and the checksum."""
CHECKSUM: Final = Struct("<L")
CHUNK: Final = Struct("!BBH")
"""Type, flags and length of any chunk."""
DATA_CHUNK: Final = Struct("!BBHLHHL")
I_DATA_CHUNK: Final = Struct("!BBHLHHLL")
SACK_CHUNK: Final = Struct("!BBHLLHH")
SACK_BODY: Final = Struct("!LLHH")
FORWARD_CHUNK: Final = Struct("!BBHL")
FORWARD_ENTRY: Final = Struct("!HH")
I_FORWARD_ENTRY: Final = Struct("!HHL")
PARAMETER: Final = Struct("!HH")
STAMP_CHUNK: Final = Struct("!BBHL")
WORD: Final = Struct("!L")

PARAMETERS_AT: Final = {1: 16, 2: 16, 4: 0, 5: 0, 6: 0, 9: 0, 130: 0}
"""Where the parameters begin in the value of INIT, INIT ACK, HEARTBEAT and its ACK, ABORT, ERROR
and RE-CONFIG."""

PARAMETERS_MAX: Final = 32
"""Parameters of one chunk; INIT of common stacks has about six."""

ZERO_CHECKSUM: Final = b"\x00\x00\x00\x00"


def checksum_of_header(header: bytes) -> int:
    """Returns the CRC32c of the 8 bytes of addressing and a zero checksum, to be continued."""
    return int(crc32c(0, header + ZERO_CHECKSUM))


def parameters_are_sound(body: bytes, offset: int) -> bool:
    """Whether the parameters, from `offset` on in the value of a chunk, can be walked through.

    RFC 9260 section 3.2.1: a parameter's length includes its header of 4 bytes. Whoever adds up
    lengths without a look at that (aiortc does) never comes to the end of a parameter of length 0.
    """
    count = 0
    while offset + 4 <= len(body):
        length = PARAMETER.unpack_from(body, offset)[1]
        count += 1
        if length < 4 or offset + length > len(body) or count > PARAMETERS_MAX:
            return False
        offset += length + (-length & 3)
    return True


def forward_tsn(
    cumulative: int, entries: list[tuple[int, int, int]], *, interleaved: bool
) -> bytes:
    """Returns a FORWARD-TSN or I-FORWARD-TSN chunk.

    Each entry is (stream, SSN or MID, 1 for unordered messages or 0). FORWARD-TSN names ordered
    messages only (RFC 3758 section 3.2), so unordered entries are left out of it.
    """
    if interleaved:
        body = b"".join([I_FORWARD_ENTRY.pack(sid, u, mid & TSN_MASK) for sid, mid, u in entries])
        kind = I_FORWARD_TSN
    else:
        body = b"".join([FORWARD_ENTRY.pack(sid, ssn & 0xFFFF) for sid, ssn, u in entries if not u])
        kind = FORWARD_TSN
    return FORWARD_CHUNK.pack(kind, 0, 8 + len(body), cumulative & TSN_MASK) + body


def heartbeat_probe(info: bytes, size: int) -> bytes:
    """Returns the chunks of an SCTP packet of `size` bytes: a HEARTBEAT with `info`, and a PAD.

    RFC 8899 section 6.2: the HEARTBEAT is acknowledged, the PAD chunk (RFC 4820) only fills.
    `size` is a multiple of 4 that leaves at least 4 bytes for the PAD.
    """
    length = 8 + len(info)
    beat = CHUNK.pack(HEARTBEAT, 0, length) + PARAMETER.pack(1, 4 + len(info)) + info
    beat += PADDING[length & 3]
    fill = size - PACKET_HEADER - len(beat)
    return beat + CHUNK.pack(PAD, 0, fill) + bytes(fill - 4)
