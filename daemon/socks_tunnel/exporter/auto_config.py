"""`/proxy.pac`: the proxy auto-config file of a gateway, for the browsers that it serves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from socks_tunnel.exporter.site import text
from socks_tunnel.ops.http_messages import Request, Response
from socks_tunnel.protocol import pac
from socks_tunnel.protocol.addresses import HostPort, parse_host_port, parse_ip
from socks_tunnel.protocol.routes import Route
from socks_tunnel.protocol.settings import RouteSettings

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = 5.0
"""Seconds that the supervisor has to send the routes in force."""


class AutoConfig:
    """Answers requests for the file. `ask` asks the supervisor for the routes in force."""

    def __init__(self, ask: Callable[[str], Awaitable[list[Any]]]) -> None:
        self._ask = ask

    async def page(self, request: Request) -> Response:
        """Returns the file, or why there is none."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                rows = await self._ask("routes")
        except (ConnectionError, TimeoutError):
            return text(503, "the supervisor does not answer")
        if not rows:
            return text(404, "an endpoint has no proxy")
        proxy = _reachable(rows[0]["listen"], request.headers)
        if proxy is None:
            return text(404, "the gateway has no listener that a browser can use")
        routes = [
            Route.parse(RouteSettings(f"routes[{number}]", hosts=hosts, ports=ports))
            for number, (hosts, ports) in enumerate(rows[0]["routes"])
        ]
        try:
            body = pac.script(routes, proxy.host, proxy.port, rows[0]["protocols"])
        except ValueError as error:
            _log.warning("/proxy.pac: %s", error)
            return text(503, str(error))
        return Response(200, body.encode(), {"Content-Type": pac.CONTENT_TYPE})


def _reachable(listeners: list[str], headers: Mapping[str, str]) -> HostPort | None:
    """Returns the first listener that a browser can reach, or None.

    For a listener on all addresses, this is the host of the request with the listener's port.
    """
    for listener in listeners:
        if listener.startswith("unix:"):
            continue
        address = parse_host_port(listener)
        ip = parse_ip(address.host)
        if ip is None or not ip.is_unspecified:
            return address
        asked = _host(headers.get("host", ""))
        if asked:
            return HostPort(asked, address.port)
    return None


def _host(field: str) -> str:
    """Returns the host of a Host header (RFC 9110 section 7.2), without its port."""
    if field.startswith("["):
        return field[1:].partition("]")[0]
    return field.partition(":")[0]
