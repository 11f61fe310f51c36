"""Which probes are asked for, and what their answers mean."""

from typing import Any, cast

import pytest

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import Control, Probe
from socks_tunnel.protocol.settings import RouteSettings
from socks_tunnel.supervisor.probing import FORGOTTEN_AFTER, Prober

ROUTE = RouteSettings("r", peers=("a", "b"), failures=3, probe=("10.0.0.1", 443), probe_interval=5)


class Worker:
    paused = False
    buffered = 0

    def __init__(self) -> None:
        self.sent: list[tuple[int, Control]] = []

    def send_messages(self, session: int, messages: object) -> None:
        raise AssertionError("a probe is no message of ours")

    def send_control(self, session: int, message: Control) -> None:
        self.sent.append((session, message))

    def take(self) -> list[tuple[int, Control]]:
        sent, self.sent = self.sent, []
        return sent


class Setup:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, str | None]] = []
        self.prober = Prober(lambda *found: self.told.append(found))
        self.worker = Worker()

    def tick(self, now: float, *, routes: RouteSettings = ROUTE, **sessions: int) -> list[int]:
        self.prober.tick(
            [routes], sessions, {1: cast("Any", self.worker), 4: cast("Any", Worker())}, now
        )
        return [session for session, _ in self.worker.take()]


def test_each_peer_with_a_link_is_probed_in_its_interval() -> None:
    setup = Setup()
    assert setup.tick(0, a=7) == [7]
    setup.prober.answered(1, 0)
    assert setup.tick(4, a=7, b=8) == [8]
    setup.prober.answered(2, 0)
    assert setup.tick(5, a=7, b=8) == [7]
    assert setup.told == [("r", "a", None), ("r", "b", None)]


def test_nothing_is_asked_twice_at_a_time_and_an_answer_that_is_missing_is_forgotten() -> None:
    setup = Setup()
    assert setup.tick(0, a=7) == [7]
    assert setup.tick(FORGOTTEN_AFTER, a=7) == []
    assert setup.tick(FORGOTTEN_AFTER + 0.1, a=7) == [7]
    setup.prober.answered(1, 0)  # too late
    assert setup.told == []


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (CloseReason.ORDERLY, [None]),
        (CloseReason.CONNECTION_REFUSED, [None]),
        (CloseReason.HOST_UNREACHABLE, ["10.0.0.1:443: host unreachable"]),
        (CloseReason.TTL_EXPIRED, ["10.0.0.1:443: ttl expired"]),
        (CloseReason.NOT_ALLOWED, []),
        (CloseReason.RESUME_FAILED, []),
        (CloseReason.RESOURCE_LIMIT, []),
    ],
)
def test_what_an_answer_means(reason: int, told: list[str | None]) -> None:
    setup = Setup()
    setup.tick(0, a=7)
    setup.prober.answered(1, reason)
    assert setup.told == [("r", "a", what) for what in told]


def test_a_policy_that_refuses_probes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup()
    for turn in range(3):
        setup.tick(turn * 10, a=7)
        setup.prober.answered(turn + 1, CloseReason.NOT_ALLOWED)
    assert caplog.text.count("does not allow the probe of 10.0.0.1:443") == 1


@pytest.mark.parametrize(
    "routes",
    [
        RouteSettings("r", peers=("a",), failures=3),
        RouteSettings("r", peers=("a",), probe=("h", 1)),
    ],
)
def test_without_a_target_or_with_failures_off_nothing_is_asked(routes: RouteSettings) -> None:
    assert Setup().tick(0, routes=routes, a=7) == []


def test_without_a_worker_nothing_is_asked() -> None:
    setup = Setup()
    setup.prober.tick([ROUTE], {"a": 7}, {}, 0)
    assert setup.tick(0, a=7) == [7]


def test_the_message_names_the_target() -> None:
    setup = Setup()
    setup.prober.tick([ROUTE], {"a": 7}, {1: cast("Any", setup.worker)}, 0)
    assert setup.worker.take() == [(7, Probe(1, "10.0.0.1", 443))]


def test_the_numbers_of_probes_wrap_around() -> None:
    setup = Setup()
    setup.prober._last_number = 0xFFFF_FFFE
    setup.prober.tick([ROUTE], {"a": 7, "b": 8}, {1: cast("Any", setup.worker)}, 0)
    numbers = [cast("Probe", probe).number for _, probe in setup.worker.take()]
    assert numbers == [0xFFFF_FFFF, 1]
    for number in numbers:
        setup.prober.answered(number, 0)
    assert setup.told == [("r", "a", None), ("r", "b", None)]


def test_who_was_warned_of_is_forgotten_with_the_route(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup()
    for number in range(1, 60):
        route = RouteSettings(f"r{number}", peers=("a",), failures=3, probe=("10.0.0.1", 443))
        setup.tick(number, routes=route, a=7)
        setup.prober.answered(number, CloseReason.NOT_ALLOWED)
        assert len(setup.prober._warned) <= 2
        assert len(setup.prober._due) == 1
    assert caplog.text.count("does not allow the probe") == 59
