"""Fragments in any order, both kinds of chunk, against what was cut."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast.reassembly import AHEAD_MAX, Reassembly
from socks_tunnel.peer.fast.wire import FIRST, LAST, UNORDERED
from socks_tunnel.protocol.errors import RemoteProtocolError

START = 2**32 - 20
"""The first TSN, SSN and MID of these tests lie shortly before they wrap around."""

messages = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 7)), min_size=1, max_size=20
)
"""(stream, unordered, number of fragments) of each."""


def content(at: int, fragments: int) -> list[bytes]:
    return [b"%d.%d " % (at, n) for n in range(fragments)]


def flags_of(n: int, fragments: int, unordered: bool) -> int:
    flags = UNORDERED if unordered else 0
    return flags | (FIRST if n == 0 else 0) | (LAST if n == fragments - 1 else 0)


def expected(
    plan: list[tuple[int, bool, int]],
) -> tuple[dict[int, list[bytes]], list[tuple[int, bytes]]]:
    ordered: dict[int, list[bytes]] = {}
    unordered = []
    for at, (stream, free, fragments) in enumerate(plan):
        whole = b"".join(content(at, fragments))
        if free:
            unordered.append((stream, whole))
        else:
            ordered.setdefault(stream, []).append(whole)
    return ordered, sorted(unordered)


def check(reassembly: Reassembly, plan: list[tuple[int, bool, int]]) -> None:
    free = {b"".join(content(at, n)) for at, (_, is_free, n) in enumerate(plan) if is_free}
    ordered: dict[int, list[bytes]] = {}
    unordered = []
    for stream, ppid, message in reassembly.ready:
        assert ppid == 53
        if message in free:
            unordered.append((stream, message))
        else:
            ordered.setdefault(stream, []).append(message)
    assert (ordered, sorted(unordered)) == expected(plan)
    assert (reassembly.held, reassembly.fragments) == (0, 0)


@given(messages, st.randoms(use_true_random=False))
def test_data_in_any_order(plan: list[tuple[int, bool, int]], rng: random.Random) -> None:
    reassembly, chunks, tsn = Reassembly(), [], START
    ssns = dict.fromkeys(range(3), 0)
    for at, (stream, free, fragments) in enumerate(plan):
        for n, piece in enumerate(content(at, fragments)):
            ssn = 0 if free else ssns[stream]
            chunks.append((tsn, flags_of(n, fragments, free), stream, ssn, 53, piece))
            tsn += 1
        ssns[stream] += not free
    rng.shuffle(chunks)
    for chunk in chunks:
        reassembly.data(*chunk)
    check(reassembly, plan)


@given(messages, st.randoms(use_true_random=False))
def test_i_data_in_any_order(plan: list[tuple[int, bool, int]], rng: random.Random) -> None:
    reassembly, chunks = Reassembly(), []
    mids: dict[tuple[int, bool], int] = {}
    for stream in range(3):
        for tracks in (reassembly._ordered, reassembly._unordered):
            reassembly._open(tracks, stream).next = START
    for at, (stream, free, fragments) in enumerate(plan):
        mid = mids.setdefault((stream, free), START)
        mids[stream, free] += 1
        for n, piece in enumerate(content(at, fragments)):
            word = n or 53
            chunks.append((flags_of(n, fragments, free), stream, mid & 0xFFFFFFFF, word, piece))
    rng.shuffle(chunks)
    for chunk in chunks:
        reassembly.interleaved(*chunk)
    check(reassembly, plan)


def test_ssns_wrap_around() -> None:
    reassembly = Reassembly()
    for n in range(70_000):
        reassembly.data(n, FIRST | LAST, 1, n & 0xFFFF, 53, b"x")
    assert len(reassembly.ready) == 70_000


def test_a_message_waits_for_those_before_it() -> None:
    reassembly = Reassembly()
    reassembly.data(2, FIRST | LAST, 1, 1, 53, b"second")
    assert reassembly.ready == []
    assert (reassembly.held, reassembly.fragments) == (6, 1)
    reassembly.data(1, FIRST | LAST, 1, 0, 53, b"first")
    assert [message for _, _, message in reassembly.ready] == [b"first", b"second"]


def test_a_message_for_the_second_time_is_stale() -> None:
    reassembly = Reassembly()
    for tsn in (1, 2):
        reassembly.data(tsn, FIRST | LAST, 1, 0, 53, b"x")
    assert len(reassembly.ready) == 1
    assert reassembly.stale == 1


def test_skipped_data_lets_what_waited_go() -> None:
    """RFC 3758 section 3.6."""
    reassembly = Reassembly()
    reassembly.data(10, FIRST, 1, 0, 53, b"given ")
    reassembly.data(12, FIRST | LAST, 1, 1, 53, b"next")
    reassembly.skip_message(1, 0, 0, 1 << 16)
    reassembly.skip_fragments(10, 11)
    assert [message for _, _, message in reassembly.ready] == [b"next"]
    assert (reassembly.held, reassembly.fragments) == (0, 0)


def test_a_message_that_goes_on_after_what_was_skipped_is_kept() -> None:
    reassembly = Reassembly()
    reassembly.data(11, FIRST | UNORDERED, 1, 0, 53, b"un")
    reassembly.data(12, UNORDERED, 1, 0, 53, b"brok")
    reassembly.skip_fragments(10, 11)
    reassembly.data(13, LAST | UNORDERED, 1, 0, 53, b"en")
    assert [message for _, _, message in reassembly.ready] == [b"unbroken"]


def test_what_follows_a_skipped_beginning_is_dropped() -> None:
    reassembly = Reassembly()
    reassembly.data(11, UNORDERED, 1, 0, 53, b"rest")
    reassembly.data(12, UNORDERED | LAST, 1, 0, 53, b" of it")
    reassembly.skip_fragments(10, 10)
    assert (reassembly.held, reassembly.fragments) == (0, 0)


@pytest.mark.parametrize("unordered", [0, 1])
def test_skipped_i_data_is_dropped_and_comes_too_late(unordered: int) -> None:
    flags = UNORDERED * unordered
    reassembly = Reassembly()
    for mid in range(3):
        reassembly.interleaved(FIRST | flags, 1, mid, 53, b"x")
    reassembly.skip_message(1, 1, unordered, 1 << 32)
    assert reassembly.fragments == 1
    reassembly.interleaved(flags, 1, 0, 1, b"late")
    reassembly.interleaved(flags | LAST, 1, 1, 1, b"late")
    assert reassembly.stale == 2
    reassembly.interleaved(flags | LAST, 1, 2, 1, b"y")
    assert [message for _, _, message in reassembly.ready] == [b"xy"]
    assert (reassembly.held, reassembly.fragments) == (0, 0)


def test_skipping_twice_or_backwards_does_nothing() -> None:
    reassembly = Reassembly()
    reassembly.skip_message(1, 5, 0, 1 << 16)
    for ssn in (5, 3, 0xFFF0):
        reassembly.skip_message(1, ssn, 0, 1 << 16)
    reassembly.data(1, FIRST | LAST, 1, 6, 53, b"sixth")
    assert len(reassembly.ready) == 1


def test_a_jump_over_too_many_messages_is_refused() -> None:
    reassembly = Reassembly()
    reassembly.skip_message(1, AHEAD_MAX, 0, 1 << 32)
    with pytest.raises(RemoteProtocolError, match="skips"):
        reassembly.skip_message(1, 2 * AHEAD_MAX + 2, 0, 1 << 32)


def test_what_is_skipped_is_found_without_a_look_at_each_tsn() -> None:
    """A peer may skip 32,768 TSNs with each of a hundred chunks in one packet."""
    reassembly = Reassembly()
    step = 1 << 40
    for n in range(100):
        reassembly.data((n + 1) * step, FIRST, 0, 0, 53, b"x")
        reassembly.data((n + 1) * step + 2, FIRST, 0, 1, 53, b"y")
        # Ends because its time does not depend on how far it is.
        reassembly.skip_fragments(n * step + 3, (n + 1) * step + 1)
        assert (reassembly.held, reassembly.fragments) == (1, 1)
    reassembly.skip_fragments(100 * step + 3, 200 * step)
    assert (reassembly.held, reassembly.fragments) == (0, 0)


@pytest.mark.parametrize("unordered", [0, UNORDERED])
@pytest.mark.parametrize("last", [0, LAST])
def test_a_message_of_i_data_has_a_first_fragment(last: int, unordered: int) -> None:
    """RFC 8260 section 2.1: the place 0 belongs to the fragment with the B bit."""
    reassembly = Reassembly()
    with pytest.raises(RemoteProtocolError, match="not its first"):
        reassembly.interleaved(last | unordered, 0, 0, 0, b"x")


def test_a_reset_stream_starts_anew() -> None:
    reassembly = Reassembly()
    reassembly.interleaved(FIRST | LAST, 1, 0, 53, b"a")
    reassembly.interleaved(FIRST, 1, 1, 53, b"unfinished")
    reassembly.interleaved(FIRST | LAST, 1, 2, 53, b"waits")
    reassembly.interleaved(FIRST | UNORDERED, 1, 0, 53, b"unfinished")
    reassembly.reset(1)
    assert (reassembly.held, reassembly.fragments) == (0, 0)
    reassembly.interleaved(FIRST | LAST, 1, 0, 53, b"b")
    assert [message for _, _, message in reassembly.ready] == [b"a", b"b"]
