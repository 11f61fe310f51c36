"""A gateway hurries while flows wait for a link, and when its host has another address or has slept."""

import asyncio
import os
import subprocess
import time

import pytest

from integration.links_world import World, linked, until
from integration.test_supervisor_takeover import manager, with_slow_carrier
from socks_tunnel.protocol.messages import Data, OpenConnection
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.supervisor import backoff, dialler


async def test_delays_are_short_while_flows_wait_and_grow_with_the_time_that_they_have_waited(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, _, carrier = await with_slow_carrier(world)
    (dialling,) = manager(gateway)._diallers.values()
    delays = [dialling._delay() for _ in range(100)]
    assert dialling._waited() is None
    assert max(delays) > 2 * backoff.WAITING_DELAY, "each of them is drawn by lot"
    await until(lambda: gateway.router.target)
    number = gateway.router.target
    gateway.routes.from_worker(number, [memoryview(OpenConnection(2, "x.example", 80).encode())])
    carrier.fails = SignalingError("nobody there")
    (link,) = gateway.up
    await link.close("a test")
    session = gateway.router.sessions[number]
    assert session.detached_at is not None
    dialling._dialled_at = None
    assert dialling._delay() == backoff.WAITING_DELAY
    # It counts from the beginning of the attempt that has failed.
    now = asyncio.get_running_loop().time()
    dialling._dialled_at = now - 0.4
    assert 0 < dialling._delay() <= backoff.WAITING_DELAY - 0.4
    dialling._dialled_at = now - 15
    assert dialling._delay() == 0
    dialling._dialled_at = None
    session.detached_at = time.monotonic() - 300
    assert 3 < max(dialling._delay() for _ in range(100)) <= 300 * backoff.WAITING_SHARE + 0.1
    session.detached_at = time.monotonic()
    asked = carrier.asked
    # What the delay is has been seen; the attempts that follow need not be waited for as long.
    monkeypatch.setattr(backoff, "WAITING_DELAY", 0.05)
    await until(lambda: carrier.asked >= asked + 3)
    # The same failure at each attempt is one line of the log.
    assert len([r for r in caplog.records if "cannot reach office: nobody there" in r.message]) == 1
    carrier.fails = None
    await until(lambda: gateway.up)
    assert session.link is not None


async def test_another_address_ends_the_wait_before_the_next_attempt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _, carrier = await with_slow_carrier(world)
    (dialling,) = manager(gateway)._diallers.values()
    carrier.fails = SignalingError("a test")
    (link,) = gateway.up
    asked = carrier.asked
    await link.close("a test")
    # Its next attempt would be in hours.
    monkeypatch.setattr(dialling, "_delay", lambda: 36_000.0)
    await until(lambda: carrier.asked > asked)
    await until(lambda: not gateway.manager.links)
    carrier.fails = None
    manager(gateway).path_changed("its host has a new address, 10.0.0.7")
    await until(lambda: gateway.up)


async def test_another_address_makes_an_attempt_anew_that_knows_only_the_old_one(
    world: World,
) -> None:
    gateway, endpoint, carrier = await with_slow_carrier(world)
    carrier.free.clear()
    (link,) = gateway.up
    asked = carrier.asked
    await link.close("a test")
    await until(lambda: carrier.asked == asked + 1)
    manager(gateway).path_changed("its host has a new address, 10.0.0.7")
    await until(lambda: carrier.asked == asked + 2)
    # However often that is, one link is coming up at a time.
    manager(gateway).path_changed("its host has lost its address, 10.0.0.7")
    await until(lambda: carrier.asked == asked + 3)
    await until(lambda: len(gateway.manager.links) == 1)
    carrier.free.set()
    await until(lambda: gateway.up and endpoint.up)
    assert len(gateway.manager.links) == 1


async def test_changes_without_end_leave_an_attempt_the_time_that_it_needs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that makes interfaces all the time does not keep the host from its peer."""
    monkeypatch.setattr(dialler, "UNDISTURBED_FIRST", 3600.0)
    monkeypatch.setattr(dialler, "UNDISTURBED_LONGEST", 3600.0)
    gateway, endpoint, carrier = await with_slow_carrier(world)
    carrier.free.clear()
    (link,) = gateway.up
    asked = carrier.asked
    await link.close("a test")
    await until(lambda: carrier.asked == asked + 1)
    manager(gateway).path_changed("its host has a new address, 172.17.0.1")
    await until(lambda: carrier.asked == asked + 2)
    carrier.free.set()
    async with asyncio.timeout(60):
        while not gateway.up:
            manager(gateway).path_changed("its host has a new address, 172.17.0.1")
            await asyncio.sleep(0.01)
    assert carrier.asked == asked + 2
    await until(lambda: endpoint.up)


async def test_a_gateway_that_is_told_to_stop_dials_no_more(world: World) -> None:
    gateway, _, carrier = await with_slow_carrier(world)
    gateway.manager.goaway()
    asked = carrier.asked
    manager(gateway).path_changed("its host has a new address, 10.0.0.7")
    await asyncio.sleep(0.1)
    assert carrier.asked == asked


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may close the sockets of others")
async def test_a_socket_that_the_kernel_takes_away_is_left_for_another_link(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """As `ss --kill` does it (sock_diag(7), SOCK_DESTROY): our peer connection is closed under us."""
    gateway, endpoint = await linked(world)
    (old,), (old_there,) = gateway.up, endpoint.up
    port = str(old_there.link.transport.path).split()[2]
    kill = ("ss", "-K", "-n", "-u", "-a", "sport", "=", f":{port}")
    process = await asyncio.create_subprocess_exec(*kill, stdout=subprocess.PIPE)
    closed, _ = await process.communicate()
    if f":{port} " not in closed.decode():
        pytest.skip("this kernel closes no sockets of others")
    old.link.send_many([Data(2, b"a keystroke").encode()])
    async with asyncio.timeout(60):
        await until(lambda: old.ended.done() and gateway.up)
    assert gateway.up[0] is not old
    async with asyncio.timeout(60):
        await until(lambda: old_there.ended.done() and len(endpoint.up) == 1)
    assert "Traceback" not in caplog.text
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []
