"""How much Python a call executes: a measure of work that no load of the machine changes."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_executed(call: Callable[[], Any]) -> int:
    """Returns how many lines of Python the call runs through, in all that it calls.

    A line takes about 30 to 100 nanoseconds here, so 10,000 of them are less than a millisecond.
    """
    count = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
