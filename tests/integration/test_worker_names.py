"""Names through a gateway worker and an endpoint worker: TCP, UDP, questions, and reloads."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.loader import load
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, Reply
from socks_tunnel.protocol.ipc import Detach, Reload
from socks_tunnel.protocol.messages import (
    Answer,
    CloseConnection,
    Resolve,
    Resolved,
    ResolveKind,
)
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header
from socks_tunnel_workers.targets import routes as routes_module
from socks_tunnel_workers.targets import udp as udp_module
from support.nameserver import NameServer, name_server
from support.worker_pair import LINK, Pair, attach, counted, worker_pair

POLICY = '[policy]\nallowed_hosts = ["127.0.0.0/8", "::1"]\nallowed_ports = ["*"]\n'


class Net:
    """A pair of workers, the endpoint with a name server in the test's hand."""

    def __init__(self, pair: Pair, server: NameServer, directory: Path) -> None:
        self.pair = pair
        self.server = server
        self.directory = directory

    async def connect(self, name: str, port: int) -> tuple[int, asyncio.StreamReader, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.pair.port)
        writer.write(b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name.encode())
        writer.write(port.to_bytes(2, "big"))
        async with asyncio.timeout(40):
            reply = await reader.readexactly(2 + 4)
            await reader.readexactly((16 if reply[5] == 4 else 4) + 2)
        return reply[3], reader, writer

    async def reply(self, name: str, port: int) -> int:
        code, _, writer = await self.connect(name, port)
        writer.close()
        return code

    def reload(self, policy: str) -> None:
        """Puts another policy in force at the endpoint."""
        path = self.directory / "endpoint.toml"
        text = path.read_text()
        path.write_text(text[: text.index("[policy]")] + policy)
        self.pair.endpoint.send_control(0, Reload(dump(load(path))))

    def decided(self, verdict: str) -> int:
        return counted(self.pair.endpoint_worker, "policy_decisions_total", verdict)

    def dropped(self, reason: str) -> int:
        return counted(self.pair.endpoint_worker, "udp_dropped_total", reason)


@contextlib.asynccontextmanager
async def network(directory: Path, policy: str = POLICY, **configs: Any) -> AsyncIterator[Net]:
    async with name_server() as server, worker_pair(directory, policy=policy, **configs) as pair:
        sources = pair.endpoint_worker.resolver.sources
        sources.servers, sources.timeout = [server.address], 0.2
        yield Net(pair, server, directory)


def patient(net: Net) -> None:
    """Lets no look-up end by itself while a test lasts."""
    net.pair.endpoint_worker.resolver.sources.timeout = 120


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with network(tmp_path) as running:
        yield running


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Client:
    """A SOCKS client with an association."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))
        self.relay = ("", 0)

    async def ask(self, host: str, port: int, data: bytes = b"x") -> tuple[HostPort, bytes]:
        """Sends a datagram every 50 ms until one comes back."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60):
            while True:
                self.send(host, port, data)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        packet = await loop.sock_recv(self.sock, 65536)
                    datagram = parse_udp_packet(packet)
                    return datagram.destination, packet[datagram.offset :]

    def send(self, host: str, port: int, data: bytes = b"x") -> None:
        self.sock.sendto(udp_header(HostPort(host, port)) + data, self.relay)

    async def until_sender(self, host: str, port: int, sender: str) -> None:
        """Asks until the answers come from an address."""
        async with asyncio.timeout(60):
            while (await self.ask(host, port))[0].host != sender:
                pass


@contextlib.asynccontextmanager
async def associated(net: Net) -> AsyncIterator[Client]:
    client = Client(net)
    reader, writer = await asyncio.open_connection("127.0.0.1", net.pair.port)
    writer.write(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
    reply = await reader.readexactly(12)
    client.relay = (socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:], "big"))
    try:
        yield client
    finally:
        client.sock.close()
        writer.close()


class Echo(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.seen = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.seen += 1
        self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def echo(host: str, port: int = 0) -> AsyncIterator[tuple[Echo, int]]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        Echo, local_addr=(host, port)
    )
    try:
        yield protocol, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


