"""Bytes of a stream that wait, in pieces, and what their memory costs. No I/O."""

from collections import deque
from typing import Final

from socks_tunnel.protocol.errors import LocalProtocolError

PIECE_COST: Final = 96
"""Bytes of memory that one kept piece takes besides its payload: the object's header and rounding,
and its slot in the queue. Counted, so that a stream in tiny pieces cannot take many times what an
account says."""

JOIN_MAX: Final = 1024
"""Bytes up to which a short piece is joined with the one before it. Copying so much costs less than
keeping one more piece."""


class ByteQueue:
    """Bytes in order, kept in the pieces in which they came; short ones are joined.

    `size` is the number of bytes in it and `cost` the memory that they take.
    """

    __slots__ = ("_pieces", "cost", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()
        self.size = 0
        self.cost = 0

    def __len__(self) -> int:
        return self.size

    def append(self, data: bytes) -> None:
        """Adds bytes at the end."""
        pieces = self._pieces
        count = len(data)
        self.size += count
        if pieces and len(pieces[-1]) + count <= JOIN_MAX:
            pieces[-1] = bytes(pieces[-1]) + data
            self.cost += count
            return
        pieces.append(data)
        self.cost += count + PIECE_COST

    def peek(self, pieces: int) -> list[bytes | memoryview]:
        """Returns the first so many pieces, for one `sendmsg`. They stay in the queue."""
        queue = self._pieces
        if len(queue) <= pieces:
            return list(queue)
        return [queue[i] for i in range(pieces)]

    def drop(self, count: int) -> None:
        """Removes `count` bytes from the front."""
        if count > self.size:
            raise LocalProtocolError(f"dropping {count} bytes of a queue of {self.size}")
        self.size -= count
        pieces = self._pieces
        while count:
            first = pieces[0]
            length = len(first)
            if length > count:
                pieces[0] = memoryview(first)[count:]
                self.cost -= count
                return
            pieces.popleft()
            self.cost -= length + PIECE_COST
            count -= length

    def clear(self) -> None:
        """Removes everything."""
        self._pieces.clear()
        self.size = self.cost = 0

    def export(self) -> list[bytes | memoryview]:
        """Returns the pieces, for a hand-over to another process. They stay in the queue."""
        return list(self._pieces)
