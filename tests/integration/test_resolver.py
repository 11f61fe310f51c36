"""The resolver with a real name server, the real /etc/hosts and the real C library."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.targets import answers, sources, system
from socks_tunnel_workers.targets import resolver as module
from socks_tunnel_workers.targets.resolver import Failure, ResolveError, Resolver
from support.nameserver import AAAA, A, NameServer, name_server


class Setup:
    def __init__(self, server: NameServer, resolver: Resolver) -> None:
        self.server = server
        self.resolver = resolver
        self.metrics = Metrics()
        self.warnings: list[str] = []

    async def addresses(self, name: str, seconds: float = 60, peer: str = "p") -> list[str]:
        resolved = await self.resolver.resolve(name, seconds=seconds, peer=peer)
        return [str(address) for address in resolved.addresses]

    async def failure(self, name: str, seconds: float = 60) -> Failure:
        with pytest.raises(ResolveError) as caught:
            await self.resolver.resolve(name, seconds=seconds, peer="p")
        return caught.value.failure

    async def asked(self, name: str) -> None:
        """Waits until the server has been asked for a name."""
        async with asyncio.timeout(60):
            while not self.server.queries(name):
                self.server.changed.clear()
                await self.server.changed.wait()


@contextlib.asynccontextmanager
async def asking(seconds: float) -> AsyncIterator[Setup]:
    """A resolver that sends a query again after so many seconds, and then after longer ones."""
    async with name_server() as server:
        made = Setup(server, None)  # type: ignore[arg-type]  # the next line has it
        made.resolver = Resolver(
            servers=[server.address],
            timeout=seconds,
            warn=lambda _kind, message, *args: made.warnings.append(message % args),
            metrics=made.metrics,
        )
        yield made
        made.resolver.close()


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    async with asking(0.2) as made:
        yield made


@pytest.fixture
async def patient() -> AsyncIterator[Setup]:
    """One that sends nothing again while a test lasts: what the server is asked can be counted."""
    async with asking(120) as made:
        yield made


async def test_both_families_and_the_shortest_ttl(setup: Setup) -> None:
    setup.server.records["a.test"] = ["127.0.0.2", "::1"]
    setup.server.ttl = 17
    resolved = await setup.resolver.resolve("a.test", seconds=60)
    assert set(map(str, resolved.addresses)) == {"127.0.0.2", "::1"}
    assert 1 <= resolved.ttl <= 17
    assert setup.metrics.dns_seconds.labels().sum > 0


async def test_hosts_comes_first_and_is_not_asked_of_a_server(setup: Setup) -> None:
    setup.server.silent.add("*")
    async with asyncio.timeout(60):
        assert "127.0.0.1" in await setup.addresses("localhost")
    assert not setup.server.asked


async def test_names_are_asked_as_they_stand(setup: Setup) -> None:
    assert await setup.failure("short") is Failure.ABSENT
    assert setup.metrics.dns_failures_total.labels("absent").value == 1
    assert {name for name, _ in setup.server.asked} == {"short"}


async def test_a_lost_packet_is_sent_again(setup: Setup) -> None:
    setup.server.records["a.test"] = ["127.0.0.2"]
    setup.server.lose["a.test"] = 2
    assert await setup.addresses("a.test") == ["127.0.0.2"]


async def test_a_name_that_does_not_exist_is_remembered_for_the_soas_time(patient: Setup) -> None:
    patient.server.negative_ttl = 60
    assert await patient.failure("no.test") is Failure.ABSENT
    queries = patient.server.queries("no.test")
    assert await patient.failure("no.test") is Failure.ABSENT
    assert patient.server.queries("no.test") == queries
    # RFC 2308 section 5: without a SOA a negative answer is not to be cached.
    patient.server.negative_ttl = None
    assert await patient.failure("other.test") is Failure.ABSENT
    patient.server.records["other.test"] = ["127.0.0.2"]
    assert await patient.addresses("other.test") == ["127.0.0.2"]


async def test_an_answer_is_kept_for_its_ttl(patient: Setup) -> None:
    patient.server.records["a.test"] = ["127.0.0.2"]
    patient.server.ttl = 60
    await patient.addresses("a.test")
    queries = patient.server.queries("a.test")
    await patient.addresses("a.test")
    assert patient.server.queries("a.test") == queries
    patient.server.records["b.test"] = ["127.0.0.2"]
    patient.server.ttl = 0
    await patient.addresses("b.test")
    patient.server.records["b.test"] = ["127.0.0.3"]
    assert await patient.addresses("b.test") == ["127.0.0.3"]


@pytest.mark.parametrize(("table", "failure"), [("silent", "timeout"), ("servfail", "server")])
async def test_a_soft_failure_is_remembered_for_seconds_only(
    setup: Setup, table: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOFT_SECONDS", 3.0)
    getattr(setup.server, table).add("a.test")
    assert (await setup.failure("a.test")).value == failure
    queries = setup.server.queries("a.test")
    assert (await setup.failure("a.test")).value == failure
    assert setup.server.queries("a.test") == queries, "remembered"
    getattr(setup.server, table).clear()
    setup.server.records["a.test"] = ["127.0.0.2"]
    async with asyncio.timeout(60):
        while True:
            try:
                found = await setup.addresses("a.test")
            except ResolveError as error:
                soft = error.soft
                assert soft
                await asyncio.sleep(0.05)
            else:
                break
    assert found == ["127.0.0.2"]


@pytest.mark.parametrize(
    ("kind", "addresses"), [(AAAA, ["127.0.0.2"]), (A, ["::1"])], ids=["no-ipv6", "no-ipv4"]
)
async def test_a_server_that_drops_one_family_does_not_hold_up_the_other(
    setup: Setup, kind: int, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FALLBACK_DELAY", 0.1)
    setup.server.records["a.test"] = ["127.0.0.2", "::1"]
    setup.server.silent_types.add(("a.test", kind))
    setup.server.ttl = 3600
    resolved = await setup.resolver.resolve("a.test", seconds=60)
    assert list(map(str, resolved.addresses)) == addresses
    assert resolved.ttl == sources.INCOMPLETE_TTL, "so that the other family is asked for again"


async def test_silence_for_one_family_and_nothing_in_the_other_is_no_absence(setup: Setup) -> None:
    setup.server.records["a.test"] = []
    setup.server.silent_types.add(("a.test", A))
    assert await setup.failure("a.test") is Failure.TIMEOUT


async def test_askers_share_a_look_up_and_the_last_one_ends_it(patient: Setup) -> None:
    patient.server.silent.add("a.test")
    tasks = [asyncio.create_task(patient.addresses("a.test", seconds=120)) for _ in range(3)]
    async with asyncio.timeout(60):
        while not patient.server.asked["a.test", A]:
            await asyncio.sleep(0.01)
    for task in tasks[:2]:
        task.cancel()
    await asyncio.wait(tasks[:2])
    assert "a.test" in patient.resolver._lookups
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert not patient.resolver._lookups
    assert patient.server.asked["a.test", A] == 1
    # Somebody who comes now starts anew.
    patient.server.silent.clear()
    patient.server.records["a.test"] = ["127.0.0.2"]
    assert await patient.addresses("a.test") == ["127.0.0.2"]


async def test_an_asker_that_leaves_at_once_leaves_nothing_behind(setup: Setup) -> None:
    task = asyncio.create_task(setup.addresses("a.test"))
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.wait([task])
    async with asyncio.timeout(60):
        while len(setup.resolver._shares):
            await asyncio.sleep(0.01)
    assert not setup.resolver._lookups


async def test_a_good_name_beside_a_thousand_dead_ones() -> None:
    async with name_server() as server:
        server.silent.add("*.dead.test")
        server.records["ok.test"] = ["127.0.0.2"]
        resolver = Resolver(servers=[server.address], timeout=120)
        setup = Setup(server, resolver)
        dead = [
            asyncio.create_task(setup.addresses(f"{n}.dead.test", seconds=240)) for n in range(1000)
        ]
        try:
            await setup.asked("999.dead.test")
            assert await setup.addresses("ok.test") == ["127.0.0.2"]
            assert "127.0.0.1" in await setup.addresses("localhost")
            assert not any(task.done() for task in dead), "it waited for the dead ones"
        finally:
            for task in dead:
                task.cancel()
            await asyncio.wait(dead)
            resolver.close()


async def test_names_that_nobody_waits_for_count_until_they_are_given_up(setup: Setup) -> None:
    setup.server.silent.add("*.dead.test")
    dead = [asyncio.create_task(setup.addresses(f"{n}.dead.test")) for n in range(100)]
    await setup.asked("99.dead.test")
    for task in dead:
        task.cancel()
    await asyncio.wait(dead)
    # What nobody waits for counts until c-ares is done with it, and then no more.
    async with asyncio.timeout(60):
        while len(setup.resolver._shares):
            await asyncio.sleep(0.05)


async def test_an_answer_that_does_not_fit_a_datagram(setup: Setup) -> None:
    addresses = [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(1000)]
    setup.server.records["big.test"] = addresses
    setup.server.truncated.add("big.test")
    # A hostile domain's answer of thousands would hold the worker up: the first ones are enough.
    found = await setup.addresses("big.test")
    assert len(set(found)) == answers.RECORDS_MAX
    assert set(found) < set(addresses)


async def test_large_answers_fill_the_cache_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """c-ares keeps all records of an answer, whoever reads how many of them."""
    monkeypatch.setattr(sources, "CACHED_MAX", 50)
    async with asking(3.0) as setup:
        setup.server.ttl = 60
        setup.server.records["*.test"] = [f"127.1.1.{n}" for n in range(200)]
        setup.server.truncated |= {f"{n}.test" for n in range(2)}
        for n in (0, 1, 0, 0):
            await setup.addresses(f"{n}.test")
        # 25 for each answer, and 2 for its questions: after two of them, another cache begins.
        assert setup.server.asked["0.test", A] == 2


async def test_what_c_ares_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CACHED_MAX", 6)
    async with asking(3.0) as setup:  # long enough for an answer, and not for the test to wait for
        await caches_are_exchanged(setup)


async def caches_are_exchanged(setup: Setup) -> None:
    setup.server.ttl = 60
    setup.server.records["*.test"] = ["127.0.0.2"]
    setup.server.silent.add("slow.test")
    slow = asyncio.create_task(setup.addresses("slow.test", seconds=60))
    await setup.asked("slow.test")
    for n in (1, 2, 3, 1, 1, 1):
        await setup.addresses(f"{n}.test")
    # slow, 1, 2 filled the first cache: the others went to the second one.
    assert setup.server.asked["1.test", A] == 2
    assert len(setup.resolver.sources._retired) == 1
    # What was under way goes on.
    assert not slow.done()
    assert not setup.resolver.sources._retired[0].closed
    setup.server.silent.clear()
    assert await slow == ["127.0.0.2"]
    async with asyncio.timeout(60):
        while not setup.resolver.sources._retired[0].closed:
            await asyncio.sleep(0.01)


async def test_each_peer_has_its_share(patient: Setup) -> None:
    setup = patient
    setup.resolver._shares.each = 6
    setup.server.silent.add("*.dead.test")
    setup.server.records["ok.test"] = ["127.0.0.2"]
    dead = [asyncio.create_task(setup.addresses(f"{n}.dead.test")) for n in range(2)]
    await setup.asked("0.dead.test")
    await setup.asked("1.dead.test")
    assert await setup.failure("one-more.test") is Failure.TOO_MANY
    assert len(setup.warnings) == 1
    assert await setup.addresses("ok.test", peer="another") == ["127.0.0.2"]
    for task in dead:
        task.cancel()
    await asyncio.wait(dead)


async def test_without_descriptors_it_is_a_want_of_resources(setup: Setup) -> None:
    setup.server.records["a.test"] = ["127.0.0.2"]
    assert await setup.failure("no.test") is Failure.ABSENT  # all files have been read
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(ResolveError) as caught:
            await setup.resolver.resolve("a.test", seconds=60)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.failure is Failure.RESOURCES
    assert caught.value.reply is Reply.GENERAL_FAILURE
    assert "open files" in setup.warnings[0]
    assert await setup.addresses("a.test") == ["127.0.0.2"], "never remembered"


async def test_names_of_an_address(setup: Setup) -> None:
    setup.server.names["127.9.9.9"] = "host.a.test"
    setup.server.negative_ttl = 5
    address = ipaddress.ip_address("127.9.9.9")
    assert await setup.resolver.reverse(address, seconds=60) == ["host.a.test"]
    with pytest.raises(ResolveError) as caught:
        await setup.resolver.reverse(ipaddress.ip_address("192.0.2.7"), seconds=60)
    assert caught.value.failure is Failure.ABSENT
    setup.server.silent.add("*.in-addr.arpa")
    with pytest.raises(ResolveError) as caught:
        await setup.resolver.reverse(ipaddress.ip_address("192.0.2.9"), seconds=0.05)
    assert caught.value.failure is Failure.TIMEOUT


async def test_closing_ends_every_wait(patient: Setup) -> None:
    setup = patient
    setup.server.silent.add("a.test")
    task = asyncio.create_task(setup.addresses("a.test"))
    await setup.asked("a.test")
    setup.resolver.close()
    async with asyncio.timeout(60):
        await asyncio.wait([task])
    with pytest.raises(ResolveError):
        await setup.addresses("b.test")


async def test_a_hosts_file_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHECK_SECONDS", 0)
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.1 a.test\n")
    async with name_server() as server:
        server.negative_ttl = 1
        resolver = Resolver(servers=[server.address], timeout=0.2, hosts_file=hosts)
        try:
            resolved = await resolver.resolve("a.test", seconds=60)
            assert resolved.addresses == (ipaddress.ip_address("192.0.2.1"),)
            assert await resolver.reverse(ipaddress.ip_address("192.0.2.1"), seconds=60) == [
                "a.test"
            ]
            hosts.write_text("192.0.2.2 a.test a\n")
            resolved = await resolver.resolve("a.test", seconds=60)
            assert resolved.addresses == (ipaddress.ip_address("192.0.2.2"),)
            hosts.unlink()
            with pytest.raises(ResolveError):
                await resolver.resolve("a.test", seconds=60)
        finally:
            resolver.close()


async def test_names_that_no_server_may_be_asked_for(setup: Setup) -> None:
    assert await setup.failure("hidden.onion") is Failure.ABSENT
    assert await setup.failure("no.invalid") is Failure.ABSENT
    assert not setup.server.asked


# --- what only the C library can ask ------------------------------------------------------------


@pytest.fixture
async def with_sss(tmp_path: Path) -> AsyncIterator[Setup]:
    conf = tmp_path / "nsswitch.conf"
    conf.write_text("hosts: files sss dns\n")
    async with name_server() as server:
        made = Setup(server, None)  # type: ignore[arg-type]  # the next line has it
        made.resolver = Resolver(
            servers=[server.address],
            timeout=0.2,
            nsswitch_conf=conf,
            warn=lambda _kind, message, *args: made.warnings.append(message % args),
        )
        yield made
        made.resolver.close()


class Library:
    """Stands in for a source that is not on this machine: LDAP, sssd."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self.answers: dict[str, list[str]] = {}
        monkeypatch.setattr(system, "lookup", self)

    def __call__(self, name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        self.asked.append(name)
        assert self.go.wait(60)
        if name not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [ipaddress.ip_address(address) for address in self.answers[name]]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


async def test_sources_are_asked_in_the_order_of_nsswitch(
    with_sss: Setup, library: Library
) -> None:
    library.go.set()
    library.answers["both.test"] = ["127.0.0.9"]
    with_sss.server.records["both.test"] = with_sss.server.records["dns.test"] = ["127.0.0.2"]
    assert await with_sss.addresses("both.test") == ["127.0.0.9"]
    assert await with_sss.addresses("dns.test") == ["127.0.0.2"]
    assert library.asked == ["both.test", "dns.test"]
    assert "127.0.0.1" in await with_sss.addresses("localhost")
    assert library.asked == ["both.test", "dns.test"], "files come first"


async def test_a_peers_dead_names_leave_threads_to_others(
    with_sss: Setup, library: Library
) -> None:
    library.answers["ok.test"] = ["127.0.0.9"]
    tasks = [asyncio.create_task(with_sss.addresses(f"{n}.test")) for n in range(50)]
    async with asyncio.timeout(60):
        while len(library.asked) < system.THREADS_PER_PEER:
            await asyncio.sleep(0.01)
    other = asyncio.create_task(with_sss.addresses("ok.test", peer="another"))
    async with asyncio.timeout(60):
        while "ok.test" not in library.asked:
            await asyncio.sleep(0.01)
    assert len(library.asked) == system.THREADS_PER_PEER + 1
    # Those that wait for a thread and are not wanted any more never get one.
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    library.go.set()
    assert await other == ["127.0.0.9"]
    assert len(library.asked) == system.THREADS_PER_PEER + 1


async def test_without_threads_it_is_a_want_of_resources(
    with_sss: Setup, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.go.set()
    library.answers["a.test"] = ["127.0.0.9"]
    assert "127.0.0.1" in await with_sss.addresses("localhost")  # c-ares has its thread

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert await with_sss.failure("a.test") is Failure.RESOURCES
    assert "can't start new thread" in with_sss.warnings[0]
    assert await with_sss.addresses("a.test") == ["127.0.0.9"], "never remembered"


def test_the_c_library_itself() -> None:
    assert ipaddress.ip_address("127.0.0.1") in system.lookup("localhost")
