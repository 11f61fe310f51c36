"""Workers and exporter in their slots, and what their deaths do to flows and metrics."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from socks_tunnel.config.settings import Log
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import Configure, Control, Drain
from socks_tunnel.protocol.messages import CloseConnection, OpenConnection, Resume, decode
from socks_tunnel.supervisor.children import (
    EXPORTER_COMMAND,
    METRICS_VARIABLE,
    STATS_PENDING_MAX,
    WORKER_COMMAND,
    ExporterSlot,
    WorkerSlot,
)
from socks_tunnel.supervisor.listeners import Listener
from socks_tunnel.supervisor.ports import LinkTerms
from socks_tunnel.supervisor.processes import Slot
from socks_tunnel.supervisor.router import Router
from socks_tunnel.supervisor.routing import AttachedLink

FAKE = str(Path(__file__).with_name("fake_child.py"))


class FakeLink:
    rtt = None
    buffered = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.changed = asyncio.Event()

    def send_many(self, messages: list[bytes]) -> None:
        self.sent += messages
        self.changed.set()

    def send_resume(self, resume: Resume) -> None:
        raise AssertionError(resume)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.sent) < count:
                self.changed.clear()
                await self.changed.wait()


class Setup:
    """An endpoint's router with one worker slot."""

    def __init__(self, directory: Path, behaviour: str) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.unbootable: list[tuple[str, int | None]] = []
        self.abuses: list[str] = []
        self.router = Router(
            opens=False,
            worker_count=1,
            flows_per_worker=100,
            metrics=self.metrics,
            on_abuse=lambda _link, reason: self.abuses.append(reason),
            clock=time.monotonic,
        )
        self.directory = directory
        self.slot = WorkerSlot(
            0,
            router=self.router,
            metrics=self.metrics,
            metrics_directory=directory,
            listeners=[],
            log=Log("info", "auto"),
            configuration=lambda: Configure(1, {}, []),
            on_unbootable=lambda reason, status: self.unbootable.append((reason, status)),
            command=[sys.executable, FAKE, behaviour],
        )
        self.port = FakeLink()

    def link(self) -> AttachedLink:
        terms = LinkTerms(b"s" * 16, 262_144, 65_529, 300, ("udp", "bind"), resume=False)
        return self.router.attach(self.port, "laptop", terms)

    async def attached(self) -> AttachedLink:
        """A link that the worker has taken into use."""
        link = self.link()
        async with asyncio.timeout(60):
            while not all(worker.ready for worker in link.session.workers.values()):
                await asyncio.sleep(0.005)
        return link

    async def ready(self, count: int = 1) -> None:
        async with asyncio.timeout(60):
            while not (self.slot.running and self.slot.restarts >= count - 1):
                await asyncio.sleep(0.005)


async def ended(slot: Slot) -> None:
    slot.kill()
    if slot.ended is not None:
        await slot.ended


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path, "good")
    made.slot.start()
    await made.ready()
    yield made
    await ended(made.slot)


async def test_a_ready_worker_takes_part_in_routing(setup: Setup) -> None:
    assert setup.router.workers == 1
    assert setup.registry.get_sample_value("socks_tunnel_workers") == 1
    link = await setup.attached()
    opening = OpenConnection(5, "example.com", 80).encode()
    link.messages([opening])
    await setup.port.until(1)
    assert setup.port.sent == [opening], "the fake worker echoes"


