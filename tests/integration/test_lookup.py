"""Look-ups that nobody waits for, and the race of addresses, on loopback."""

import asyncio
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from socks_tunnel.ops import lookup


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """getaddrinfo answers once the gate is open: as with a name server that is silent."""
    opened = threading.Event()
    real = socket.getaddrinfo

    def wait(*args: Any, **kwargs: Any) -> Any:
        opened.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield opened
    opened.set()


async def idle() -> None:
    """Waits until no look-up is under way, of an earlier test either: they end without their askers."""
    async with asyncio.timeout(60):
        while lookup._under_way:
            await asyncio.sleep(0.01)


async def test_a_name_is_looked_up() -> None:
    found = await lookup.lookup("127.0.0.1", 80)
    assert found == [(socket.AF_INET, ("127.0.0.1", 80))]
    with pytest.raises(socket.gaierror):
        await lookup.lookup("no-such-name.invalid", 80)
    with pytest.raises(socket.gaierror):
        await lookup.lookup("a" * 64 + ".example", 80)
    await idle()


async def test_so_many_at_a_time_and_they_end_without_their_askers(gate: threading.Event) -> None:
    await idle()
    asked = [asyncio.create_task(lookup.lookup("localhost", 1)) for _ in range(lookup.LOOKUPS_MAX)]
    while lookup._under_way < lookup.LOOKUPS_MAX:
        await asyncio.sleep(0.01)
    with pytest.raises(OSError, match="32 name look-ups are under way"):
        await lookup.lookup("localhost", 1)
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    gate.set()
    await idle()


async def test_no_thread_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    await idle()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(OSError, match="can't start new thread"):
            await lookup.lookup("localhost", 1)
    assert lookup._under_way == 0


def test_a_process_ends_although_a_look_up_goes_on() -> None:
    # A look-up that takes 100 s: with an executor's thread the process would wait for it.
    program = """
import asyncio, socket, time, uvloop
from socks_tunnel.ops import lookup
socket.getaddrinfo = lambda *a, **k: time.sleep(100)
async def main():
    task = asyncio.ensure_future(lookup.lookup("x", 1))
    while not lookup._under_way: await asyncio.sleep(0)
    task.cancel()
uvloop.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=90)


async def test_the_first_address_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen

        async def addresses(*_: object) -> list[lookup.AddressInfo]:
            return [
                (socket.AF_INET, closed.getsockname()),
                (socket.AF_INET, ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(lookup, "lookup", addresses)
        async with server:
            with await lookup.connect("x", 1) as sock:
                assert sock.getpeername() == ("127.0.0.1", port)

        async def refused(*_: object) -> list[lookup.AddressInfo]:
            return [(socket.AF_INET, closed.getsockname())] * 3

        monkeypatch.setattr(lookup, "lookup", refused)
        with pytest.raises(OSError) as caught:
            await lookup.connect("x", 1)
        assert caught.value.errno == errno.ECONNREFUSED


async def test_a_silent_address_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = lookup._attempt
    silent = asyncio.Event()

    async def slow(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
        if address[0] == "192.0.2.1":
            await silent.wait()
        return await attempt(family, address)

    async def addresses(*_: object) -> list[lookup.AddressInfo]:
        return [(socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET, ("127.0.0.1", port))]

    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr(lookup, "_attempt", slow)
    monkeypatch.setattr(lookup, "lookup", addresses)
    async with server, asyncio.timeout(60):
        (await lookup.connect("x", 1)).close()


async def test_an_address_whose_answer_is_lost_is_tried_by_another_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = lookup._attempt
    begun = 0

    async def lost_at_first(
        family: socket.AddressFamily, address: tuple[object, ...]
    ) -> socket.socket:
        nonlocal begun
        begun += 1
        if begun <= lookup.WAITING_MAX - 1:
            await asyncio.Event().wait()
        return await attempt(family, address)

    async def addresses(*_: object) -> list[lookup.AddressInfo]:
        return [(socket.AF_INET, ("127.0.0.1", port))]

    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr(lookup, "_attempt", lost_at_first)
    monkeypatch.setattr(lookup, "lookup", addresses)
    monkeypatch.setattr(lookup, "ANEW_DELAY", 0.01)
    async with server, asyncio.timeout(60):
        (await lookup.connect("x", 1)).close()
    assert begun == lookup.WAITING_MAX


async def test_connections_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one has all the time; of the others, the oldest makes room for another."""
    begun = 0
    given_up: list[int] = []
    enough = asyncio.Event()

    async def silent(*_: object) -> socket.socket:
        nonlocal begun
        begun += 1
        number = begun
        if begun == lookup.WAITING_MAX + 4:
            enough.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(number)
            raise
        raise AssertionError

    async def addresses(*_: object) -> list[lookup.AddressInfo]:
        return [(socket.AF_INET, ("127.0.0.1", 9))]

    monkeypatch.setattr(lookup, "_attempt", silent)
    monkeypatch.setattr(lookup, "lookup", addresses)
    monkeypatch.setattr(lookup, "ANEW_DELAY", 0.005)
    waiting = asyncio.create_task(lookup.connect("x", 1))
    async with asyncio.timeout(60):
        await enough.wait()
    assert given_up[:3] == [2, 3, 4]
    assert begun - len(given_up) <= lookup.WAITING_MAX + 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_families_take_turns() -> None:
    four = [(socket.AF_INET, (f"192.0.2.{n}", 1)) for n in range(3)]
    six = [(socket.AF_INET6, ("2001:db8::1", 1, 0, 0))]
    assert lookup._interleaved([*six, *four]) == [six[0], *four]
    assert lookup._interleaved([*four, *six]) == [four[0], six[0], four[1], four[2]]
    assert lookup._interleaved([]) == []
