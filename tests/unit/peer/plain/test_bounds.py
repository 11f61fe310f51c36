"""Which SCTP packets aiortc may have, and which end the link."""

import contextlib
import struct
from typing import Any

import pytest
from aiortc.rtcsctptransport import (
    AbortChunk,
    Chunk,
    CookieEchoChunk,
    DataChunk,
    ForwardTsnChunk,
    HeartbeatAckChunk,
    HeartbeatChunk,
    InitChunk,
    ReconfigChunk,
    SackChunk,
)
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.plain.bounds import (
    CHUNKS_MAX,
    FRAGMENTS_END,
    FRAGMENTS_MAX,
    MISORDERED_MAX,
    STREAMS_MAX,
    Association,
    admit,
)
from socks_tunnel.protocol.errors import RemoteProtocolError


def association(**changes: Any) -> Association:
    fields: dict[str, Any] = {
        "last_received": 1000,
        "last_sent": 500,
        "misordered": 0,
        "fragments": 0,
    }
    return Association(**(fields | changes))


def packet(*chunks: Chunk | bytes) -> bytes:
    return bytes(12) + b"".join(bytes(c) for c in chunks)


def data(tsn: int, stream: int = 0, flags: int = 3) -> DataChunk:
    chunk = DataChunk(flags=flags)
    chunk.tsn, chunk.stream_id, chunk.user_data = tsn & 0xFFFFFFFF, stream, b"x"
    return chunk


def sack(cumulative: int, *gaps: tuple[int, int]) -> SackChunk:
    chunk = SackChunk()
    chunk.cumulative_tsn, chunk.gaps = cumulative & 0xFFFFFFFF, list(gaps)
    return chunk


def refused(content: bytes, where: Association | None = None) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        admit(content, where or association())
    assert str(caught.value).startswith("the peer ")
    return caught.value.kind


@given(st.binary(max_size=300))
def test_any_bytes_are_admitted_or_refused(content: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        admit(content, association())


# --- SACK -------------------------------------------------------------------------------------


def test_honest_acknowledgements_pass() -> None:
    for chunk in (sack(500), sack(400), sack(490, (2, 3), (5, 10)), sack(0xFFFFFFF0, (2, 516))):
        assert admit(packet(chunk), association())


def test_acknowledgements_pass_where_the_numbers_wrap() -> None:
    assert admit(packet(sack(-3, (2, 4))), association(last_sent=1))


@pytest.mark.parametrize(
    "chunk",
    [
        sack(501),
        sack(500 + 0x7FFFFFFF),
        sack(490, (2, 11)),
        sack(490, *[(0, 65_535)] * 290),
        sack(490, (1, 2), (2, 3)),
        sack(490, (5, 6), (2, 3)),
        sack(490, (5, 4)),
        sack(490, (0, 1)),
    ],
)
def test_lies_about_what_was_sent_end_the_link(chunk: SackChunk) -> None:
    assert refused(packet(chunk)) == "sctp-sack"


def test_a_sack_that_is_shorter_than_it_says_ends_the_link() -> None:
    content = struct.pack("!BBHLLHH", 3, 0, 16, 400, 0, 3, 0)
    assert refused(packet(content)) == "sctp-sack"


# --- DATA -------------------------------------------------------------------------------------


def test_chunks_wait_within_bounds() -> None:
    crowded = association(misordered=MISORDERED_MAX)
    assert admit(packet(data(1003)), association(misordered=MISORDERED_MAX - 1))
    assert not admit(packet(data(1003)), crowded)
    assert admit(packet(data(1001)), crowded), "what is missing is always welcome"
    assert admit(packet(data(990)), crowded), "a repeated chunk takes no room"
    full = association(fragments=FRAGMENTS_MAX, misordered=1)
    assert not admit(packet(data(1003)), full)
    assert admit(packet(data(1001)), full)


def test_what_no_gap_block_can_name_is_dropped() -> None:
    assert admit(packet(data(1000 + 65_535)), association())
    assert not admit(packet(data(1000 + 65_536)), association())
    assert not admit(packet(data(1000 + 0x7FFFFFFF)), association())


def test_an_endless_message_ends_the_link() -> None:
    for misordered in (0, 1):
        endless = association(fragments=FRAGMENTS_END, misordered=misordered)
        assert refused(packet(data(1001, flags=0)), endless) == "sctp-fragments"


def test_thousands_of_streams_end_the_link() -> None:
    assert admit(packet(data(1001, stream=STREAMS_MAX - 1)), association())
    assert refused(packet(data(1001, stream=STREAMS_MAX))) == "sctp-streams"


def test_data_before_init_is_aiortcs_business() -> None:
    assert admit(packet(data(1, stream=65_535)), association(last_received=None))


# --- FORWARD TSN, parameters, and the packet -------------------------------------------------


def forward(*streams: tuple[int, int]) -> ForwardTsnChunk:
    chunk = ForwardTsnChunk()
    chunk.cumulative_tsn, chunk.streams = 1010, list(streams)
    return chunk


def test_forward_tsn_names_streams_that_there_can_be() -> None:
    assert admit(packet(forward((0, 1), (0, 2), (3, 4))), association())
    assert refused(packet(forward((STREAMS_MAX, 1)))) == "sctp-streams"


@pytest.mark.parametrize("length", [4, 6, 10])
def test_forward_tsn_of_an_impossible_length_ends_the_link(length: int) -> None:
    content = struct.pack("!BBH", 192, 0, length) + bytes(length - 4)
    assert refused(packet(content)) == "sctp-forward-tsn"


@pytest.mark.parametrize(
    "kind",
    [InitChunk, HeartbeatChunk, HeartbeatAckChunk, AbortChunk, ReconfigChunk],
)
def test_a_parameter_of_no_length_ends_the_link(kind: Any) -> None:
    """aiortc would go on for ever with the same parameter."""
    chunk = kind()
    chunk.params.append((1, b"four"))
    assert admit(packet(chunk), association())
    content = bytearray(packet(chunk))
    content[-6:-4] = bytes(2)
    assert refused(bytes(content)) == "sctp-parameter"


def test_cookies_are_not_parameters() -> None:
    assert admit(packet(CookieEchoChunk(body=bytes(24))), association())


def test_a_packet_has_a_bounded_number_of_chunks() -> None:
    smallest = struct.pack("!BBH", 255, 0, 4)
    assert admit(packet(*[smallest] * CHUNKS_MAX), association())
    assert refused(packet(*[smallest] * (CHUNKS_MAX + 1))) == "sctp-packet"


@pytest.mark.parametrize("length", [0, 3, 5])
def test_what_aiortc_discards_by_itself_passes(length: int) -> None:
    assert admit(packet(struct.pack("!BBH", 3, 0, length)), association())
