"""A session on its next link, and in the next program: what both sides have to agree upon."""

import pytest

from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import Detach, PeerRows
from socks_tunnel.protocol.messages import (
    RESUME_ROWS_MAX,
    CloseConnection,
    Data,
    Resume,
    UdpAssociate,
    UdpPacket,
)
from socks_tunnel.supervisor.routing import ANSWERS_MAX, PEER_ROWS_SPARE, RoutedSession
from unit.supervisor.routing_world import FakeLink, Setup, open_message, resuming, terms


def test_both_sides_say_on_each_link_where_they_are() -> None:
    setup = resuming()
    assert setup.port.resumes == [Resume((), last=True)]
    setup.say(0, open_message(2))
    setup.say(1, open_message(3))
    assert setup.router.detach(setup.link, "cut") == 0
    assert [worker.told(Detach) for worker in setup.workers] == [[Detach("")], [Detach("")]]
    setup.workers[0].rows = [[2, 10, 20, 1]]
    setup.workers[1].rows = [[3, 30, 40, 3]]
    setup.relink()
    assert setup.port.resumes == [Resume(((2, 10, 20, 1), (3, 30, 40, 3)), last=True)]


def test_what_a_worker_sends_before_it_has_seen_the_new_link_is_dropped() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.workers[0].silent = True
    setup.relink()
    setup.say(0, Data(2, b"for the old link").encode())
    assert setup.port.sent == []
    assert setup.port.resumes == [], "not before all workers have told their rows"
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.workers[0].answer(setup.session.number)
    setup.say(0, Data(2, b"for this one").encode())
    assert setup.port.sent == [Data(2, b"for this one").encode()]
    assert len(setup.port.resumes) == 1


def test_a_flow_of_the_peer_that_is_unknown_here_is_closed() -> None:
    setup = resuming(opens=False)
    setup.link.resume(Resume(((7, 0, 9, 1), (8, 0, 9, 0), (9, 0, 0, 4)), last=True))
    assert setup.port.decoded == [CloseConnection(7, CloseReason.RESUME_FAILED)]


def test_the_table_follows_what_a_worker_tells_of_its_flows() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(0, open_message(4))
    setup.router.detach(setup.link, "cut")
    setup.workers[0].rows = [[4, 0, 1, 1], [6, 0, 1, 0], [2, 0, 0, 4]]
    setup.relink()
    setup.hear(Data(2, b"x").encode(), Data(4, b"y").encode(), Data(6, b"z").encode())
    assert [m for _, m in setup.workers[0].messages] == [
        Data(4, b"y").encode(),
        Data(6, b"z").encode(),
    ]


def test_a_flow_that_no_worker_knows_any_more_is_closed_at_the_peer() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(1, open_message(3))
    setup.router.detach(setup.link, "cut")
    setup.workers[1].rows = [[3, 0, 1, 1]]
    setup.relink()
    assert setup.session.flows == 1
    assert setup.port.resumes == [Resume(((3, 0, 1, 1),), last=True)]
    setup.link.resume(Resume(((2, 5, 5, 1), (3, 5, 5, 1)), last=True))
    assert setup.port.decoded == [CloseConnection(2, CloseReason.RESUME_FAILED)]
    assert setup.workers[0].told(PeerRows) == [PeerRows([], True)]
    assert setup.workers[1].told(PeerRows) == [PeerRows([[3, 5, 5, 1]], True)]


def test_a_flow_that_the_peer_opens_before_a_worker_has_answered_the_attach_lives() -> None:
    setup = resuming(opens=False, count=1)
    setup.workers[0].silent = True
    setup.relink()
    setup.hear(open_message(2))
    setup.workers[0].answer(setup.session.number)
    setup.hear(Data(2, b"x").encode())
    assert [m for _, m in setup.workers[0].messages] == [open_message(2), Data(2, b"x").encode()]
    assert setup.port.sent == []


def test_a_worker_that_dies_while_rows_are_awaited_holds_nobody_up() -> None:
    setup = resuming()
    setup.workers[0].silent = True
    setup.relink()
    assert setup.port.resumes == []
    setup.router.worker_down(0)
    assert setup.port.resumes == [Resume((), last=True)]


def test_a_flow_that_ended_before_its_worker_answered_the_attach_is_forgotten() -> None:
    setup = resuming()
    setup.workers[0].silent = True
    setup.relink()
    setup.say(0, open_message(2))  # for the old link: it was on its way when the new one came up
    setup.workers[0].rows = []  # its client has left since then
    setup.workers[0].answer(setup.session.number)
    assert setup.session.flows == 0


@pytest.mark.parametrize("opens", [False, True])
def test_datagrams_that_a_link_which_is_gone_does_not_carry_are_counted(*, opens: bool) -> None:
    setup = resuming(opens=opens)
    old = setup.link
    if opens:
        setup.say(0, UdpAssociate(4).encode())
    else:
        setup.hear(UdpAssociate(4).encode())
    packet = UdpPacket(4, b"query").encode()
    setup.workers[0].silent = True
    setup.relink()
    for message in (packet, Data(2, b"told by the rows").encode(), packet):
        setup.say(0, message)
    old.messages([packet, Data(2, b"told by RESUME").encode()])
    assert setup.total("udp_dropped", reason="link-lost") == 3


