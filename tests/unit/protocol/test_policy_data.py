"""Policy tested as data: the rules and verdicts of tests/data/policy (its README has the format)."""

import tomllib
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.policy import Policy

DATA = Path(__file__).parents[2] / "data" / "policy"


class Expectation(NamedTuple):
    rules: str
    line: int
    destination: HostPort
    addresses: list[IPAddress]
    verdict: str
    dialled: list[IPAddress]
    rule: str


def read_expectations(path: Path) -> Iterator[Expectation]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        question, arrow, answer = line.partition("->")
        outcome, bar, rule = answer.partition("|")
        assert arrow, f"{path.name}:{number}: no ->"
        assert bar, f"{path.name}:{number}: no | and rule"
        host, port, *addresses = question.split()
        verdict, *dialled = outcome.split()
        yield Expectation(
            path.stem,
            number,
            HostPort(host, int(port)),
            [ip_address(a) for a in addresses],
            verdict,
            [ip_address(a) for a in dialled],
            rule.strip(),
        )


EXPECTATIONS = [e for path in sorted(DATA.glob("*.expect")) for e in read_expectations(path)]


@cache
def policy_of(name: str) -> Policy:
    rules = {"allowed_hosts": (), "allowed_ports": ()}
    rules.update(tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8")))
    return Policy.parse(**rules)


def test_every_rule_file_has_its_verdicts() -> None:
    rule_files = {path.stem for path in DATA.glob("*.toml")}

    assert rule_files == {path.stem for path in DATA.glob("*.expect")}
    assert rule_files == {e.rules for e in EXPECTATIONS}


@pytest.mark.parametrize(
    "expected", EXPECTATIONS, ids=[f"{e.rules}:{e.line}" for e in EXPECTATIONS]
)
def test_verdict(expected: Expectation) -> None:
    policy = policy_of(expected.rules)
    literal = parse_ip(expected.destination.host)

    decision, dialled = policy.choose(expected.destination, expected.addresses)

    assert (decision.verdict.value, decision.rule) == (expected.verdict, expected.rule)
    if literal is None:
        assert dialled == expected.dialled
    else:
        assert dialled == ([literal] if expected.verdict == "allowed" else [])


@pytest.mark.parametrize("name", sorted({e.rules for e in EXPECTATIONS}))
def test_the_newline_form_means_the_same_as_the_list(name: str) -> None:
    rules = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))
    rewritten: dict[str, str] = {"allowed_hosts": "", "allowed_ports": ""}
    for field, value in rules.items():
        rewritten[field] = value if isinstance(value, str) else "\n".join(map(str, value))
    policy = Policy.parse(**rewritten)

    for e in EXPECTATIONS:
        if e.rules == name:
            assert policy.choose(e.destination, e.addresses) == policy_of(name).choose(
                e.destination, e.addresses
            )
