"""Records in batches: telling datagrams apart, cutting runs, and two associations in memory."""

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast.records import (
    RECORD_HEADER,
    count_single_records,
    run_length,
)
from socks_tunnel.peer.fast.udp import SEGMENTED_BYTES_MAX, SEGMENTS_MAX


def record(length: int, *, kind: int = 23, version: int = 0xFEFD, epoch: int = 1) -> bytes:
    """A record whose fragment has `length` bytes."""
    return (
        bytes([kind])
        + version.to_bytes(2)
        + epoch.to_bytes(2)
        + bytes(6)
        + length.to_bytes(2)
        + bytes(length)
    )


@given(st.integers(1, 2000), st.integers(1, 64), st.integers(0, 2000))
def test_joined_records_are_counted(length: int, count: int, last: int) -> None:
    joined = record(length) * count
    last = min(last, length - 1)
    if last:
        joined += record(last)
    for data in (joined, bytearray(joined) + b"the rest of the buffer"):
        assert count_single_records(data, len(joined), RECORD_HEADER + length) == count + bool(last)


@given(st.integers(2, 300), st.integers(1, 20), st.data(), st.sampled_from([0, 1, 2, 3, 4, 11, 12]))
def test_one_odd_header_byte_is_seen(
    length: int, count: int, data: st.DataObject, byte: int
) -> None:
    joined = bytearray(record(length) * count + record(length - 1))
    which = data.draw(st.integers(0, count))
    change = data.draw(st.integers(1, 255))
    joined[which * (RECORD_HEADER + length) + byte] ^= change
    assert count_single_records(joined, len(joined), RECORD_HEADER + length) == 0


@given(st.binary(min_size=1, max_size=400), st.integers(1, 400))
def test_any_bytes_can_be_asked_about(data: bytes, segment: int) -> None:
    segment = min(segment, len(data))
    count = count_single_records(data, len(data), segment)
    if count:
        pieces = [data[at : at + segment] for at in range(0, len(data), segment)]
        assert len(pieces) == count
        assert all(piece == record(len(piece) - 13)[:5] + piece[5:] for piece in pieces)


def test_a_record_without_contents_is_none() -> None:
    assert count_single_records(record(0), RECORD_HEADER, RECORD_HEADER) == 0


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=200), st.integers(29, 65))
def test_runs_fit_one_segmented_send(sizes: list[int], overhead: int) -> None:
    packets = [bytes(size) for size in sizes]
    start = 0
    while start < len(packets):
        count = run_length(packets, start, overhead)
        run = sizes[start : start + count]
        assert 1 <= count <= SEGMENTS_MAX
        assert all(size == run[0] for size in run[:-1])
        assert run[-1] <= run[0]
        assert sum(size + overhead for size in run) <= SEGMENTED_BYTES_MAX
        start += count
    assert start == len(packets)


def test_equal_packets_share_a_run_and_a_shorter_one_ends_it() -> None:
    packets = [bytes(1200)] * 10 + [bytes(100)] + [bytes(1200)] * 100
    assert run_length(packets, 0, 37) == 11
    assert run_length(packets, 11, 37) == min(SEGMENTS_MAX, SEGMENTED_BYTES_MAX // 1237)
    assert run_length([bytes(9000)] * 20, 0, 37) == SEGMENTED_BYTES_MAX // 9037
