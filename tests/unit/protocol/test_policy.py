"""The policy's interface, and rules that cannot be parsed. Verdicts: see test_policy_data.py."""

from ipaddress import ip_address
from typing import Any

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import (
    ADDRESSES_DECIDE,
    DECISIONS_MAX,
    NO_HOST_RULE,
    NO_PORT_RULE,
    NOT_A_HOST,
    Decision,
    Policy,
    PolicyError,
    Verdict,
)
from socks_tunnel.protocol.rules import RuleProblem

# --- rules that cannot be parsed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("*", "wildcard"),
        ("*.", "empty"),
        ("*.*.corp", "wildcard"),
        ("www.*.corp", "wildcard"),
        ("*corp", "wildcard"),
        ("10.0.0.*", "wildcard"),
        ("*.10.0.0.1", "neither"),
        ("*.::1", "neither"),
        ("*.256", "neither"),
        ("10.0.0.256", "neither"),
        ("10.0.0", "neither"),
        ("10", "neither"),
        ("10.0.0.01", "neither"),
        ("10.0.0.1/8", r"the range is 10\.0\.0\.0/8"),
        ("2001:db8::1/32", "the range is 2001:db8::/32"),
        ("10.0.0.0/33", "0 to 32"),
        ("2001:db8::/129", "0 to 128"),
        ("10.0.0.0/", "prefix length"),
        ("10.0.0.0/-1", "prefix length"),
        ("10.0.0.0/255.0.0.0", "prefix length"),
        ("10.0.0.0/8/8", "prefix length"),
        ("10.0.0.0/８", "prefix length"),  # noqa: RUF001 - int() would take this digit
        ("[2001:db8::]/32", "not an IP address"),
        ("example.com/24", "not an IP address"),
        ("/8", "not an IP address"),
        ("fe80::1%eth0", "character"),
        ("http://example.com", "not an IP address"),
        ("example.com:443", "character"),
        ("exa mple.com", "character"),
        ("# a comment", "character"),
        ("a..b", "empty label"),
        ("a" * 64, "63"),
        (".".join(["a" * 63] * 5), "at most 255"),
        ("", "empty"),
        (7, "neither"),
        (True, "not bool"),
        (None, "not NoneType"),
        (1.5, "not float"),
        (b"example.com", "not bytes"),
        (["example.com"], "not list"),
    ],
)
@pytest.mark.parametrize("field", ["allowed_hosts", "denied_hosts"])
def test_a_host_rule_that_cannot_be_parsed_is_an_error(
    field: str, rule: Any, complaint: str
) -> None:
    rules = {"allowed_hosts": ["a.corp"], "allowed_ports": ["*"]}

    with pytest.raises(PolicyError, match=complaint) as caught:
        Policy.parse(**{**rules, field: ["good.corp", rule]})

    [problem] = caught.value.problems
    assert (problem.field, problem.position) == (field, "item 2")
    assert problem.text == str(rule)
    assert str(caught.value).startswith(f"{field} item 2: {str(rule)!r}: ")


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("0", "1 to 65535"),
        (0, "1 to 65535"),
        (-1, "not a port"),
        ("65536", "not a port"),
        ("http", "not a port"),
        ("80-", "not a port"),
        ("-80", "not a port"),
        ("80-90-100", "not a port"),
        ("90-80", "ends before it starts"),
        ("8000-*", "not a port"),
        ("**", "not a port"),
        ("0x50", "not a port"),
        ("+80", "not a port"),
        ("8_0", "not a port"),
        ("８０", "not a port"),  # noqa: RUF001 - int() would take these digits
        ("80,443", "not a port"),
        ("", "not a port"),
        (True, "not bool"),
        (80.0, "not float"),
        (None, "not NoneType"),
    ],
)
@pytest.mark.parametrize("field", ["allowed_ports", "denied_ports"])
def test_a_port_rule_that_cannot_be_parsed_is_an_error(
    field: str, rule: Any, complaint: str
) -> None:
    rules: dict[str, Any] = {"allowed_hosts": ["a.corp"], "allowed_ports": [443]}

    with pytest.raises(PolicyError, match=complaint) as caught:
        Policy.parse(**{**rules, field: [rule]})

    assert caught.value.problems[0].field == field


