"""What stands in the proxy auto-config file; tests/integration/test_pac.py runs it."""

import json
from typing import Any

import pytest

from socks_tunnel.protocol import pac
from socks_tunnel.protocol.routes import Route
from socks_tunnel.protocol.settings import RouteSettings


def variable(text: str, name: str) -> Any:
    """The value of a variable at the head of the script."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"var {name} = "))
    return json.loads(line.partition(" = ")[2].removesuffix(";"))


def route(*hosts: str, ports: tuple[int | str, ...] = ("*",)) -> Route:
    return Route.parse(RouteSettings("r", hosts=hosts, ports=ports))


def test_a_route_as_the_script_has_it() -> None:
    routes = [
        route("10.77.0.0/16", "fd77::/16", "wiki.corp", "*.internal.corp", ports=(443, "80-82"))
    ]
    (table,) = variable(pac.script(routes, "127.0.0.1", 1080, ["socks5"]), "ROUTES")
    assert table == {
        "any": False,
        "names": {"wiki.corp": 1},
        "below": {"internal.corp": 1},
        "ipv4": [[(10 << 24) + (77 << 16), (10 << 24) + (77 << 16) + 0xFFFF]],
        "ipv6": [[[0xFD77, 0, 0, 0, 0, 0, 0, 0], 16]],
        "ports": [[443, 443], [80, 82]],
    }


def test_without_routes_everything_is_one() -> None:
    text = pac.script([], "127.0.0.1", 1080, ["socks5"])
    assert variable(text, "ROUTES") == [{"any": True, "ports": [[0, 65_535]]}]


@pytest.mark.parametrize(
    ("host", "protocols", "answer"),
    [
        ("127.0.0.1", ["socks4", "socks5", "http"], "SOCKS5 127.0.0.1:1080"),
        ("127.0.0.1", ["http", "socks4"], "PROXY 127.0.0.1:1080"),
        ("127.0.0.1", ["socks4"], "SOCKS 127.0.0.1:1080"),
        ("::1", ["socks5"], "SOCKS5 [::1]:1080"),
    ],
)
def test_what_it_answers(host: str, protocols: list[str], answer: str) -> None:
    assert variable(pac.script([], host, 1080, protocols), "PROXY") == answer


def test_a_file_that_browsers_do_not_read_is_refused() -> None:
    name = ("a" * 50 + ".") * 3
    routes = [route(*(f"{name}{n}.corp" for n in range(7_000)))]
    with pytest.raises(ValueError, match=f"browsers read {pac.SIZE_MAX}"):
        pac.script(routes, "127.0.0.1", 1080, ["socks5"])


def test_the_longest_file_that_browsers_read_is_served() -> None:
    def text(host: str) -> str:
        return pac.script([], host, 1080, ["socks5"])

    host = "h" * (pac.SIZE_MAX - len(text("")))
    assert len(text(host)) == pac.SIZE_MAX
    with pytest.raises(
        ValueError,
        match=f"^the file would have {pac.SIZE_MAX + 1} bytes; browsers read {pac.SIZE_MAX}$",
    ):
        text(host + "h")
