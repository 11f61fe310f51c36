"""The exporter: metrics and health over HTTP, in a process of its own.

::

    /metrics   what all processes of the instance count, in the Prometheus text format
    /healthz   200 while the supervisor's event loop turns, else 503
    /readyz    200 while the instance can serve, else 503 with the reason

The supervisor pushes its state over IPC once a second. No request ever reaches the supervisor: a
scrape delays no packet, and one that hangs is noticed here by its silence.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.ops import metrics
from socks_tunnel.ops.http_server import Bounds, HttpServer, Request, Response
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    ChildHello,
    ChildReady,
    Control,
    IpcPing,
    IpcPong,
    ReadyState,
    Shutdown,
)

_log = logging.getLogger(__name__)

STATE_MAX_AGE: Final = 15.0
"""Seconds after which a supervisor that says nothing counts as hung."""

RENDERS_WAITING_MAX: Final = 8
"""Scrapes that may wait for the one that is being rendered; further ones get 503."""

BOUNDS: Final = Bounds(
    connections=64, per_address=32, requests=32, body=0, read_timeout=10.0, handle_timeout=30.0
)
"""What those who ask may spend: a connection has 10 s for its request, and no body."""


class State:
    """What the supervisor said last. `now` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._heard_at: float | None = None
        self._reason: str | None = "starting"

    def push(self, reason: str | None) -> None:
        """Records a state: ready (None), or not for `reason`."""
        self._heard_at = self._now()
        self._reason = reason

    def unhealthy(self) -> str | None:
        """Returns why the supervisor counts as hung; None if it does not."""
        if self._heard_at is None:
            return "the supervisor has not said anything yet"
        age = self._now() - self._heard_at
        if age > STATE_MAX_AGE:
            return f"the supervisor has not said anything for {age:.0f} s"
        return None

    def unready(self) -> str | None:
        """Returns why the instance cannot serve; None if it can."""
        return self.unhealthy() or self._reason


class SupervisorChannel(Channel):
    """The stream to the supervisor. `done` is called once, when there is nothing left to do."""

    def __init__(self, state: State, done: Callable[[], None]) -> None:
        super().__init__()
        self._state = state
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello."""
        super().connection_made(transport)
        self.send_control(0, ChildHello(os.getpid()))

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        """Tunnel messages have no business here."""
        del session, messages
        raise RemoteProtocolError("a tunnel message came to the exporter", kind="ipc-message")

    def on_control(self, session: int, message: Control) -> None:
        """Takes a control message of the supervisor."""
        del session
        match message:
            case ReadyState(reason=reason):
                self._state.push(reason)
            case IpcPing(number=number):
                self.send_control(0, IpcPong(number))
            case Shutdown():
                self.close()
            case _:
                raise RemoteProtocolError(
                    f"the exporter has no use for control '{message.OP}'", kind="ipc-control"
                )

    def on_closed(self, error: Exception | None) -> None:
        """End: the supervisor is gone, or wants it."""
        if error is not None:
            _log.error("the exporter lost the supervisor: %s", error)
        self._done()


class Exporter:
    """Answers requests for the three pages."""

    def __init__(
        self,
        state: State,
        directory: Path,
        *,
        render: Callable[[Path], bytes] = metrics.render,
    ) -> None:
        self._state = state
        self._directory = directory
        self._render = render
        self._rendering: asyncio.Task[Response] | None = None
        self._waiting = 0

    async def answer(self, request: Request) -> Response:
        """Returns the page of a request. What follows a `?` is of no interest."""
        match request.path.partition("?")[0]:
            case "/metrics":
                return await self._metrics()
            case "/healthz":
                return _verdict(self._state.unhealthy())
            case "/readyz":
                return _verdict(self._state.unready())
            case _:
                return _text(404, "there are /metrics, /healthz and /readyz")

    async def _metrics(self) -> Response:
        if self._waiting >= RENDERS_WAITING_MAX:
            return _text(503, "too many scrapes")
        self._waiting += 1
        try:
            while self._rendering is not None and not self._rendering.done():
                await asyncio.wait([self._rendering])
            # A task of its own: a scraper that leaves must not let the next one begin beside it.
            self._rendering = spawn("render", self._rendered())
            return await asyncio.shield(self._rendering)
        finally:
            self._waiting -= 1

    async def _rendered(self) -> Response:
        try:
            # In a thread: /healthz is answered meanwhile.
            body = await asyncio.to_thread(self._render, self._directory)
        except OSError as error:
            _log.error("the metrics cannot be read: %s", error)
            return _text(503, "the metrics cannot be read")
        return Response(200, body, {"Content-Type": metrics.CONTENT_TYPE})


def _verdict(reason: str | None) -> Response:
    return _text(200, "ok") if reason is None else _text(503, reason)


def _text(status: int, sentence: str) -> Response:
    content = {"Content-Type": "text/plain; charset=utf-8"}
    return Response(status, f"{sentence}\n".encode(), content)


async def serve(ipc_fd: int, listen_fd: int, directory: Path) -> None:
    """Serves on an inherited listening socket until the supervisor ends it or is gone."""
    done = asyncio.Event()
    state = State()
    http = HttpServer(
        "metrics",
        socket.socket(fileno=listen_fd),
        Exporter(state, directory).answer,
        BOUNDS,
        methods=frozenset({"GET", "HEAD"}),
    )
    http.start()
    try:
        channel = await connect(
            socket.socket(fileno=ipc_fd), lambda: SupervisorChannel(state, done.set)
        )
        channel.send_control(0, ChildReady())
        await done.wait()
    finally:
        await http.stop()