def test_an_error_names_every_bad_rule_with_its_line() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(
            allowed_hosts="0.0.0.0\n\n10.0.0.1/8\n *.* \n",
            allowed_ports=[80, "http"],
            denied_ports="70000",
        )

    assert [(p.field, p.position, p.text) for p in caught.value.problems] == [
        ("allowed_hosts", "line 3", "10.0.0.1/8"),
        ("allowed_hosts", "line 4", "*.*"),
        ("allowed_ports", "item 2", "http"),
        ("denied_ports", "line 1", "70000"),
    ]
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_problem_reads_as_a_sentence() -> None:
    problem = RuleProblem("allowed_ports", "line 1", "http", "'http' is not a port")

    assert str(problem) == "allowed_ports line 1: 'http': 'http' is not a port"


# --- decisions --------------------------------------------------------------------------------


@pytest.fixture
def policy() -> Policy:
    return Policy.parse(
        allowed_hosts=["10.77.1.0/24", "*.internal.corp"],
        allowed_ports=[443],
        denied_hosts=["secret.internal.corp", "10.77.1.66"],
    )


def test_check_is_final_for_a_literal_and_says_what_to_do_with_a_name(policy: Policy) -> None:
    assert policy.check(HostPort("10.77.1.2", 443)) == Decision(
        Verdict.ALLOWED, "allowed_hosts: 10.77.1.0/24"
    )
    assert policy.check(HostPort("10.77.2.2", 443)) == Decision(Verdict.DENIED, NO_HOST_RULE)
    assert policy.check(HostPort("10.77.1.2", 80)) == Decision(Verdict.DENIED, NO_PORT_RULE)
    assert policy.check(HostPort("wiki.internal.corp", 443)) == Decision(
        Verdict.ALLOWED, "allowed_hosts: *.internal.corp"
    )
    assert policy.check(HostPort("example.com", 443)) == Decision(Verdict.RESOLVE, ADDRESSES_DECIDE)
    assert policy.check(HostPort("secret.internal.corp", 443)) == Decision(
        Verdict.DENIED, "denied_hosts: secret.internal.corp"
    )


@pytest.mark.parametrize("host", ["", ".", "a..b", "a b", "a\0b", "[::1", "fe80::1%eth0"])
def test_what_is_no_host_is_denied_and_never_an_exception(policy: Policy, host: str) -> None:
    assert policy.check(HostPort(host, 443)) == Decision(Verdict.DENIED, NOT_A_HOST)
    assert policy.choose(HostPort(host, 443), [ip_address("10.77.1.2")])[1] == []


def test_a_literal_with_a_final_dot_is_a_literal(policy: Policy) -> None:
    assert policy.check(HostPort("10.77.1.2.", 443)).verdict is Verdict.ALLOWED
    assert policy.check(HostPort("10.77.2.2.", 443)).verdict is Verdict.DENIED


def test_check_address_of_an_allowed_name_asks_only_for_an_ordinary_address(
    policy: Policy,
) -> None:
    by_name = policy.check(HostPort("wiki.internal.corp", 443))

    assert policy.check_address(by_name, ip_address("203.0.113.9"), 443) == by_name
    assert policy.check_address(by_name, ip_address("10.77.1.66"), 443) == Decision(
        Verdict.DENIED, "denied_hosts: 10.77.1.66"
    )
    assert policy.check_address(by_name, ip_address("169.254.169.254"), 443) == Decision(
        Verdict.DENIED, "link-local address"
    )


def test_check_address_of_any_other_name_asks_for_a_rule(policy: Policy) -> None:
    by_name = policy.check(HostPort("example.com", 443))

    assert policy.check_address(by_name, ip_address("10.77.1.2"), 443) == Decision(
        Verdict.ALLOWED, "allowed_hosts: 10.77.1.0/24"
    )
    assert policy.check_address(by_name, ip_address("203.0.113.9"), 443) == Decision(
        Verdict.DENIED, NO_HOST_RULE
    )


def test_check_address_never_allows_what_the_name_is_denied(policy: Policy) -> None:
    by_name = policy.check(HostPort("secret.internal.corp", 443))

    assert policy.check_address(by_name, ip_address("10.77.1.2"), 443) == by_name


def test_check_address_decides_about_the_port_too(policy: Policy) -> None:
    by_name = policy.check(HostPort("wiki.internal.corp", 443))

    assert policy.check_address(by_name, ip_address("203.0.113.9"), 80) == Decision(
        Verdict.DENIED, NO_PORT_RULE
    )


