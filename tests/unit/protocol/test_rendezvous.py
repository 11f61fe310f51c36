"""Frames of the rendezvous protocol: there and back, and whatever else may come."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous_load import Load

KEY, OTHER = bytes(range(32)), bytes(32)

FROM_SERVICE: list[wire.Frame] = [
    wire.Challenge(bytes(32)),
    wire.Welcome(bytes(8), 1_700_000_000, 66_048, 64, 10),
    wire.Welcome(
        bytes(8),
        1_700_000_000,
        66_048,
        64,
        10,
        (
            wire.TurnServer(("turn:a.example", "turns:a.example:443"), "9:me", "secret"),
            *[wire.TurnServer(("turn:b.example",) * wire.TURN_URLS_MAX, "9:me", "secret")]
            * (wire.TURN_SERVERS_MAX - 1),
        ),
    ),
    wire.Presence((KEY, OTHER), ()),
    wire.Presence((), (KEY,)),
    wire.Presence((), (), ((KEY, Load(1, 2, "3")), (OTHER, Load(0, (1 << 32) - 1, "")))),
    wire.FromKey(KEY, b"parcel"),
    wire.Absent(KEY, "busy"),
    wire.Absent(KEY, "elsewhere", bytes(8)),
    wire.Welcome(bytes(8), 0, 1, 1, 1, relay=2_000_000, load=5, revoked=16_384),
    wire.Drain(10),
]
FROM_CLIENT: list[wire.Frame] = [
    wire.Proof(KEY, "example.com:8443", 1_700_000_000, bytes(64)),
    wire.Watch((), reset=True),
    wire.Watch((KEY, OTHER), reset=False),
    wire.Watch((KEY,), reset=True, guests=True, loads=True),
    Load(0, 0, ""),
    wire.ToKey(KEY, b"parcel"),
    wire.ToKey(KEY, bytes(wire.PARCEL_MAX)),
]


@pytest.mark.parametrize("frame", FROM_SERVICE)
def test_frames_of_the_service(frame: wire.Frame) -> None:
    assert wire.decode_from_service(wire.encode(frame)) == frame


@pytest.mark.parametrize("frame", FROM_CLIENT)
def test_frames_of_a_client(frame: wire.Frame) -> None:
    data = wire.encode(frame)
    assert len(data) <= wire.FRAME_MAX
    assert wire.decode_from_client(data) == frame


def test_the_wire_format() -> None:
    """Written out once: both sides would change together otherwise."""
    assert wire.encode(wire.ToKey(OTHER, b"ab")) == (
        b"\x83\xa4kind\xa8envelope\xa2to\xc4\x20" + bytes(32) + b"\xa4body\xc4\x02ab"
    )
    assert wire.encode(wire.Presence((OTHER,), ())) == (
        b"\x83\xa4kind\xa8presence\xa6online\xc4\x20" + bytes(32) + b"\xa7offline\xc4\x00"
    )
    assert wire.proof_text("a.example:1", b"n" * 32, 258) == (
        b"socks-tunnel rendezvous\0" + b"n" * 32 + b"\0\0\0\0\0\0\x01\x02" + b"a.example:1"
    )


def test_unknown_keys_are_ignored() -> None:
    assert wire.decode_from_service(
        msgpack.packb({"kind": "drain", "within": 3, "new": [1]})
    ) == wire.Drain(3)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "'kind' is absent"),
        ({"kind": "rely"}, "'kind' is not usable: rely"),
        ({"kind": 3}, "'kind' is not usable: 3"),
        ({"kind": "proof", "key": b"short"}, "'key' is not usable"),
        ({"kind": "watch", "keys": bytes(33), "reset": True}, "'keys' is not usable"),
        ({"kind": "watch", "keys": bytes(32 * 1025), "reset": True}, "'keys' is not usable"),
        ({"kind": "watch", "keys": b"", "reset": 1}, "'reset' is not usable"),
        ({"kind": "envelope", "to": KEY}, "'body' is absent"),
        ({"kind": "envelope", "to": KEY, "body": "text"}, "'body' is not usable"),
        ({"kind": "envelope", "to": KEY, "body": b"", "x": [[[1]]]}, "nested more than"),
    ],
)
def test_bad_frames_of_a_client(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint) as caught:
        wire.decode_from_client(msgpack.packb(fields))
    assert caught.value.kind == "malformed"


WELCOME: dict[str, object] = {
    "kind": "welcome",
    "session": bytes(8),
    "time": 1,
    "limits": {"body": 1, "watch": 1, "rate": 1},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "welcome", "session": bytes(8), "time": 1},
        {"kind": "welcome", "session": bytes(8), "time": 1, "limits": {"body": 0}},
        {**WELCOME, "time": wire._TIME_MAX + 1},
        {"kind": "absent", "to": KEY, "reason": "\x1b[31m"},
        {"kind": "absent", "to": KEY, "reason": "busy", "channel": bytes(7)},
        {"kind": "drain", "within": -1},
        {"kind": "drain", "within": 3601},
        {"kind": "challenge", "nonce": bytes(31)},
        {"kind": "presence", "online": bytes(32)},
        {"kind": "proof"},
    ],
)
def test_bad_frames_of_the_service(fields: dict[str, object]) -> None:
    assert isinstance(wire.decode_from_service(msgpack.packb(WELCOME)), wire.Welcome)
    with pytest.raises(RemoteProtocolError):
        wire.decode_from_service(msgpack.packb(fields))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_frame_or_an_error(data: bytes) -> None:
    for decode in (wire.decode_from_client, wire.decode_from_service, wire.decode_parcel):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


def test_a_frame_that_is_too_long_is_refused() -> None:
    frame = wire.encode(wire.ToKey(KEY, bytes(wire.PARCEL_MAX + 1)))
    with pytest.raises(RemoteProtocolError):
        wire.decode_from_client(frame)


def test_long_lists_take_several_frames() -> None:
    keys = [number.to_bytes(32, "big") for number in range(wire.KEYS_PER_FRAME + 1)]
    first, second = map(wire.decode_from_client, wire.watches(keys))
    assert isinstance(first, wire.Watch)
    assert isinstance(second, wire.Watch)
    assert (first.reset, second.reset) == (True, False)
    assert [*first.keys, *second.keys] == keys
    assert [wire.decode_from_client(frame) for frame in wire.watches([])] == [
        wire.Watch((), reset=True)
    ]
    assert len(list(wire.presences(keys, keys))) == 4
    assert list(wire.presences([])) == []


PARCELS = st.builds(
    wire.Parcel,
    kind=st.sampled_from(sorted(wire.PARCEL_KINDS)),
    ref=st.binary(min_size=8, max_size=8),
    session=st.text("0123456789abcdef", max_size=32),
    envelope=st.binary(max_size=1000),
)


@given(PARCELS)
def test_parcels_come_back(parcel: wire.Parcel) -> None:
    assert wire.decode_parcel(wire.encode_parcel(parcel)) == parcel


def test_the_longest_envelope_fits() -> None:
    parcel = wire.Parcel("answer", bytes(8), "0" * 128, bytes(65_536))
    body = wire.encode_parcel(parcel)
    assert len(body) <= wire.PARCEL_MAX
    assert wire.decode_parcel(body) == parcel
    assert len(wire.encode(wire.FromKey(KEY, body))) <= wire.FRAME_MAX


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "relay", "ref": bytes(8), "session": "", "envelope": b""},
        {"kind": "offer", "ref": bytes(7), "session": "", "envelope": b""},
        {"kind": "offer", "ref": bytes(8), "session": b"", "envelope": b""},
        {"kind": "offer", "ref": bytes(8), "session": "0" * 129, "envelope": b""},
        {"kind": "offer", "ref": bytes(8), "session": ""},
    ],
)
def test_bad_parcels(fields: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode_parcel(msgpack.packb(fields))


@pytest.mark.parametrize(
    "turn",
    [
        5,
        [5],
        [{}],
        [{"urls": [], "username": "a", "credential": "b"}],
        [{"urls": "turn:a", "username": "a", "credential": "b"}],
        [{"urls": [1], "username": "a", "credential": "b"}],
        [{"urls": ["turn:a"], "username": 1, "credential": "b"}],
        [{"urls": ["turn:a"], "username": "a"}],
        [{"urls": ["turn:a"] * (wire.TURN_URLS_MAX + 1), "username": "a", "credential": "b"}],
        [{"urls": ["turn:a"], "username": "a", "credential": "b"}] * (wire.TURN_SERVERS_MAX + 1),
        [{"urls": ["turn:" + "a" * wire.HOST_MAX], "username": "a", "credential": "b"}],
    ],
)
def test_turn_servers_that_are_none(turn: object) -> None:
    fields = {
        "kind": "welcome",
        "session": bytes(8),
        "time": 1,
        "limits": {"body": 1, "watch": 1, "rate": 1},
    }
    welcome = wire.Welcome(bytes(8), 1, 1, 1, 1)
    assert wire.decode_from_service(msgpack.packb(fields)) == welcome
    with pytest.raises(RemoteProtocolError):
        wire.decode_from_service(msgpack.packb({**fields, "turn": turn}))


def test_a_login_is_not_shown() -> None:
    assert "secret" not in repr(wire.TurnServer(("turn:a",), "9:me", "secret"))
