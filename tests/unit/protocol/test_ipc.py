"""IPC between the supervisor and its children: frames, and the control messages in them."""

import dataclasses
from typing import Any

import msgpack
import pytest

from socks_tunnel.protocol import ipc
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.frames import FrameReader
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    CONTROL_MAX,
    FRAME_HEADER,
    Answer,
    Ask,
    Attach,
    Attached,
    ChildHello,
    ChildReady,
    Configure,
    Control,
    Credit,
    Demand,
    Detach,
    DialFailed,
    DialsDone,
    Drain,
    Drained,
    FrameKind,
    HandedOver,
    HandOver,
    IpcPing,
    IpcPong,
    Kill,
    NewFlows,
    PeerRows,
    Probe,
    Probed,
    ReadyState,
    Reload,
    SessionEnded,
    SessionOpened,
    Settle,
    Settled,
    Shutdown,
    decode_control,
    encode_control,
)
from socks_tunnel.protocol.messages import SendEof, message_key

EACH: list[Control] = [
    ChildHello(4711),
    ChildReady(),
    IpcPing(7),
    IpcPong(7),
    Shutdown(),
    ReadyState(None),
    ReadyState("no link is up"),
    Configure(2, {"role": "gateway"}, [[3, "socks", "", 0]]),
    Reload({"role": "gateway"}),
    SessionOpened("office"),
    Attach(262_144, 65_529, 300, ["udp", "resume"], 65_536, resume=True),
    Attached([[1, 2, 3, 1]], last=False),
    PeerRows([[1, 2, 3, 1]], last=True),
    Detach("cut"),
    SessionEnded("removed"),
    NewFlows([[[3, 4], [5]], [[], []]], [[[3, 0.25], [4, 7.0]], []]),
    DialFailed("office", "10.0.0.1", 4),
    DialsDone([["office", 3]]),
    Probe(1, "10.0.0.1", 443),
    Probed(1, 4),
    Credit(8_192, 16_384, 40_000),
    Demand(3),
    Credit(-122_880, 1_100, 40_000),
    Drain(),
    Drained(),
    Settle(2.5),
    Settled(3),
    HandOver(),
    HandedOver(17),
    Ask(5, "connections", -1, ""),
    Kill(6, "office", 7),
    Answer(5, [{"peer": "office"}], more=False),
]

Item = tuple[int, Any]


def feed(reader: FrameReader, data: bytes, step: int | None = None) -> list[Item]:
    """Write `data` as a socket would, `step` bytes at a time; give copies of what comes out."""
    items: list[Item] = []
    while data:
        room = reader.get_buffer()
        assert len(room) > 0
        count = min(len(room), len(data), step or len(data))
        room[:count] = data[:count]
        data = data[count:]
        items += [
            (session, [bytes(body) for body in item] if isinstance(item, list) else item)
            for session, item in reader.received(count)
        ]
    return items


def frame(kind: int, session: int, body: bytes) -> bytes:
    return FRAME_HEADER.pack(len(body) + 3, kind, session) + body


def test_a_message_frame_byte_for_byte() -> None:
    message = SendEof(0x12345678).encode()
    wire = frame(FrameKind.MESSAGE, 0xABCD, message)
    assert wire.hex(" ") == "00 00 00 0a 00 ab cd 68 00 00 12 34 56 78"
    # What lets a supervisor route without parsing: TYPE at offset 7, CONN_ID at 10.
    assert message_key(wire[7:]) == (104, 0x12345678)
    assert int.from_bytes(wire[10:14], "big") == 0x12345678


def test_a_control_frame_byte_for_byte() -> None:
    wire = encode_control(1, IpcPing(7))
    assert wire.hex(" ") == "00 00 00 0a 01 00 01 92 a4 70 69 6e 67 07"
    assert feed(FrameReader(), wire) == [(1, IpcPing(7))]


@pytest.mark.parametrize("message", EACH, ids=lambda message: type(message).__name__)
def test_each_control_message_goes_there_and_back(message: Control) -> None:
    assert feed(FrameReader(), encode_control(9, message)) == [(9, message)]


def test_every_control_message_has_its_own_op_and_is_tested_here() -> None:
    kinds = {type(message) for message in EACH}
    assert kinds == set(Control.__args__)
    assert len({kind.OP for kind in kinds}) == len(kinds)


