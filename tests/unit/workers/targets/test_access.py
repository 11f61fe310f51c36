"""The decision without waiting: addresses, and earlier decisions under another policy.

Names: tests/integration/test_worker_names.py.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import Reply
from socks_tunnel.protocol.policy import Policy
from socks_tunnel_workers.targets.access import Access, AccessDeniedError, Asker
from socks_tunnel_workers.targets.resolver import Resolver

ASKER = Asker("laptop", 7, "connect")
POLICY = Policy.parse(allowed_hosts=["192.0.2.0/24", "*.corp"], allowed_ports=["80"])


@pytest.fixture
def counted() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def access(counted: list[tuple[Any, ...]]) -> Access:
    return Access(cast("Resolver", None), lambda *labels: counted.append(labels))


def test_addresses_are_decided_at_once(access: Access, counted: list[tuple[Any, ...]]) -> None:
    allowed = access.literal(ASKER, POLICY, HostPort("192.0.2.1", 80))
    assert allowed is not None
    assert (allowed.addresses, allowed.ttl, allowed.name) == ((ip_address("192.0.2.1"),), None, "")
    with pytest.raises(AccessDeniedError, match="allowed_ports: no match") as caught:
        access.literal(ASKER, POLICY, HostPort("192.0.2.1", 81))
    assert caught.value.reply is Reply.NOT_ALLOWED
    assert access.literal(ASKER, POLICY, HostPort("wiki.corp", 80)) is None
    verdicts = [("policy_decisions_total", "allowed"), ("policy_decisions_total", "denied")]
    assert counted == verdicts


def test_a_mapped_address_is_dialled_as_the_ipv4_address_that_it_is(access: Access) -> None:
    allowed = access.literal(ASKER, POLICY, HostPort("::ffff:192.0.2.1", 80))
    assert allowed is not None
    assert allowed.addresses == (ip_address("192.0.2.1"),)


def test_an_earlier_decision_is_held_against_the_policy_of_now(
    access: Access, counted: list[tuple[Any, ...]]
) -> None:
    one, two = ip_address("192.0.2.1"), ip_address("198.51.100.1")
    here, named = HostPort("192.0.2.1", 80), HostPort("wiki.corp", 80)
    assert access.recheck(ASKER, POLICY, here, "", [one]) == [one]
    assert access.recheck(ASKER, POLICY, named, "wiki.corp", [one, two]) == [one, two]
    ranges = Policy.parse(allowed_hosts=["192.0.2.0/24"], allowed_ports=["80"])
    assert access.recheck(ASKER, ranges, named, "wiki.corp", [one, two]) == [one]
    assert counted == [], "what goes on as it was is no new decision"
    # The name that was looked up is judged, not the one that was asked for.
    assert access.recheck(ASKER, POLICY, HostPort("wiki", 80), "wiki.corp", [two]) == [two]
    nothing = Policy.parse(allowed_hosts=[], allowed_ports=["80"])
    assert access.recheck(ASKER, nothing, here, "", [one]) == []
    assert access.recheck(ASKER, nothing, named, "wiki.corp", [one]) == []
    assert counted == [("policy_decisions_total", "denied")] * 2
