"""The pages of the exporter: a table of paths, and what is common to all of them.

A page is added by an entry in :attr:`Exporter.pages`. Whether a request may be answered at all is
decided before its page is asked (:mod:`socks_tunnel.exporter.admission`).
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
"""Scrapes that may wait for the one that is being rendered; further ones get 503."""

COMMON_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # No page of another site may have ours as a picture, a script or a frame of its own.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every answer, unless the page has its own."""


@dataclass(frozen=True, slots=True)
class Page:
    """What answers one path.

    `linkable`: a link on a page of another site may lead here; only for pages that a person reads.
    """

    answer: Callable[[Request], Awaitable[Response]]
    linkable: bool = False


class Exporter:
    """Answers requests. `render` returns the text of the metrics, and is called in a thread.

    `names` are host names of ours, in lower case (`metrics.hosts`). `refused` is called with the
    reason for each request that is refused.
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
        """Returns the page of a request. What follows a `?` is of no interest."""
        page = self.pages.get(request.path.partition("?")[0])
        refusal = judge(request.headers, self._names, linkable=page is not None and page.linkable)
        if refusal is not None:
            self._refused(refusal.reason)
            response = text(refusal.status, refusal.sentence)
        elif page is None:
            self._refused("unknown-page")
            response = text(404, f"there are {', '.join(sorted(self.pages))}")
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
            return text(503, "too many scrapes")
        self._waiting += 1
        try:
            while self._rendering is not None and not self._rendering.done():
                await asyncio.wait([self._rendering])
            # A task of its own: a scraper that leaves must not let the next one begin beside it.
            self._rendering = spawn("render", self._rendered(wanted))
            return await asyncio.shield(self._rendering)
        finally:
            self._waiting -= 1

    async def _rendered(self, wanted: Format) -> Response:
        try:
            # In a thread: /healthz is answered meanwhile.
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