def test_an_ipv6_zone_changes_nothing(policy: Policy) -> None:
    by_name = policy.check(HostPort("wiki.internal.corp", 443))

    assert policy.check_address(by_name, ip_address("fe80::1%eth0"), 443) == Decision(
        Verdict.DENIED, "link-local address"
    )


def test_choose_without_addresses_gives_the_decision_about_the_name(policy: Policy) -> None:
    for host in ("wiki.internal.corp", "example.com", "secret.internal.corp"):
        destination = HostPort(host, 443)
        assert policy.choose(destination, []) == (policy.check(destination), [])


def test_choose_ignores_addresses_beside_a_literal(policy: Policy) -> None:
    decision, dialled = policy.choose(HostPort("10.77.1.2", 443), [ip_address("10.77.1.3")])

    assert decision.verdict is Verdict.ALLOWED
    assert dialled == [ip_address("10.77.1.2")]


# --- many rules -------------------------------------------------------------------------------


def test_thousands_of_rules_are_each_found() -> None:
    count = 5000
    policy = Policy.parse(
        allowed_hosts=[f"10.{i >> 8}.{i & 255}.0/24" for i in range(count)]
        + [f"*.d{i}.example" for i in range(count)]
        + [f"n{i}.example" for i in range(count)],
        allowed_ports=[*range(1, count * 2, 2)],
    )

    for i in range(0, count, 97):
        port = 2 * i + 1
        assert policy.check(HostPort(f"10.{i >> 8}.{i & 255}.9", port)) == Decision(
            Verdict.ALLOWED, f"allowed_hosts: 10.{i >> 8}.{i & 255}.0/24"
        )
        assert policy.check(HostPort(f"a.b.d{i}.example", port)).rule.endswith(f"d{i}.example")
        assert policy.check(HostPort(f"n{i}.example", port)).verdict is Verdict.ALLOWED
        assert policy.check(HostPort(f"n{i}.example", port + 1)).rule == NO_PORT_RULE


def test_the_first_of_equal_rules_is_reported() -> None:
    policy = Policy.parse(
        allowed_hosts=["A.corp", "a.corp.", "*.B.corp", "*.b.corp", "192.0.2.0/24", "192.0.2.7"],
        allowed_ports=["*", 80],
        denied_ports=["1-10", 5],
    )

    assert policy.check(HostPort("a.corp", 80)).rule == "allowed_hosts: A.corp"
    assert policy.check(HostPort("x.b.corp", 80)).rule == "allowed_hosts: *.B.corp"
    assert policy.check(HostPort("192.0.2.7", 80)).rule == "allowed_hosts: 192.0.2.0/24"
    assert policy.check(HostPort("192.0.2.7", 5)).rule == "denied_ports: 1-10"


# --- a port that stands for all ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "denied", "port"),
    [
        (["*"], [], 1),
        (["443", "80"], [], 80),
        (["1-100"], ["1-99"], 100),
        (["*"], ["1-65534"], 65535),
        (["80", "8000-8100"], ["80", "8000"], 8001),
        (["80"], ["*"], 0),
        ([], [], 0),
    ],
)
def test_some_port_is_allowed_if_any_is(allowed: list[str], denied: list[str], port: int) -> None:
    policy = Policy.parse(allowed_hosts=["0.0.0.0"], allowed_ports=allowed, denied_ports=denied)
    assert policy.some_port == port
    verdict = policy.check(HostPort("192.0.2.1", policy.some_port)).verdict
    assert (verdict is Verdict.ALLOWED) is bool(port)


# --- what is remembered -----------------------------------------------------------------------


def test_decisions_are_remembered_within_a_bound() -> None:
    policy = Policy.parse(allowed_hosts=["0.0.0.0"], allowed_ports=["*"], denied_ports=[25])
    first = policy.check(HostPort("192.0.2.1", 80))
    assert policy.check(HostPort("192.0.2.1", 80)) is first
    assert policy.check(HostPort("192.0.2.1", 25)).verdict is Verdict.DENIED
    for port in range(1000, 1000 + 3 * DECISIONS_MAX):
        policy.check(HostPort("192.0.2.1", port))
        assert len(policy._known) <= DECISIONS_MAX
    assert policy.check(HostPort("192.0.2.1", 80)) == first
