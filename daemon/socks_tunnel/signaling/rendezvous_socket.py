"""The WebSocket to a rendezvous service: opens it, and sends frames."""

import asyncio
import contextlib
import os
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.rendezvous import FRAME_MAX, PATH
from socks_tunnel.protocol.urls import Url, proxy_for
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.rendezvous_relay import RelaySocket
from socks_tunnel.signaling.tls import client_context

SEND_TIMEOUT: Final = 10.0
"""Seconds within which the kernel must take one frame. After that, the service is given up."""

HEARTBEAT: Final = 20.0
"""Seconds of silence after which the service gets a PING. It has half of that to answer."""

TCP_TIMEOUT: Final = 2.5
"""Seconds for the TCP handshake. TCP repeats its SYN after 1, 3 and 7 s. When a network comes back,
a new attempt is faster."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds for the service to answer the close of a connection."""


async def open_socket(
    stack: contextlib.AsyncExitStack, url: str, ca: Path | None, proxy: str | None
) -> aiohttp.ClientWebSocketResponse:
    """Returns a WebSocket that `stack` will close. Its reader has to handle PINGs and PONGs.

    `url`, `ca` and `proxy` are as for :class:`socks_tunnel.signaling.rendezvous.Rendezvous`. Raises
    :class:`OSError`, :class:`ValueError` and :class:`aiohttp.ClientError`.
    """
    http = Url.parse(url.replace("ws", "http", 1))
    through = proxy_for(http, proxy, os.environ)
    tls: ssl.SSLContext | bool = True
    if urlsplit(url).scheme == "wss":
        # In a thread, because reading the system's many CA certificates takes time.
        tls = await asyncio.to_thread(client_context, ca)
    login = None
    if through is not None and through.credentials:
        login = {"Proxy-Authorization": through.credentials}
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            trust_env=False,
            ws_response_class=RelaySocket,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=TCP_TIMEOUT),
        )
    )
    return await stack.enter_async_context(
        session.ws_connect(
            str(http).rstrip("/") + PATH,
            headers={"User-Agent": "socks-tunnel"},
            proxy=None if through is None else f"http://{through}",
            proxy_headers=login,
            ssl=tls,
            heartbeat=HEARTBEAT,
            autoping=False,
            max_msg_size=FRAME_MAX,
            compress=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
        )
    )


async def send_frame(ws: aiohttp.ClientWebSocketResponse, frame: bytes, url: str) -> None:
    """Sends a frame to the service at `url`. Raises :class:`SignalingError`.

    A service that accepts nothing for :data:`SEND_TIMEOUT` is given up. State that it must know,
    such as revoked enrolments, is sent again only on the next connection.
    """
    try:
        async with asyncio.timeout(SEND_TIMEOUT):
            await ws.send_bytes(frame)
    except TimeoutError:
        spawn("give the rendezvous up", ws.close())
        raise SignalingError(f"{url} has accepted nothing for {SEND_TIMEOUT:g} s") from None
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise SignalingError(f"cannot send to {url}: {clip(error)}") from None