def test_messages_of_one_session_that_follow_each_other_are_one_batch() -> None:
    wire = b"".join(
        (
            frame(0, 1, b"a"),
            frame(0, 1, b"b"),
            frame(0, 2, b"c"),
            encode_control(2, Drain()),
            frame(0, 2, b"d"),
            frame(0, 1, b""),
        )
    )
    assert feed(FrameReader(), wire) == [
        (1, [b"a", b"b"]),
        (2, [b"c"]),
        (2, Drain()),
        (2, [b"d"]),
        (1, [b""]),
    ]


def test_a_control_message_ends_the_batch_of_whichever_session() -> None:
    for session in (0, 1, 2):
        wire = frame(0, 3, b"a") + encode_control(3, Drain()) + frame(0, session, b"b")
        assert feed(FrameReader(), wire) == [(3, [b"a"]), (3, Drain()), (session, [b"b"])]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 1000, None])
def test_frames_come_out_however_the_stream_is_cut(step: int | None) -> None:
    wire = b"".join(
        (
            frame(0, 1, b""),
            encode_control(0, ChildReady()),
            frame(0, 65_535, bytes(range(256)) * 5),
            frame(0, 2, b"\0" * 7),
        )
    )
    assert feed(FrameReader(), wire, step) == [
        (1, [b""]),
        (0, ChildReady()),
        (65_535, [bytes(range(256)) * 5]),
        (2, [b"\0" * 7]),
    ]


def test_the_longest_body_fits_and_one_byte_more_does_not() -> None:
    longest = bytes(BODY_MAX)
    assert feed(FrameReader(), frame(0, 1, longest)) == [(1, [longest])]
    with pytest.raises(RemoteProtocolError) as caught:
        feed(FrameReader(), FRAME_HEADER.pack(BODY_MAX + 4, 0, 1))
    assert caught.value.kind == "ipc-frame"


@pytest.mark.parametrize(
    "header",
    [
        "00000002 00 0001",
        "00000000 00 0001",
        "ffffffff 00 0001",
        "00000003 03 0001",
        "00000003 ff 0001",
    ],
    ids=["length 2", "length 0", "longest length", "kind 3", "kind 255"],
)
def test_a_frame_out_of_bounds_is_refused_from_its_header_alone(header: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        feed(FrameReader(), frame(0, 1, b"first") + bytes.fromhex(header))
    assert caught.value.kind == "ipc-frame"


def test_memory_stays_within_the_capacity_over_many_turns_of_the_buffer() -> None:
    reader = FrameReader(BODY_MAX + FRAME_HEADER.size)
    body = bytes(range(250)) * 200  # 50,000 bytes: cut by the end of the buffer again and again
    found = feed(reader, frame(0, 3, body) * 20, 33_333)
    assert [piece for _, batch in found for piece in batch] == [body] * 20
    assert len(reader.get_buffer()) == BODY_MAX + FRAME_HEADER.size


def test_a_body_is_a_view_and_not_a_copy() -> None:
    reader = FrameReader()
    wire = frame(0, 1, b"abc")
    room = reader.get_buffer()
    room[: len(wire)] = wire
    ((_, batch),) = reader.received(len(wire))
    assert isinstance(batch, list)
    room[len(wire) - 1] = ord("d")
    assert bytes(batch[0]) == b"abd"


def test_a_reader_that_could_not_hold_the_longest_frame_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError, match=r"^the buffer must hold the longest frame$"):
        FrameReader(BODY_MAX)


# --- control messages -------------------------------------------------------------------------


def test_a_control_message_over_the_limit_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        encode_control(0, Reload({"x": "x" * CONTROL_MAX}))


@pytest.mark.parametrize("size", [BODY_MAX - 64, BODY_MAX, 5 * BODY_MAX + 1])
def test_a_control_message_of_any_size_arrives_whole(size: int) -> None:
    sent = Reload({"x": "x" * size})
    wire = encode_control(3, sent) + encode_control(0, Drain())
    assert feed(FrameReader(), wire) == [(3, sent), (0, Drain())]


