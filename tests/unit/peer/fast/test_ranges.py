"""Ranges against a plain set of integers."""

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast.ranges import Ranges

numbers = st.integers(0, 60)


def values(ranges: Ranges) -> set[int]:
    return {
        n
        for low, high in zip(ranges.starts, ranges.ends, strict=True)
        for n in range(low, high + 1)
    }


def check(ranges: Ranges) -> None:
    """Ranges are in order, and never touch each other."""
    for high, low in zip(ranges.ends, ranges.starts[1:], strict=False):
        assert high + 1 < low
    assert all(low <= high for low, high in zip(ranges.starts, ranges.ends, strict=True))


@given(st.lists(st.tuples(st.sampled_from(("add", "cover", "drop")), numbers, st.integers(0, 20))))
def test_it_is_a_set(steps: list[tuple[str, int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for what, low, length in steps:
        if what == "add":
            if low not in model:
                new = ranges.is_new_range(low)
                assert new == (not {low - 1, low + 1} & model)
                before = len(ranges)
                ranges.add(low)
                assert (len(ranges) > before) == new
                model.add(low)
        elif what == "cover":
            wanted = set(range(low, low + length + 1))
            parts = ranges.cover(low, low + length)
            got = [n for a, b in parts for n in range(a, b + 1)]
            assert got == sorted(wanted - model)
            model |= wanted
        else:
            ranges.drop_until(low)
            model = {n for n in model if n > low}
        check(ranges)
        assert values(ranges) == model
        assert all((n in ranges) == (n in model) for n in range(-1, 85))


def test_clear_empties_it() -> None:
    ranges = Ranges()
    ranges.cover(3, 9)
    ranges.clear()
    assert len(ranges) == 0
    assert 5 not in ranges
