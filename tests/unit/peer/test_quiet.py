"""Which exceptions of the event loop reach the log."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from socks_tunnel.peer import quiet_loop_exceptions, set_library_log_level


class Noise(ConnectionError):
    pass


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    monkeypatch.setattr(
        "socks_tunnel.peer.quiet.is_closing_noise", lambda error: isinstance(error, Noise)
    )
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_noise_is_one_debug_line(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    quiet_loop_exceptions(loop)
    with caplog.at_level(logging.DEBUG, "socks_tunnel.peer"):
        loop.call_exception_handler({"message": "never retrieved", "exception": Noise("gone")})
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info is None
    assert "gone" in record.getMessage()


@pytest.mark.parametrize(
    "context",
    [{"message": "m", "exception": ConnectionError()}, {"message": "no exception at all"}],
)
def test_all_else_goes_to_the_handler_that_was_there(
    loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: seen.append(context))
    quiet_loop_exceptions(loop)
    loop.call_exception_handler(context)
    assert seen == [context]


def test_or_to_the_default(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    quiet_loop_exceptions(loop)
    loop.call_exception_handler({"message": "a bug", "exception": KeyError("k")})
    (record,) = caplog.records
    assert record.levelno == logging.ERROR


def test_debug_lets_the_libraries_speak() -> None:
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.DEBUG)
        set_library_log_level(debug=True)
        assert logging.getLogger("aioice.ice").isEnabledFor(logging.DEBUG)
        assert logging.getLogger("aiortc.rtcdtlstransport").isEnabledFor(logging.DEBUG)
    finally:
        set_library_log_level(debug=False)
        root.setLevel(level)
    assert not logging.getLogger("aiortc.rtcdtlstransport").isEnabledFor(logging.WARNING)