# --- TCP ----------------------------------------------------------------------------------------


async def test_what_went_wrong_with_a_name_is_what_the_client_is_told(
    net: Net, listener: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="socks_tunnel.audit")
    net.server.records["ok.test"] = ["127.0.0.1"]
    net.server.records["elsewhere.test"] = ["192.0.2.1"]
    net.server.servfail.add("broken.test")
    net.server.silent.add("silent.test")
    assert await net.reply("ok.test", listener) == Reply.SUCCEEDED
    assert await net.reply("OK.test.", listener) == Reply.SUCCEEDED
    assert await net.reply("no.test", listener) == Reply.HOST_UNREACHABLE
    assert await net.reply("broken.test", listener) == Reply.HOST_UNREACHABLE
    assert await net.reply("silent.test", listener) == Reply.TTL_EXPIRED
    assert net.decided("denied") == 0
    assert net.decided("unresolved") == 3
    assert await net.reply("elsewhere.test", listener) == Reply.NOT_ALLOWED
    assert net.decided("denied") == 1
    records = [r.fields for r in caplog.records if hasattr(r, "fields")]
    verdicts = {f["destination"]: f["verdict"] for f in records if "verdict" in f}
    assert verdicts[f"silent.test:{listener}"] == "unresolved"


async def test_names_are_absolute_and_a_search_list_is_the_policys_business(
    tmp_path: Path, listener: int
) -> None:
    policy = '[policy]\nallowed_hosts = ["*.corp", "intranet"]\nallowed_ports = ["*"]\n'
    policy += 'denied_hosts = ["intranet.secret.corp"]\n'
    async with network(tmp_path, policy) as net:
        net.server.negative_ttl = 0
        for name in ("intranet.secret.corp", "intranet.a.corp", "api.corp.a.corp"):
            net.server.records[name] = ["127.0.0.1"]
        # Without a setting, names of one label are looked up as they stand.
        assert await net.reply("intranet", listener) == Reply.HOST_UNREACHABLE
        assert {name for name, _ in net.server.asked} == {"intranet"}
        domains = '["secret.corp", "other.test", "b.corp", "a.corp"]'
        net.reload(f"{policy}[targets]\nsearch = {domains}\n")
        # A candidate that the policy refuses is not looked up; the first that exists is the name.
        net.server.asked.clear()
        assert await net.reply("intranet", listener) == Reply.NOT_ALLOWED  # it is loopback
        assert {name for name, _ in net.server.asked} == {"intranet.b.corp", "intranet.a.corp"}
        # A name with a dot never meets the search list.
        net.server.asked.clear()
        assert await net.reply("api.corp", listener) == Reply.HOST_UNREACHABLE
        assert {name for name, _ in net.server.asked} == {"api.corp"}


async def test_the_gateways_own_policy_takes_no_notice_of_a_final_dot(
    tmp_path: Path, listener: int
) -> None:
    gateway = '[policy]\nallowed_hosts = ["ok.test"]\nallowed_ports = ["*"]\n'
    async with network(tmp_path, gateway=gateway) as net:
        net.server.records["ok.test"] = ["127.0.0.1"]
        assert await net.reply("ok.test.", listener) == Reply.SUCCEEDED
        assert await net.reply("other.test.", listener) == Reply.NOT_ALLOWED


