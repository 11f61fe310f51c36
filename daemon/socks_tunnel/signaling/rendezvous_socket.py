"""Opens the WebSocket to a rendezvous service."""

import asyncio
import contextlib
import os
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from socks_tunnel.protocol.rendezvous import FRAME_MAX, PATH
from socks_tunnel.protocol.urls import Url, proxy_for
from socks_tunnel.signaling.rendezvous_relay import RelaySocket
from socks_tunnel.signaling.tls import client_context

HEARTBEAT: Final = 20.0
"""Seconds of silence after which the service is asked whether it is there; it has half of that."""

TCP_TIMEOUT: Final = 2.5
"""Seconds for the TCP handshake. TCP sends SYN again after 1, 3 and 7 s; another attempt is sooner
there when a network that was gone comes back."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that the service has to answer the end of a connection."""


async def open_socket(
    stack: contextlib.AsyncExitStack, url: str, ca: Path | None, proxy: str | None
) -> aiohttp.ClientWebSocketResponse:
    """Returns a WebSocket that `stack` will close. PINGs and PONGs are its reader's to deal with.

    `url`, `ca` and `proxy` are as for :class:`socks_tunnel.signaling.rendezvous.Rendezvous`. Raises
    :class:`OSError`, :class:`ValueError` and :class:`aiohttp.ClientError`.
    """
    http = Url.parse(url.replace("ws", "http", 1))
    through = proxy_for(http, proxy, os.environ)
    tls: ssl.SSLContext | bool = True
    if urlsplit(url).scheme == "wss":
        # Off the event loop: the system's authorities are many.
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
