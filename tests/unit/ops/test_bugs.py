"""What may be said of a bug that somebody outside can provoke."""

import logging

import pytest

from socks_tunnel.ops.bugs import KINDS_MAX, BugLog

_log = logging.getLogger("test")


def caught(number: int) -> Exception:
    """An exception of a kind of its own for each number."""
    try:
        exec(compile("\n" * number + "raise LookupError", "made up", "exec"))
    except LookupError as error:
        return error
    raise AssertionError


def test_a_kind_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    bugs = BugLog()
    for number in (1, 1, 2, 1):
        bugs.tell(_log, "link office ended", caught(number))
    assert caplog.messages == ["link office ended; this is logged once for its kind"] * 2
    assert all(record.exc_info for record in caplog.records)


def test_an_exception_that_was_never_raised_is_a_kind_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bugs = BugLog()
    bugs.tell(_log, "first", KeyError("a"))
    bugs.tell(_log, "second", KeyError("b"))
    assert len(caplog.messages) == 1


def test_what_is_done_again_and_again_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    bugs = BugLog()
    done = []
    for number in range(3):
        with bugs.going_on(_log, "the look at children met a bug"):
            if number:
                raise LookupError
            done.append(number)
    assert done == [0]
    assert caplog.messages == ["the look at children met a bug; this is logged once for its kind"]
    with pytest.raises(KeyboardInterrupt), bugs.going_on(_log, "no bug"):
        raise KeyboardInterrupt


def test_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    bugs = BugLog()
    for number in range(KINDS_MAX + 2):
        bugs.tell(_log, "ended", caught(number))
    assert [bool(record.exc_info) for record in caplog.records] == [True] * KINDS_MAX + [False] * 2