def test_parts_are_bounded() -> None:
    part = frame(FrameKind.PART, 0, bytes(BODY_MAX))
    with pytest.raises(RemoteProtocolError, match="too long"):
        feed(FrameReader(), part * (CONTROL_MAX // BODY_MAX + 1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb("ping"),
        msgpack.packb([]),
        msgpack.packb([1]),
        msgpack.packb([b"ping", 1]),
        msgpack.packb(["dance"]),
        msgpack.packb(["ping"]),
        msgpack.packb(["ping", 1, 2]),
        msgpack.packb(["ping", "1"]),
        msgpack.packb(["ping", True]),
        msgpack.packb(["ping", 1.0]),
        msgpack.packb(["state", 1]),
        msgpack.packb(["attached", {}, True]),
        msgpack.packb(["ping", 1])[:-1],
        msgpack.packb(["ping", 1]) + b"\0",
        b"\x91\xa1\xff",  # a text that is not UTF-8
    ],
)
def test_what_is_no_control_message_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_control(body)
    assert caught.value.kind == "ipc-control"


def test_control_messages_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IpcPing(1).number = 2  # type: ignore[misc]  # that is what is tested


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "a control message is no list with an OP"),
        (["dance"], "unknown control 'dance'"),
        (["ping"], "control 'ping' has 0 fields, not 1"),
        (["ping", 1, 2], "control 'ping' has 2 fields, not 1"),
        (["ping", "1"], "control 'ping' has a str as number"),
    ],
)
def test_what_is_refused_is_said(values: object, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{said}$"):
        decode_control(msgpack.packb(values))


def test_what_is_no_msgpack_is_said() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^bad control message: .+"):
        decode_control(b"\xc1")


def body_of(size: int) -> Reload:
    """A control message whose body has so many bytes."""
    overhead = len(encode_control(0, Reload({"x": "x" * 100_000}))) - 100_000 - FRAME_HEADER.size
    return Reload({"x": "x" * (size - overhead)})


def test_the_longest_control_messages_of_one_frame_and_of_many() -> None:
    assert len(encode_control(0, body_of(BODY_MAX))) == BODY_MAX + FRAME_HEADER.size
    assert len(encode_control(0, body_of(BODY_MAX + 1))) == BODY_MAX + 1 + 3 * FRAME_HEADER.size
    reader = FrameReader()
    for _ in range(2):  # the parts of one message do not count for the next
        longest = body_of(CONTROL_MAX)
        assert feed(reader, encode_control(3, longest)) == [(3, longest)]
    with pytest.raises(ValueError, match="over the limit"):
        encode_control(0, body_of(CONTROL_MAX + 1))


def test_a_message_of_whole_parts_has_no_empty_one() -> None:
    parts = 3 * 65_536
    assert len(encode_control(0, body_of(parts))) == parts + 3 * FRAME_HEADER.size


def test_parts_over_the_limit_are_an_error_of_the_other_process() -> None:
    part = frame(FrameKind.PART, 0, bytes(BODY_MAX))
    with pytest.raises(RemoteProtocolError, match=r"^a control message is too long$") as caught:
        feed(FrameReader(), part * (CONTROL_MAX // BODY_MAX + 1))
    assert caught.value.kind == "ipc-control"


def test_a_frame_out_of_bounds_is_said() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^IPC frame out of bounds: length 2, kind 0$"):
        feed(FrameReader(), bytes.fromhex("00000002 00 0001"))


def test_a_buffer_is_moved_only_if_the_longest_frame_would_not_fit() -> None:
    longest = BODY_MAX + FRAME_HEADER.size
    reader = FrameReader(longest + 100)
    for start, room in ((100, longest - 1), (101, longest + 99)):
        header = frame(0, 1, bytes(start - FRAME_HEADER.size))
        space = reader.get_buffer()
        space[: start + 1] = header + b"\0"
        reader.received(start + 1)
        assert len(reader.get_buffer()) == room
        reader = FrameReader(longest + 100)


@pytest.mark.parametrize(
    ("annotation", "classes"),
    [
        (int, (int,)),
        (list[int], (list,)),
        (int | None, (int, type(None))),
        (bytes | dict[str, list[int]] | None, (bytes, dict, type(None))),
    ],
)
def test_a_field_may_have_the_classes_of_its_annotation(
    annotation: object, classes: tuple[type, ...]
) -> None:
    assert ipc._types(annotation) == classes
