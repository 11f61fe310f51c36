"""Which enrolments are void, at one node and at several."""

import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.rendezvous_revoked import Revocation
from socks_tunnel.rendezvous import revoked as module
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.registry import Refused
from unit.rendezvous.test_federation import Node, Store
from unit.rendezvous.test_registry import Hall

A, B, C, D = (bytes([number]) * 32 for number in range(4))
"""The first two are listed at a :class:`Hall`, the first one at a :class:`Node`."""


def test_each_endpoint_voids_its_own_enrolments() -> None:
    hall = Hall(clients="enrolled")
    revoked = hall.registry.revocations
    revoked.tell(hall.join(A), Revocation(1, True, (C,)))
    assert revoked.has(A, C)
    assert not revoked.has(B, C)
    assert not revoked.has(None, C)
    revoked.tell(hall.join(B), Revocation(1, False, (), (C,)))
    assert revoked.has(A, C), "another endpoint lifts nothing"


def test_a_reset_replaces() -> None:
    hall = Hall(clients="enrolled")
    revoked, a = hall.registry.revocations, hall.join(A)
    revoked.tell(a, Revocation(1, True, (B, C)))
    revoked.tell(a, Revocation(2, False, (C, D), (B,)))
    assert [revoked.has(A, key) for key in (B, C, D)] == [False, True, True]
    revoked.tell(a, Revocation(3, True, (B,)))
    assert [revoked.has(A, key) for key in (B, C, D)] == [True, False, False]
    revoked.tell(a, Revocation(4, True, ()))
    assert len(revoked) == 0


def test_an_endpoint_fills_a_room_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REVOKED_MAX", 2)
    hall = Hall(clients="enrolled")
    revoked, a = hall.registry.revocations, hall.join(A)
    revoked.tell(hall.join(B), Revocation(1, True, (A,)))
    revoked.tell(a, Revocation(1, True, (B, C)))
    revoked.tell(a, Revocation(2, False, (D,)))
    assert [revoked.has(A, key) for key in (B, C, D)] == [False, True, True]
    assert revoked.has(B, A)


@pytest.fixture
def nodes() -> tuple[Node, Node]:
    store = Store()
    return Node(store, "one"), Node(store, "two")


def enrolled(node: Node, key: bytes) -> Client:
    return node.registry.join(
        key,
        0,
        wake=lambda: None,
        end=lambda code, _: node.ended.append((key, code)),
        enrolled_by=A,
    )


def test_a_client_at_another_node_is_ended_when_it_is_revoked(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a = one.join(A)
    enrolled(two, B)
    two.join(C)
    one.store.settle()
    one.registry.revocations.tell(a, Revocation(1, True, (B, C)))
    one.store.settle()
    assert two.ended == [(B, wire.CLOSE_FORBIDDEN)], "the other one is not here by that enrolment"


def test_a_revoked_client_that_comes_to_another_node_is_ended(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.registry.revocations.tell(one.join(A), Revocation(1, True, (B,)))
    one.store.settle()
    enrolled(two, B)
    enrolled(two, C)
    one.store.settle()
    assert two.ended == [(B, wire.CLOSE_FORBIDDEN)]


def test_who_came_while_the_endpoint_was_away_is_ended_when_it_is_back(
    nodes: tuple[Node, Node],
) -> None:
    one, two = nodes
    a = one.join(A)
    one.registry.revocations.tell(a, Revocation(1, True, (B,)))
    one.registry.leave(a)
    one.store.settle()
    enrolled(two, B)
    one.store.settle()
    assert two.ended == []
    one.registry.revocations.tell(one.join(A), Revocation(1, True, (B,)))
    one.store.settle()
    assert two.ended == [(B, wire.CLOSE_FORBIDDEN)]


def test_a_node_that_the_endpoint_has_left_does_not_refuse_for_ever(
    nodes: tuple[Node, Node],
) -> None:
    """The endpoint has admitted a key again, and has said so at another node."""
    one, two = nodes
    a = one.join(A)
    one.registry.revocations.tell(a, Revocation(1, True, (B, C)))
    one.registry.leave(a)
    one.store.settle()
    with pytest.raises(Refused, match="its enrolment is revoked"):
        enrolled(one, B)
    one.store.settle()
    with pytest.raises(Refused, match="its enrolment is revoked"):
        enrolled(one, B)  # as long as the endpoint is nowhere, what it has said holds
    two.registry.revocations.tell(two.join(A), Revocation(1, True, (C,)))
    one.store.settle()
    with pytest.raises(Refused, match="its enrolment is revoked"):
        enrolled(one, B)
    one.store.settle()
    enrolled(one, B)
    enrolled(one, C)
    one.store.settle()
    assert one.ended == [(C, wire.CLOSE_FORBIDDEN)]
