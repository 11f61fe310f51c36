"""Loss detection over a path that does anything to packets: its books balance, and all arrives."""

import random

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.fast.outstanding import ACKED, IN_FLIGHT, LOST, Chunk
from socks_tunnel.peer.fast.recovery import TIMEOUTS_MAX, Recovery
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream
from socks_tunnel.peer.fast.wire import TSN_MASK

HELD_MAX = 40
"""Chunks that the sender has outstanding at most, as a window would have it."""


class Both:
    """A sender, the receiver that answers it, and what is between them."""

    def __init__(self, first: int, lifetimes: list[int], seed: int) -> None:
        self.recovery = Recovery(first)
        self.stream = OutboundStream(0, NORMAL)
        self.lifetimes = lifetimes
        self.random = random.Random(seed)
        self.now = 10.0
        self.chunks: list[Chunk] = []
        self.path: list[int] = []
        """TSNs under way."""
        self.got: set[int] = set()
        self.upto = self.recovery.cumulative
        self.duplicates: list[int] = []
        self.failed = False
        """Whether the peer was given up, which needs a path that carries nothing for long."""

    def send(self, count: int) -> None:
        recovery = self.recovery
        burst = recovery.burst(self.now)
        for _ in range(min(count, HELD_MAX - len(recovery))):
            lifetime = self.lifetimes[len(self.chunks) % len(self.lifetimes)]
            message = Message(self.stream, 53, b"x", retransmits=lifetime)
            message.number = len(self.chunks)
            message.first_tsn = message.last_tsn = recovery.next_tsn
            chunk = Chunk(recovery.next_tsn, 100, message, recovery.next_order, burst)
            recovery.sent(chunk)
            self.chunks.append(chunk)
            self.path.append(chunk.tsn)
        recovery.transmitted(self.now)

    def resend(self) -> None:
        burst = self.recovery.burst(self.now)
        while (chunk := self.recovery.next_lost()) is not None:
            self.recovery.resent(chunk, burst)
            self.path.append(chunk.tsn)
        self.recovery.transmitted(self.now)

    def deliver(self, share: float, lost: float, twice: float) -> None:
        """Has some of what is under way arrive in any order, once or twice, or not at all."""
        self.random.shuffle(self.path)
        count = round(share * len(self.path))
        arriving, self.path = self.path[:count], self.path[count:]
        for tsn in arriving:
            if self.random.random() < lost:
                continue
            if self.random.random() < twice:
                self.path.append(tsn)
            if tsn in self.got or tsn <= self.upto:
                self.duplicates.append(tsn)
            else:
                self.got.add(tsn)
        self._move_on()

    def _move_on(self) -> None:
        while self.upto + 1 in self.got:
            self.upto += 1
            self.got.discard(self.upto)

    def answer(self) -> None:
        """Sends a SACK as RFC 9260 section 3.3.4 has it, and looks for losses."""
        blocks: list[int] = []
        for tsn in sorted(self.got):
            offset = tsn - self.upto
            if blocks and blocks[-1] == offset - 1:
                blocks[-1] = offset
            else:
                blocks += [offset, offset]
        duplicates = tuple(tsn & TSN_MASK for tsn in self.duplicates)
        self.duplicates.clear()
        assert self.recovery.sack(self.upto & TSN_MASK, tuple(blocks), duplicates, self.now)
        self.recovery.detect(self.now)

    def forward(self) -> None:
        """Has the peer skip what was given up (RFC 3758 section 3.6)."""
        recovery = self.recovery
        if recovery.forwarding.point > recovery.cumulative:
            recovery.forward(self.now)
            point = recovery.forwarding.point
            if point > self.upto:
                self.got = {tsn for tsn in self.got if tsn > point}
                self.upto = point
                self._move_on()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        recovery = self.recovery
        if recovery.reorder_at and recovery.reorder_at <= self.now:
            recovery.detect(self.now)
        if recovery.rto_at and recovery.rto_at <= self.now:
            if recovery.timeouts == TIMEOUTS_MAX:
                self.failed = True
            else:
                recovery.timeout(self.now)

    def balance(self) -> None:
        recovery = self.recovery
        outstanding = recovery.since(recovery.cumulative + 1)
        assert len(outstanding) == len(recovery) == recovery.next_tsn - 1 - recovery.cumulative
        in_flight = [chunk for chunk in outstanding if chunk.state == IN_FLIGHT]
        assert recovery.flight == sum(chunk.size for chunk in in_flight)
        lost = {chunk.tsn for chunk in outstanding if chunk.state == LOST}
        assert lost == {chunk.tsn for chunk in recovery.lost if chunk.state == LOST}
        for chunk in outstanding:
            assert chunk.state != ACKED or chunk.tsn in self.got or chunk.tsn <= self.upto


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 12)),
        st.tuples(
            st.just("deliver"),
            st.floats(0, 1),
            st.sampled_from((0.0, 0.1, 0.5, 1.0)),
            st.sampled_from((0.0, 0.2)),
        ),
        st.tuples(st.just("answer")),
        st.tuples(st.just("resend")),
        st.tuples(st.just("forward")),
        st.tuples(st.just("wait"), st.floats(0.001, 0.4)),
    ),
    max_size=60,
)


@given(
    first=st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 30, 2**32 - 1)),
    lifetimes=st.lists(st.sampled_from((-1, -1, 0, 1)), min_size=1, max_size=3),
    seed=st.integers(0, 1 << 30),
    steps=STEPS,
)
def test_the_books_balance_and_everything_is_settled(
    first: int, lifetimes: list[int], seed: int, steps: list[tuple[object, ...]]
) -> None:
    both = Both(first, lifetimes, seed)
    for name, *arguments in steps:
        getattr(both, str(name))(*arguments)
        both.balance()
        if both.failed:
            return
    for _ in range(100):  # the path is mended
        both.resend()
        both.forward()
        both.wait(0.05)
        both.deliver(1.0, 0.0, 0.0)
        both.answer()
        both.balance()
        if not len(both.recovery):
            break
        both.wait(0.5)
    recovery = both.recovery
    assert (len(recovery), recovery.flight, recovery.next_lost()) == (0, 0, None)
    assert all(c.tsn <= both.upto for c in both.chunks)
    reliable = [chunk for chunk in both.chunks if chunk.message.retransmits < 0]
    assert not any(chunk.message.abandoned for chunk in reliable)
