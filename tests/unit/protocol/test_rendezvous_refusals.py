"""What a frame of the rendezvous protocol is refused for, word for word; what may be absent from one."""

import msgpack
import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.errors import RemoteProtocolError

KEY, OTHER, SHORT = bytes(range(32)), bytes(32), bytes(7)
LIMITS = {"body": 1, "watch": 1, "rate": 1}
WELCOME: dict[str, object] = {"kind": "welcome", "session": bytes(8), "time": 1, "limits": LIMITS}


def refusal(fields: object, *, client: bool = False) -> str:
    """Returns the sentence that a frame of the service, or of a client, is refused with."""
    decode = wire.decode_from_client if client else wire.decode_from_service
    with pytest.raises(RemoteProtocolError) as caught:
        decode(msgpack.packb(fields))
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "'kind' is absent"),
        ({"kind": "proof"}, "'kind' is not usable: proof"),
        ({"kind": "challenge", "nonce": SHORT}, "'nonce' is not usable"),
        ({**WELCOME, "limits": None}, "'limits' is not usable: None"),
        ({**WELCOME, "session": SHORT}, "'session' is not usable"),
        ({**WELCOME, "limits": {**LIMITS, "body": 0}}, "'body' is not usable: 0"),
        ({**WELCOME, "turn": 5}, "'turn' is not usable: 5"),
        ({**WELCOME, "turn": [5]}, "a TURN server is no map"),
        ({**WELCOME, "turn": [{"urls": []}]}, "'urls' is not usable"),
        ({"kind": "presence", "online": KEY, "offline": SHORT}, "'offline' is not usable"),
        ({"kind": "envelope", "from": SHORT, "body": b""}, "'from' is not usable"),
        (
            {
                "kind": "relay",
                "from": SHORT,
                "channel": bytes(8),
                "datagram": b"a",
                "segment": 1,
            },
            "'from' is not usable",
        ),
        ({"kind": "absent", "to": SHORT, "reason": "busy"}, "'to' is not usable"),
        ({"kind": "absent", "to": KEY, "reason": "tired"}, "'reason' is not usable: tired"),
        ({"kind": "absent", "to": KEY, "channel": SHORT}, "'channel' is not usable"),
        ({"kind": "drain", "within": -1}, "'within' is not usable: -1"),
        ({"kind": "drain"}, "'within' is absent"),
    ],
)
def test_what_is_wrong_with_a_frame_of_the_service(
    fields: dict[str, object], sentence: str
) -> None:
    assert refusal(fields).startswith(f"the frame: {sentence}")


PROOF: dict[str, object] = {
    "kind": "proof",
    "key": KEY,
    "host": "a.example",
    "time": 1,
    "signature": bytes(64),
}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "welcome"}, "'kind' is not usable: welcome"),
        ({**PROOF, "key": SHORT}, "'key' is not usable"),
        ({**PROOF, "time": -1}, "'time' is not usable: -1"),
        ({**PROOF, "signature": bytes(63)}, "'signature' is not usable"),
        ({**PROOF, "enrolment": "text"}, "'enrolment' is not usable: text"),
        ({"kind": "envelope", "to": SHORT, "body": b""}, "'to' is not usable"),
        (
            {"kind": "relay", "to": SHORT, "channel": bytes(8), "datagram": b"a", "segment": 1},
            "'to' is not usable",
        ),
    ],
)
def test_what_is_wrong_with_a_frame_of_a_client(fields: dict[str, object], sentence: str) -> None:
    assert wire.decode_from_client(msgpack.packb(PROOF)) == wire.Proof(
        KEY, "a.example", 1, bytes(64)
    )
    assert refusal(fields, client=True).startswith(f"the frame: {sentence}")


def test_a_reason_may_be_absent() -> None:
    frame = msgpack.packb({"kind": "absent", "to": KEY})
    assert wire.decode_from_service(frame) == wire.Absent(KEY, "absent")


@pytest.mark.parametrize("within", [0, 3600])
def test_a_service_may_drain_at_once_and_for_an_hour(within: int) -> None:
    assert wire.decode_from_service(wire.encode(wire.Drain(within))) == wire.Drain(within)


def test_several_keys_may_go_at_once() -> None:
    frame = wire.Presence((), (KEY, OTHER))
    assert wire.decode_from_service(wire.encode(frame)) == frame


def test_each_frame_of_a_list_says_what_else_is_wanted() -> None:
    keys = [number.to_bytes(32, "big") for number in range(wire.KEYS_PER_FRAME + 1)]
    frames = [*map(wire.decode_from_client, wire.watches(keys, guests=True, loads=True))]
    assert [(f.guests, f.loads) for f in frames if isinstance(f, wire.Watch)] == [(True, True)] * 2


PARCEL: dict[str, object] = {"kind": "offer", "ref": bytes(8), "envelope": b"signed"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kind": "relay"}, "'kind' is not usable: relay"),
        ({"ref": SHORT}, "'ref' is not usable"),
        ({"session": b"bytes"}, "'session' is not usable"),
        ({"envelope": "text"}, "'envelope' is not usable: text"),
    ],
)
def test_what_is_wrong_with_a_parcel(changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        wire.decode_parcel(msgpack.packb({**PARCEL, **changed}))
    assert str(caught.value).startswith(f"the frame: {sentence}")


def test_a_parcel_may_name_no_session() -> None:
    assert wire.decode_parcel(msgpack.packb(PARCEL)) == wire.Parcel(
        "offer", bytes(8), "", b"signed"
    )
