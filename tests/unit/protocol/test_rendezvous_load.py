"""What endpoints say of their load: its bounds, and when it is worth telling."""

from dataclasses import replace

import msgpack
import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol import rendezvous_load as loads
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous_load import Load, Telling, tell_forever

KEY = bytes(range(32))
LOAD = Load(7, 3, "1.2.3")


def test_the_wire_format() -> None:
    """Written out once: both sides would change together otherwise."""
    assert wire.encode(LOAD) == (
        b"\x84\xa4kind\xa4load\xa5flows\x07\xa5links\x03\xa7version\xa51.2.3"
    )
    assert wire.encode(wire.Presence((), (), ((KEY, LOAD),))) == (
        b"\x84\xa4kind\xa8presence\xa6online\xc4\x00\xa7offline\xc4\x00"
        b"\xa5loads\x91\x94\xc4\x20" + KEY + b"\x07\x03\xa51.2.3"
    )


def test_many_loads_take_several_frames() -> None:
    many = [(bytes([number]) * 32, LOAD) for number in range(2 * loads.LOADS_PER_FRAME + 1)]
    frames = [wire.decode_from_service(frame) for frame in wire.loads_of(many)]
    assert [len(frame.loads) for frame in frames] == [16, 16, 1]  # type: ignore[union-attr]
    assert [row for frame in frames for row in frame.loads] == many  # type: ignore[union-attr]
    assert list(wire.loads_of([])) == []


@pytest.mark.parametrize(
    "more",
    [
        {"flows": -1},
        {"flows": loads.COUNT_MAX + 1},
        {"links": True},
        {"version": b"x"},
        {"version": "v" * (loads.VERSION_MAX + 1)},
    ],
)
def test_a_load_that_makes_no_sense(more: dict[str, object]) -> None:
    fields = {"kind": "load", "flows": 1, "links": 1, "version": "1", **more}
    with pytest.raises(RemoteProtocolError):
        wire.decode_from_client(msgpack.packb(fields))


@pytest.mark.parametrize(
    "told",
    [
        {},
        [[KEY, 1, 1]],
        [[KEY[:31], 1, 1, "1"]],
        [[KEY, -1, 1, "1"]],
        [[KEY, 1, 1, "1"]] * (loads.LOADS_PER_FRAME + 1),
    ],
)
def test_loads_that_make_no_sense(told: object) -> None:
    fields = {"kind": "presence", "online": b"", "offline": b"", "loads": told}
    with pytest.raises(RemoteProtocolError):
        wire.decode_from_service(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("before", "now", "news"),
    [
        (0, 0, False),
        (0, 1, True),
        (1, 0, True),
        (10, 13, False),
        (10, 14, True),
        (1000, 1099, False),
        (1000, 900, True),
    ],
)
def test_small_changes_are_no_news(before: int, now: int, news: bool) -> None:
    telling = Telling()
    assert telling.is_news(replace(LOAD, flows=before, links=before))
    assert telling.is_news(replace(LOAD, flows=now, links=before)) is news
    telling = Telling()
    assert telling.is_news(replace(LOAD, flows=before, links=before))
    assert telling.is_news(replace(LOAD, flows=before, links=now)) is news


def test_many_small_changes_are_news() -> None:
    telling = Telling()
    assert [n for n in range(10, 20) if telling.is_news(replace(LOAD, flows=n))] == [10, 14, 18]
    assert telling.is_news(Load(18, 3, "1.2.4"))


class Over(Exception):
    pass


async def test_it_is_told_once_in_a_period_and_only_if_it_is_news() -> None:
    now = iter([1, 1, 9, 9, 9, 20])
    sent: list[int] = []
    paused: list[float] = []

    async def send(load: Load) -> None:
        sent.append(load.flows)

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 6:
            raise Over

    with pytest.raises(Over):
        await tell_forever(lambda: replace(LOAD, flows=next(now)), 5, send, pause)
    assert sent == [1, 9, 20]
    assert all(5 <= seconds <= 6 for seconds in paused)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (5, "'loads' is not usable: 5"),
        ([[KEY, 1, 1]], "'loads' is not usable"),
        ([[KEY[:31], 1, 1, "1"]], "'key' is not usable"),
        ([[KEY, 1, 1, "v" * (loads.VERSION_MAX + 1)]], "'version' is not usable: vvv"),
    ],
)
def test_what_is_wrong_with_a_load_is_said(told: object, sentence: str) -> None:
    frame = {"kind": "presence", "online": b"", "offline": b"", "loads": told}
    with pytest.raises(RemoteProtocolError) as caught:
        wire.decode_from_service(msgpack.packb(frame))
    assert str(caught.value).startswith(f"the frame: {sentence}")


def test_the_longest_version_is_taken() -> None:
    load = Load(1, 1, "v" * loads.VERSION_MAX)
    assert wire.decode_from_client(wire.encode(load)) == load
