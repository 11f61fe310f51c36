"""UDP ASSOCIATE and RESOLVE until they are answered: every way that leads there."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Answer,
    CloseConnection,
    Resolve,
    Resolved,
    ResolveKind,
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
)
from socks_tunnel.protocol.socks5 import ResolveRequest, UdpAssociateRequest
from socks_tunnel_workers.relay import client_socket
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.frontends.test_opening import Asked, conn_id

# --- UDP ASSOCIATE --------------------------------------------------------------------------------


class UdpSock(Sock):
    """A UDP socket: takes what it is told of."""


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The addresses that relays were bound to; the kernel is left out."""
    addresses: list[tuple[Any, ...]] = []

    def udp_socket(family: int, address: tuple[Any, ...]) -> Any:
        addresses.append(address)
        if address[1] == 40_000:
            raise OSError(errno.EADDRINUSE, "in use")
        if address[0] == "192.0.2.66":
            raise OSError(errno.EMFILE, "too many open files")
        sock = UdpSock(gateways[-1].loop, local=(address[0], address[1] or 5000, *address[2:]))
        assert sock.family == family
        return sock

    monkeypatch.setattr(client_socket, "udp_socket", udp_socket)
    return addresses


gateways: list[Gateway] = []


def udp_gateway(**tables: dict[str, object]) -> Gateway:
    gateways.append(Gateway(**tables))
    return gateways[-1]


ASSOCIATE = UdpAssociateRequest(None)


@pytest.mark.parametrize(
    ("local", "relay"),
    [
        (("127.0.0.1", 1080), ("127.0.0.1", 0)),
        (("::ffff:127.0.0.1", 1080, 0, 0), ("127.0.0.1", 0)),  # of a dual-stack listener
        (("::1", 1080, 0, 0), ("::1", 0, 0, 0)),
        (("fe80::1", 1080, 0, 3), ("fe80::1", 0, 0, 3)),
    ],
)
def test_the_relay_is_where_the_client_connected_to(
    bound: list[tuple[Any, ...]], local: tuple[Any, ...], relay: tuple[Any, ...]
) -> None:
    gateway = udp_gateway()
    session = gateway.session()
    asked = Asked(gateway, ASSOCIATE, local=local)
    (opening,) = gateway.sent(session)
    assert opening == UdpAssociate(conn_id(opening))
    assert bound == [relay]

    gateway.answer(session, UdpAssociateOpened(conn_id(opening)))

    assert asked.answers == [("associated", HostPort(relay[0], 5000))]


