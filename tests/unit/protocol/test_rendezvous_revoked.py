"""What an endpoint tells a rendezvous service of revoked keys."""

import msgpack
import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol import rendezvous_revoked as module
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous_revoked import Revocation, Telling, encode_revocation

KEYS = [bytes([number]) * 32 for number in range(8)]


def test_a_frame_comes_as_it_went() -> None:
    sent = Revocation(7, True, (KEYS[0], KEYS[1]), (KEYS[2],), bytes(64))
    assert wire.decode_from_client(encode_revocation(sent)) == sent


@pytest.mark.parametrize(
    "bad",
    [
        {"reset": 1},
        {"number": -1},
        {"number": 1 << 53},
        {"keys": bytes(31)},
        {"keys": bytes(32 * (module.REVOKED_PER_FRAME + 1))},
        {"lifted": bytes(33)},
        {"signature": bytes(63)},
    ],
)
def test_a_frame_that_is_none(bad: dict[str, object]) -> None:
    good = msgpack.unpackb(encode_revocation(Revocation(1, True, (), (), bytes(64))))
    with pytest.raises(RemoteProtocolError):
        wire.decode_from_client(msgpack.packb({**good, **bad}))


def test_the_signed_text_tells_all_fields_apart() -> None:
    one = Revocation(1, True, (KEYS[0],), ())
    texts = {
        module.signed_text(nonce, host, said)
        for nonce in (bytes(32), bytes([1]) * 32)
        for host in ("a", "b")
        for said in (
            one,
            Revocation(2, True, (KEYS[0],), ()),
            Revocation(1, False, (KEYS[0],), ()),
            Revocation(1, True, (), (KEYS[0],)),
        )
    }
    assert len(texts) == 16


def test_a_connection_is_told_all_and_then_what_is_new() -> None:
    telling = Telling(100)
    assert list(telling.news([])) == [Revocation(1, True, ())]
    assert list(telling.news(KEYS[:2])) == [Revocation(2, False, (KEYS[0], KEYS[1]))]
    assert list(telling.news(KEYS[:2])) == []
    assert list(telling.news(KEYS[1:3])) == [Revocation(3, False, (KEYS[2],), (KEYS[0],))]


def test_long_lists_take_several_frames_of_which_the_first_resets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REVOKED_PER_FRAME", 3)
    frames = list(Telling(100).news(KEYS))
    assert [each.reset for each in frames] == [True, False, False]
    assert [key for each in frames for key in each.keys] == KEYS


def test_the_latest_count_where_the_service_remembers_few() -> None:
    telling = Telling(3)
    (first,) = telling.news(KEYS[:5])
    assert first.keys == tuple(KEYS[2:5])
    (second,) = telling.news(KEYS[:6])
    assert (second.keys, second.lifted) == ((KEYS[5],), (KEYS[2],))


def test_the_signed_text_byte_for_byte() -> None:
    said = Revocation(258, True, (KEYS[1], KEYS[2]), (KEYS[3],), bytes(64))
    assert module.signed_text(b"n" * 32, "a.example", said) == (
        b"socks-tunnel revocation\0"
        + b"n" * 32
        + b"\0\0\0\0\0\0\x01\x02\x01"
        + b"\0\0\0\x02"
        + KEYS[1]
        + KEYS[2]
        + b"\0\0\0\x01"
        + KEYS[3]
        + b"a.example"
    )


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"reset": 1}, "'reset' is not usable: 1"),
        ({"number": -1}, "'number' is not usable: -1"),
        ({"keys": bytes(31)}, "'keys' is not usable"),
        ({"lifted": bytes(33)}, "'lifted' is not usable"),
        ({"signature": bytes(63)}, "'signature' is not usable"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said(bad: dict[str, object], sentence: str) -> None:
    good = msgpack.unpackb(encode_revocation(Revocation(1, True, (), (), bytes(64))))
    with pytest.raises(RemoteProtocolError) as caught:
        wire.decode_from_client(msgpack.packb({**good, **bad}))
    assert str(caught.value).startswith(f"the frame: {sentence}")


@pytest.mark.parametrize("number", [0, (1 << 53) - 1])
def test_the_first_and_the_last_number_and_as_many_keys_as_fit(number: int) -> None:
    keys = tuple(each.to_bytes(32, "big") for each in range(module.REVOKED_PER_FRAME))
    sent = Revocation(number, False, keys, keys, bytes(64))
    assert wire.decode_from_client(encode_revocation(sent)) == sent


def test_what_is_lifted_may_take_several_frames_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REVOKED_PER_FRAME", 3)
    telling = Telling(100)
    list(telling.news(KEYS))
    frames = list(telling.news([KEYS[0]]))
    assert [each.number for each in frames] == [4, 5, 6]
    assert [each.reset for each in frames] == [False] * 3
    assert [key for each in frames for key in each.lifted] == KEYS[1:]
    assert [each.keys for each in frames] == [()] * 3
