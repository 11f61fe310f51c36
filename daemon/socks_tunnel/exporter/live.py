"""The status page and its updates by server-sent events (HTML standard, section 9.2).

While a page is open, the supervisor is asked once in :data:`PERIOD` seconds, for all pages. A
stream holds only one event: a slow reader misses some, and delays nobody.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from socks_tunnel.exporter.history import PERIOD as POINT_PERIOD
from socks_tunnel.exporter.history import History, add_up
from socks_tunnel.exporter.site import text
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.exposition import counted
from socks_tunnel.ops.http_messages import Request, Response
from socks_tunnel.ops.tasks import spawn

_log = logging.getLogger(__name__)
_bugs = BugLog()

STREAMS_MAX: Final = 16
"""Streams at a time. Further ones get status 503."""

PERIOD: Final = 2.0
"""Seconds from one event to the next."""

ANSWER_TIMEOUT: Final = 5.0
"""Seconds that the supervisor has to answer."""

PAGE: Final = Path(__file__).with_name("page.html")

_INLINE: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Watch:
    """One stream of events. :meth:`close` frees its place."""

    def __init__(self, live: "Live") -> None:
        self._live = live
        self._number = 0
        self.changed = asyncio.Event()
        self.changed.set()  # the first event is sent at once

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterates over events."""
        return self

    async def __anext__(self) -> bytes:
        await self.changed.wait()
        self.changed.clear()
        self._number, points = self._live.history.since(self._number)
        event = {
            **self._live.state,
            "points": [point.as_row() for point in points],
            "totals": self._live.history.totals,
        }
        return b"data: " + json.dumps(event, default=str).encode() + b"\n\n"

    def close(self) -> None:
        """Ends the stream."""
        self._live.left(self)


class Live:
    """The contents of the status page, and its streams.

    `ask` asks the supervisor for the overview. `directory` has the files of the metrics. `refused`
    is called with the reason of each refused request.
    """

    def __init__(
        self,
        ask: Callable[[str], Awaitable[list[Any]]],
        directory: Path,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._refused = refused
        self.history = History()
        self.state: dict[str, Any] = {"overview": None, "problem": "the supervisor is being asked"}
        self._ask = ask
        self._directory = directory
        self._watches: set[Watch] = set()
        self._polling: asyncio.Task[None] | None = None

    @property
    def streams(self) -> int:
        """Open streams."""
        return len(self._watches)

    # --- pages --------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """Returns the page. Its file is read each time, because this is rare."""
        del request
        body = await asyncio.to_thread(PAGE.read_bytes)
        return Response(
            200,
            body,
            {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Security-Policy": content_security_policy(body.decode()),
                "Cross-Origin-Opener-Policy": "same-origin",
                "X-Frame-Options": "DENY",
            },
        )

    async def events(self, request: Request) -> Response:
        """Returns a stream of events."""
        if len(self._watches) >= STREAMS_MAX:
            self._refused("busy")
            return text(503, f"{STREAMS_MAX} status pages are open already")
        headers = {"Content-Type": "text/event-stream"}
        if request.method == "HEAD":
            return Response(200, b"", headers)
        watch = Watch(self)
        self._watches.add(watch)
        if self._polling is None or self._polling.done():
            self._polling = spawn("ask for the status page", self._poll())
        return Response(200, headers=headers, stream=watch)

    def left(self, watch: Watch) -> None:
        """Forgets a stream that has ended."""
        self._watches.discard(watch)

    # --- what keeps it live -------------------------------------------------------------------

    async def record(self) -> None:
        """Takes a point of the history each :data:`POINT_PERIOD` seconds, until cancelled."""
        while True:
            with _bugs.going_on(_log, "a point of the history is missing"):
                # In a thread, because files are read and parsed.
                sums = await asyncio.to_thread(lambda: add_up(counted(self._directory)))
                self.history.take(sums, time.monotonic(), time.time())
            await asyncio.sleep(POINT_PERIOD)

    async def _poll(self) -> None:
        """Asks the supervisor while a page is open."""
        while self._watches:
            self.state = await self._asked()
            for watch in self._watches:
                watch.changed.set()
            await asyncio.sleep(PERIOD)

    async def _asked(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                rows = await self._ask("overview")
        except TimeoutError:
            return {"overview": None, "problem": "the supervisor does not answer"}
        except ConnectionError as error:
            return {"overview": None, "problem": str(error)}
        if not rows:
            return {"overview": None, "problem": "the supervisor has no answer at the moment"}
        return {"overview": rows[0], "problem": None}


def content_security_policy(page: str) -> str:
    """Returns a policy that allows what the page has inline, by its hashes, and its events."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
