"""Which datagrams are left to aioice's own parser, with the guard that asks a clock about errors."""

import pytest

from unit.peer.test_aiortc_private import Receiver, deliver


@pytest.mark.parametrize("data", [b"\x00\x01", b"\x03"])
def test_stun_is_left_to_aioice(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    assert deliver(data, receiver, monkeypatch) == [data]
    assert receiver.got == []
