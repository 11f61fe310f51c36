"""The clients of a worker: which session takes their flows, who waits, and who is let in."""

import asyncio
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.settings import LimitSettings, WorkerSettings
from socks_tunnel_workers.frontends.clients import Clients
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.services import Counters, Notices, Settings


class FakeSession:
    def __init__(self, *, open_to_send: bool = True) -> None:
        self.open_to_send = open_to_send
        self.peer = "office"


class Client:
    def __init__(self) -> None:
        self.opened_on: list[object] = []
        self.closed = False
        self.client = "127.0.0.1:5"
        self.login: bool | None = None

    def open_on(self, session: WorkerSession) -> None:
        self.opened_on.append(session)

    def close(self) -> None:
        self.closed = True

    def password_checked(self, *, ok: bool) -> None:
        self.login = ok


def clients(*, full: bool = False) -> Clients:
    settings = Settings(
        WorkerSettings(role="gateway", limits=LimitSettings(associations_per_client=1))
    )
    return Clients(
        cast("asyncio.AbstractEventLoop", None),
        settings,
        Counters(),
        Notices(lambda: 0.0),
        Metrics(CollectorRegistry()),
        lambda: full,
    )


def test_clients_wait_until_a_session_transmits() -> None:
    made, waiting, gone = clients(), Client(), Client()
    made.wait(waiting)
    made.wait(gone)
    made.stop_waiting(gone)
    made.stop_waiting(gone)
    assert made.waiting == 1
    session = FakeSession(open_to_send=False)
    made.set_target(cast("WorkerSession", session))
    assert made.target is None
    assert waiting.opened_on == []
    session.open_to_send = True
    made.wake()
    assert waiting.opened_on == [session]
    assert (gone.opened_on, made.waiting) == ([], 0)
    made.set_target(None)
    made.wake()
    assert made.target is None


def test_associations_of_a_client_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    made = clients()
    slot = made.take_association("127.0.0.1")
    assert slot is not None
    assert made.take_association("127.0.0.1") is None
    assert made.take_association("127.0.0.2") is not None
    assert "has 1 UDP associations" in caplog.text
    slot.end()
    assert made.take_association("127.0.0.1") is not None


def test_what_is_refused_is_told_to_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    made = clients(full=True)
    assert made.full
    made.report_full()
    made.report_flow_limit(
        cast("WorkerSession", FakeSession()), RemoteProtocolError("too many", kind="x")
    )
    made.report_resource(OSError(24, "Too many open files"))
    for words in ("flows_per_worker", "no new flow to office: too many", "Too many open files"):
        assert words in caplog.text


def test_a_login_on_terms_that_are_gone_fails() -> None:
    made, client = clients(), Client()
    made.check_password(client, "user", "password")
    assert client.login is False


def test_the_end_closes_whoever_has_no_flow_yet() -> None:
    made, client = clients(), Client()
    made.opening.add(client)
    made.close()
    made.shutdown()
    assert client.closed
