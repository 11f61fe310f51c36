"""Which datagrams are relayed, and how much of it."""

from dataclasses import dataclass
from typing import Literal

import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.rendezvous_relay import JOINED_MAX, QUEUE_MAX, Relayed, encode_relayed
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.registry import Registry
from socks_tunnel.rendezvous.relay import (
    BURST_MIN,
    CHANNELS_PER_PAIR,
    FRAME_COST,
    REFUSALS_BURST,
    UNANSWERED_MAX,
    RelayHall,
)

A, B, C, D = (bytes([number]) * 32 for number in range(4))
CHANNEL = b"channel1"


@dataclass
class Settings:
    enabled: bool = True
    bytes_per_second: int = 1000
    sessions: int = 100
    idle_timeout: float = 60


class Hall:
    """A registry with a relay; A and B are listed."""

    def __init__(
        self, clients: Literal["listed", "enrolled", "any"] = "any", **settings: float
    ) -> None:
        self.registry = Registry({A: "a", B: "b"}, clients=clients)
        self.settings = Settings(**settings)  # type: ignore[arg-type] # they are what it takes
        self.relay = RelayHall(self.registry, self.settings)
        self.woken: list[bytes] = []

    def join(self, key: bytes, *watched: bytes, enrolled_by: bytes | None = None) -> Client:
        client = self.registry.join(
            key,
            0,
            wake=lambda: self.woken.append(key),
            end=lambda *_: None,
            enrolled_by=enrolled_by,
        )
        self.registry.watch(client, wire.Watch(watched, reset=True))
        drain(client)
        return client

    def pair(self) -> tuple[Client, Client]:
        a, b = self.join(A, B), self.join(B, A)
        drain(a)
        return a, b

    def send(
        self, client: Client, to: bytes, data: bytes = b"data", now: float = 0, **more: bytes
    ) -> None:
        frame = Relayed(to, more.get("channel", CHANNEL), data, len(data))
        self.relay.relay(client, frame, now)

    def dropped(self) -> dict[str, int]:
        return {
            name.removeprefix("relay dropped: "): count
            for name, count in self.registry.counts.items()
            if name.startswith("relay dropped")
        }


def drain(client: Client) -> list[wire.FromService]:
    frames = []
    while (frame := client.pop()) is not None:
        frames.append(wire.decode_from_service(frame))
    return frames


def test_datagrams_go_to_who_watches_the_sender_and_is_watched() -> None:
    hall = Hall()
    a, b = hall.pair()
    hall.relay.relay(a, Relayed(B, CHANNEL, b"onetwo", 3), 0)
    assert hall.woken[-1] == B
    assert drain(b) == [Relayed(A, CHANNEL, b"onetwo", 3)]
    hall.send(b, A)
    assert drain(a) == [Relayed(B, CHANNEL, b"data", 4)]
    assert hall.registry.counts["relayed datagrams"] == 3
    assert hall.registry.counts["relayed bytes"] == 10
    assert hall.dropped() == {}


def test_what_waits_for_a_client_that_goes_is_counted() -> None:
    hall = Hall()
    a, b = hall.pair()
    hall.relay.relay(a, Relayed(B, CHANNEL, b"onetwo", 3), 0)
    hall.send(a, B)
    b.lost(b.pop())  # the connection broke under this one
    assert hall.dropped() == {"gone": 2}
    b.finish(wire.CLOSE_LATE, "gone")
    assert hall.dropped() == {"gone": 3}


@pytest.mark.parametrize(("a_watches", "b_watches"), [((), (A,)), ((B,), ()), ((), ())])
def test_both_have_to_watch_each_other(
    a_watches: tuple[bytes, ...], b_watches: tuple[bytes, ...]
) -> None:
    hall = Hall()
    a, b = hall.join(A, *a_watches), hall.join(B, *b_watches)
    hall.send(a, B)
    assert drain(a) == drain(b) == []
    assert hall.dropped() == {"absent": 1}
    assert len(hall.relay) == 0


def test_nothing_goes_to_who_is_not_there_or_to_oneself() -> None:
    hall = Hall()
    a = hall.join(A, A, C)
    hall.send(a, C)
    hall.send(a, A)
    assert drain(a) == []
    assert hall.dropped() == {"absent": 2}


