"""Reduces what aiortc and aioice log, and the errors of their tasks that are worth a line."""

import asyncio
import logging
import re
from typing import Any

from socks_tunnel.peer.aiortc_private import is_closing_noise

_log = logging.getLogger(__name__)


_ICE_PASSWORD = re.compile(r"(a=ice-pwd:)[^\s\\]+")


def _without_ice_password(record: logging.LogRecord) -> bool:
    """Removes the ICE passwords from the SDP that aiortc logs.

    With such a password, a stranger could move the path of a link.
    """
    record.msg = _ICE_PASSWORD.sub(r"\1...", record.getMessage())
    record.args = ()
    return True


def set_library_log_level(*, debug: bool) -> None:
    """Lets aiortc and aioice log everything, or only lines that help an operator.

    Without `debug`, aioice's line for each candidate pair and aiortc's tracebacks of what a peer
    sent are left out: :class:`~socks_tunnel.peer.link.Link` says in one sentence why a link ended.
    """
    logging.getLogger("aioice").setLevel(logging.NOTSET if debug else logging.WARNING)
    logging.getLogger("aiortc").setLevel(logging.NOTSET if debug else logging.ERROR)


def quiet_loop_exceptions(loop: asyncio.AbstractEventLoop) -> None:
    """Installs an exception handler on `loop` that recognizes the normal ends of aiortc's tasks.

    aiortc and aioice start tasks and timers that nobody awaits. They fail when a connection closes
    meanwhile, and the event loop would log a traceback for each. These become one debug line.
    Everything else goes to the earlier handler, or to the loop's default.
    """
    previous = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and is_closing_noise(error):
            _log.debug("a task of aiortc ended as its connection closed: %r", error)
        elif previous is not None:
            previous(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


# Their only logger that logs SDP (tests/unit/peer/test_quiet.py looks at all of them).
logging.getLogger("aiortc.rtcpeerconnection").addFilter(_without_ice_password)
set_library_log_level(debug=False)