async def test_a_reload_ends_the_flows_that_it_forbids(
    net: Net, listener: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="socks_tunnel.audit")
    net.server.records["a.corp"] = net.server.records["b.test"] = ["127.0.0.1"]
    _, by_rule, one = await net.connect("a.corp", listener)
    _, by_address, two = await net.connect("b.test", listener)
    _, literal, three = await net.connect("127.0.0.1", listener)
    caplog.clear()
    names = '[policy]\nallowed_hosts = ["a.corp", "127.0.0.0/30"]\nallowed_ports = ["*"]\n'
    net.reload(names + 'denied_hosts = ["b.test"]\n')
    async with asyncio.timeout(60):
        with pytest.raises(ConnectionResetError):
            await by_address.read()
    net.reload('[policy]\nallowed_hosts = ["a.corp", "127.0.0.4/32"]\nallowed_ports = ["*"]\n')
    for reader in (by_rule, literal):
        async with asyncio.timeout(60):
            with pytest.raises(ConnectionResetError):
                await reader.read()
    records = [r.fields for r in caplog.records if hasattr(r, "fields")]
    denials = [(f["destination"], f["rule"]) for f in records if f.get("verdict") == "denied"]
    assert denials == [
        (f"b.test:{listener}", "denied_hosts: b.test"),
        (f"a.corp:{listener}", "loopback address"),
        (f"127.0.0.1:{listener}", "loopback address"),
    ]
    assert [f["reason"] for f in records if f.get("reason")].count("not-allowed") == 6, "both sides"
    for writer in (one, two, three):
        writer.close()


async def test_a_look_up_ends_with_its_client(net: Net) -> None:
    net.server.silent.add("silent.test")
    reader, writer = await asyncio.open_connection("127.0.0.1", net.pair.port)
    writer.write(b"\x05\x01\x00\x05\x01\x00\x03\x0bsilent.test\x00\x50")
    await reader.readexactly(2)
    lookups = net.pair.endpoint_worker.resolver._lookups
    async with asyncio.timeout(60):
        while "silent.test" not in lookups:
            await asyncio.sleep(0.005)
    writer.transport.abort()
    async with asyncio.timeout(60):
        while lookups:
            await asyncio.sleep(0.005)


# --- UDP ----------------------------------------------------------------------------------------


async def test_a_lost_dns_packet_costs_a_moment(net: Net) -> None:
    async with echo("127.0.0.1") as (_, port), associated(net) as client:
        net.server.records["a.test"] = ["127.0.0.1"]
        net.server.lose["a.test"] = 2
        assert await client.ask("a.test", port) == (HostPort("127.0.0.1", port), b"x")
        assert net.dropped("policy") == 0
        assert net.decided("denied") == 0


@pytest.mark.parametrize("trouble", ["servfail", "silent", "absent"])
async def test_a_name_works_once_it_resolves(
    net: Net, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_module, "UNRESOLVED_SECONDS", 0.2)
    monkeypatch.setattr(udp_module, "RESOLVE_SECONDS", 0.5)
    async with echo("127.0.0.1") as (_, port), associated(net) as client:
        if trouble != "absent":
            getattr(net.server, trouble).add("a.test")
        net.server.negative_ttl = 0
        async with asyncio.timeout(60):
            while net.dropped("unresolved") < 2:
                client.send("a.test", port)
                await asyncio.sleep(0.02)
        assert net.dropped("policy") == 0
        assert net.decided("denied") == 0
        assert net.decided("unresolved") > 0
        net.server.servfail.clear()
        net.server.silent.clear()
        net.server.records["a.test"] = ["127.0.0.1"]
        assert (await client.ask("a.test", port))[1] == b"x"


async def test_a_name_is_followed_and_each_new_address_is_checked(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_module, "UNRESOLVED_SECONDS", 0.1)
    net.server.ttl = 1
    net.server.records["a.test"] = ["127.0.0.2"]
    async with echo("127.0.0.2") as (_, port), echo("127.0.0.3", port), associated(net) as client:
        await client.until_sender("a.test", port, "127.0.0.2")
        decisions = net.decided("allowed")
        net.server.records["a.test"] = ["127.0.0.3"]
        await client.until_sender("a.test", port, "127.0.0.3")
        assert net.decided("allowed") == decisions + 1, "one more address was decided on"
        # While no server answers, the old address stays in use.
        net.server.silent.add("a.test")
        queries = net.server.queries("a.test")
        async with asyncio.timeout(60):
            while net.server.queries("a.test") <= queries + 1:
                await client.until_sender("a.test", port, "127.0.0.3")
        net.server.silent.clear()
        net.server.records["a.test"] = ["192.0.2.1"]
        async with asyncio.timeout(60):
            while not net.dropped("policy"):
                client.send("a.test", port)
                await asyncio.sleep(0.02)
        assert net.decided("denied") == 1


