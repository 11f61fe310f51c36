"""Layouts, against bytes written by hand and against aiortc's codecs."""

import pytest
from aiortc.rtcsctptransport import ForwardTsnChunk, HeartbeatChunk, parse_packet
from google_crc32c import extend as crc32c

from socks_tunnel.peer.fast import wire


def test_forward_tsn_is_what_aiortc_reads() -> None:
    packed = wire.forward_tsn(2**32 + 7, [(1, 65_537, 0), (2, 9, 1)], interleaved=False)
    chunk = ForwardTsnChunk(body=packed[4:])
    assert packed[0] == ForwardTsnChunk.type
    # RFC 3758 section 3.2: only ordered messages are named, with their 16-bit sequence number.
    assert (chunk.cumulative_tsn, chunk.streams) == (7, [(1, 1)])


def test_i_forward_tsn_layout() -> None:
    packed = wire.forward_tsn(5, [(1, 2**32 + 3, 0), (2, 9, 1)], interleaved=True)
    assert packed == bytes.fromhex("c2 00 0018 00000005 0001 0000 00000003 0002 0001 00000009")


@pytest.mark.parametrize("size", [1_132, 1_432, 8_932])
def test_a_probe_has_the_size_that_was_asked_for(size: int) -> None:
    header = wire.ADDRESSING.pack(5000, 5000, 1)
    chunks = wire.heartbeat_probe(b"sixteen bytes ..", size)
    crc = wire.CHECKSUM.pack(crc32c(wire.checksum_of_header(header), chunks))
    packet = header + crc + chunks
    assert len(packet) == size
    _, _, _, parsed = parse_packet(packet)  # which skips the PAD chunk (RFC 4820)
    (beat,) = parsed
    assert isinstance(beat, HeartbeatChunk)
    assert beat.params == [(1, b"sixteen bytes ..")]


@pytest.mark.parametrize(
    ("body", "sound"),
    [
        (b"", True),
        (b"\x00\x01\x00\x04", True),
        (b"\x00\x01\x00\x05x\x00\x00\x00\x00\x01\x00\x04", True),
        (b"\x00\x01\x00\x05x", True),  # padding of the last one may be outside of the chunk
        (b"\x00\x01\x00\x03", False),
        (b"\x00\x01\x00\x00", False),
        (b"\x00\x01\x00\x09abcd", False),
        (b"\x00\x01\x00\x04" * wire.PARAMETERS_MAX, True),
        (b"\x00\x01\x00\x04" * (wire.PARAMETERS_MAX + 1), False),
    ],
)
def test_parameters_are_walked_through_or_refused(body: bytes, sound: bool) -> None:
    assert wire.parameters_are_sound(bytes(16) + body, 16) is sound


def test_our_parameter_is_skipped_by_whoever_does_not_know_it() -> None:
    # RFC 9260 section 3.2.1: 10 in the two high bits means "skip, do not report".
    assert wire.SACK_BATCH >> 14 == 0b10
    assert wire.ZERO_CHECKSUM_ACCEPTABLE >> 14 == 0b10
