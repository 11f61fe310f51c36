"""What a copy of a group's list has on its disk, and how old it may be."""

import errno
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from integration.supervisor.group_world import Endpoint, World, a_world, until
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling.enrolment_file import EnrolmentFile
from socks_tunnel.signaling.enrolments import OLD_KEY_LIFETIME
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor import enroller as module
from socks_tunnel.supervisor import group as group_module
from socks_tunnel.supervisor.enroller import Enroller


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with a_world(tmp_path, monkeypatch) as made:
        yield made


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


@pytest.mark.parametrize("line", [b"nonsense", b'{"entry": "revoked", "name": "nobody", "at": 1}'])
async def test_a_damaged_copy_admits_nobody_until_the_owner_is_heard(
    world: World, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The line may have revoked one of those whom the lines before it have let in."""
    world.start("a", "b")
    host = PrivateIdentity.generate()
    await world.endpoints["a"].join(await world.endpoints["a"].invite(), host)
    await until(lambda: world.all_have(host))
    await world.stop("b")
    (path,) = world.directory.glob(f"**/b/**/{module.COPY}")
    with path.open("ab") as file:
        file.write(line + b"\n")
    world.cut = {"a"}
    world.start("b")
    assert peers_of(world.endpoints["b"]) == set()
    assert f"{path}:" in caplog.text
    assert "the owner is asked for a new copy" in caplog.text
    assert path.with_suffix(".damaged").exists()
    world.cut = set()
    await until(lambda: world.all_have(host))


async def test_the_service_is_told_of_replaced_keys_and_last_of_revoked_ones(world: World) -> None:
    """Both have enrolments that are signed. If there is no room for all, the last ones count."""
    world.start("a")
    a = world.endpoints["a"]
    first, second, other = (PrivateIdentity.generate() for _ in range(3))
    token = await a.invite(uses=2)
    await a.join(token, first, "laptop")
    await a.join(token, other, "other")
    replaced_at = time.time() - OLD_KEY_LIFETIME - 1
    a.enroller._enrolments.renew(first.public, second.public, (), replaced_at)
    a.enroller.tick()
    assert a.enroller.revoked_keys() == [first.public]
    await a.revoke("other")
    assert a.enroller.revoked_keys() == [first.public, other.public]
    await a.revoke("laptop")
    assert a.enroller.revoked_keys() == [other.public, first.public, second.public]
