"""A set of integers as sorted ranges: what was received, or acknowledged, beyond a gap."""

from bisect import bisect_left


class Ranges:
    """Disjoint inclusive ranges in rising order, never adjacent to one another.

    A look-up is O(log n) for n ranges. A new range moves at most n pointers, in one call of C; the
    owner bounds n.
    """

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def __len__(self) -> int:
        return len(self.starts)

    def __contains__(self, value: int) -> bool:
        at = bisect_left(self.ends, value)
        return at < len(self.starts) and self.starts[at] <= value

    def clear(self) -> None:
        """Empties the set."""
        self.starts.clear()
        self.ends.clear()

    def is_new_range(self, value: int) -> bool:
        """Whether `value`, which is not in the set, touches no range: adding it makes a new one."""
        at = bisect_left(self.ends, value - 1)
        return at == len(self.starts) or self.starts[at] > value + 1

    def add(self, value: int) -> None:
        """Adds one integer."""
        ends = self.ends
        if ends and ends[-1] == value - 1:
            ends[-1] = value
        else:
            self.cover(value, value)

    def cover(self, low: int, high: int) -> list[tuple[int, int]]:
        """Adds `low` to `high`, both included; returns the parts that were not there before."""
        starts, ends = self.starts, self.ends
        count = len(starts)
        first = bisect_left(ends, low - 1)
        if first == count or starts[first] > high + 1:
            starts.insert(first, low)
            ends.insert(first, high)
            return [(low, high)]
        if starts[first] <= low and ends[first] >= high:
            return []
        new: list[tuple[int, int]] = []
        position = low
        last = first
        while last < count and starts[last] <= high + 1:
            if position < starts[last]:
                new.append((position, starts[last] - 1))
            position = max(position, ends[last] + 1)
            last += 1
        if position <= high:
            new.append((position, high))
        starts[first:last] = [min(low, starts[first])]
        ends[first:last] = [max(high, ends[last - 1])]
        return new

    def drop_until(self, value: int) -> None:
        """Removes all integers up to `value`, that one included."""
        starts, ends = self.starts, self.ends
        if not starts or starts[0] > value:
            return
        keep = bisect_left(ends, value + 1)
        del starts[:keep]
        del ends[:keep]
        if starts and starts[0] <= value:
            starts[0] = value + 1