def test_strangers_cannot_use_it_among_themselves() -> None:
    hall = Hall()
    c, d = hall.join(C, D), hall.join(D, C)
    drain(c)
    hall.send(c, D)
    assert drain(c) == [wire.Absent(D, "unrelayed", CHANNEL)]
    assert drain(d) == []
    assert hall.dropped() == {"unrelayed": 1}


def test_a_listed_host_may_be_reached_by_any_that_it_watches() -> None:
    hall = Hall()
    a, c = hall.join(A, C), hall.join(C, A)
    drain(a)
    hall.send(c, A)
    assert drain(a) == [Relayed(C, CHANNEL, b"data", 4)]


def test_enrolled_hosts_are_known_and_guests_are_not() -> None:
    hall = Hall(clients="enrolled")
    a, c, d = hall.join(A, C, D), hall.join(C, A, enrolled_by=A), hall.join(D, A)
    drain(a)
    hall.send(c, A)
    assert drain(a) == [Relayed(C, CHANNEL, b"data", 4)]
    hall.send(d, A)
    hall.send(a, D)
    assert drain(d) == [wire.Absent(A, "unrelayed", CHANNEL)]
    assert drain(a) == [wire.Absent(D, "unrelayed", CHANNEL)]
    assert hall.registry.welcome(c, bytes(8), 0).relay == 1000
    assert hall.registry.welcome(d, bytes(8), 0).relay == 0


def test_strangers_who_have_enrolled_each_other_are_strangers() -> None:
    """Whoever has two keys can sign an enrolment of the one with the other."""
    hall = Hall(clients="any")
    c, d = hall.join(C, D, enrolled_by=D), hall.join(D, C, enrolled_by=C)
    drain(c)
    hall.send(c, D)
    assert drain(c) == [wire.Absent(D, "unrelayed", CHANNEL)]
    assert drain(d) == []


def test_who_is_here_by_an_endpoint_that_is_not_listed_any_more_is_a_stranger() -> None:
    hall = Hall(clients="any")
    c, d = hall.join(C, D, enrolled_by=A), hall.join(D, C)
    drain(c)
    hall.send(c, D)
    assert drain(d) == [Relayed(C, CHANNEL, b"data", 4)]
    hall.registry.update({B: "b"})
    hall.send(c, D)
    assert drain(c) == [wire.Absent(D, "unrelayed", CHANNEL)]
    assert drain(d) == []
    assert not c.ended, "it may stay, as anybody may"


def test_a_service_without_a_relay_says_so() -> None:
    hall = Hall(enabled=False)
    a, b = hall.pair()
    assert hall.registry.welcome(a, bytes(8), 0).relay == 0
    hall.send(a, B)
    assert drain(a) == [wire.Absent(B, "unrelayed", CHANNEL)]
    hall.settings.enabled = True
    hall.relay.apply(hall.settings)
    assert hall.registry.welcome(a, bytes(8), 0).relay == 1000
    hall.send(a, B)
    assert drain(b) == [Relayed(A, CHANNEL, b"data", 4)]


