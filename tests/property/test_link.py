"""A link against any peer, and two links over any path.

Whatever comes on whatever channel, in whatever order and at whatever time, a link ends at most itself:
with one sentence of bounded length, told once. Two honest links over a path that loses, delays, cuts and
heals never blame each other, and say that they are down only if they were cut for long enough.
"""

import logging
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from property.strategies import damaged, message_bytes
from socks_tunnel.peer.link import Link
from socks_tunnel.protocol.messages import (
    Data,
    Goaway,
    Hello,
    Ping,
    Resume,
    UdpPacket,
    message_header,
    message_key,
)
from support.memory_transport import VirtualClock, Wire, finish

REASON_MAX = 600
"""Bytes of the longest sentence that a link may end with."""


def hello(**changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "version": 1,
        "software": "test",
        "session": bytes(16),
        "window": 262_144,
        "max_data": 65_529,
        "features": ("resume",),
    }
    return Hello(**(fields | changes))


class Owner:
    """Sees to it that a link tells what is allowed, in an order that is allowed."""

    def __init__(self) -> None:
        self.up = False
        self.doubted = False
        self.went_away = False
        self.reason: str | None = None
        self.messages: list[bytes] = []
        self.drained = 0

    def _alive(self) -> None:
        assert self.up
        assert self.reason is None

    def link_up(self) -> None:
        assert not self.up
        assert self.reason is None
        self.up = True

    def link_messages(self, messages: list[bytes]) -> None:
        self._alive()
        assert messages
        assert all(7 <= len(message) <= 65_536 for message in messages)
        self.messages += messages

    def link_drained(self, drained: int) -> None:
        self._alive()
        assert drained > 0
        self.drained += drained

    def link_resume(self, resume: Resume) -> None:
        self._alive()

    def link_goaway(self, reason: int) -> None:
        assert self.reason is None
        assert not self.went_away
        assert 0 <= reason <= 255
        self.went_away = True

    def link_suspected(self, seconds: float) -> None:
        self._alive()
        assert not self.doubted
        self.doubted = True

    def link_trusted(self) -> None:
        self._alive()
        assert self.doubted
        self.doubted = False

    def link_down(self, reason: str) -> None:
        assert self.reason is None
        assert 0 < len(reason.encode()) <= REASON_MAX
        self.reason = reason


honest = st.sampled_from(
    [
        hello().encode(),
        Ping(bytes(8)).encode(),
        Goaway(0x12).encode(),
        Resume().encode(),
        Data(7, b"x").encode(),
        UdpPacket(7, b"x").encode(),
        message_header(99, 0),
    ]
)
arrivals = st.tuples(
    st.sampled_from(["control", "control", "lane-0", "datagram"]),
    st.one_of(honest, message_bytes, damaged(message_bytes), st.binary(max_size=64), st.text()),
)
steps = st.lists(st.one_of(arrivals, st.floats(0, 20)), max_size=40)


@given(st.sampled_from(["gateway", "endpoint"]), st.booleans(), steps)
def test_whatever_a_peer_does_ends_at_most_its_own_link(
    role: str, greeted: bool, what: list[Any]
) -> None:
    logging.disable(logging.CRITICAL)
    try:
        clock = VirtualClock()
        wire = Wire(clock)
        transport = wire.gateway if role == "gateway" else wire.endpoint
        other = wire.endpoint if role == "gateway" else wire.gateway
        other.attach(Silent())
        owner, kinds = Owner(), list[str]()
        link = Link(
            owner,
            transport,
            name="office",
            hello=hello(),
            clock=clock,
            on_protocol_error=kinds.append,
        )
        link._begin()
        wire.connect()
        clock.advance(1)
        if greeted:
            transport.arrive("control", hello().encode())
            clock.advance(0)
            assert owner.up
        for step in what:
            if isinstance(step, float):
                clock.advance(step)
            else:
                transport.arrive(*step)
        clock.advance(100)  # nobody answers our PINGs
        assert owner.reason is not None
        assert link.state == "down"
        assert "internal-error" not in kinds
        assert sum(link.protocol.errors.values()) == len(kinds)
    finally:
        logging.disable(logging.NOTSET)


class Silent:
    """The owner of a transport on which nobody speaks."""

    def transport_up(self) -> None: ...

    def transport_control(self, messages: list[bytes]) -> None: ...

    def transport_messages(self, messages: list[bytes]) -> None: ...

    def transport_writable(self, drained: int) -> None: ...

    def transport_error(self, kind: str, what: str) -> None: ...

    def transport_stalled(self, seconds: float) -> None: ...

    def transport_answered(self) -> None: ...

    def transport_down(self, reason: str) -> None: ...


path = st.fixed_dictionaries(
    {
        "delay": st.floats(0.0005, 0.6),
        "rate": st.one_of(st.none(), st.floats(20_000, 1e7)),
        "loss": st.lists(st.booleans(), max_size=5).map(lambda pattern: [*pattern, False]),
        "jitter": st.sampled_from([0.0, 0.003, 0.05]),
    }
)
doings = st.lists(
    st.tuples(
        st.sampled_from(["left", "right", "cut", "wait", "stop"]),
        st.integers(0, 8),
        st.floats(0.001, 12),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(path, doings)
def test_two_honest_links_keep_each_other_through_whatever_the_path_does(
    options: dict[str, Any], what: list[tuple[str, int, float]]
) -> None:
    clock = VirtualClock()
    wire = Wire(clock, **options)
    owners = Owner(), Owner()
    left = Link(owners[0], wire.gateway, name="office", hello=hello(), clock=clock)
    right = Link(owners[1], wire.endpoint, name="laptop", hello=hello(), clock=clock)
    wire.connect()
    clock.until(lambda: owners[0].up and owners[1].up)
    sent: dict[Link, list[bytes]] = {left: [], right: []}
    for number, (kind, conn_id, seconds) in enumerate(what):
        if kind in {"left", "right"}:
            link = left if kind == "left" else right
            message = Data(conn_id, number.to_bytes(4) + bytes(conn_id * 50)).encode()
            sent[link].append(message)
            link.send_many([message, UdpPacket(conn_id, b"x").encode()])
        elif kind == "cut":
            wire.cut()
            clock.advance(min(seconds, 8))  # and up to 5 s of silence before it: less than 15 s
            wire.heal()
            clock.advance(20)
        elif kind == "stop":
            clock.stop(10 * seconds)
            clock.advance(20)  # the PING that decides is answered
        else:
            clock.advance(seconds)
    clock.advance(60)
    for link, there, other in ((left, right, owners[1]), (right, left, owners[0])):
        assert link.state == "up"
        assert not link.protocol.errors
        assert not other.doubted, there
        got = [message for message in other.messages if message[0] != UdpPacket.TYPE]
        for conn_id in range(9):
            assert [m for m in got if message_key(m)[1] == conn_id] == [
                m for m in sent[link] if message_key(m)[1] == conn_id
            ]
        assert link.transport.buffered == 0
    finish(left.close("enough"))
    clock.advance(20)
    assert owners[1].reason == "the peer closed the connection"
