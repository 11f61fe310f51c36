"""Endpoints with one list of members: their enrollers, whose requests go from one to the other."""

import asyncio
import errno
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.config.settings import Config
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling import joining
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.enrolment_file import EnrolmentFile
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import Joined, Token
from socks_tunnel.supervisor import enroller as module
from socks_tunnel.supervisor import group as group_module
from socks_tunnel.supervisor.control import ControlError
from socks_tunnel.supervisor.enroller import Enroller
from support.configs import checked

FLEET = 1000


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


class Endpoint:
    """One endpoint of the group."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.identity = world.keys[name]
        self.directory = world.directory / name
        self.directory.mkdir(exist_ok=True)
        self.metrics = Metrics()
        self.config: Config = world.configuration()
        self.enroller = Enroller(
            self.directory, self.identity, self.config, self._apply, self.metrics
        )
        self.peers: set[str] = set()
        self.enroller.start(self._ask)

    async def _apply(self) -> None:
        self.peers = {peer.public_key for peer in self.enroller.extended().peers}

    async def _ask(self, to: bytes, request: bytes, timeout: float) -> bytes:
        del timeout
        return await self.world.carry(self.identity.public, to, request)

    async def stop(self) -> None:
        await self.enroller.stop()

    async def join(self, token: Token, host: PrivateIdentity, name: str = "host") -> Joined:
        sent, request = joining.new_request(host, token, name, time.time())
        answer = await self.enroller.handle(sent)
        assert answer is not None
        decided = joining.open_answer(answer, request)
        assert isinstance(decided, Joined), decided
        return decided

    async def invite(self, uses: int = 1) -> Token:
        made = await self.enroller.answer({"op": "invite", "uses": uses})
        return Token.parse(made["token"])

    async def rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = await self.enroller.answer({"op": "peers"})
        return rows

    async def revoke(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = await self.enroller.answer({"op": "revoke", "name": name})
        return result


class World:
    """Three endpoints, and what carries their requests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = {name: PrivateIdentity.generate() for name in ("a", "b", "c")}
        self.endpoints: dict[str, Endpoint] = {}
        self.max_age = 604_800
        self.cut: set[str] = set()
        """Endpoints that nobody reaches."""
        self.tampered: Callable[[bytes], bytes] = lambda answer: answer

    def configuration(self) -> Config:
        endpoints = [{"name": n, "public_key": key.public_text} for n, key in self.keys.items()]
        return checked(
            {
                "role": "endpoint",
                "source": str(self.directory / "endpoint.toml"),
                "identity": {"private_key_file": "key"},
                "signaling": {"rendezvous": "wss://rendezvous.example/"},
                "join": {
                    "group": {
                        "name": "offices",
                        "owner": "a",
                        "endpoints": endpoints,
                        "max_age": self.max_age,
                    }
                },
            },
            self.directory,
        )

    def start(self, *names: str) -> None:
        for name in names:
            self.endpoints[name] = Endpoint(self, name)

    async def stop(self, name: str) -> None:
        await self.endpoints.pop(name).stop()

    async def carry(self, sender: bytes, to: bytes, request: bytes) -> bytes:
        await asyncio.sleep(0)
        by_key = {key.public: name for name, key in self.keys.items()}
        name = by_key[to]
        endpoint = self.endpoints.get(name)
        if endpoint is None or {name, by_key[sender]} & self.cut:
            raise SignalingError("the peer is not there")
        answer = await endpoint.enroller.handle(request)
        if answer is None:
            raise SignalingError("refused")
        return self.tampered(answer)

    def all_have(self, *hosts: PrivateIdentity) -> bool:
        return all(
            {host.public_text for host in hosts} <= endpoint.peers
            for endpoint in self.endpoints.values()
        )

    def none_has(self, host: PrivateIdentity) -> bool:
        return not any(host.public_text in endpoint.peers for endpoint in self.endpoints.values())


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(group_module, "POLL", 0.2)
    monkeypatch.setattr(group_module, "RETRY_MAX", 0.2)
    made = World(tmp_path)
    yield made
    for name in list(made.endpoints):
        await made.stop(name)


def peers_of(endpoint: Endpoint) -> set[str]:
    return {peer.public_key for peer in endpoint.enroller.extended().peers}


