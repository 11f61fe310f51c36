"""The exporter: metrics, health and the status page over HTTP, in a process of its own.

::

    /          the status page; /events updates it
    /proxy.pac which destinations a browser reaches through the proxy, by the routes in force
    /metrics   the metrics of all processes of the instance, as OpenMetrics or in the text format
    /healthz   200 while the supervisor's event loop turns, else 503
    /readyz    200 while the instance can serve, else 503 with the reason

The supervisor pushes its state over IPC once a second. A scrape or health check never reaches the
supervisor, so a scrape delays no packet, and a supervisor that hangs is noticed here by its
silence. The supervisor is asked only for the contents of an open status page, and for its routes
when a browser fetches /proxy.pac.
"""

import asyncio
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from socks_tunnel.exporter.auto_config import AutoConfig
from socks_tunnel.exporter.channel import State, SupervisorChannel
from socks_tunnel.exporter.live import Live
from socks_tunnel.exporter.site import Exporter, Page
from socks_tunnel.ipc.stream import connect
from socks_tunnel.ops.exposition import Renderer
from socks_tunnel.ops.http_messages import Bounds
from socks_tunnel.ops.http_server import HttpServer
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import LagMeter, spawn
from socks_tunnel.protocol.ipc import ChildReady

BOUNDS: Final = Bounds(
    connections=64, per_address=32, requests=32, body=0, read_timeout=10.0, handle_timeout=30.0
)
"""Limits for clients: a connection has 10 s for its request, which has no body."""


async def serve(
    ipc_fd: int, listen_fd: int, directory: Path, *, names: Collection[str] = ()
) -> None:
    """Serves on an inherited listening socket until the supervisor ends it or has ended itself.

    `ipc_fd` and `listen_fd` are descriptors, and `directory` has the files of the metrics. `names`
    are this host's names for requests (`metrics.hosts`).
    """
    done = asyncio.Event()
    state = State()
    metrics = Metrics()

    def observe(seconds: float) -> None:
        metrics.observe_lag(seconds)
        metrics.healthy.set(state.unhealthy() is None)
        metrics.ready.set(state.unready() is None)

    channel = await connect(
        socket.socket(fileno=ipc_fd), lambda: SupervisorChannel(state, done.set)
    )

    def refused(reason: str) -> None:
        metrics.http_refused_total.labels("metrics", reason).inc()

    live = Live(channel.ask, directory, refused)
    exporter = Exporter(state, Renderer(directory), names=names, refused=refused)
    exporter.pages["/"] = Page(live.page, linkable=True)
    exporter.pages["/events"] = Page(live.events)
    exporter.pages["/proxy.pac"] = Page(AutoConfig(channel.ask).page)
    http = HttpServer(
        "metrics",
        socket.socket(fileno=listen_fd),
        exporter.answer,
        BOUNDS,
        methods=frozenset({"GET", "HEAD"}),
        refused=refused,
    )
    http.start()
    lag = LagMeter(observe)
    background = spawn("keep the history", live.record())
    try:
        channel.send_control(0, ChildReady())
        await done.wait()
    finally:
        lag.cancel()
        background.cancel()
        await http.stop()
