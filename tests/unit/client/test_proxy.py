"""Where the proxy is, and what a child is told of it."""

from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.client.proxy import (
    NO_PROXY,
    NoProxyError,
    Proxy,
    parse_proxy,
    proxy_environment,
    proxy_of,
)
from socks_tunnel.protocol.addresses import HostPort


def summary(**fields: Any) -> dict[str, Any]:
    usual = {
        "instance": "laptop",
        "role": "gateway",
        "protocols": ["socks5", "http"],
        "listen": ["127.0.0.1:1080", "[::1]:1080"],
    }
    return usual | fields


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (["127.0.0.1:1080", "[::1]:1080"], HostPort("127.0.0.1", 1080)),
        (["0.0.0.0:1080"], HostPort("127.0.0.1", 1080)),
        (["[::]:1080"], HostPort("::1", 1080)),
        (["unix:/run/x.sock", "[::1]:9"], HostPort("::1", 9)),
        (["unix:/run/x.sock"], Path("/run/x.sock")),
    ],
)
def test_the_first_listener_that_can_be_reached(listen: list[str], address: object) -> None:
    assert proxy_of(summary(listen=listen), {}).address == address


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"role": "endpoint"}, "laptop is an endpoint"),
        ({"protocols": ["http"]}, "does not speak SOCKS5"),
        ({"listen": []}, "has no listener"),
    ],
)
def test_an_instance_without_one(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(NoProxyError, match=words):
        proxy_of(summary(**fields), {})


def test_a_proxy_by_name() -> None:
    login = {"SOCKS_TUNNEL_USERNAME": "alice", "SOCKS_TUNNEL_PASSWORD": "x"}
    assert parse_proxy("[::1]:1080", login) == Proxy(HostPort("::1", 1080), "alice", "x")
    assert str(parse_proxy("unix:/run/x.sock", {})) == "unix:/run/x.sock"
    with pytest.raises(ValueError, match="1080"):
        parse_proxy("1080", {})


def test_the_variables_of_a_child() -> None:
    before = {"PATH": "/bin", "NO_PROXY": "10.0.0.0/8", "all_proxy": "http://other/"}
    made = proxy_environment(Proxy(HostPort("::1", 1080)), before)
    url = "socks5h://[::1]:1080"
    names = {"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"}
    assert made == {
        "PATH": "/bin",
        **dict.fromkeys(names | {name.lower() for name in names}, url),
        "NO_PROXY": NO_PROXY,
        "no_proxy": NO_PROXY,
    }


def test_a_login_in_the_variables() -> None:
    made = proxy_environment(Proxy(HostPort("127.0.0.1", 9), "a:b", "p@ss/"), {})
    assert made["ALL_PROXY"] == "socks5h://a%3Ab:p%40ss%2F@127.0.0.1:9"


def test_no_variable_names_a_unix_socket() -> None:
    with pytest.raises(NoProxyError, match=r"unix:/run/x\.sock"):
        proxy_environment(Proxy(Path("/run/x.sock")), {})
