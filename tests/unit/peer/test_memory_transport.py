"""The tests' own transport keeps the rules that real ones keep; nothing else stands on sand."""

import random

import pytest

from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import Data, Ping, UdpPacket, message_key
from support.memory_transport import MemoryNetwork, VirtualClock, Wire, finish


class Owner:
    """Writes down what a transport says, and when."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.ups: list[float] = []
        self.batches: list[tuple[float, list[bytes]]] = []
        self.control: list[bytes] = []
        self.drained: list[int] = []
        self.errors: list[str] = []
        self.downs: list[str] = []

    @property
    def messages(self) -> list[bytes]:
        return [message for _, batch in self.batches for message in batch]

    def transport_up(self) -> None:
        self.ups.append(self.clock.time())

    def transport_control(self, messages: list[bytes]) -> None:
        assert not self.downs
        self.control.extend(messages)

    def transport_messages(self, messages: list[bytes]) -> None:
        assert not self.downs
        assert messages
        self.batches.append((self.clock.time(), messages))

    def transport_writable(self, drained: int) -> None:
        assert not self.downs
        assert drained > 0
        self.drained.append(drained)

    def transport_error(self, kind: str, what: str) -> None:
        self.errors.append(kind)

    def transport_stalled(self, seconds: float) -> None:
        raise AssertionError("this transport does not know it")

    def transport_answered(self) -> None:
        raise AssertionError("this transport does not know it")

    def transport_down(self, reason: str) -> None:
        self.downs.append(reason)


def joined(**options: object) -> tuple[VirtualClock, Wire, Owner, Owner]:
    clock = VirtualClock()
    wire = Wire(clock, **options)  # type: ignore[arg-type] # the options of the tests below
    left, right = Owner(clock), Owner(clock)
    wire.gateway.attach(left)
    wire.endpoint.attach(right)
    wire.connect()
    clock.until(lambda: bool(left.ups and right.ups))
    return clock, wire, left, right


def data(conn_id: int, size: int = 1) -> bytes:
    return Data(conn_id, bytes(size)).encode()


# --- time ---------------------------------------------------------------------------------------


def test_time_passes_only_when_told_and_calls_come_at_their_moment_in_order() -> None:
    clock = VirtualClock(10.0)
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, clock.time()))

    clock.call_later(2, note, "later")
    clock.call_later(1, note, "first")
    clock.call_soon(note, "soon")
    clock.call_later(1, note, "second")
    cancelled = clock.call_later(1, note, "never")
    cancelled.cancel()
    clock.call_later(1, clock.call_later, 0.5, note, "nested")
    clock.advance(1.75)
    assert seen == [("soon", 10), ("first", 11), ("second", 11), ("nested", 11.5)]
    assert clock.time() == 11.75
    assert clock.next_due == 12
    clock.stop(5)
    clock.advance(0)
    assert seen[-1] == ("later", 16.75)
    assert clock.next_due is None


def test_waiting_for_what_never_comes_is_a_failure() -> None:
    clock = VirtualClock()
    with pytest.raises(AssertionError, match="nothing is due"):
        clock.until(lambda: False)
    clock.call_later(1000, lambda: None)
    with pytest.raises(AssertionError, match="after 120 s"):
        clock.until(lambda: False)


# --- messages -----------------------------------------------------------------------------------


def test_what_is_sent_arrives_after_the_delay_in_one_batch_and_is_reported() -> None:
    clock, wire, left, right = joined(delay=0.05)
    sent = [data(1), data(1, 9), UdpPacket(2, b"x").encode()]
    began = clock.time()
    wire.gateway.send_many(sent)
    assert wire.gateway.buffered == sum(map(len, sent))
    assert left.drained == []  # never from inside send_many
    clock.advance(0.05)
    assert right.batches == [(began + 0.05, sent)]
    assert sum(left.drained) == sum(map(len, sent))
    assert wire.gateway.buffered == 0
    wire.endpoint.send_many([Ping(bytes(8)).encode()])
    clock.advance(0.05)
    assert left.control == [Ping(bytes(8)).encode()]
    assert right.drained == []  # control is not counted


def test_a_rate_and_a_window_hold_back() -> None:
    clock, wire, left, right = joined(delay=0.01, rate=10_000, window=2_000)
    wire.gateway.send_many([data(1, 993) for _ in range(10)])
    clock.advance(0)
    assert sum(left.drained) == 2_000
    assert wire.gateway.buffered == 8_000
    clock.advance(0.5)
    assert 3 <= len(right.messages) < 10
    clock.advance(1)
    assert len(right.messages) == 10
    assert sum(left.drained) == 10_000


def test_loss_takes_datagrams_and_delays_lanes() -> None:
    clock, wire, _, right = joined(delay=0.01, loss=[False, True])
    packets = [UdpPacket(1, bytes([number])).encode() for number in range(4)]
    wire.gateway.send_many(packets)
    clock.advance(1)
    assert right.messages == packets[::2]
    right.batches.clear()
    lane = [data(1, size) for size in (1, 2, 3, 4)]
    began = clock.time()
    wire.gateway.send_many(lane)
    clock.advance(0.01)
    assert right.messages == lane[:1]
    clock.advance(1)
    assert right.messages == lane
    assert right.batches[-1][0] == pytest.approx(began + 0.03)


def test_jitter_reorders_lanes_and_never_a_lane() -> None:
    clock, wire, _, right = joined(jitter=0.05, rng=random.Random(3))
    sent = [data(number % 5, number + 1) for number in range(100)]
    for message in sent:
        wire.gateway.send_many([message])
    clock.advance(1)
    assert sorted(right.messages) == sorted(sent)
    assert right.messages != sent
    for conn_id in range(5):
        mine = [message for message in sent if message_key(message)[1] == conn_id]
        assert [m for m in right.messages if message_key(m)[1] == conn_id] == mine


def test_a_datagram_too_long_is_dropped_and_reported_anything_else_is_our_bug() -> None:
    clock, wire, left, right = joined()
    wire.gateway.max_message = 100
    long = UdpPacket(1, bytes(94)).encode()
    wire.gateway.send_many([long, data(1)])
    clock.advance(1)
    assert right.messages == [data(1)]
    assert sum(left.drained) == len(long) + len(data(1))
    assert wire.gateway.stats.datagrams_dropped == 1
    for bad in (data(1, 94), b"\x69"):
        with pytest.raises(LocalProtocolError):
            wire.gateway.send_many([data(2), bad])
    clock.advance(1)
    assert right.messages == [data(1)]


# --- faults and ends ----------------------------------------------------------------------------


def test_a_cut_is_silent_and_what_is_reliable_comes_after_it() -> None:
    clock, wire, left, right = joined()
    wire.cut()
    sent = [data(1), UdpPacket(1, b"x").encode(), data(2)]
    wire.gateway.send_many(sent)
    clock.advance(30)
    assert right.messages == []
    assert left.downs == right.downs == []
    wire.heal()
    wire.gateway.send_many([data(1, 2)])
    clock.advance(1)
    assert right.messages == [data(1), data(2), data(1, 2)]


def test_a_kill_loses_what_is_under_way_and_delivers_what_has_come() -> None:
    clock, wire, left, right = joined(delay=0.05)
    wire.gateway.send_many([data(1)])
    clock.advance(0.04)
    wire.gateway.send_many([data(2)])
    clock.advance(0.02)
    wire.gateway.send_many([data(3)])
    wire.kill("gone")
    assert right.messages == [data(1)]
    assert left.downs == right.downs == ["gone"]
    wire.gateway.send_many([data(4)])
    clock.advance(10)
    assert right.messages == [data(1)]
    wire.kill("again")
    assert left.downs == right.downs == ["gone"]


def test_a_close_is_told_once_and_the_peer_gets_what_was_sent_before() -> None:
    clock, wire, left, right = joined()
    wire.gateway.send_many([data(1)])
    wire.gateway.close("enough", linger=1.0)
    assert left.downs == ["enough"]
    wire.gateway.close("again")
    finish(wire.gateway.wait_closed())
    clock.advance(1)
    assert right.messages == [data(1)]
    assert right.downs == ["the peer closed the connection"]
    assert left.downs == ["enough"]


def test_two_find_each_other_by_offer_and_answer() -> None:
    clock = VirtualClock()
    network = MemoryNetwork(clock)
    gateway, endpoint = network.transport("gateway"), network.transport("endpoint")
    left, right = Owner(clock), Owner(clock)
    gateway.attach(left)
    endpoint.attach(right)
    finish(gateway.accept_answer(finish(endpoint.accept_offer(finish(gateway.create_offer())))))
    clock.until(lambda: bool(left.ups and right.ups))
    assert right.ups < left.ups
    gateway.send_many([data(1)])
    clock.advance(1)
    assert right.messages == [data(1)]
