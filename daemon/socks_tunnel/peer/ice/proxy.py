"""Connects through an HTTP proxy by CONNECT (RFC 9110 section 9.3.6)."""

import asyncio
import re
import socket
from typing import Final

from socks_tunnel.protocol.urls import Proxy

RESPONSE_MAX: Final = 16_384
"""Longest response of a proxy in bytes, up to the empty line."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: ([^\r\n]*))?\r?\n")


class ProxyError(OSError):
    """The proxy does not let us through; the text is a sentence."""


async def tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Asks the proxy at the other end of the connected `sock` for a connection to a server.

    The socket leads to that server afterwards. Raises :class:`ProxyError`.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request(proxy, host, port))
    response = b""
    # Data of a server that speaks first would be lost here, but TURN servers wait for clients.
    while not (head := re.search(rb"\r?\n\r?\n", response)):
        if len(response) > RESPONSE_MAX:
            raise ProxyError(f"the proxy {proxy} answers with more than {RESPONSE_MAX} bytes")
        piece = await loop.sock_recv(sock, 4096)
        if not piece:
            raise ProxyError(f"the proxy {proxy} closed the connection without an answer")
        response += piece
    check_response(response[: head.end()], proxy, host, port)
    if head.end() != len(response):
        raise ProxyError(f"the proxy {proxy} sent bytes that nobody asked for")


def request(proxy: Proxy, host: str, port: int) -> bytes:
    """Returns the request, with Basic authentication (RFC 7617) where the proxy has a user."""
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.credentials:
        lines.append(f"Proxy-Authorization: {proxy.credentials}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def check_response(head: bytes, proxy: Proxy, host: str, port: int) -> None:
    """Raises :class:`ProxyError` unless the status is 200 to 299."""
    status = _STATUS.match(head)
    if status is None:
        raise ProxyError(f"the proxy {proxy} does not answer in HTTP")
    code = int(status[1])
    if 200 <= code < 300:
        return
    if code == 407:
        what = "refuses the user name or password" if proxy.credentials else "wants a user name"
        raise ProxyError(f"the proxy {proxy} {what} (407)")
    words = (status[2] or b"").decode("ascii", "replace")[:80]
    raise ProxyError(
        f"the proxy {proxy} refuses CONNECT to {host} port {port} ({code} {words})".rstrip()
    )
