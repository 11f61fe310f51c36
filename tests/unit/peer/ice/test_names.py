"""Names of servers: one question at a time, whoever asks."""

import asyncio
from ipaddress import ip_address
from socket import AF_INET, AF_INET6

import pytest

from socks_tunnel.ops.lookup import AddressInfo
from socks_tunnel.peer.ice import names
from socks_tunnel.peer.ice.names import resolve


class Resolver:
    """Answers when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer: asyncio.Future[list[AddressInfo]] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(names, "lookup", self.lookup)

    async def lookup(self, host: str, port: int) -> list[AddressInfo]:
        self.asked.append(host)
        return await self.answer


async def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)
    assert await resolve("192.0.2.1") == [ip_address("192.0.2.1")]
    assert await resolve("2001:db8::1") == [ip_address("2001:db8::1")]
    assert resolver.asked == []


async def test_askers_share_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)
    async with asyncio.TaskGroup() as group:
        askers = [group.create_task(resolve("stun.example.net")) for _ in range(3)]
        leaver = group.create_task(resolve("stun.example.net"))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.sleep(0)
        resolver.answer.set_result(
            [
                (AF_INET6, ("2001:db8::1", 0, 0, 0)),
                (AF_INET, ("192.0.2.1", 0)),
                (AF_INET, ("192.0.2.1", 0)),
            ]
        )
    expected = [ip_address("2001:db8::1"), ip_address("192.0.2.1")]
    assert [asker.result() for asker in askers] == [expected] * 3
    assert resolver.asked == ["stun.example.net"]
    await asyncio.sleep(0)
    assert not names._running


async def test_a_failure_is_a_sentence_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)
    resolver.answer.set_exception(OSError(-2, "Name or service not known"))
    with pytest.raises(OSError, match=r"^its name cannot be resolved: Name or service not known$"):
        await resolve("stun.example.net")
    await asyncio.sleep(0)
    assert not names._running
