"""What a unit test does that it must not do is noticed."""

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable

import pytest

from support import purity

HERE = "tests/unit/support/test_purity.py"


def makes_a_socket() -> None:
    socket.socket().close()


def makes_a_pair() -> None:
    for sock in socket.socketpair():
        sock.close()


def sleeps() -> None:
    time.sleep(0)


def asks_the_clock() -> None:
    time.monotonic()


def starts_a_process() -> None:
    subprocess.run(["true"], check=True)


async def waits() -> None:
    await asyncio.sleep(0.001)


async def has_a_timeout() -> None:
    async with asyncio.timeout(1):
        pass


async def asks_the_loop() -> None:
    asyncio.get_running_loop().time()


async def lets_others_run() -> None:
    ran = asyncio.Event()
    asyncio.get_running_loop().call_soon(ran.set)
    await ran.wait()


@pytest.mark.parametrize(
    ("deed", "what"),
    [
        (makes_a_socket, "makes a socket"),
        (makes_a_pair, "makes a socket"),
        (sleeps, "sleeps 0 s"),
        (asks_the_clock, "asks time.monotonic()"),
        (starts_a_process, "starts a process"),
        (lambda: asyncio.run(waits()), "asks the event loop for its time, or for a call later"),
        (
            lambda: asyncio.run(has_a_timeout()),
            "asks the event loop for its time, or for a call later",
        ),
        (
            lambda: asyncio.run(asks_the_loop()),
            "asks the event loop for its time, or for a call later",
        ),
        (lambda: asyncio.run(lets_others_run()), None),
    ],
)
def test_what_a_unit_test_must_not_do_is_noticed(
    deed: Callable[[], None], what: str | None
) -> None:
    seen: list[str] = []
    with purity.watched(seen.append):
        deed()
    assert next(iter(seen), None) == what


def test_it_is_refused_and_undone() -> None:
    with purity.watched(purity.refuse), pytest.raises(AssertionError, match="tests/integration"):
        time.sleep(0)
    time.sleep(0)
