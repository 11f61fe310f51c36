"""A budget of memory that the receive windows of many associations share."""

from typing import Final

WINDOWS_BYTES_MAX: Final = 268_435_456
"""Bytes by which all receive windows of a process together may grow beyond their first size."""


class WindowBudget:
    """Bytes that may be promised. Whoever reserves some releases them."""

    __slots__ = ("limit", "reserved")

    def __init__(self, limit: int = WINDOWS_BYTES_MAX) -> None:
        self.limit = limit
        self.reserved = 0

    def reserve(self, count: int) -> bool:
        """Takes `count` bytes; returns whether there were so many."""
        if self.reserved + count > self.limit:
            return False
        self.reserved += count
        return True

    def release(self, count: int) -> None:
        """Gives `count` bytes back."""
        self.reserved -= count
