"""The router: sessions that links attach to and leave, and which link new flows go to."""

from typing import Any

import pytest

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import (
    Attach,
    DialFailed,
    DialsDone,
    NewFlows,
    PeerRows,
    Probe,
    Probed,
    SessionEnded,
)
from socks_tunnel.protocol.messages import (
    CloseConnection,
    Data,
    Resume,
)
from socks_tunnel.protocol.settings import RouteSettings
from socks_tunnel.supervisor.router import RESUME_SECONDS, Waiting
from unit.supervisor.routing_world import (
    FakeLink,
    Setup,
    endpoint,
    gateway,
    open_message,
    resuming,
    terms,
)

# --- new flows ----------------------------------------------------------------------------------


def test_new_flows_go_to_the_first_configured_peer_whose_link_takes_them() -> None:
    setup = gateway()
    first = setup.session.number
    second = setup.router.attach(FakeLink(), "b", terms(session=b"b" * 16, rank=1))
    assert setup.router.target == first
    setup.link.goaway()
    assert setup.router.target == second.session.number
    setup.router.detach(second, "gone")
    assert setup.router.target == 0
    assert [message.targets for message in setup.workers[1].told(NewFlows)] == [
        [[[], []]],
        [[[first], []]],
        [[[first, second.session.number], []]],
        [[[second.session.number], []]],
        [[[], []]],
    ]


def two_peers(**route: Any) -> tuple[Setup, int, int]:
    """A gateway with a route to `office` and `branch`, and the numbers of their sessions."""
    setup = gateway()
    setup.router.route([RouteSettings("r", peers=("office", "branch"), **route)])
    other = setup.router.attach(FakeLink(), "branch", terms(session=b"b" * 16, rank=1))
    assert targets(setup) == [[[setup.session.number, other.session.number], []]]
    return setup, setup.session.number, other.session.number


def targets(setup: Setup) -> list[list[list[int]]]:
    """Where new flows go, as every worker was told last."""
    first, *others = [worker.told(NewFlows)[-1].targets for worker in setup.workers]
    assert all(other == first for other in others)
    return first


def test_workers_are_told_of_a_link_in_doubt_once_and_use_it_only_if_there_is_no_other() -> None:
    setup, office, branch = two_peers()
    told = len(setup.workers[0].told(NewFlows))
    for _ in range(3):
        setup.link.doubt(to=True)
    assert targets(setup) == [[[branch], [office]]]
    assert len(setup.workers[0].told(NewFlows)) == told + 1


def test_dials_that_fail_behind_a_peer_move_the_new_flows_of_that_route() -> None:
    setup, office, branch = two_peers(failures=2, recover_after=10)
    routes = setup.workers[0].routes
    assert routes is not None
    unreached = CloseReason.HOST_UNREACHABLE
    routes.dial_failed(office, DialFailed("r", "a.example", unreached))
    routes.dials_done(DialsDone([["r", office]]))
    routes.dial_failed(office, DialFailed("r", "b.example", unreached))
    assert targets(setup) == [[[office, branch], []]], "the one between was reached"
    routes.dial_failed(office, DialFailed("r", "c.example", unreached))
    assert targets(setup) == [[[branch], [office]]]
    routes.dial_failed(999, DialFailed("r", "d.example", unreached))
    setup.now += 10
    setup.router.choose_target()
    assert targets(setup) == [[[office, branch], []]]


def test_a_probe_that_fails_moves_new_flows_and_the_next_ones_bring_them_back() -> None:
    setup, office, branch = two_peers(failures=1, recover_after=10, probe=("10.0.0.9", 443))

    def probe(reason: int) -> None:
        """Both peers are probed, and only `office` has that answer."""
        worker = setup.workers[0]
        before = len(worker.controls)
        setup.now += 10
        setup.router.tick(setup.now)
        told = worker.controls[before:]
        asked = [(number, m.number) for number, m in told if isinstance(m, Probe)]
        assert sorted(number for number, _ in asked) == [office, branch]
        assert worker.routes is not None
        for session, number in asked:
            worker.routes.probed(Probed(number, reason if session == office else 0))

    probe(CloseReason.HOST_UNREACHABLE)
    assert targets(setup) == [[[branch], [office]]]
    for _ in range(5):
        probe(CloseReason.ORDERLY)
    assert targets(setup) == [[[office, branch], []]]
    assert setup.workers[1].told(Probe) == [], "one worker asks for all"