async def test_a_dead_address_yields_to_one_that_answers(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_module, "TURN_SECONDS", 0.3)
    async with echo("127.0.0.1") as (target, port), associated(net) as client:
        net.server.records["a.test"] = ["::1", "127.0.0.1"]  # nothing listens on ::1
        client.send("a.test", port, b"just one datagram")
        async with asyncio.timeout(60):
            packet = await asyncio.get_running_loop().sock_recv(client.sock, 65536)
        assert parse_udp_packet(packet).destination == HostPort("127.0.0.1", port)
        seen = target.seen
        for _ in range(5):
            assert (await client.ask("a.test", port))[0].host == "127.0.0.1"
        assert target.seen >= seen + 5
        # More dead addresses than a race has runners: each has its turn.
        many = [f"127.0.1.{n}" for n in range(1, 6)]
        net.server.records["many.test"] = [*many, "127.0.0.1"]
        monkeypatch.setattr(routes_module, "RACE_SECONDS", 0.5)
        await client.until_sender("many.test", port, "127.0.0.1")


async def test_what_waits_for_names_is_bounded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_module, "PENDING_BYTES_MAX", 5000)
    monkeypatch.setattr(udp_module, "RESOLVE_SECONDS", 120)
    patient(net)
    net.server.silent.add("*")
    async with associated(net) as client:
        for n in range(3):
            client.send(f"{n}.test", 9, bytes(2000))
        async with asyncio.timeout(60):
            while net.dropped("resolving") < 1:
                await asyncio.sleep(0.005)
        (flow,) = net.pair.endpoint_worker.flows()
        assert flow.pending_bytes == 4000  # type: ignore[attr-defined]
        for _ in range(udp_module.PENDING_PER_NAME_MAX + 1):
            client.send("0.test", 9, b"")
        async with asyncio.timeout(60):
            while net.dropped("resolving") < 3:
                await asyncio.sleep(0.005)


async def test_look_ups_end_with_their_association(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_module, "RESOLVE_SECONDS", 120)
    patient(net)
    net.server.silent.add("*")
    lookups = net.pair.endpoint_worker.resolver._lookups
    async with associated(net) as client:
        client.send("a.test", 9)
        client.send("b.test", 9)
        async with asyncio.timeout(60):
            while len(lookups) < 2:
                await asyncio.sleep(0.005)
    async with asyncio.timeout(60):
        while lookups or net.dropped("resolving") < 2:
            await asyncio.sleep(0.005)
    assert net.dropped("resolving") == 2


async def test_a_reload_is_in_force_at_once_for_datagrams(net: Net) -> None:
    net.server.records["a.test"] = ["127.0.0.2"]
    async with echo("127.0.0.1") as (_, port), echo("127.0.0.2", port), associated(net) as client:
        await client.ask("127.0.0.1", port)
        await client.until_sender("a.test", port, "127.0.0.2")
        client.send("192.0.2.1", port)
        async with asyncio.timeout(60):
            while not net.dropped("policy"):
                await asyncio.sleep(0.005)
        dropped, denied = net.dropped("policy"), net.decided("denied")
        net.reload('[policy]\nallowed_hosts = ["127.0.0.3/32"]\nallowed_ports = ["*"]\n')
        async with asyncio.timeout(60):
            while net.decided("denied") < denied + 2:
                await asyncio.sleep(0.005)
        for host in ("127.0.0.1", "127.0.0.2", "a.test"):
            client.send(host, port)
        async with asyncio.timeout(60):
            while net.dropped("policy") < dropped + 3:
                await asyncio.sleep(0.005)
        # And back: what was refused is decided anew.
        net.reload(POLICY)
        await client.until_sender("a.test", port, "127.0.0.2")
        await client.ask("127.0.0.1", port)


