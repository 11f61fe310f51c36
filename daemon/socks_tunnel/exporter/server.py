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
from typing import Any, Final

from aiohttp import web

from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.ops import metrics
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError

_log = logging.getLogger(__name__)

STATE_MAX_AGE: Final = 15.0
"""Seconds after which a supervisor that says nothing counts as hung."""

RENDERS_WAITING_MAX: Final = 8
"""Scrapes that may wait for the one that is being rendered; further ones get 503."""

_TEXT: Final = "text/plain"


class State:
    """What the supervisor said last. `now` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._heard_at: float | None = None
        self._reason: str | None = "starting"

    def push(self, reason: str | None) -> None:
        """Take note of a state: ready (None), or not for `reason`."""
        self._heard_at = self._now()
        self._reason = reason

    def unhealthy(self) -> str | None:
        """Say why the supervisor counts as hung; None if it does not."""
        if self._heard_at is None:
            return "the supervisor has not said anything yet"
        age = self._now() - self._heard_at
        if age > STATE_MAX_AGE:
            return f"the supervisor has not said anything for {age:.0f} s"
        return None

    def unready(self) -> str | None:
        """Say why the instance cannot serve; None if it can."""
        return self.unhealthy() or self._reason


class SupervisorChannel(Channel):
    """The stream to the supervisor. `done` is called once, when there is nothing left to do."""

    def __init__(self, state: State, done: Callable[[], None]) -> None:
        super().__init__()
        self._state = state
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        super().connection_made(transport)
        self.send_control(0, {"op": "hello", "pid": os.getpid()})

    def on_message(self, link: int, body: memoryview) -> None:
        """Tunnel messages have no business here."""
        del link, body
        raise RemoteProtocolError("a tunnel message came to the exporter", kind="ipc-message")

    def on_control(self, link: int, fields: dict[str, Any]) -> None:
        """Take a frame of the supervisor."""
        del link
        match fields["op"]:
            case "state":
                self._state.push(None if fields["ready"] else fields["reason"])
            case "ping":
                self.send_control(0, {"op": "pong", "id": fields["id"]})
            case "shutdown":
                self.close()
            case other:
                raise RemoteProtocolError(f"unknown control '{clip(other)}'", kind="ipc-control")

    def on_closed(self, error: Exception | None) -> None:
        """End: the supervisor is gone, or wants it."""
        if error is not None:
            _log.error("the exporter lost the supervisor: %s", error)
        self._done()


class Exporter:
    """The HTTP side: handlers of an aiohttp application."""

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
        self._rendering = asyncio.Lock()
        self._waiting = 0

    def application(self) -> web.Application:
        """Give the application."""
        app = web.Application(client_max_size=0)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        return app

    async def metrics(self, _request: web.Request) -> web.Response:
        """Serve the metrics."""
        if self._waiting >= RENDERS_WAITING_MAX:
            return web.Response(status=503, text="too many scrapes\n")
        self._waiting += 1
        try:
            async with self._rendering:
                # In a thread: /healthz is answered meanwhile.
                body = await asyncio.to_thread(self._render, self._directory)
        except OSError as error:
            _log.error("the metrics cannot be read: %s", error)
            return web.Response(status=503, text="the metrics cannot be read\n")
        finally:
            self._waiting -= 1
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    async def healthz(self, _request: web.Request) -> web.Response:
        """Tell whether the supervisor's loop turns."""
        return _verdict(self._state.unhealthy())

    async def readyz(self, _request: web.Request) -> web.Response:
        """Tell whether the instance can serve."""
        return _verdict(self._state.unready())


def _verdict(reason: str | None) -> web.Response:
    if reason is None:
        return web.Response(text="ok\n", content_type=_TEXT)
    return web.Response(status=503, text=f"{reason}\n", content_type=_TEXT)


async def serve(ipc_fd: int, listen_fd: int, directory: Path) -> None:
    """Serve on an inherited listening socket until the supervisor ends it or is gone."""
    done = asyncio.Event()
    state = State()
    runner = web.AppRunner(
        Exporter(state, directory).application(),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, socket.socket(fileno=listen_fd)).start()
        channel = await connect(
            socket.socket(fileno=ipc_fd), lambda: SupervisorChannel(state, done.set)
        )
        channel.send_control(0, {"op": "ready"})
        await done.wait()
    finally:
        await runner.cleanup()
