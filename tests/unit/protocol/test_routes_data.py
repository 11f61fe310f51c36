"""Routes tested as data: the rules and peers of tests/data/routes (its README has the format)."""

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from socks_tunnel.protocol.routes import RouteTable
from socks_tunnel.protocol.settings import RouteSettings

DATA = Path(__file__).parents[2] / "data" / "routes"


class Expectation(NamedTuple):
    routes: str
    line: int
    host: str
    port: int | None
    peers: list[str]
    host_rule: str
    port_rule: str


def read_expectations(path: Path) -> Iterator[Expectation]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        question, arrow, answer = line.partition("->")
        assert arrow, f"{path.name}:{number}: no ->"
        host, port = question.split()
        peers, *rules = (part.strip() for part in answer.split("|"))
        host_rule, port_rule = rules or ("", "")
        yield Expectation(
            path.stem,
            number,
            host,
            None if port == "-" else int(port),
            [] if peers == "none" else peers.split(),
            host_rule,
            port_rule,
        )


EXPECTATIONS = [e for path in sorted(DATA.glob("*.expect")) for e in read_expectations(path)]


@cache
def table_of(name: str) -> RouteTable:
    routes = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))["routes"]
    return RouteTable.parse(
        RouteSettings(
            name=f"routes[{number}]",
            hosts=route.get("hosts", "*"),
            ports=route.get("ports", "*"),
            peers=(route["peers"],) if isinstance(route["peers"], str) else tuple(route["peers"]),
        )
        for number, route in enumerate(routes)
    )


def test_every_rule_file_has_its_expectations() -> None:
    files = {path.stem for path in DATA.glob("*.toml")}
    assert files == {path.stem for path in DATA.glob("*.expect")}
    assert files == {e.routes for e in EXPECTATIONS}


@pytest.mark.parametrize(
    "expected", EXPECTATIONS, ids=[f"{e.routes}:{e.line}" for e in EXPECTATIONS]
)
def test_route(expected: Expectation) -> None:
    table = table_of(expected.routes)
    match = table.match(expected.host, expected.port)
    if match is None:
        assert expected.peers == []
        return
    assert list(table.routes[match.number].peers) == expected.peers
    assert (match.host_rule, match.port_rule) == (expected.host_rule, expected.port_rule)
