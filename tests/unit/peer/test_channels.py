"""The rules of the channels, without a connection."""

from collections.abc import Callable
from typing import Any

import pytest

from socks_tunnel.peer.channels import (
    LANE_LABELS,
    Inbox,
    channel_for,
    kind_of,
    lane_of,
    refusal,
)
from socks_tunnel.protocol.messages import (
    CloseConnection,
    Data,
    MessageType,
    Ping,
    UdpPacket,
    message_header,
)

RELIABLE: dict[str, Any] = {
    "ordered": True,
    "max_retransmits": None,
    "max_lifetime": None,
    "subprotocol": "socks-tunnel/1",
}
UNRELIABLE = RELIABLE | {"ordered": False, "max_retransmits": 0}


class Owner:
    """Writes down what a transport says."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[bytes]]] = []
        self.errors: list[tuple[str, str]] = []
        self.inbox: Inbox | None = None
        self.closes_on_control = False

    def transport_up(self) -> None: ...

    def transport_control(self, messages: list[bytes]) -> None:
        self.batches.append(("control", messages))
        if self.closes_on_control and self.inbox is not None:
            self.inbox.close()

    def transport_messages(self, messages: list[bytes]) -> None:
        self.batches.append(("flows", messages))

    def transport_writable(self, drained: int) -> None: ...

    def transport_error(self, kind: str, what: str) -> None:
        self.errors.append((kind, what))

    def transport_stalled(self, seconds: float) -> None: ...

    def transport_answered(self) -> None: ...

    def transport_down(self, reason: str) -> None: ...


class Turn:
    """The `call_soon` of a loop whose turns the test makes."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def run(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def turn() -> Turn:
    return Turn()


@pytest.fixture
def inbox(owner: Owner, turn: Turn) -> Inbox:
    owner.inbox = Inbox(owner, turn.call_soon)
    return owner.inbox


# --- which channels there may be ---------------------------------------------------------------


def test_the_three_kinds() -> None:
    assert kind_of("control", **RELIABLE) == "control"
    assert kind_of("datagram", **UNRELIABLE) == "datagram"
    assert {kind_of(label, **RELIABLE) for label in LANE_LABELS} == {"lane"}
    assert len(LANE_LABELS) == 64


@pytest.mark.parametrize("label", ["lane-64", "lane-", "lane-01", "lane--1", "", "Control"])
def test_other_labels_fit_nothing(label: str) -> None:
    assert kind_of(label, **RELIABLE) is None
    assert kind_of(label, **UNRELIABLE) is None


@pytest.mark.parametrize(
    "change",
    [
        {"subprotocol": ""},
        {"subprotocol": "socks-tunnel/2"},
        {"max_lifetime": 100},
        {"ordered": False},
        {"max_retransmits": 0},
        {"max_retransmits": 1},
    ],
)
def test_reliable_channels_are_just_that(change: dict[str, Any]) -> None:
    assert kind_of("control", **(RELIABLE | change)) is None
    assert kind_of("lane-0", **(RELIABLE | change)) is None


@pytest.mark.parametrize(
    "change",
    [{"ordered": True}, {"max_retransmits": None}, {"max_retransmits": 1}, {"max_lifetime": 1}],
)
def test_the_datagram_channel_is_unordered_and_sends_nothing_twice(change: dict[str, Any]) -> None:
    assert kind_of("datagram", **(UNRELIABLE | change)) is None


def test_a_refusal_is_short_whatever_the_peer_named_its_channel() -> None:
    sentence = refusal("x" * 70_000, "y" * 70_000, ordered=False, second=False)
    assert sentence.startswith("the peer opened an unsuitable channel 'xxx")
    assert len(sentence) < 200
    assert "a second channel 'lane-0'" in refusal("lane-0", "p", ordered=True, second=True)


# --- which channel a message goes on -----------------------------------------------------------


def test_a_message_s_type_says_its_channel() -> None:
    for kind in ("PING", "PONG", "HELLO", "GOAWAY", "RESUME"):
        assert channel_for(MessageType[kind]) == "control"
    assert channel_for(MessageType.UDP_PACKET) == "datagram"
    others = set(MessageType) - {MessageType.UDP_PACKET, 1, 2, 10, 11, 12}
    assert {channel_for(kind) for kind in others} == {"lane"}


