"""When checks are sent again, with time as a number."""

import itertools

from aioice import stun

from socks_tunnel.peer.ice.repeats import LONGEST, REPEAT_AFTER, REPEATED_MAX, Repeats


def request() -> stun.Message:
    return stun.Message(stun.Method.BINDING, stun.Class.REQUEST)


def moments(repeats: Repeats[str], until: float, *, hurry: bool = False) -> list[float]:
    """When the check of "a" is repeated, looked at each hundredth of a second from 0 on."""
    return [
        hundredth / 100
        for hundredth in range(int(until * 100))
        if repeats.take(["a"], hundredth / 100, hurry=hurry)
    ]


def test_a_check_is_repeated_soon_and_then_never_less_often_than_each_second() -> None:
    repeats: Repeats[str] = Repeats()
    repeats.asked("a", request(), 0.0)
    times = moments(repeats, 30)
    assert times[0] == REPEAT_AFTER
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(b >= a - 0.011 for a, b in itertools.pairwise(gaps))
    assert LONGEST - 0.001 <= max(gaps) < LONGEST + 0.02, "a path that is back is soon noticed"
    assert len(times) < 36


def test_while_others_wait_for_it_the_intervals_do_not_grow() -> None:
    repeats: Repeats[str] = Repeats()
    repeats.asked("a", request(), 0.0)
    moments(repeats, 10)
    again = [at for at in range(1000, 1200) if repeats.take(["a"], at / 100, hurry=True)]
    assert len(again) >= 9


def test_it_is_the_same_request_until_it_is_answered() -> None:
    repeats: Repeats[str] = Repeats()
    asked = request()
    repeats.asked("a", asked, 5.0)
    assert repeats.take(["a"], 5.1, hurry=False) == []
    assert repeats.take(["b", "a"], 5.3, hurry=False) == [("a", asked)]
    repeats.answered("a")
    repeats.answered("a")
    assert repeats.take(["a"], 9.0, hurry=True) == []


def test_a_nomination_takes_the_place_of_the_check() -> None:
    repeats: Repeats[str] = Repeats()
    repeats.asked("a", request(), 5.0)
    nomination = request()
    repeats.asked("a", nomination, 5.15)
    assert repeats.take(["a"], 5.3, hurry=False) == []
    assert repeats.take(["a"], 5.36, hurry=False) == [("a", nomination)]


def test_so_many_at_a_time_and_the_best_first() -> None:
    repeats: Repeats[str] = Repeats()
    names = [f"{number:03}" for number in range(100)]
    for name in names:
        repeats.asked(name, request(), 0.0)
    for now in (1.0, 2.0, 3.1):
        taken = [name for name, _ in repeats.take(names, now, hurry=False)]
        assert taken == names[:REPEATED_MAX]
