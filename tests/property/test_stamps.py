"""Whatever a peer says of its clock, what may be in flight towards it stays within its bounds."""

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast.congestion import Acked
from socks_tunnel.peer.fast.controllers import controller
from socks_tunnel.peer.fast.sender import (
    CREDIT_WINDOWS,
    SLOW_RATE,
    SLOW_RATE_MAX,
    UNKNOWN,
    WAIT_SHARE,
    Sender,
)
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream
from socks_tunnel.peer.fast.wire import WORD_MASK

FIRST = 0xFFFF_FF00
SIZE = 1_432
LARGE = 1 << 30

TURNS = st.tuples(
    st.one_of(  # the stamp; None: there is none
        st.none(),
        st.integers(0, WORD_MASK),
        st.sampled_from([0, 1, WORD_MASK // 2, WORD_MASK // 2 + 1, WORD_MASK]),
    ),
    st.sampled_from([0.0, 0.001, 0.05, 1.0, 30.0]),  # seconds until its SACK
    st.sampled_from([0.0, 100.0, SLOW_RATE / 2, (SLOW_RATE + SLOW_RATE_MAX) / 2, 1e7]),
)


class Watched:
    """A sender that always has something to send."""

    def __init__(self) -> None:
        made = self.sender = Sender(FIRST, controller("cubic", SIZE), SIZE)
        made.scheduler.interleaved = made.interleaved = True
        made.peer_window = LARGE
        self.now = 1.0
        self.stream = OutboundStream(0, NORMAL)

    def turn(self, word: int | None, took: float, rate: float) -> None:
        """Sends what may be sent, and has it acknowledged with a stamp."""
        made = self.sender
        made.scheduler.push(Message(self.stream, 53, bytes(200_000)))
        window, credit = made.controller.window, made.credit
        made.transmit(self.now)
        # A packet may be begun within the window, and a small message goes one beyond it.
        assert made.recovery.flight <= window + credit + 2 * SIZE
        self.now += took
        waited = UNKNOWN if word is None else made.way_back.stamped(word, self.now)
        assert waited >= 0 or word is None
        made.rate = rate
        last = (made.recovery.next_tsn - 1) & WORD_MASK
        made.receive_sack(last, LARGE, (), (), self.now, waited)
        # The window may have been cut since the credit was given; it was at most this.
        assert 0 <= made.credit <= CREDIT_WINDOWS * max(window, made.controller.window)


@given(st.lists(TURNS, max_size=30))
def test_stamps_that_lie_gain_a_part_of_the_window_at_most(
    turns: list[tuple[int | None, float, float]],
) -> None:
    watched = Watched()
    for word, took, rate in turns:
        watched.turn(word, took, rate)


@given(
    st.floats(UNKNOWN, 100.0),
    st.sampled_from([0.0, 0.001, 0.1, 10.0]),
    st.sampled_from([0.0, 1.0, float(SLOW_RATE), 1e9]),
    st.booleans(),
)
def test_a_round_trip_of_one_way_is_a_part_of_the_whole(
    waited: float, rtt: float, rate: float, stamped: bool
) -> None:
    sender = Watched().sender
    if stamped:
        sender.way_back.stamped(0, 1.0)
    sender.rate = rate
    event = Acked()
    event.now, event.rtt = 2.0, rtt
    sender._split_trip(event, waited)
    assert (1 - WAIT_SHARE) * rtt <= event.there * (1 + 1e-9) or not event.there
    assert 0.0 <= event.there <= rtt
    assert 0.0 <= event.slow <= 1.0
