"""Look-ups: shared, bounded, and never on the loop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator

import pytest

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.targets import resolver as module
from socks_tunnel_workers.targets.resolver import ResolveError, Resolver

ONE: list[IPAddress] = [ipaddress.ip_address("192.0.2.1")]


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver(threads=4, pending_max=3)
    yield made
    made.close()


class Slow:
    """A system resolver that answers when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []

    def __call__(self, name: str) -> list[IPAddress]:
        self.asked.append(name)
        self.go.wait(10)
        return ONE


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    stand_in = Slow()
    monkeypatch.setattr(module, "_lookup", stand_in)
    yield stand_in
    stand_in.go.set()


async def test_the_systems_hosts_file_is_honoured(resolver: Resolver) -> None:
    assert ipaddress.ip_address("127.0.0.1") in await resolver.resolve("localhost", seconds=10)


async def test_a_name_that_does_not_exist(resolver: Resolver) -> None:
    with pytest.raises(ResolveError, match=r"no-such\.invalid cannot be resolved") as caught:
        await resolver.resolve("no-such.invalid", seconds=20)
    assert caught.value.reply is Reply.HOST_UNREACHABLE


async def test_overlapping_questions_are_asked_once(resolver: Resolver, slow: Slow) -> None:
    questions = [asyncio.create_task(resolver.resolve("a.test", seconds=10)) for _ in range(5)]
    await asyncio.sleep(0)
    slow.go.set()
    assert await asyncio.gather(*questions) == [ONE] * 5
    assert slow.asked == ["a.test"]


async def test_a_slow_answer_is_given_up_and_the_loop_goes_on(
    resolver: Resolver, slow: Slow
) -> None:
    with pytest.raises(ResolveError, match=r"not resolved within 0\.05 s") as caught:
        await resolver.resolve("a.test", seconds=0.05)
    assert caught.value.reply is Reply.TTL_EXPIRED
    # who asks again joins the look-up that is still under way
    question = asyncio.create_task(resolver.resolve("a.test", seconds=10))
    await asyncio.sleep(0)
    slow.go.set()
    assert await question == ONE
    assert slow.asked == ["a.test"]


async def test_look_ups_under_way_are_bounded(resolver: Resolver, slow: Slow) -> None:
    questions = [asyncio.create_task(resolver.resolve(f"{n}.test", seconds=10)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ResolveError, match="3 name look-ups are under way") as caught:
        await resolver.resolve("one-more.test", seconds=10)
    assert caught.value.reply is Reply.GENERAL_FAILURE
    slow.go.set()
    await asyncio.gather(*questions)
    slow.asked.clear()
    assert await resolver.resolve("one-more.test", seconds=10) == ONE


def test_order_is_kept_and_duplicates_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_args: object, **_kwargs: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.1", 0)),
            (socket.AF_INET6, 1, 6, "", ("2001:db8::1", 0, 0, 0)),
            (socket.AF_INET6, 1, 6, "", ("fe80::1%eth0", 0, 0, 2)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert list(map(str, module._lookup("x"))) == ["2001:db8::1", "192.0.2.1", "fe80::1"]