def test_a_worker_that_starts_is_told_what_the_others_know() -> None:
    setup, office, branch = two_peers()
    setup.link.goaway()
    setup.router.worker_down(1)
    setup.restart(1)
    assert setup.workers[1].told(NewFlows) == [NewFlows([[[branch], []]], [[]])]
    assert office in setup.router.sessions


def test_an_endpoint_tells_nobody_where_to_open_flows() -> None:
    setup = endpoint()
    setup.router.tick(setup.now)
    setup.router.route([RouteSettings("r")])
    setup.link.goaway()
    setup.router.detach(setup.link, "gone")
    assert all(worker.told(NewFlows) == [] for worker in setup.workers)


# --- links that take over -----------------------------------------------------------------------


def test_a_newer_link_adopts_the_session_with_its_flows() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    older, older_port, session = setup.link, setup.port, setup.session
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.relink()
    assert setup.session is session
    assert setup.link.replaced is older
    assert (session.flows, older.flows, setup.link.flows) == (1, 0, 1)
    assert setup.router.links == [setup.link]
    assert [worker.told(SessionEnded) for worker in setup.workers] == [[], []]
    assert [len(worker.told(Attach)) for worker in setup.workers] == [2, 2]
    before = len(older_port.sent)
    setup.say(0, Data(2, b"x").encode())
    assert (len(older_port.sent), setup.port.sent) == (before, [Data(2, b"x").encode()])


def test_what_still_comes_from_the_older_link_changes_nothing() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    older = setup.link
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.relink()
    setup.link.resume(Resume(((2, 0, 20, 1),), last=True))
    told = [len(worker.controls) for worker in setup.workers]
    assert setup.router.target == setup.session.number
    older.goaway()
    older.doubt(to=True)
    older.resume(Resume((), last=True))
    older.messages([CloseConnection(2).encode()])
    older.drained(10_000_000)
    assert setup.router.detach(older, "closed at last") == 0
    assert setup.router.target == setup.session.number
    assert [len(worker.controls) for worker in setup.workers] == told
    assert setup.session.flows == 1
    assert setup.router.detached == []


def test_a_peer_that_cannot_resume_begins_its_session_anew() -> None:
    setup = resuming(opens=False)
    setup.hear(open_message(2))
    before = setup.session
    setup.resume = False
    setup.relink()
    assert setup.session is not before
    assert list(setup.router.sessions.values()) == [setup.session]
    assert setup.router.flows == 0
    assert all(
        worker.told(SessionEnded) == [SessionEnded("the peer does not support resuming")]
        for worker in setup.workers
    )


def test_a_session_without_flows_does_not_wait_for_a_link() -> None:
    setup = resuming()
    assert setup.router.detach(setup.link, "cut") == 0
    assert setup.router.sessions == {}


def test_a_session_that_is_named_ends_and_no_other_one_of_the_peer() -> None:
    setup = resuming()
    setup.router.forget_peer("office", "left", key=b"x" * 16)
    assert list(setup.router.sessions) == [setup.session.number]
    setup.router.forget_peer("office", "left", key=b"s" * 16)
    assert setup.router.sessions == {}


# --- resume -------------------------------------------------------------------------------------


def test_flows_wait_for_the_next_link_and_new_ones_for_the_end_of_the_resume() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.router.detach(setup.link, "cut")
    assert setup.router.target == 0
    assert setup.router.detached == [setup.session]
    session = setup.session
    setup.relink()
    assert setup.session is session
    setup.router.tick(setup.now)
    assert setup.router.target == 0
    setup.link.resume(Resume(((2, 5, 6, 1),), last=False))
    setup.router.tick(setup.now)
    assert setup.router.target == 0
    setup.link.resume(Resume((), last=True))
    assert setup.router.target == session.number
    assert setup.workers[0].told(PeerRows) == [PeerRows([[2, 5, 6, 1]], False), PeerRows([], True)]
    assert setup.workers[1].told(PeerRows) == [PeerRows([], True)]
    assert setup.total("resumes", result="resumed") == 1