def test_an_association_ends_with_its_control_connection(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway()
    session = gateway.session()
    asked = Asked(gateway, ASSOCIATE)
    (opening,) = gateway.sent(session)
    gateway.answer(session, UdpAssociateOpened(conn_id(opening)))
    asked.sock.arrives(b"ignored")
    assert gateway.clients.associations.held("127.0.0.1") == 1

    asked.sock.arrives(b"")

    assert gateway.sent(session) == [UdpAssociateClosed(conn_id(opening), CloseReason.ORDERLY)]
    assert asked.answers[1:] == [("close",)]
    assert gateway.clients.associations.held("127.0.0.1") == 0


def test_a_request_with_its_end_behind_it_is_answered(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway()
    session = gateway.session()
    asked = Asked(gateway, ASSOCIATE)
    asked.sock.arrives(b"")
    opening = gateway.sent(session)[0]
    assert asked.answers == []

    gateway.answer(session, UdpAssociateOpened(conn_id(opening)))

    assert asked.answers == [("associated", HostPort("127.0.0.1", 5000)), ("close",)]
    assert gateway.sent(session) == [UdpAssociateClosed(conn_id(opening), CloseReason.ORDERLY)]


def test_the_endpoint_may_end_an_association(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway()
    session = gateway.session()
    asked = Asked(gateway, ASSOCIATE)
    (opening,) = gateway.sent(session)
    gateway.answer(session, UdpAssociateOpened(conn_id(opening)))
    gateway.answer(session, UdpAssociateClosed(conn_id(opening), CloseReason.IDLE_TIMEOUT))
    assert asked.answers[1:] == [("close",)]
    assert asked.sock not in gateway.loop.readers


def test_an_association_waits_for_the_next_session(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway()
    first = gateway.session()
    asked = Asked(gateway, ASSOCIATE)
    gateway.end(first)
    assert asked.answers == []
    assert gateway.clients.associations.held("127.0.0.1") == 0

    second = gateway.session()

    (opening,) = gateway.sent(second)
    gateway.answer(second, UdpAssociateOpened(conn_id(opening)))
    assert asked.answers == [("associated", HostPort("127.0.0.1", 5000))]
    gateway.end(second)
    assert asked.answers[1:] == [("close",)], "once it is open, it dies with its session"


def test_no_socket_for_an_association_that_is_not_admitted(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway(limits={"associations_per_client": 1})
    session = gateway.session()
    Asked(gateway, ASSOCIATE)
    refused = Asked(gateway, ASSOCIATE)
    assert refused.answers == [("failed", CloseReason.RESOURCE_LIMIT)]
    session.flows.resize(1)
    gateway.clients.associations.limit = 5
    refused = Asked(gateway, ASSOCIATE)
    assert refused.answers == [("failed", CloseReason.RESOURCE_LIMIT)]
    assert len(bound) == 1
    assert gateway.clients.associations.held("127.0.0.1") == 1


def test_no_descriptor_for_a_relay_is_a_general_failure(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway()
    session = gateway.session()
    asked = Asked(gateway, ASSOCIATE, local=("192.0.2.66", 1080))
    assert asked.answers == [("failed", CloseReason.GENERAL_FAILURE)]
    assert gateway.sent(session) == []
    assert not list(session.flows)
    assert gateway.clients.associations.held("127.0.0.1") == 0


def test_udp_address_and_udp_ports(bound: list[tuple[Any, ...]]) -> None:
    gateway = udp_gateway(socks={"udp_address": "203.0.113.7", "udp_ports": "40000-40001"})
    session = gateway.session()
    for _ in range(5):  # wherever it begins, the port in use is passed over
        asked = Asked(gateway, ASSOCIATE)
        (opening,) = gateway.sent(session)
        gateway.answer(session, UdpAssociateOpened(conn_id(opening)))
        assert asked.answers == [("associated", HostPort("203.0.113.7", 40_001))]
    gateway.settings.apply(gateway.config(socks={"udp_ports": "40000"}))
    refused = Asked(gateway, ASSOCIATE)
    assert refused.answers == [("failed", CloseReason.GENERAL_FAILURE)]


# --- RESOLVE --------------------------------------------------------------------------------------


def test_a_name_is_asked_for() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, ResolveRequest("a.b"))
    (question,) = gateway.sent(session)
    assert question == Resolve(conn_id(question), ResolveKind.ADDRESSES, "a.b")

    gateway.answer(session, Resolved(conn_id(question), 0, (Answer(1, "10.0.0.1"),)))

    assert asked.answers == [("resolved", "10.0.0.1")]
    assert not list(session.flows)


def test_an_address_is_its_own() -> None:
    gateway = Gateway()
    assert Asked(gateway, ResolveRequest("10.1.1.1")).answers == [("resolved", "10.1.1.1")]
    session = gateway.session()
    Asked(gateway, ResolveRequest("10.1.1.1", reverse=True))
    (question,) = gateway.sent(session)
    assert question == Resolve(conn_id(question), ResolveKind.NAME, "10.1.1.1")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Resolved(0, CloseReason.NOT_ALLOWED), 2),
        (CloseConnection(0), 1),
        (CloseConnection(0, 4), 4),
    ],
)
def test_a_question_that_is_refused(answer: Any, reason: int) -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, ResolveRequest("a.b"))
    (question,) = gateway.sent(session)

    gateway.answer(session, type(answer)(conn_id(question), answer.reason))

    assert asked.answers == [("failed", CloseReason(reason))]


@pytest.mark.parametrize(("host", "allowed"), [("10.9.0.1", True), ("10.1.0.1", False)])
def test_the_gateways_policy_is_asked_about_an_address(host: str, allowed: bool) -> None:
    gateway = Gateway(policy={"allowed_hosts": ["10.9.0.0/16"], "allowed_ports": [80]})
    session = gateway.session()
    asked = Asked(gateway, ResolveRequest(host, reverse=True))
    assert len(gateway.sent(session)) == allowed
    assert asked.answers == ([] if allowed else [("failed", CloseReason.NOT_ALLOWED)])


def test_a_peer_that_resolves_nothing() -> None:
    gateway = Gateway()
    session = gateway.session(features=("udp",))
    asked = Asked(gateway, ResolveRequest("a.b"))
    assert asked.answers == [("failed", CloseReason.COMMAND_NOT_SUPPORTED)]
    assert gateway.sent(session) == []


def test_a_question_of_a_client_that_is_gone_is_taken_back() -> None:
    gateway = Gateway()
    session = gateway.session()
    asked = Asked(gateway, ResolveRequest("a.b"))
    (question,) = gateway.sent(session)

    asked.sock.is_reset()

    assert gateway.sent(session) == [CloseConnection(conn_id(question), CloseReason.RESET)]
    gateway.answer(session, Resolved(conn_id(question), 0, (Answer(1, "10.0.0.1"),)))
    assert asked.answers == [("close",)]


def test_a_question_waits_for_the_next_session() -> None:
    gateway = Gateway()
    first = gateway.session()
    asked = Asked(gateway, ResolveRequest("a.b"))
    gateway.end(first)
    second = gateway.session()
    (question,) = gateway.sent(second)
    gateway.answer(second, Resolved(conn_id(question), 0, ()))
    assert asked.answers == [("resolved",)]
