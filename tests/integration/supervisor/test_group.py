"""Endpoints with one list of members: their enrollers, whose requests go from one to the other."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from integration.supervisor.group_world import World, a_world, until
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling import joining
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import Joined, Token
from socks_tunnel.supervisor import enroller as module
from socks_tunnel.supervisor import group as group_module
from socks_tunnel.supervisor.control import ControlError
from socks_tunnel.supervisor.enroller import Enroller

FLEET = 1000


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with a_world(tmp_path, monkeypatch) as made:
        yield made


async def test_who_joins_the_owner_is_admitted_and_revoked_everywhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "TOLD_WITHIN", 60.0)  # on a busy machine too
    world.start("a", "b", "c")
    host = PrivateIdentity.generate()
    a, b = world.endpoints["a"], world.endpoints["b"]
    await a.join(await a.invite(), host)
    await until(lambda: world.all_have(host))
    shown = [(await each.rows())["peers"] for each in world.endpoints.values()]
    assert shown[0] == shown[1] == shown[2]
    assert (await b.rows())["list"]["owner"] == "a"
    began = time.monotonic()
    assert await a.revoke("host") == {"revoked": "host"}, "all had it within the time"
    await until(lambda: world.none_has(host))
    print(f"revoked at three endpoints within {time.monotonic() - began:.2f} s")
    assert (await b.rows())["revoked"] == (await a.rows())["revoked"] != []
    assert (await a.rows())["list"]["behind"] == []
    with pytest.raises(ControlError, match="hosts join at a, which owns the list of offices"):
        await b.invite()
    sent, _ = joining.new_request(
        host, Token(b.identity.public, bytes(8), bytes(16)), "x", time.time()
    )
    assert await b.enroller.handle(sent) is None


async def test_a_copy_holds_while_the_owner_is_away(world: World) -> None:
    world.start("a", "b")
    stays, goes, late = (PrivateIdentity.generate() for _ in range(3))
    a = world.endpoints["a"]
    token = await a.invite(uses=3)
    for name, host in (("stays", stays), ("goes", goes)):
        await a.join(token, host, name)
    await until(lambda: world.all_have(stays, goes))
    assert "c" in (await a.revoke("goes"))["not_told"]
    await until(lambda: world.none_has(goes))
    await world.stop("a")
    await world.stop("b")
    world.start("b", "c")
    b = world.endpoints["b"]
    await b.enroller._apply()
    assert b.peers == {stays.public_text}, "also after a restart"
    assert await b.revoke("stays") == {"revoked": "stays", "only_here": "a"}
    assert not b.peers
    assert (await b.enroller.answer({"op": "forget", "name": "stays"}))["forgotten"]
    await until(lambda: bool(b.peers))
    world.start("a")
    await world.endpoints["a"].enroller._apply()
    await world.endpoints["a"].join(token, late, "late")
    await until(lambda: world.all_have(stays, late))
    assert world.none_has(goes)


async def test_a_copy_that_nobody_confirms_ends(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.max_age = 2
    world.start("a", "b")
    host = PrivateIdentity.generate()
    await world.endpoints["a"].join(await world.endpoints["a"].invite(), host)
    b = world.endpoints["b"]

    def is_admitted() -> bool:
        b.enroller.tick()
        return world.all_have(host)

    await until(is_admitted)
    world.cut = {"a"}

    def is_refused() -> bool:
        b.enroller.tick()
        return not b.peers

    await until(is_refused)
    assert "the copy of the list of a is too old" in caplog.text
    world.cut = set()
    await until(lambda: not is_refused())


async def test_what_carries_the_list_cannot_change_or_repeat_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.start("a", "b")
    first, second = PrivateIdentity.generate(), PrivateIdentity.generate()
    a, b = world.endpoints["a"], world.endpoints["b"]
    token = await a.invite(uses=2)
    answers: list[bytes] = []

    def record(answer: bytes) -> bytes:
        answers.append(answer)
        return answer

    world.tampered = record
    await a.join(token, first, "first")
    await until(lambda: world.all_have(first))
    world.tampered = lambda _: answers[-1]  # an old answer, again and again
    assert (await a.revoke("first"))["not_told"] == ["b", "c"]
    world.tampered = lambda answer: answer[:-1] + bytes([answer[-1] ^ 1])
    await a.join(token, second, "second")
    assert b.peers == {first.public_text}
    world.tampered = record
    await until(lambda: b.peers == {second.public_text})


async def test_a_list_that_is_older_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.start("a", "b")
    host = PrivateIdentity.generate()
    await world.endpoints["a"].join(await world.endpoints["a"].invite(), host)
    await until(lambda: world.all_have(host))
    await world.stop("a")
    b = world.endpoints["b"]
    copied = dict(b.enroller._enrolments.copied)
    b.enroller._enrolments.replay({**copied, "epoch": copied["epoch"] + 1000})
    world.start("a")
    rows: dict[str, Any] = {}

    async def problem() -> str:
        rows.update(await b.rows())
        return rows["list"]["problem"] or ""

    async with asyncio.timeout(60):
        while "is older than" not in await problem():
            await asyncio.sleep(0.05)
    assert b.peers == {host.public_text}


async def test_who_is_revoked_is_refused_although_that_cannot_be_written_down(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.start("a", "b")
    host = PrivateIdentity.generate()
    a, b = world.endpoints["a"], world.endpoints["b"]
    await a.join(await a.invite(), host)
    await until(lambda: world.all_have(host))
    path = world.directory / "b" / module.COPY
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    await a.revoke("host")
    await until(lambda: not b.peers)
    assert "the list of members cannot be saved" in caplog.text
    world.cut = {"b"}
    await world.stop("a")
    world.start("a")  # whose list comes as a whole
    host = PrivateIdentity.generate()
    a = world.endpoints["a"]
    await a.join(await a.invite(), host)
    world.cut = set()
    await until(lambda: b.peers == {host.public_text})


async def test_another_group_begins_with_nothing(world: World) -> None:
    world.start("a", "b")
    host = PrivateIdentity.generate()
    await world.endpoints["a"].join(await world.endpoints["a"].invite(), host)
    await until(lambda: world.all_have(host))
    await world.stop("a")
    await world.stop("b")
    world.keys["a"] = PrivateIdentity.generate()
    world.start("b")
    assert world.endpoints["b"].enroller.extended().peers == ()


def test_an_endpoint_that_is_not_in_its_group_does_not_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    config = world.configuration()

    async def nothing() -> None:
        """Applies nothing."""

    with pytest.raises(
        ValueError, match="none of the endpoints has the public key of this endpoint"
    ):
        Enroller(tmp_path, PrivateIdentity.generate(), config, nothing, Metrics())


@pytest.mark.timeout(300)
async def test_a_fleet_joins_a_group_of_which_one_is_restarted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "LIFETIME", joining.LIFETIME_MAX)
    world.start("a", "b", "c")
    a = world.endpoints["a"]
    token = await a.invite(uses=FLEET)
    hosts = [PrivateIdentity.generate() for _ in range(FLEET)]
    began = time.monotonic()
    for start in range(0, FLEET, 100):
        await asyncio.gather(*(a.join(token, host) for host in hosts[start : start + 100]))
        if start == 500:
            await world.stop("b")
            world.start("b")
    await until(lambda: world.all_have(*hosts))
    print(f"{FLEET} hosts were admitted by three endpoints {time.monotonic() - began:.1f} s later")
    assert len((await world.endpoints["b"].rows())["peers"]) == FLEET
    lines = (world.directory / "c" / module.COPY).read_bytes().splitlines()
    assert all(json.loads(line) for line in lines)
    fresh = PrivateIdentity.generate()
    sent, request = joining.new_renewal(hosts[0], fresh, a.identity.public, time.time())
    answer = await a.enroller.handle(sent)
    assert answer is not None
    assert isinstance(joining.open_answer(answer, request), Joined)

    def both() -> bool:
        return all(
            any(
                (peer.public_key, peer.old_public_key) == (fresh.public_text, hosts[0].public_text)
                for peer in each.enroller.extended().peers
            )
            for each in world.endpoints.values()
        )

    await until(both)
    await world.stop("a")
    world.start("a")
    await world.endpoints["a"].enroller._apply()
    await until(lambda: world.all_have(fresh, *hosts[1:]))