async def test_a_killed_worker_s_flows_are_closed_and_a_new_one_takes_flows(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    link = await setup.attached()
    link.messages([OpenConnection(5, "example.com", 80).encode()])
    await setup.port.until(1)
    gauge = setup.directory / "gauge_livesum_worker-0.db"
    counter = setup.directory / "counter_worker-0.db"
    gauge.touch()
    counter.touch()
    pid = setup.slot.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await setup.port.until(2)
    assert decode(setup.port.sent[1]) == CloseConnection(5, CloseReason.WORKER_LOST)
    assert setup.registry.get_sample_value("socks_tunnel_workers") == 0
    assert not gauge.exists(), "live gauges end with the process"
    assert counter.exists(), "counters do not"
    await setup.ready(2)
    assert setup.registry.get_sample_value("socks_tunnel_worker_restarts_total") == 1
    assert "1 flows ended with worker 0; their peers were told" in caplog.text
    link.messages([OpenConnection(6, "example.com", 80).encode()])
    await setup.port.until(3)


async def test_a_bug_in_what_a_worker_says_costs_the_link_and_not_the_worker(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    link = await setup.attached()
    changed = asyncio.Event()

    def fails(*_: object) -> None:
        changed.set()
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(link.session, "from_worker", fails)
        link.messages([OpenConnection(5, "example.com", 80).encode()])
        async with asyncio.timeout(60):
            await changed.wait()
    assert setup.abuses == [
        "a message of worker 0 met a bug, which is in the log; the flows resume on the next link"
    ]
    with monkeypatch.context() as patched:
        patched.setattr(setup.slot, "_answered", fails)
        question = spawn("ask", setup.slot.ask("status"))
        changed.clear()
        async with asyncio.timeout(60):
            await changed.wait()
        question.cancel()
        await asyncio.wait([question])
    assert await setup.slot.ask("status") == [{"part": 1}, {"part": 2}]
    opening = OpenConnection(7, "example.com", 80).encode()
    link.messages([opening])
    await setup.port.until(1)
    assert setup.port.sent == [opening]
    assert setup.slot.restarts == 0
    errors = setup.registry.get_sample_value("socks_tunnel_protocol_errors_total", {"kind": "bug"})
    assert errors is not None
    assert errors >= 2
    assert "tunnel messages of session 1 met a bug" in caplog.text


async def test_a_bug_in_what_a_worker_says_of_itself_ends_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(setup.slot.drained, "set", fails)
    assert setup.slot.channel is not None
    setup.slot.channel.send_control(0, Drain())
    async with asyncio.timeout(60):
        while "worker 0 broke the IPC protocol (a bug: a bug)" not in caplog.text:
            await asyncio.sleep(0.005)
    monkeypatch.undo()
    await setup.ready(2)


async def test_questions_are_answered_in_parts(setup: Setup) -> None:
    assert await setup.slot.ask("connections") == [{"part": 1}, {"part": 2}]
    answers = await asyncio.gather(*(setup.slot.ask("status") for _ in range(5)))
    assert answers == [[{"part": 1}, {"part": 2}]] * 5


async def test_questions_to_a_worker_that_ends_fail(setup: Setup) -> None:
    pid = setup.slot.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    questions = [spawn("ask", setup.slot.ask("status")) for _ in range(STATS_PENDING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(ConnectionError, match="does not take questions"):
        await setup.slot.ask("status")
    os.kill(pid, signal.SIGKILL)
    for question in questions:
        with pytest.raises(ConnectionError, match="worker 0 ended"):
            await question


async def test_an_answer_that_comes_too_late_is_ignored(setup: Setup) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await setup.slot.ask("status")
    assert await setup.slot.acknowledged(30)
    assert setup.slot.running


async def test_a_drained_worker_says_so_and_is_not_started_again(setup: Setup) -> None:
    assert not setup.slot.drained.is_set()
    setup.slot.drain()
    async with asyncio.timeout(60):
        await setup.slot.drained.wait()
    assert setup.slot.pid is not None
    os.kill(setup.slot.pid, signal.SIGKILL)
    assert setup.slot.ended is not None
    await setup.slot.ended
    assert setup.slot.restarts == 0
    assert setup.router.workers == 0


async def test_a_worker_that_dies_in_a_drain_counts_as_drained(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "eager")
    setup.slot.drain()
    assert setup.slot.drained.is_set(), "nothing runs yet, so nothing has flows"
    await ended(setup.slot)


async def test_a_worker_that_cannot_boot_is_reported(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "exit-78")
    setup.slot.start()
    assert setup.slot.ended is not None
    await setup.slot.ended
    assert setup.unbootable == [("worker 0 exited with status 78 before it was ready", 78)]


def test_command_lines_carry_what_a_child_needs_before_it_is_configured(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, activated=False)
        worker = WorkerSlot(
            3,
            router=Setup(tmp_path, "good").router,
            metrics=Metrics(CollectorRegistry()),
            metrics_directory=tmp_path,
            listeners=[listener, listener],
            log=Log("debug", "json"),
            configuration=lambda: Configure(1, {}, []),
            on_unbootable=lambda _reason, _status: None,
        )
        fd = sock.fileno()
        assert tuple(worker.command(9)) == (
            *WORKER_COMMAND,
            "--index=3",
            "--ipc-fd=9",
            f"--listen-fds={fd},{fd}",
            "--log-level=debug",
            "--log-format=json",
        )
        assert list(worker.inherited_fds()) == [fd, fd]
        assert worker.environment() == {METRICS_VARIABLE: str(tmp_path)}
        exporter = ExporterSlot(
            listener, metrics_directory=tmp_path, log=Log("info", "auto"), hosts=("gw1.corp", "gw1")
        )
        assert tuple(exporter.command(9)) == (
            *EXPORTER_COMMAND,
            "--ipc-fd=9",
            f"--listen-fd={fd}",
            f"--metrics-dir={tmp_path}",
            "--hosts=gw1.corp,gw1",
            "--log-level=info",
            "--log-format=auto",
        )
        assert list(exporter.inherited_fds()) == [fd]


async def test_an_exporter_may_fail_as_often_as_it_likes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        slot = ExporterSlot(
            Listener(sock, activated=False),
            metrics_directory=tmp_path,
            log=Log("info", "auto"),
            command=[sys.executable, FAKE, "exit-78"],
        )
        slot._backoff._first = slot._backoff._ceiling = slot._backoff._longest = 0.01
        slot.push_state("starting")
        slot.start()
        async with asyncio.timeout(60):
            while slot.restarts < 5:
                await asyncio.sleep(0.01)
        assert slot.ended is not None
        assert not slot.ended.done()
        await ended(slot)


# Real workers take a while to import everything. Here a process that has the metrics in
# memory forks one short-lived worker after the other in the same slot: each counts, sets a live
# gauge, and is killed in the middle of it.
RESTARTS = """
import json, os, signal, sys
from pathlib import Path
from socks_tunnel.ops import metrics
from socks_tunnel.ops.exposition import render

directory = Path(sys.argv[1])
metrics.prepare_directory(directory)

def value(name):
    total = 0.0
    for line in render(directory).decode().splitlines():
        if line.startswith(name):
            total += float(line.rpartition(" ")[2])
    return total

def work():
    metrics.configure(directory, "worker-0")
    mine = metrics.Metrics()
    for _ in range(10):
        mine.flows_total.labels("tcp").inc()
        mine.connect_seconds.observe(0.1)
    mine.flows_active.labels("tcp").set(5)
    mine.flush()
    os.kill(os.getpid(), signal.SIGKILL)

seen = []
for _ in range(200):
    pid = os.fork()
    if pid == 0:
        work()
    os.waitpid(pid, 0)
    metrics.slot_died(directory, "worker-0")
    seen.append({
        "flows": value("socks_tunnel_flows_total{"),
        "connects": value("socks_tunnel_connect_seconds_count"),
        "active": value("socks_tunnel_flows_active{"),
        "files": len(list(directory.iterdir())),
        "bytes": sum(file.stat().st_size for file in directory.iterdir()),
    })
print(json.dumps(seen))
"""


def test_200_restarts_leave_the_files_as_they_were_and_no_counter_falls(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RESTARTS, str(tmp_path)], capture_output=True, text=True, check=True
    )
    seen: list[dict[str, Any]] = json.loads(done.stdout)
    assert [entry["flows"] for entry in seen] == [10.0 * n for n in range(1, 201)]
    assert [entry["connects"] for entry in seen] == [10.0 * n for n in range(1, 201)]
    assert {entry["active"] for entry in seen} == {0.0}
    assert {entry["files"] for entry in seen} == {seen[0]["files"]}
    assert {entry["bytes"] for entry in seen} == {seen[0]["bytes"]}


async def test_a_reload_reaches_a_worker_that_is_configured_and_not_ready_yet(
    tmp_path: Path,
) -> None:
    sent: list[str] = []

    class Recorder:
        def send_control(self, session: int, message: Control) -> None:
            sent.append(message.OP)

    slot = Setup(tmp_path, "good").slot
    slot.channel = cast("Any", Recorder())
    slot.reload({})
    assert sent == [], "its configuration is still to come, and will be the new one"
    slot.on_hello()
    slot.reload({})
    assert sent == ["config", "reload"]