def test_each_key_has_a_rate() -> None:
    hall = Hall()
    a, b = hall.pair()
    hall.send(b, A)  # so that the channel is answered
    piece = bytes(JOINED_MAX - FRAME_COST)
    for _ in range(BURST_MIN // JOINED_MAX):
        hall.send(a, B, piece)
    hall.send(a, B, b"one too many")
    assert hall.dropped() == {"rate": 1}
    hall.send(b, A)  # whose rate is another
    hall.send(a, B, bytes(1000 - FRAME_COST), now=1)
    hall.send(a, B, b"x", now=1)
    assert hall.dropped() == {"rate": 2}


@pytest.mark.parametrize("segment", [1, 2])
def test_a_frame_costs_no_more_than_a_client_counts(segment: int) -> None:
    frame = Relayed(B, CHANNEL, b"xx", segment)
    assert len(frame.joined) + FRAME_COST <= len(encode_relayed(frame, "to"))


def test_a_rate_is_not_new_with_each_connection_of_a_key() -> None:
    hall = Hall()
    a, b = hall.pair()
    hall.send(b, A)
    for _ in range(BURST_MIN // JOINED_MAX):
        hall.send(a, B, bytes(JOINED_MAX - FRAME_COST))
    again = hall.join(A, B)
    hall.relay.left(a)  # the older one, which the newer one has replaced
    hall.send(again, B)
    assert hall.dropped() == {"rate": 1, "gone": 1}, "what waited for the older one is gone"


def test_who_does_not_answer_is_not_flooded() -> None:
    hall = Hall()
    a, b = hall.pair()
    for _ in range(UNANSWERED_MAX // JOINED_MAX):
        hall.send(a, B, bytes(JOINED_MAX))
    hall.send(a, B)
    assert hall.dropped() == {"unanswered": 1}
    hall.send(b, A)
    hall.send(a, B)
    assert hall.dropped() == {"unanswered": 1}


def test_a_pair_has_few_channels_and_the_idlest_gives_way() -> None:
    hall = Hall()
    a, b = hall.pair()
    names = [b"channel%d" % number for number in range(CHANNELS_PER_PAIR + 1)]
    for now, name in enumerate(names):
        hall.send(a, B, channel=name, now=now)
    assert len(hall.relay) == CHANNELS_PER_PAIR
    hall.send(b, A, channel=names[0], now=9)  # begins anew, in the place of names[1]
    assert len(hall.relay) == CHANNELS_PER_PAIR
    assert hall.dropped() == {}


def test_there_are_so_many_channels_and_idle_ones_end() -> None:
    hall = Hall(sessions=1, idle_timeout=60)
    a, b = hall.pair()
    c = hall.join(C, A)
    hall.registry.watch(a, wire.Watch((C,), reset=False))
    drain(a), drain(c)
    hall.send(a, B)
    hall.send(a, C)
    assert drain(a) == [wire.Absent(C, "channels", CHANNEL)]
    assert hall.dropped() == {"channels": 1}
    hall.send(a, C, now=61)
    assert drain(c) == [Relayed(A, CHANNEL, b"data", 4)]
    assert len(hall.relay) == 1
    assert drain(b)


def test_idle_channels_are_looked_for_once_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hall = Hall(sessions=1)
    a, _ = hall.pair()
    swept: list[float] = []
    sweep = hall.relay.sweep

    def noted(now: float) -> None:
        swept.append(now)
        sweep(now)

    monkeypatch.setattr(hall.relay, "sweep", noted)
    c = hall.join(C, A)
    hall.registry.watch(a, wire.Watch((C,), reset=False))
    hall.send(a, B)
    for now in (0.1, 0.5, 0.9, 1.2):
        hall.send(c, A, now=now)
    assert swept == [0.1, 1.2]
    assert hall.dropped() == {"channels": 4}


def test_refusals_are_told_a_few_times_only() -> None:
    hall = Hall(enabled=False)
    a, _ = hall.pair()
    for _ in range(REFUSALS_BURST + 5):
        hall.send(a, B)
    assert len(drain(a)) == REFUSALS_BURST
    assert hall.dropped() == {"unrelayed": REFUSALS_BURST + 5}


def test_a_client_that_does_not_read_holds_up_nobody_else() -> None:
    hall = Hall(bytes_per_second=10_000_000)
    a, b = hall.pair()
    c = hall.join(C, A)
    hall.registry.watch(a, wire.Watch((C,), reset=False))
    hall.send(b, A)
    hall.send(c, A)
    drain(a)
    drain(c)
    for _ in range(40):
        hall.send(a, B, bytes(JOINED_MAX))  # b reads none of it
    hall.send(a, C)
    assert drain(c) == [Relayed(A, CHANNEL, b"data", 4)]
    assert hall.dropped()["full"] > 0
    assert b.relayed is not None
    assert b.relayed.size <= QUEUE_MAX


def test_signalling_goes_before_datagrams() -> None:
    hall = Hall()
    a, b = hall.pair()
    hall.send(a, B)
    hall.registry.envelope(a, B, b"parcel", 0)
    assert drain(b) == [wire.FromKey(A, b"parcel"), Relayed(A, CHANNEL, b"data", 4)]


def test_a_peer_at_another_node_that_is_not_reached_is_told_as_such() -> None:
    class Others:
        def told(self, client: Client, key: bytes) -> bool:
            return (client.key, key) == (A, C)

        def relay(self, *_: object, **__: object) -> bool:
            return False

        def __getattr__(self, name: str) -> object:
            return lambda *_: None

    hall = Hall()
    a, _ = hall.pair()
    hall.registry.elsewhere = Others()  # type: ignore[assignment] # what else is told, it ignores
    hall.send(a, C)
    hall.send(a, D)
    assert drain(a) == [wire.Absent(C, "elsewhere", CHANNEL)]
    assert hall.dropped() == {"elsewhere": 1, "absent": 1}