class Disk:
    """A disk that does not take all that copies write."""

    def __init__(self) -> None:
        self.appends: Callable[[Any], bool] = lambda _: True
        """Returns whether it takes an entry at the end of the file."""
        self.rewrites = True
        """Whether it takes another file."""
        self.refused = 0

    def check(self, path: Path, *, takes: bool) -> None:
        if path.name == module.COPY and not takes:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made, append, rewrite = Disk(), EnrolmentFile._append, EnrolmentFile._rewrite

    def append_checked(file: EnrolmentFile, entry: Any) -> None:
        made.check(file._path, takes=made.appends(entry))
        append(file, entry)

    def rewrite_checked(file: EnrolmentFile, entries: list[Any]) -> None:
        made.check(file._path, takes=made.rewrites)
        rewrite(file, entries)

    monkeypatch.setattr(EnrolmentFile, "_append", append_checked)
    monkeypatch.setattr(EnrolmentFile, "_rewrite", rewrite_checked)
    return made


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
    assert "the list of members cannot be written down" in caplog.text
    world.cut = {"b"}
    await world.stop("a")
    world.start("a")  # whose list comes as a whole
    host = PrivateIdentity.generate()
    a = world.endpoints["a"]
    await a.join(await a.invite(), host)
    world.cut = set()
    await until(lambda: b.peers == {host.public_text})


async def test_a_file_with_a_gap_does_not_say_that_it_has_everything(
    world: World, disk: Disk
) -> None:
    """A revocation that was not written down must not come to nothing at the next start."""
    world.start("a", "b")
    goes, stays = PrivateIdentity.generate(), PrivateIdentity.generate()
    a, b = world.endpoints["a"], world.endpoints["b"]
    token = await a.invite(uses=2)
    await a.join(token, goes, "goes")
    await until(lambda: world.all_have(goes))
    disk.appends = lambda entry: entry["entry"] not in {"left", "revoked-key"}
    disk.rewrites = False
    await a.revoke("goes")
    await until(lambda: not b.peers)
    assert disk.refused
    await a.join(token, stays, "stays")
    await until(lambda: b.peers == {stays.public_text})
    await world.stop("b")
    world.start("b")
    b = world.endpoints["b"]
    await until(lambda: b.peers == {stays.public_text})
    disk.rewrites = True
    await until(lambda: not b.enroller._group._unwritten)  # type: ignore[union-attr]
    await world.stop("b")
    world.cut = {"a"}
    world.start("b")
    assert peers_of(world.endpoints["b"]) == {stays.public_text}


async def test_changes_are_not_written_behind_a_list_that_was_not(world: World, disk: Disk) -> None:
    world.start("a", "b")
    goes, stays = PrivateIdentity.generate(), PrivateIdentity.generate()
    await world.endpoints["a"].join(await world.endpoints["a"].invite(), goes, "goes")
    await until(lambda: world.all_have(goes))
    b = world.endpoints["b"]
    world.cut = {"b"}
    await world.endpoints["a"].revoke("goes")
    await world.stop("a")
    world.start("a")  # whose list comes as a whole
    a = world.endpoints["a"]
    disk.rewrites = False
    world.cut = set()
    await until(lambda: not b.peers)
    assert disk.refused
    await a.join(await a.invite(), stays, "stays")
    await until(lambda: b.peers == {stays.public_text})
    await world.stop("b")
    world.cut = {"a"}
    world.start("b")
    assert stays.public_text not in peers_of(world.endpoints["b"]), "the old file has its version"
    await world.stop("b")
    disk.rewrites = True
    world.cut = set()
    world.start("b")
    b = world.endpoints["b"]
    await until(lambda: b.peers == {stays.public_text})


def test_an_epoch_is_on_the_disk_before_it_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = EnrolmentFile.sync

    def sync(file: EnrolmentFile) -> None:
        real(file)
        synced.append(file.enrolments.epoch)

    monkeypatch.setattr(EnrolmentFile, "sync", sync)

    async def nothing() -> None:
        """Applies nothing."""

    config, owner = world.configuration(), world.keys["a"]
    epochs = [
        Enroller(world.directory, owner, config, nothing, Metrics())._enrolments.epoch
        for _ in range(2)
    ]
    assert synced == epochs
    assert epochs[0] < epochs[1]


@pytest.mark.parametrize("seconds", [-1000.0, 1_000_000.0])
async def test_a_clock_that_is_set_does_not_make_a_copy_younger(
    world: World, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    world.max_age = 3600
    world.start("a", "b")
    host = PrivateIdentity.generate()
    await world.endpoints["a"].join(await world.endpoints["a"].invite(), host)
    await until(lambda: world.all_have(host))
    world.cut = {"a"}
    now = time.time()
    copy = world.endpoints["b"].enroller._group
    assert isinstance(copy, group_module.ListCopy)
    assert not copy.is_stale(now + seconds), "it was heard a moment ago, whatever the clock says"
    later = group_module._boottime() + 3601
    monkeypatch.setattr(group_module, "_boottime", lambda: later)
    assert copy.is_stale(now)
    assert copy.is_stale(now - 3601)
    await world.stop("b")
    world.start("b")
    copy = world.endpoints["b"].enroller._group
    assert isinstance(copy, group_module.ListCopy)
    assert not copy.is_stale(now)
    assert copy.is_stale(now + seconds), "nobody knows how old it is"


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

    with pytest.raises(ValueError, match="own public key is none of those"):
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