async def test_an_ipv4_address_in_ipv6_form_is_answered_in_that_form(net: Net) -> None:
    mapped = str(ipaddress.ip_address("::ffff:127.0.0.1"))
    async with echo("127.0.0.1") as (_, port), associated(net) as client:
        assert (await client.ask(mapped, port))[0] == HostPort(mapped, port)
        async with echo("127.0.0.2") as (_, other):
            assert (await client.ask("127.0.0.2", other))[0] == HostPort("127.0.0.2", other)


# --- questions ----------------------------------------------------------------------------------


async def ask(net: Net, kind: ResolveKind, host: str, conn_id: int = 5) -> Resolved:
    net.pair.endpoint.recording = True
    net.pair.endpoint.filter = lambda raw: raw[0] != Resolved.TYPE
    net.pair.endpoint.send_message(LINK, Resolve(conn_id, kind, host).encode())
    answer = await net.pair.endpoint.message(Resolved)
    assert isinstance(answer, Resolved)
    assert answer.conn_id == conn_id
    return answer


async def test_questions_are_answered_as_far_as_the_policy_lets_a_flow_go(net: Net) -> None:
    net.server.ttl = 60
    net.server.records["a.test"] = ["192.0.2.1", "127.0.0.2"]
    net.server.records["elsewhere.test"] = ["192.0.2.1"]
    net.server.names = {"127.0.0.2": "a.test", "192.0.2.1": "secret.test"}
    addresses, name = ResolveKind.ADDRESSES, ResolveKind.NAME
    answer = await ask(net, addresses, "a.test")
    assert [host for _, host in answer.answers] == ["127.0.0.2"]
    assert 1 <= answer.answers[0].ttl <= 60
    assert (await ask(net, addresses, "elsewhere.test")).reason == Reply.NOT_ALLOWED
    assert (await ask(net, addresses, "no.test")).reason == Reply.HOST_UNREACHABLE
    answer = await ask(net, addresses, "127.0.0.7")
    assert answer.answers == (Answer(60, "127.0.0.7"),)
    answer = await ask(net, name, "127.0.0.2")
    assert answer.reason == CloseReason.ORDERLY
    assert [host for _, host in answer.answers] == ["a.test"]
    assert 1 <= answer.answers[0].ttl <= 60
    assert (await ask(net, name, "192.0.2.1")).reason == Reply.NOT_ALLOWED
    assert net.server.queries(ipaddress.ip_address("192.0.2.1").reverse_pointer) == 0


async def test_questions_under_way_are_bounded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socks_tunnel_workers.targets.questions.QUESTIONS_MAX", 2)
    patient(net)
    net.server.silent.add("*.dead.test")
    worker = net.pair.endpoint_worker
    for n in (1, 2):
        question = Resolve(n, ResolveKind.ADDRESSES, f"{n}.dead.test")
        net.pair.endpoint.send_message(LINK, question.encode())
    refused = await ask(net, ResolveKind.ADDRESSES, "127.0.0.1", 3)
    assert refused.reason == CloseReason.RESOURCE_LIMIT
    asked = worker.sessions[LINK].core.questions
    assert asked.ids() == [1, 2]
    # One ends with its asker, the other with the link, and so do the look-ups.
    net.pair.endpoint.send_message(LINK, CloseConnection(1).encode())
    await until(lambda: asked.ids() == [2])
    await until(lambda: len(worker.resolver._lookups) == 1)
    net.pair.endpoint.send_control(LINK, Detach("the test says so"))
    await until(lambda: not asked and not worker.resolver._lookups)


async def test_a_question_under_way_on_a_lost_link_is_answered_when_it_comes_again(
    net: Net,
) -> None:
    net.server.silent.add("late.test")
    question = Resolve(5, ResolveKind.ADDRESSES, "late.test")
    net.pair.endpoint.send_message(LINK, question.encode())
    await until(lambda: net.server.queries("late.test") > 0)
    net.pair.endpoint.send_control(LINK, Detach("the test says so"))
    attach(net.pair.endpoint)
    net.server.silent.clear()
    net.server.records["late.test"] = ["127.0.0.2"]
    answer = await ask(net, ResolveKind.ADDRESSES, "late.test")
    assert [host for _, host in answer.answers] == ["127.0.0.2"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
