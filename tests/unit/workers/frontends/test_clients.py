"""What the front ends share: who waits for which session, and the limits."""

from __future__ import annotations

import pytest

from unit.workers.frontends.fakes import Gateway


class Waiting:
    """A client that waits."""

    def __init__(self) -> None:
        self.tries = 0
        self.closed = 0
        self.idle = False
        self.answering = False

    @property
    def asker(self) -> Waiting:
        return self

    def try_again(self) -> None:
        self.tries += 1

    def close(self) -> None:
        self.closed += 1


def test_who_waits_is_woken_once() -> None:
    gateway = Gateway()
    first, second = Waiting(), Waiting()
    gateway.clients.wait(first)
    gateway.clients.wait(second)
    gateway.clients.stop_waiting(second)
    gateway.session()
    gateway.clients.wake()
    assert (first.tries, second.tries) == (1, 0)


def test_a_session_without_a_link_takes_nothing() -> None:
    gateway = Gateway()
    session = gateway.session()
    session.detach()
    assert gateway.clients.routing.choose(0) is None
    waiting = Waiting()
    gateway.clients.wait(waiting)
    gateway.clients.wake()
    assert waiting.tries == 0
    assert gateway.clients.waiting == 1


def test_a_session_that_is_over_takes_nothing() -> None:
    gateway = Gateway()
    session = gateway.session()
    other = gateway.session()
    targets = [gateway.clients.routing.choose(0)]
    gateway.end(other)
    targets.append(gateway.clients.routing.choose(0))
    gateway.prefers([session])
    targets.append(gateway.clients.routing.choose(0))
    assert targets == [other, None, session]


def test_associations_are_limited_for_each_client(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(limits={"associations_per_client": 1})
    slot = gateway.clients.take_association("a")
    assert slot is not None
    assert gateway.clients.take_association("b") is not None
    assert gateway.clients.take_association("a") is None
    assert "client a has 1 UDP associations in this worker" in caplog.text
    slot.end()
    assert gateway.clients.take_association("a") is not None


def test_clients_that_wait_for_nothing_are_closed_before_a_program_is_replaced() -> None:
    gateway = Gateway()
    idle, busy = Waiting(), Waiting()
    idle.idle = True
    gateway.clients.opening.update([idle, busy])
    gateway.clients.close_idle()
    assert (idle.closed, busy.closed) == (1, 0)


def test_closing_closes_all() -> None:
    gateway = Gateway()
    clients = [Waiting(), Waiting()]
    gateway.clients.opening.update(clients)
    assert gateway.clients.handshakes == 2
    gateway.clients.close()
    assert [client.closed for client in clients] == [1, 1]
    gateway.clients.shutdown()


def test_full_is_what_the_worker_says(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway()
    answers = [gateway.clients.full]
    gateway.full = True
    answers.append(gateway.clients.full)
    assert answers == [False, True]
    gateway.clients.report_full()
    assert "this worker holds as many flows" in caplog.text