def test_resume_after_its_last_part_is_an_error_of_the_peer() -> None:
    setup = resuming()
    setup.link.resume(Resume((), last=True))
    setup.link.resume(Resume((), last=True))
    assert setup.total("protocol_errors", kind="second-resume") == 1


def test_a_peer_that_sends_rows_without_end_has_its_link_closed_once() -> None:
    setup = Setup(opens=False, flows_per_worker=10, resume=True)
    setup.hear(open_message(2))
    rows = tuple((conn_id, 0, 0, 1) for conn_id in range(3, 3 + RESUME_ROWS_MAX))
    told = len(setup.workers[0].controls)
    for _ in range(500):
        setup.link.resume(Resume(rows, last=False))
    assert len(setup.abuses) == 1
    assert "rows came in RESUME" in setup.abuses[0]
    assert setup.total("protocol_errors", kind="resume-rows") > 400
    assert len(setup.workers[0].controls) == told
    # What is answered for flows that nobody has is bounded as well.
    assert sum(map(len, setup.port.sent)) < ANSWERS_MAX + 100
    assert setup.session.flows == 1


def test_rows_as_many_as_a_peer_can_have_are_taken() -> None:
    setup = Setup(opens=False, flows_per_worker=10, resume=True)
    most = 2 * 20 + PEER_ROWS_SPARE
    for start in range(0, most, 1000):
        part = range(start, min(start + 1000, most))
        closed = tuple((conn_id + 1, 0, 0, 4) for conn_id in part)
        setup.link.resume(Resume(closed, last=part[-1] == most - 1))
    assert setup.abuses == []
    assert setup.link.resumed


def test_our_own_rows_are_never_more_than_a_peer_takes() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(1, open_message(3))
    setup.router.detach(setup.link, "cut")
    for index, worker in enumerate(setup.workers):
        closed = range(10 + index, 10 + 2 * PEER_ROWS_SPARE, 2)
        worker.rows = [[2 + index, 0, 9, 1], *([conn_id, 0, 0, 4] for conn_id in closed)]
    setup.relink()
    rows = [row for resume in setup.port.resumes for row in resume.rows]
    assert len(rows) == 2 + PEER_ROWS_SPARE
    assert {row[0] for row in rows if row[3] & 1} == {2, 3}
    assert [resume.last for resume in setup.port.resumes] == [False] * 2 + [True]


def test_rows_of_flows_that_are_another_peer_s_touch_nothing_of_theirs() -> None:
    setup = Setup(opens=False, count=1, resume=True)
    setup.hear(open_message(2))
    theirs = setup.session
    other = FakeLink()
    stranger = setup.router.attach(other, "stranger", terms(session=b"t" * 16, resume=True))
    told = len([1 for number, _ in setup.workers[0].controls if number == theirs.number])
    stranger.resume(Resume(((2, 5, 5, 1),), last=True))
    assert other.decoded == [CloseConnection(2, CloseReason.RESUME_FAILED)]
    assert theirs.flows == 1
    assert len([1 for number, _ in setup.workers[0].controls if number == theirs.number]) == told


# --- hand-over ----------------------------------------------------------------------------------


def test_a_session_goes_on_in_the_next_program_with_its_flows_at_their_workers() -> None:
    before = resuming(opens=False)
    before.hear(*map(open_message, range(1, 21)), UdpAssociate(30).encode())
    before.router.detach(before.link, "the program is replaced")
    (session,) = before.router.sessions.values()
    exported = session.export() | {"number": 7}

    after = resuming(opens=False)
    after.router.forget_peer("office", "only the one that is restored")
    for index in (0, 1):
        after.router.worker_down(index)
    after.router.restore([RoutedSession.restore(after.router, exported)])
    assert after.router.flows == 21
    assert [waiting.peer for waiting in after.router.detached] == ["office"]
    for index in (0, 1):
        after.restart(index)
        after.workers[index].rows = [
            [conn_id, 0, 1, 1]
            for conn_id in (*range(1, 21), 30)
            if before.worker_of(conn_id) == index
        ]
    after.relink()
    assert (after.session.number, after.session.flows) == (7, 21)
    assert after.session.associations == 1
    for conn_id in range(1, 21):
        after.hear(Data(conn_id, b"x").encode())
        owner = after.workers[before.worker_of(conn_id)]
        assert owner.messages[-1] == (7, Data(conn_id, b"x").encode())
    assert after.port.sent == []
    stranger = after.router.attach(FakeLink(), "branch", terms(session=b"b" * 16))
    assert stranger.session.number == 8, "as in the program before, none is taken again soon"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", 0),
        ("number", 0x1_0000),
        ("peer", 7),
        ("key", b"short"),
        ("detached_at", "never"),
        ("flows", None),
        ("flows", [7]),
        ("flows", [[]]),
        ("flows", [[0, "two"]]),
        ("associations", {}),
        ("associations", [[3]]),
    ],
)
def test_a_session_that_was_handed_over_damaged_is_refused(field: str, value: object) -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "the program is replaced")
    with pytest.raises(Malformed):
        RoutedSession.restore(setup.router, setup.session.export() | {field: value})
