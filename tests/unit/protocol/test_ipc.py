"""IPC frames between the supervisor and its children."""

from typing import Any

import msgpack
import pytest

from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    CONTROL_MAX,
    FRAME_HEADER,
    ControlReader,
    FrameKind,
    FrameReader,
    decode_control,
    encode_control,
    frame_header,
)
from socks_tunnel.protocol.messages import SendEof, message_key

Frame = tuple[int, int, bytes]


def feed(reader: FrameReader, data: bytes, step: int | None = None) -> list[Frame]:
    """Write `data` as a socket would, `step` bytes at a time; give copies of the frames."""
    frames: list[Frame] = []
    while data:
        room = reader.get_buffer()
        assert len(room) > 0
        count = min(len(room), len(data), step or len(data))
        room[:count] = data[:count]
        reader.buffer_updated(count)
        data = data[count:]
        frames += [(kind, link, bytes(body)) for kind, link, body in reader.frames()]
    return frames


def frame(kind: int, link: int, body: bytes) -> bytes:
    return frame_header(kind, link, len(body)) + body


def test_a_message_frame_byte_for_byte() -> None:
    message = SendEof(0x12345678).encode()

    wire = frame(FrameKind.MESSAGE, 0xABCD, message)

    assert wire.hex(" ") == "00 00 00 0a 00 ab cd 68 00 00 12 34 56 78"
    # What lets a supervisor route without parsing: TYPE at offset 7, CONN_ID at 10.
    assert message_key(wire[7:]) == (104, 0x12345678)
    assert int.from_bytes(wire[10:14], "big") == 0x12345678


def test_a_control_frame_byte_for_byte() -> None:
    wire = encode_control(1, {"op": "ping", "id": 7})

    assert wire.hex(" ") == ("00 00 00 10 01 00 01 82 a2 6f 70 a4 70 69 6e 67 a2 69 64 07")
    assert feed(FrameReader(), wire) == [(FrameKind.CONTROL, 1, wire[7:])]
    assert decode_control(wire[7:]) == {"op": "ping", "id": 7}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 1000, None])
def test_frames_come_out_however_the_stream_is_cut(step: int | None) -> None:
    frames: list[Frame] = [
        (0, 1, b""),
        (1, 0, b"x"),
        (0, 65_535, bytes(range(256)) * 5),
        (0, 2, b"\0" * 7),
    ]

    assert feed(FrameReader(), b"".join(frame(*f) for f in frames), step) == frames


def test_the_longest_body_fits_and_one_byte_more_does_not() -> None:
    longest = bytes(BODY_MAX)
    assert feed(FrameReader(), frame(0, 1, longest)) == [(0, 1, longest)]

    with pytest.raises(RemoteProtocolError) as caught:
        feed(FrameReader(), frame_header(0, 1, BODY_MAX + 1))

    assert caught.value.kind == "ipc-frame"


@pytest.mark.parametrize(
    "header",
    [
        "00000002 00 0001",
        "00000000 00 0001",
        "ffffffff 00 0001",
        "00000003 02 0001",
        "00000003 ff 0001",
    ],
    ids=["length 2", "length 0", "longest length", "kind 2", "kind 255"],
)
def test_a_frame_out_of_bounds_is_refused_from_its_header_alone(header: str) -> None:
    good = frame(0, 1, b"first")

    with pytest.raises(RemoteProtocolError) as caught:
        feed(FrameReader(), good + bytes.fromhex(header))

    assert caught.value.kind == "ipc-frame"


def test_memory_stays_within_the_capacity_over_many_turns_of_the_buffer() -> None:
    reader = FrameReader(BODY_MAX + FRAME_HEADER.size)
    body = bytes(range(250)) * 200  # 50,000 bytes: cut by the end of the buffer again and again
    wire = frame(0, 3, body) * 20

    assert feed(reader, wire, 33_333) == [(0, 3, body)] * 20
    assert len(reader.get_buffer()) == BODY_MAX + FRAME_HEADER.size


def test_a_body_is_a_view_and_not_a_copy() -> None:
    reader = FrameReader()
    wire = frame(0, 1, b"abc")
    room = reader.get_buffer()
    room[: len(wire)] = wire
    reader.buffer_updated(len(wire))

    [(_, _, body)] = reader.frames()

    room[len(wire) - 1] = ord("d")
    assert bytes(body) == b"abd"


def test_a_reader_that_could_not_hold_the_longest_frame_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="longest frame"):
        FrameReader(BODY_MAX)


# --- control bodies ---------------------------------------------------------------------------


def test_a_control_frame_over_the_limit_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        encode_control(0, {"op": "config", "config": "x" * CONTROL_MAX})


def control_maps(wire: bytes) -> list[dict[str, Any]]:
    """Give what a child would get from these bytes."""
    frames, control = FrameReader(), ControlReader()
    maps = []
    while wire:
        room = frames.get_buffer()
        count = min(len(room), len(wire))
        room[:count], wire = wire[:count], wire[count:]
        frames.buffer_updated(count)
        maps += [control.decode(body) for _, _, body in frames.frames()]
    return [fields for fields in maps if fields is not None]


@pytest.mark.parametrize("size", [BODY_MAX - 64, BODY_MAX, 5 * BODY_MAX + 1])
def test_a_control_map_of_any_size_arrives_whole(size: int) -> None:
    sent = {"op": "config", "config": "x" * size}
    assert control_maps(encode_control(3, sent) + encode_control(0, {"op": "drain"})) == [
        sent,
        {"op": "drain"},
    ]


@pytest.mark.parametrize(
    "wire",
    [
        encode_control(0, {"op": "part", "data": "text", "more": True}),
        encode_control(0, {"op": "part", "more": True}),
        encode_control(0, {"op": "part", "data": b"\x80", "more": False}),
        encode_control(0, {"op": "part", "data": b"x", "more": True})
        + encode_control(0, {"op": "drain"}),
    ],
)
def test_bad_parts_are_refused(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        control_maps(wire)


def test_parts_are_bounded() -> None:
    part = encode_control(0, {"op": "part", "data": bytes(BODY_MAX // 2), "more": True})
    with pytest.raises(RemoteProtocolError, match="bad part"):
        control_maps(part * (2 * CONTROL_MAX // BODY_MAX + 1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb("op"),
        msgpack.packb({}),
        msgpack.packb({"op": 1}),
        msgpack.packb({"op": b"ping"}),
        msgpack.packb({b"op": "ping"}),
        msgpack.packb({1: "op"}),
        msgpack.packb({"op": "ping"})[:-1],
        msgpack.packb({"op": "ping"}) + b"\0",
        b"\x81\xa2op\xa1\xff",  # a text that is not UTF-8
    ],
)
def test_a_control_body_that_is_no_map_with_an_op_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_control(body)

    assert caught.value.kind == "ipc-control"
