"""`socks-tunnel route test`, and what `check-config` says of routes."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from socks_tunnel.cli import cli
from socks_tunnel.ops.files import write_new
from socks_tunnel.signaling.identity import PrivateIdentity

KEY = "A" * 42 + "E="

ROUTES = """\
[[routes]]
name = "berlin"
hosts = ["*.berlin.corp", "10.0.0.0/8"]
peers = ["office", "office-b"]
policy = "nearest"
[[routes]]
hosts = "*.corp"
ports = [443]
peers = "office-b"
"""


def write(directory: Path, routes: str) -> Path:
    write_new(directory / "host.key", PrivateIdentity.generate().to_pem(), 0o600)
    file = directory / "gateway.toml"
    peers = "".join(
        f'[[peers]]\nname = "{name}"\npublic_key = "{key}"\nurl = "http://192.0.2.1/"\n'
        for name, key in (("office", KEY), ("office-b", KEY.replace("E", "I")))
    )
    file.write_text(f'role = "gateway"\n[identity]\nprivate_key_file = "host.key"\n{peers}{routes}')
    return file


def ask(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["route", "test", "--config", str(file), *arguments])


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ("10.77.1.2", "22"),
            [
                "office, office-b",
                (
                    "  10.77.1.2 port 22: by berlin (hosts: 10.0.0.0/8; ports: *), the first route that "
                    "has it"
                ),
                "  of several peers that work: the one with the shortest round trip",
            ],
        ),
        (
            ("--udp", "WWW.Paris.corp.", "443"),
            [
                "office-b",
                (
                    "  a datagram to www.paris.corp port 443: by routes[1] (hosts: *.corp; ports: 443), "
                    "the first route that has it"
                ),
                (
                    "  not by berlin: none of its hosts is this one; a name is not looked up, so ranges "
                    "of addresses do not have it"
                ),
            ],
        ),
    ],
)
def test_which_peer_and_why(tmp_path: Path, arguments: tuple[str, ...], lines: list[str]) -> None:
    result = ask(write(tmp_path, ROUTES), *arguments)
    assert (result.exit_code, result.output.splitlines()) == (0, lines)


def test_what_no_route_has(tmp_path: Path) -> None:
    result = ask(write(tmp_path, ROUTES), "www.corp", "80")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "no route: www.corp port 80 is refused",
        (
            "  not by berlin: none of its hosts is this one; a name is not looked up, so ranges of "
            "addresses do not have it"
        ),
        "  not by routes[1]: its ports do not have 80",
    ]


def test_without_routes_all_peers_in_their_order(tmp_path: Path) -> None:
    result = ask(write(tmp_path, ""), "www.example.com", "80")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "office, office-b"
    assert "by default (hosts: *; ports: *)" in result.output


@pytest.mark.parametrize("arguments", [("a..b", "80"), ("host", "0"), ("host",)])
def test_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert ask(write(tmp_path, ROUTES), *arguments).exit_code == 2


def test_an_endpoint_has_no_routes(tmp_path: Path) -> None:
    file = write(tmp_path, "")
    text = file.read_text().replace('role = "gateway"', 'role = "endpoint"')
    text = text.replace('url = "http://192.0.2.1/"\n', "")
    file.write_text(text + '[signaling]\nlisten = "127.0.0.1:8765"\n')
    result = ask(file, "host", "80")
    assert result.exit_code == 2
    assert "an endpoint has no routes" in result.output


def test_a_route_that_never_decides_is_told(tmp_path: Path) -> None:
    more = '[[routes]]\nname = "late"\nhosts = ["10.1.0.0/16"]\npeers = "office"\n'
    result = CliRunner().invoke(cli, ["check-config", str(write(tmp_path, ROUTES + more))])
    assert result.exit_code == 0
    assert (
        "warning: the route late never decides: berlin, before it, takes all that it has"
        in result.output
    )
    assert "routes[1] never" not in result.output
