"""Several nodes of one service: what clients see, whichever node they are at."""

from collections import deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_relay import Relayed
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.federation import Federation, Found
from socks_tunnel.rendezvous.registry import Registry
from socks_tunnel.rendezvous.relay import REFUSALS_BURST, UNANSWERED_MAX, RelayHall

CHANNEL = b"channel1"
A, B, C = (bytes([number]) * 32 for number in range(3))


@dataclass
class Relaying:
    enabled: bool = True
    bytes_per_second: int = 1_000_000
    sessions: int = 100
    idle_timeout: float = 60


class Store:
    """A store and a bus in memory, in which everything takes its time."""

    def __init__(self) -> None:
        self.at: dict[bytes, str] = {}
        self.nodes: dict[str, Node] = {}
        self.waiting: deque[Callable[[], None]] = deque()

    def settle(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


class Node:
    """One node, and its part of the bus."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.alive = True
        self.is_up = True
        self.registry = Registry({A: "a"}, clients="any")
        self.hall = RelayHall(self.registry, Relaying())
        self.federation = Federation(name, self.registry, self.hall, self)
        self.registry.elsewhere = self.federation
        self.ended: list[tuple[bytes, int]] = []
        store.nodes[name] = self

    def claim(self, key: bytes, then: Callable[[str | None], None]) -> None:
        def do() -> None:
            before = self.store.at.get(key)
            self.store.at[key] = self.name
            then(before)

        self.store.waiting.append(do)

    def release(self, key: bytes) -> None:
        def do() -> None:
            if self.store.at.get(key) == self.name:
                del self.store.at[key]

        self.store.waiting.append(do)

    def find(self, keys: Collection[bytes], then: Callable[[Found], None]) -> None:
        wanted = list(keys)
        self.store.waiting.append(
            lambda: then({key: self.store.at[key] for key in wanted if key in self.store.at})
        )

    def send(self, node: str, message: bytes, then: Callable[[bool], None] | None = None) -> None:
        def do() -> None:
            other = self.store.nodes.get(node)
            taken = other is not None and other.alive
            if taken and other is not None:
                other.federation.receive(message, 0)
            if then is not None:
                then(taken)

        self.store.waiting.append(do)

    def relay(self, node: str, lane: Hashable, message: bytes, datagrams: int, now: float) -> bool:
        del lane, datagrams
        other = self.store.nodes[node]

        def do() -> None:
            other.federation.receive(message, now)

        if self.is_up:
            self.store.waiting.append(do)
        return self.is_up

    def join(self, key: bytes, *watched: bytes) -> Client:
        client = self.registry.join(
            key, 0, wake=lambda: None, end=lambda code, _: self.ended.append((key, code))
        )
        self.registry.watch(client, wire.Watch(watched, reset=True))
        return client

    def die(self) -> None:
        """It is killed: nobody is told anything, until the others notice."""
        self.alive = False
        for key in [key for key, node in self.store.at.items() if node == self.name]:
            del self.store.at[key]
        for other in self.store.nodes.values():
            if other is not self:
                other.federation.lost(self.name)


def got(client: Client) -> list[wire.FromService]:
    frames = []
    while (frame := client.pop()) is not None:
        frames.append(wire.decode_from_service(frame))
    return frames


@pytest.fixture
def nodes() -> tuple[Node, Node]:
    store = Store()
    return Node(store, "one"), Node(store, "two")


def test_two_that_watch_each_other_learn_of_each_other(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a = one.join(A, B)
    one.store.settle()
    b = two.join(B)
    one.store.settle()
    assert got(a) == got(b) == []
    two.registry.watch(b, wire.Watch((A,), reset=False))
    one.store.settle()
    assert got(a) == [wire.Presence((B,), ())]
    assert got(b) == [wire.Presence((A,), ())]
    one.registry.leave(a)
    one.store.settle()
    assert got(b) == [wire.Presence((), (A,))]
    two.registry.leave(b)
    one.store.settle()
    assert one.store.at == {}


def test_an_envelope_crosses_and_an_absence_comes_back(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = one.join(A, B), two.join(B, A)
    one.store.settle()
    got(a), got(b)
    one.registry.envelope(a, B, b"parcel", 0)
    one.store.settle()
    assert got(b) == [wire.FromKey(A, b"parcel")]
    for to in (C, B):
        two.registry.watch(b, wire.Watch((), reset=True))
        one.registry.envelope(a, to, b"parcel", 0)
        one.store.settle()
        assert wire.Absent(to, "absent") in got(a)
    assert got(b) == []


def test_a_stranger_at_another_node_is_a_guest_too(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = one.join(A, B), two.join(B)
    two.registry.watch(b, wire.Watch((), reset=True, guests=True))
    one.store.settle()
    one.registry.envelope(a, B, b"let me in", 0)
    one.store.settle()
    two.registry.envelope(b, A, b"come in", 0)
    one.store.settle()
    assert got(b) == [wire.FromKey(A, b"let me in")]
    assert got(a) == [wire.FromKey(B, b"come in")]


def test_a_key_is_at_one_node_only(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    one.join(A, B)
    b = two.join(B, A)
    one.store.settle()
    got(b)
    two.join(A, B)
    one.store.settle()
    assert one.ended == [(A, wire.CLOSE_REPLACED)]
    assert one.store.at == {A: "two", B: "two"}
    assert got(b)[-1] == wire.Presence((A,), ())
    assert len(one.registry) == 0


def test_a_node_that_dies_takes_its_clients_until_they_come_back(
    nodes: tuple[Node, Node],
) -> None:
    one, two = nodes
    one.join(A, B)
    b = two.join(B, A)
    one.store.settle()
    assert two.federation.nodes() == {"one"}
    one.die()
    assert got(b) == [wire.Presence((A,), ()), wire.Presence((), (A,))]
    assert two.federation.nodes() == set()
    two.join(A, B)
    one.store.settle()
    assert got(b) == [wire.Presence((A,), ())]


def test_what_the_bus_has_lost_is_said_again(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = one.join(A, B), two.join(B, A)
    one.store.waiting.clear()
    one.store.at.clear()
    for node in nodes:
        node.federation.resync()
    one.store.settle()
    assert wire.Presence((B,), ()) in got(a)
    assert wire.Presence((A,), ()) in got(b)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "here", "keys": bytes(31)},
        {"kind": "here", "keys": bytes(32 * 1025)},
        {"kind": "envelope", "to": bytes(32)},
        {"kind": "absent", "to": bytes(32), "reason": "none"},
        {"kind": "gone", "client": b"", "keys": b""},
        {"kind": "relay", "to": B, "channel": b"", "datagram": b"x"},
        {"kind": "relay", "to": B, "channel": CHANNEL, "datagram": b""},
        {"kind": "relay", "to": B, "channel": CHANNEL, "datagram": bytes(65), "segment": 1},
        {"kind": "absent", "to": B, "reason": "unrelayed", "channel": b"x"},
        {"kind": "load", "flows": -1, "links": 0, "version": ""},
    ],
)
def test_messages_that_make_no_sense(nodes: tuple[Node, Node], fields: dict[str, object]) -> None:
    one, _ = nodes
    with pytest.raises(bounded.Malformed):
        one.federation.receive(msgpack.packb({"node": "two", "client": A, **fields}), 0)


def test_a_kind_of_a_newer_version_is_named_and_changes_nothing(nodes: tuple[Node, Node]) -> None:
    """Whatever it carries: not even a client is wanted in it."""
    one, two = nodes
    a, b = one.join(A, B), two.join(B, A)
    one.store.settle()
    got(a), got(b)
    for more in ({}, {"client": A}, {"client": 7}):
        message = msgpack.packb({"node": "two", "kind": "weather", **more})
        assert one.federation.receive(message, 0) == "weather"
    known = {"node": "two", "kind": "gone", "client": B, "keys": A, "weather": "fine"}
    assert one.federation.receive(msgpack.packb(known), 0) is None
    one.store.settle()
    assert got(a) == [wire.Presence((), (B,))]
    assert got(b) == []


KEYS = [bytes([number]) * 32 for number in range(4)]


def test_a_parcel_to_a_node_that_has_died_comes_back_at_once(nodes: tuple[Node, Node]) -> None:
    """The store still says that the client is there."""
    one, two = nodes
    a = one.join(A, B)
    two.join(B, A)
    one.store.settle()
    got(a)
    two.alive = False
    one.registry.envelope(a, B, b"parcel", 0)
    one.store.settle()
    assert got(a) == [wire.Absent(B, "absent")]
    assert one.registry.counts["not passed: absent"] == 1


def test_what_nobody_can_be_told_is_counted(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a = one.join(A, B)
    two.join(B)  # it does not watch the sender
    one.store.settle()
    one.registry.envelope(a, B, b"parcel", 0)
    one.registry.leave(a)
    one.store.settle()
    assert one.registry.counts["dropped: sender gone too"] == 1


# --- load -----------------------------------------------------------------------------------------


def loads(frames: list[wire.FromService]) -> list[int]:
    return [load.flows for f in frames if isinstance(f, wire.Presence) for _, load in f.loads]


def test_a_load_is_told_at_other_nodes(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = told_of_each_other(nodes, A, B)
    two.registry.watch(b, wire.Watch((A,), reset=True, loads=True))
    two.store.settle()
    got(b)
    one.registry.load(a, Load(5, 1, "1"), 0)
    two.store.settle()
    assert loads(got(b)) == [5]
    c = two.join(C, A)
    two.registry.watch(c, wire.Watch((A,), reset=True, loads=True))
    one.registry.watch(a, wire.Watch((C,), reset=False))
    two.store.settle()
    assert set(loads(got(c))) == {5}  # once for each that says that it is here
    assert got(b) == []
    two.registry.watch(b, wire.Watch((), reset=True, loads=True))
    one.registry.load(a, Load(50, 1, "1"), 10)
    two.store.settle()
    assert (loads(got(b)), loads(got(c))) == ([], [50])
    one.registry.leave(a)
    two.store.settle()
    two.federation.receive(
        msgpack.packb(
            {
                "kind": "load",
                "node": "one",
                "client": A,
                "to": b"",
                "flows": 9,
                "links": 1,
                "version": "1",
            }
        ),
        0,
    )
    assert loads(got(c)) == [], "it has gone"


# --- datagrams -----------------------------------------------------------------------------------


def datagrams(to: bytes, data: bytes = b"onetwo") -> Relayed:
    return Relayed(to, CHANNEL, data, 3)


def told_of_each_other(nodes: tuple[Node, Node], x: bytes, y: bytes) -> tuple[Client, Client]:
    one, two = nodes
    here, there = one.join(x, y), two.join(y, x)
    one.store.settle()
    assert [got(here), got(there)] == [[wire.Presence((y,), ())], [wire.Presence((x,), ())]]
    return here, there


def test_datagrams_go_from_node_to_node_and_back(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = told_of_each_other(nodes, A, B)
    one.hall.relay(a, datagrams(B), 0)
    two.store.settle()
    assert got(b) == [datagrams(A)]
    two.hall.relay(b, datagrams(A, b"x"), 0)
    two.store.settle()
    assert got(a) == [Relayed(B, CHANNEL, b"x", 1)]
    assert len(one.hall) == len(two.hall) == 1
    assert two.registry.counts["relayed datagrams"] == 2
    assert one.registry.counts["relayed datagrams"] == 1


def test_both_nodes_see_that_a_channel_is_answered(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = told_of_each_other(nodes, A, B)
    piece = Relayed(B, CHANNEL, bytes(UNANSWERED_MAX // 4), 1200)
    for _ in range(5):
        one.hall.relay(a, piece, 0)
    two.store.settle()
    assert len(got(b)) == 4
    assert one.registry.counts["relay dropped: unanswered"] == 14
    two.hall.relay(b, datagrams(A), 0)
    two.store.settle()
    one.hall.relay(a, piece, 1)
    two.store.settle()
    assert len(got(b)) == 1


def test_the_operator_has_to_know_one_of_two_at_different_nodes(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    b, c = told_of_each_other(nodes, B, C)
    for _ in range(REFUSALS_BURST + 1):
        one.hall.relay(b, datagrams(C), 0)
        two.store.settle()
    assert got(c) == []
    assert got(b) == [wire.Absent(C, "unrelayed", CHANNEL)] * REFUSALS_BURST
    assert two.registry.counts["relay dropped: unrelayed"] == 2 * (REFUSALS_BURST + 1)
    assert len(two.hall) == 0


def test_datagrams_of_who_is_not_watched_any_more_are_dropped(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    a, b = told_of_each_other(nodes, A, B)
    two.registry.watch(b, wire.Watch((), reset=True))
    one.hall.relay(a, datagrams(B), 0)  # before the node has heard of it
    two.store.settle()
    one.hall.relay(a, datagrams(B), 0)
    two.store.settle()
    assert [got(a), got(b)] == [[wire.Presence((), (B,))], []]
    assert two.registry.counts["relay dropped: absent"] == 2
    assert one.registry.counts["relay dropped: absent"] == 2


def test_datagrams_to_a_node_that_is_not_reached_are_refused(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    a, _ = told_of_each_other(nodes, A, B)
    one.is_up = False
    one.hall.relay(a, datagrams(B), 0)
    assert got(a) == [wire.Absent(B, "elsewhere", CHANNEL)]
    assert one.registry.counts["relay dropped: elsewhere"] == 2


def test_a_refusal_for_who_has_gone_goes_nowhere(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    b, _ = told_of_each_other(nodes, B, C)
    one.hall.relay(b, datagrams(C), 0)
    one.registry.leave(b)
    two.store.settle()
    assert got(b) == []


class Cluster(RuleBasedStateMachine):
    """When all has been said, each client knows exactly the others that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.nodes = [Node(self.store, name) for name in ("one", "two", "three")]
        self.clients: dict[bytes, tuple[Node, Client]] = {}
        self.known: dict[bytes, set[bytes]] = {}

    @rule(
        key=st.sampled_from(KEYS),
        node=st.integers(0, 2),
        watched=st.sets(st.sampled_from(KEYS)),
    )
    def join(self, key: bytes, node: int, watched: set[bytes]) -> None:
        chosen = self.nodes[node]
        # A client connects again when the old connection has ended, or while it seems to live.
        self.known[key] = set()
        self.clients[key] = chosen, chosen.join(key, *(watched - {key}))
        self.store.settle()

    @rule(key=st.sampled_from(KEYS), watched=st.sets(st.sampled_from(KEYS)), reset=st.booleans())
    def watch(self, key: bytes, watched: set[bytes], reset: bool) -> None:
        if key in self.clients:
            node, client = self.clients[key]
            if reset:
                self.read(key)
                self.known[key] = set()
            node.registry.watch(client, wire.Watch(tuple(watched - {key}), reset=reset))
            self.store.settle()

    @rule(key=st.sampled_from(KEYS))
    def leave(self, key: bytes) -> None:
        if key in self.clients:
            node, client = self.clients.pop(key)
            node.registry.leave(client)
            self.store.settle()

    @rule(node=st.integers(0, 2))
    def restart(self, node: int) -> None:
        dead = self.nodes[node]
        dead.die()
        self.nodes[node] = Node(self.store, dead.name)
        self.clients = {k: (n, c) for k, (n, c) in self.clients.items() if n is not dead}

    @rule(node=st.integers(0, 2))
    def resync(self, node: int) -> None:
        self.nodes[node].federation.resync()
        self.store.settle()

    def read(self, key: bytes) -> None:
        _, client = self.clients[key]
        for frame in got(client):
            assert isinstance(frame, wire.Presence)
            self.known[key] |= set(frame.online)
            self.known[key] -= set(frame.offline)

    @invariant()
    def all_is_known(self) -> None:
        for key, (_, client) in self.clients.items():
            self.read(key)
            there = {
                other
                for other, (_, its) in self.clients.items()
                if other in client.watched and key in its.watched
            }
            assert self.known[key] & client.watched == there


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