def test_a_newer_link_takes_over_and_the_older_one_carries_nothing_any_more() -> None:
    setup = resuming(opens=False)
    setup.hear(open_message(2))
    older = setup.link
    setup.workers[setup.worker_of(2)].rows = [[2, 0, 20, 1]]
    setup.relink()
    assert setup.link.replaced is older
    seen = [len(worker.messages) for worker in setup.workers]
    older.messages([Data(2, b"late").encode()])
    assert [len(worker.messages) for worker in setup.workers] == seen
    assert setup.router.detach(older, "replaced") == 0
    setup.hear(Data(2, b"x").encode())
    assert [len(worker.messages) for worker in setup.workers] != seen


def test_a_session_that_nobody_comes_back_to_ends_in_time() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    assert setup.session.detached_at == setup.now
    setup.router.tick(setup.now + 60)
    assert setup.router.flows == 1
    setup.router.tick(setup.now + 60.1)
    assert setup.router.flows == 0
    assert setup.workers[0].told(SessionEnded) != []
    assert setup.total("resumes", result="given-up") == 1


def test_what_waits_is_told_with_the_time_that_it_has_left() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(0, open_message(3))
    assert setup.router.waiting(0.0) == {}
    setup.router.detach(setup.link, "cut")
    since = setup.now
    assert setup.router.waiting(since + 20) == {"office": Waiting(2, 20.0, 40.0)}
    assert setup.registry.get_sample_value("socks_tunnel_sessions_detached") == 1
    # An application has left meanwhile: its flow waits no more.
    setup.say(0, CloseConnection(2).encode())
    assert setup.router.waiting(since + 70) == {"office": Waiting(1, 70.0, 0.0)}
    assert setup.port.sent == [open_message(2), open_message(3)]
    setup.workers[0].rows = [[3, 0, 20, 1]]
    setup.relink()
    assert setup.router.waiting(since + 20) == {}
    assert setup.registry.get_sample_value("socks_tunnel_sessions_detached") == 0


def test_a_resume_is_logged_with_the_time_since_the_loss(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.now += 31.4
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.relink()
    setup.link.resume(Resume(((2, 0, 20, 1),), last=True))
    assert "session with office: resumed 1 flows 31.4 s after their link was lost" in caplog.text
    assert setup.total("resumes", result="resumed") == 1
    assert setup.registry.get_sample_value("socks_tunnel_resume_seconds_count") == 1
    caplog.clear()
    setup.relink()
    setup.link.resume(Resume(((2, 0, 20, 1),), last=True))
    assert "resumed 1 flows whose link was replaced" in caplog.text


def test_a_session_whose_flows_have_all_ended_is_not_given_up() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.say(0, CloseConnection(2).encode())
    setup.router.forget_peer("office", "a test")
    assert setup.total("resumes", result="given-up") == 0


def test_a_peer_that_never_ends_its_resume_has_its_link_closed() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.relink()
    setup.router.tick(setup.now + RESUME_SECONDS)
    assert setup.abuses == []
    setup.router.tick(setup.now + RESUME_SECONDS + 0.1)
    setup.router.tick(setup.now + RESUME_SECONDS + 1.1)
    assert len(setup.abuses) == 1


def test_another_session_of_a_peer_ends_the_one_before() -> None:
    setup = resuming(opens=False)
    setup.hear(open_message(2))
    before = setup.session
    setup.router.attach(FakeLink(), "office", terms(session=b"n" * 16, resume=True))
    assert before.number not in setup.router.sessions
    assert setup.router.flows == 0


def test_a_peer_that_is_removed_loses_its_session_also_without_a_link() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.router.forget_peer("office", "removed")
    assert setup.router.sessions == {}
    assert setup.workers[0].told(SessionEnded) == [SessionEnded("removed")]


def test_a_drain_ends_sessions_that_no_link_will_come_for() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.router.drain()
    assert setup.router.sessions == {}
    assert len(setup.workers[0].told(SessionEnded)) == 1


def test_a_drain_keeps_no_session_for_a_link_that_will_not_come() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.draining = True
    assert setup.router.detach(setup.link, "cut") == 1
    assert setup.router.sessions == {}