def test_all_messages_of_a_flow_have_one_lane_and_flows_are_spread() -> None:
    used: dict[int, int] = {}
    for conn_id in range(0, 8 * 4000, 8):  # as one of eight workers hands them out
        lane = lane_of(Data(conn_id, b"x").encode(), 8)
        assert lane == lane_of(CloseConnection(conn_id, 1).encode(), 8)
        used[lane] = used.get(lane, 0) + 1
    assert set(used) == set(range(8))
    assert min(used.values()) > 4000 / 8 * 0.8


# --- what may come on each ---------------------------------------------------------------------


def test_a_turn_s_messages_come_as_one_batch_of_each_kind_control_first(
    inbox: Inbox, owner: Owner, turn: Turn
) -> None:
    data, packet, ping = Data(1, b"x").encode(), UdpPacket(2, b"y").encode(), Ping(bytes(8))
    inbox.from_lane(data)
    inbox.from_datagram(packet)
    inbox.from_control(ping.encode())
    assert owner.batches == []
    assert len(turn.due) == 1
    turn.run()
    assert owner.batches == [("control", [ping.encode()]), ("flows", [data, packet])]
    turn.run()
    assert len(owner.batches) == 2


def test_a_batch_belongs_to_who_got_it(inbox: Inbox, owner: Owner, turn: Turn) -> None:
    for number in (1, 2):
        inbox.from_lane(Data(number, b"x").encode())
        turn.run()
    (_, first), (_, second) = owner.batches
    assert first is not second
    assert len(first) == len(second) == 1


@pytest.mark.parametrize(
    ("channel", "message", "kind"),
    [
        ("lane", "text", "text-message"),
        ("lane", b"", "short-message"),
        ("lane", b"\x69" + bytes(5), "short-message"),
        ("lane", bytes(65_537), "long-message"),
        ("datagram", "text", "text-message"),
        ("datagram", bytes([203]), "short-message"),
        ("datagram", bytes([203]) + bytes(65_536), "long-message"),
        ("datagram", Data(1, b"x").encode(), "wrong-channel"),
        ("control", "text", "text-message"),
        ("control", bytes(65_537), "long-message"),
    ],
)
def test_what_may_not_come_is_dropped_and_told(
    inbox: Inbox, owner: Owner, turn: Turn, channel: str, message: bytes | str, kind: str
) -> None:
    getattr(inbox, f"from_{channel}")(message)
    turn.run()
    assert [error[0] for error in owner.errors] == [kind]
    assert len(owner.errors[0][1]) < 200
    assert owner.batches == []


def test_the_longest_and_the_shortest_messages_pass(inbox: Inbox, owner: Owner, turn: Turn) -> None:
    longest = Data(1, bytes(65_529)).encode()
    assert len(longest) == 65_536
    for message in (longest, message_header(MessageType.SEND_EOF, 1)):
        inbox.from_lane(message)
    inbox.from_control(b"")
    turn.run()
    assert owner.batches == [
        ("control", [b""]),
        ("flows", [longest, message_header(MessageType.SEND_EOF, 1)]),
    ]
    assert owner.errors == []


def test_after_the_end_nothing_is_handed_on(inbox: Inbox, owner: Owner, turn: Turn) -> None:
    inbox.from_lane(Data(1, b"x").encode())
    inbox.from_control(b"")
    inbox.close()
    turn.run()
    inbox.from_lane("text")
    inbox.from_lane(Data(1, b"x").encode())
    turn.run()
    assert owner.batches == []
    assert owner.errors == []


def test_an_end_that_control_brings_holds_back_the_rest_of_the_turn(
    inbox: Inbox, owner: Owner, turn: Turn
) -> None:
    owner.closes_on_control = True
    inbox.from_lane(Data(1, b"x").encode())
    inbox.from_control(b"an end")
    turn.run()
    assert owner.batches == [("control", [b"an end"])]
