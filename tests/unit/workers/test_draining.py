"""What a worker waits for before it says that it has drained."""

from __future__ import annotations

from typing import Any, cast

import pytest

from socks_tunnel_workers.draining import HANDSHAKE_SECONDS, STEP, Draining
from unit.workers.frontends.fakes import Gateway
from unit.workers.frontends.test_socks import client


class Client:
    """One of a front end."""

    def __init__(self, gateway: Gateway, *, idle: bool = False, answering: bool = False) -> None:
        self.opening = gateway.clients.opening
        self.opening.add(self)
        self.idle = idle
        self.answering = answering

    def close(self) -> None:
        self.opening.discard(self)


class Site:
    """A gateway's worker that can drain."""

    def __init__(self) -> None:
        self.gateway = Gateway()
        self.loop = self.gateway.loop
        self.told = 0
        self.draining = Draining(cast("Any", self.loop), self.gateway.sessions, self.tell)

    def tell(self) -> None:
        self.told += 1

    def begin(self) -> None:
        self.draining.begin(self.gateway.clients)


@pytest.fixture
def site() -> Site:
    return Site()


def test_without_clients_and_flows_it_is_over_at_once_and_told_once(site: Site) -> None:
    site.gateway.session()
    site.draining.check()
    assert site.told == 0, "nobody has asked yet"
    site.begin()
    site.begin()
    site.draining.check()
    site.loop.advance(10 * HANDSHAKE_SECONDS)
    assert site.told == 1


def test_a_worker_without_a_configuration_has_nothing_to_wait_for(site: Site) -> None:
    site.draining.begin(None)
    assert site.told == 1


def test_a_handshake_is_waited_for_until_its_end(site: Site) -> None:
    sock = client(site.gateway, b"\5")
    site.begin()
    site.loop.advance(HANDSHAKE_SECONDS / 2)
    assert site.told == 0
    sock.arrives(b"\1\0")
    assert sock.sent == b"\5\0"
    sock.arrives(b"")
    site.loop.advance(STEP)
    assert site.told == 1


def test_a_client_that_says_nothing_has_a_limited_time(site: Site) -> None:
    sock = client(site.gateway)
    site.begin()
    site.loop.advance(HANDSHAKE_SECONDS - STEP)
    before = site.told
    site.loop.advance(2 * STEP)
    assert (before, site.told) == (0, 1)
    assert not sock.closed, "that is for the end of the worker"


def test_an_answer_that_waits_for_its_reader_has_all_the_time(site: Site) -> None:
    answered = Client(site.gateway, answering=True)
    site.begin()
    site.loop.advance(100 * HANDSHAKE_SECONDS)
    before = site.told
    answered.close()
    site.loop.advance(STEP)
    assert (before, site.told) == (0, 1)


def test_a_connection_that_is_idle_or_becomes_so_is_closed(site: Site) -> None:
    idle, answered = Client(site.gateway, idle=True), Client(site.gateway, answering=True)
    site.begin()
    assert site.gateway.clients.opening == {answered}
    assert site.told == 0
    answered.answering, answered.idle = False, True
    site.loop.advance(STEP)
    assert not site.gateway.clients.opening
    assert site.told == 1
    assert idle not in site.gateway.clients.opening


def test_nothing_is_told_once_the_worker_ends(site: Site) -> None:
    held = Client(site.gateway, answering=True)
    site.begin()
    site.draining.end()
    held.close()
    site.loop.advance(STEP)
    assert site.told == 0
    assert site.draining.begun
