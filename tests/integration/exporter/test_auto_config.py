"""The page with the proxy auto-config file: which proxy it names, and when there is none."""

from typing import Any

import pytest

from socks_tunnel.exporter.auto_config import AutoConfig
from socks_tunnel.ops.http_messages import Request, Response


async def fetch(rows: list[Any] | Exception, host: str = "127.0.0.1:9464") -> Response:
    async def ask(what: str) -> list[Any]:
        assert what == "routes"
        if isinstance(rows, Exception):
            raise rows
        return rows

    request = Request("GET", "/proxy.pac", b"", "127.0.0.1", {"host": host})
    return await AutoConfig(ask).page(request)


def row(*listen: str, **fields: Any) -> list[dict[str, Any]]:
    usual = {"listen": list(listen), "protocols": ["socks5"], "routes": [[["*.corp"], ["*"]]]}
    return [usual | fields]


@pytest.mark.parametrize(
    ("listen", "host", "proxy"),
    [
        (["127.0.0.1:1080", "[::1]:1080"], "localhost:9464", "127.0.0.1:1080"),
        (["unix:/run/x.sock", "[::1]:1080"], "localhost", "[::1]:1080"),
        (["0.0.0.0:1080"], "gw.corp:9464", "gw.corp:1080"),
        (["[::]:1080"], "[2001:db8::1]:9464", "[2001:db8::1]:1080"),
        (["0.0.0.0:1080"], "10.0.0.1", "10.0.0.1:1080"),
    ],
)
async def test_the_proxy_is_where_the_browser_reaches_it(
    listen: list[str], host: str, proxy: str
) -> None:
    response = await fetch(row(*listen), host)
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/x-ns-proxy-autoconfig"
    assert f'var PROXY = "SOCKS5 {proxy}";' in response.body.decode()
    assert '"below": {"corp": 1}' in response.body.decode()


@pytest.mark.parametrize(
    ("rows", "status", "words"),
    [
        ([], 404, "an endpoint has no proxy"),
        (row("unix:/run/x.sock"), 404, "no listener that a browser can use"),
        (ConnectionError("gone"), 503, "the supervisor does not answer"),
        (
            row("127.0.0.1:1", routes=[[["x" * 60 + f".{n}a" for n in range(30_000)], "*"]]),
            503,
            "bytes",
        ),
    ],
)
async def test_there_is_none(rows: list[Any] | Exception, status: int, words: str) -> None:
    response = await fetch(rows)
    assert response.status == status
    assert words in response.body.decode()
