"""The kernel itself tells of addresses and routes; a clock that goes on tells of pauses."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from integration.links_world import until
from socks_tunnel.supervisor import netlink, pauses
from socks_tunnel.supervisor.netlink import PathWatcher
from socks_tunnel.supervisor.pauses import PauseWatcher
from support.hosts import Host, why_no_namespaces


@pytest.fixture
def host() -> Iterator[Host]:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    made = Host("nl")
    yield made
    made.delete()


def change(host: Host, *words: str) -> None:
    host.run("ip", *words)


async def test_the_kernel_tells_of_addresses_and_default_routes(host: Host) -> None:
    told: list[str] = []
    host.run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
    host.run("ip", "link", "set", "d0", "up")
    host.run("ip", "address", "add", "10.9.0.1/24", "dev", "d0")
    watcher = PathWatcher(told.append)
    with host.inside():
        watcher.start()
    await until(lambda: watcher._decoder.settled)
    # The route's own table entry comes with the address, and is not told again.
    change(host, "address", "add", "10.9.0.7/24", "dev", "d0")
    await until(lambda: told)
    assert told == ["its host has a new address, 10.9.0.7"]
    change(host, "route", "add", "default", "via", "10.9.0.2")
    await until(lambda: len(told) == 2)
    assert told[1] == "its host has a new default route"
    # Several at once are one call, which names each of them, those of routes first.
    change(host, "address", "del", "10.9.0.7/24", "dev", "d0")
    change(host, "route", "del", "default")
    await until(lambda: len(told) == 3)
    assert told[2] == "its host has lost its default route; its host has lost its address, 10.9.0.7"
    watcher.stop()


async def test_calls_are_few_however_much_changes(host: Host) -> None:
    told: list[float] = []
    host.run("ip", "link", "set", "lo", "up")
    watcher = PathWatcher(lambda _: told.append(time.monotonic()))
    with host.inside():
        watcher.start()
    await until(lambda: watcher._decoder.settled)
    began = time.monotonic()
    batch = "".join(f"addr add 10.9.{n >> 8}.{n & 255}/32 dev lo\n" for n in range(1, 600))
    host.run("ip", "-batch", "-", input=batch)
    await until(lambda: len(watcher._decoder._known) >= 599 and watcher._timer is None)
    most = (time.monotonic() - began) / netlink.INTERVAL + 2
    assert 1 <= len(told) <= most
    watcher.stop()


async def test_a_host_that_may_not_listen_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refused)
    watcher = PathWatcher(lambda _: None)
    watcher.start()
    watcher.stop()
    assert "the kernel does not report changes of addresses and routes" in caplog.text


async def test_a_pause_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "TICK", 0.01)
    now = 1000.0
    monkeypatch.setattr(pauses, "_boot_time", lambda: now)
    told: list[str] = []
    watcher = PauseWatcher(told.append)
    watcher.start()
    await asyncio.sleep(0)
    now += 600
    await until(lambda: told)
    assert told == ["its host, or this program, has not run for 600 s"]
    watcher.stop()
