"""What `version` says of compiled parts follows what is really there."""

import asyncio

import google_crc32c
import msgpack
import msgpack.fallback
import pytest
import uvloop

from socks_tunnel.ops.accelerations import accelerations


def active() -> list[bool]:
    return [active for _, active in accelerations()]


def test_all_are_there_where_the_packages_are() -> None:
    assert active() == [True, True, True]


def test_each_is_missed_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(uvloop, "new_event_loop", asyncio.BaseEventLoop)
        assert active() == [False, True, True]
    with monkeypatch.context() as patch:
        patch.setattr(msgpack, "Packer", msgpack.fallback.Packer)
        assert active() == [True, False, True]
    with monkeypatch.context() as patch:
        patch.setattr(google_crc32c, "implementation", "python")
        assert active() == [True, True, False]
