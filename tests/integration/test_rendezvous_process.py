"""`socks-tunnel rendezvous` as a process: its start, its signals, its exit status."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from integration.links_world import until
from integration.rendezvous_world import Delays
from socks_tunnel.protocol.rendezvous import CLOSE_FORBIDDEN, CLOSE_MEANINGS
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous


class Process:
    """One service, with its log in a file."""

    def __init__(self, directory: Path, text: str) -> None:
        self.config = directory / "rendezvous.toml"
        self.config.write_text(text)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", str(self.config)],
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def said(self) -> str:
        return self.log.read_text()

    async def ends(self) -> int:
        await until(lambda: self.popen.poll() is not None)
        return self.popen.returncode

    async def port(self) -> int:
        await until(lambda: "listening on" in self.said() or self.popen.poll() is not None)
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.said())
        assert found, self.said()
        return int(found[1])


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(30)


def key_table(identity: PrivateIdentity, name: str = "office") -> str:
    return f'[[keys]]\nname = "{name}"\npublic_key = "{identity.public_text}"\n'


async def test_it_serves_reloads_and_drains(tmp_path: Path, started: list[Process]) -> None:
    listed, late = PrivateIdentity.generate(), PrivateIdentity.generate()
    head = 'listen = "127.0.0.1:0"\ndrain_timeout = 5\n'
    process = Process(tmp_path, head + key_table(listed))
    started.append(process)
    url = f"ws://localhost:{await process.port()}/"
    clients = [Rendezvous(url, identity, Delays()) for identity in (listed, late)]
    for client in clients:
        client.start()
    try:
        await until(lambda: clients[0].problem is None)
        await until(lambda: clients[1].problem == CLOSE_MEANINGS[CLOSE_FORBIDDEN])
        process.config.write_text(head + key_table(listed) + key_table(late, "late"))
        process.popen.send_signal(signal.SIGHUP)
        await until(lambda: "reloaded: 2 keys" in process.said())
        await until(lambda: clients[1].problem is None)
        process.config.write_text(head)
        process.popen.send_signal(signal.SIGHUP)
        await until(lambda: "reload refused" in process.said())
        assert clients[0].problem is None
        process.popen.send_signal(signal.SIGUSR1)
        report = "2 clients, 0 relayed connections; since the start: joined"
        await until(lambda: report in process.said())
        process.popen.send_signal(signal.SIGTERM)
        assert await process.ends() == 0
        assert "SIGTERM: asking 2 clients to leave" in process.said()
        assert "Traceback" not in process.said()
        await until(lambda: all(client.problem for client in clients))
    finally:
        await asyncio.gather(*(client.stop() for client in clients))


async def test_what_it_relays_and_drops_is_in_its_metrics(
    tmp_path: Path, started: list[Process]
) -> None:
    office, laptop = PrivateIdentity.generate(), PrivateIdentity.generate()
    process = Process(
        tmp_path,
        'listen = "127.0.0.1:0"\n[metrics]\nlisten = "127.0.0.1:0"\n[relay]\nenabled = true\n'
        + key_table(office)
        + key_table(laptop, "laptop"),
    )
    started.append(process)
    url = f"ws://localhost:{await process.port()}/"
    await until(lambda: "metrics on http://" in process.said())
    found = re.search(r"metrics on (http://\S+)/metrics", process.said())
    assert found
    session = aiohttp.ClientSession(found[1])

    async def sample(name: str) -> float:
        """Of those of the service alone, which are there from the start."""
        async with session.get("/metrics") as answer:
            assert answer.status == 200
            for line in (await answer.text()).splitlines():
                if line.startswith(f"socks_tunnel_{name} "):
                    return float(line.rpartition(" ")[2])
        raise AssertionError(f"there is no {name}")

    async def grows(name: str, above: float = 0) -> None:
        async with asyncio.timeout(60):
            while await sample(name) <= above:
                await asyncio.sleep(0.05)

    a, b = (Rendezvous(url, identity, Delays()) for identity in (office, laptop))
    a.watch([laptop.public])
    b.watch([office.public])
    dropped = 'rendezvous_relay_dropped_total{reason="absent"}'
    try:
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        accepted = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with session.get("/metrics", headers=accepted) as answer:
            assert answer.content_type == "application/openmetrics-text"
            assert (await answer.text()).endswith("# EOF\n")
        assert await sample("up") == 1
        assert await sample(dropped) == 0
        a.start()
        await until(lambda: a.relay.rate)
        # Nobody has the other key yet, so this datagram goes nowhere.
        a.relay.send(laptop.public, b"channel1", [b"lost"])
        await grows(dropped)
        b.start()
        await until(lambda: b.relay.rate)
        await grows("rendezvous_clients", 1)
        relayed = "rendezvous_relay_datagrams_total"
        async with asyncio.timeout(60):
            while not await sample(relayed):  # the two may not watch each other yet
                a.relay.send(laptop.public, b"channel1", [b"four", b"more"])
                await asyncio.sleep(0.05)
        await grows("rendezvous_relay_bytes_total", 7)
        assert await sample('process_open_fds{process="rendezvous"}') > 0
        process.popen.send_signal(signal.SIGTERM)
        assert await process.ends() == 0
    finally:
        await asyncio.gather(a.stop(), b.stop(), session.close())
    assert "Traceback" not in process.said()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, started: list[Process]) -> None:
    process = Process(tmp_path, 'listen = "127.0.0.1:0"\nclients = "any"\ndrain_timeout = 3600\n')
    started.append(process)
    url = f"ws://localhost:{await process.port()}/"
    client = Rendezvous(url, PrivateIdentity.generate(), Delays())
    client.start()
    try:
        await until(lambda: client.problem is None)
        process.popen.send_signal(signal.SIGTERM)
        await until(lambda: "asking 1 clients to leave" in process.said())
        process.popen.send_signal(signal.SIGTERM)
        assert await process.ends() == 0
        assert "ending at once" in process.said()
    finally:
        await client.stop()


async def test_what_it_cannot_start_with(tmp_path: Path, started: list[Process]) -> None:
    bad = Process(tmp_path, 'listen = "127.0.0.1:0"\nclients = "enrolled"\n')
    started.append(bad)
    assert await bad.ends() == 78
    assert "keys: is missing" in bad.said()
    taken = Process(tmp_path, 'listen = "127.0.0.1:0"\nclients = "any"\n')
    started.append(taken)
    port = await taken.port()
    (tmp_path / "second").mkdir()
    second = Process(tmp_path / "second", f'listen = "127.0.0.1:{port}"\nclients = "any"\n')
    started.append(second)
    assert await second.ends() == 73
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.said()
    (tmp_path / "third").mkdir()
    third = Process(
        tmp_path / "third",
        f'listen = "127.0.0.1:0"\nclients = "any"\n[metrics]\nlisten = "127.0.0.1:{port}"\n',
    )
    started.append(third)
    assert await third.ends() == 73
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in third.said()
