"""The pages of the exporter: a table of paths, and what all pages have in common.

An entry in :attr:`Exporter.pages` adds a page. Before a page is asked,
:mod:`socks_tunnel.exporter.admission` decides whether the request may be answered.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from socks_tunnel.exporter.admission import judge
from socks_tunnel.exporter.channel import State
from socks_tunnel.ops.exposition import CONTENT_TYPES, Format, negotiate
from socks_tunnel.ops.http_messages import Request, Response
from socks_tunnel.ops.tasks import spawn

_log = logging.getLogger(__name__)

RENDERS_WAITING_MAX: Final = 8
"""Scrapes that may wait for the one that is being rendered. Further ones get status 503."""

COMMON_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # No page of another site may load these pages as a picture, a script or a frame.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Headers of each answer, unless the page sets them itself."""


@dataclass(frozen=True, slots=True)
class Page:
    """The page for one path.

    With `linkable`, a link on a page of another site may open it. Only for pages that people read.
    """

    answer: Callable[[Request], Awaitable[Response]]
    linkable: bool = False


class Exporter:
    """Answers requests. `render` returns the text of the metrics, and is called in a thread.

    `names` are this host's names in lower case (`metrics.hosts`). `refused` is called with the
    reason of each refused request.
    """

    def __init__(
        self,
        state: State,
        render: Callable[[Format], bytes],
        *,
        names: Collection[str] = (),
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._refused = refused
        self._state = state
        self._names = names
        self._render = render
        self._rendering: asyncio.Task[Response] | None = None
        self._waiting = 0
        self.pages: dict[str, Page] = {
            "/metrics": Page(self._metrics),
            "/healthz": Page(self._health),
            "/readyz": Page(self._readiness),
        }

    async def answer(self, request: Request) -> Response:
        """Returns the page for a request. A query (after `?`) is ignored."""
        page = self.pages.get(request.path.partition("?")[0])
        refusal = judge(request.headers, self._names, linkable=page is not None and page.linkable)
        if refusal is not None:
            self._refused(refusal.reason)
            response = text(refusal.status, refusal.sentence)
        elif page is None:
            self._refused("unknown-page")
            response = text(404, f"no such page; there are {', '.join(sorted(self.pages))}")
        else:
            response = await page.answer(request)
        return replace(response, headers={**COMMON_HEADERS, **response.headers})

    async def _health(self, request: Request) -> Response:
        del request
        return _verdict(self._state.unhealthy())

    async def _readiness(self, request: Request) -> Response:
        del request
        return _verdict(self._state.unready())

    async def _metrics(self, request: Request) -> Response:
        wanted = negotiate(request.headers.get("accept", ""))
        if self._waiting >= RENDERS_WAITING_MAX:
            self._refused("busy")
            return text(503, f"{RENDERS_WAITING_MAX} scrapes wait already; try again later")
        self._waiting += 1
        try:
            while self._rendering is not None and not self._rendering.done():
                await asyncio.wait([self._rendering])
            # A task of its own, so that only one is rendered at a time, also if a scraper leaves.
            self._rendering = spawn("render", self._rendered(wanted))
            return await asyncio.shield(self._rendering)
        finally:
            self._waiting -= 1

    async def _rendered(self, wanted: Format) -> Response:
        try:
            # In a thread, so that /healthz is answered meanwhile.
            body = await asyncio.to_thread(self._render, wanted)
        except OSError as error:
            _log.error("the metrics cannot be read: %s", error)
            return text(503, "the metrics cannot be read")
        headers = {"Content-Type": CONTENT_TYPES[wanted], "Vary": "Accept"}
        return Response(200, body, headers)


def text(status: int, sentence: str) -> Response:
    """Returns an answer of one sentence."""
    content = {"Content-Type": "text/plain; charset=utf-8"}
    return Response(status, f"{sentence}\n".encode(), content)


def _verdict(reason: str | None) -> Response:
    return text(200, "ok") if reason is None else text(503, reason)
