"""The exporter: its verdicts, its pages, its manners towards the supervisor."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from socks_tunnel.exporter import site
from socks_tunnel.exporter.channel import (
    QUESTIONS_MAX,
    ROWS_MAX,
    STATE_MAX_AGE,
    State,
    SupervisorChannel,
)
from socks_tunnel.exporter.site import Exporter
from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.ops.exposition import CONTENT_TYPES, Format
from socks_tunnel.ops.http_messages import Request, Response
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    Answer,
    Ask,
    ChildHello,
    ChildReady,
    Control,
    Drain,
    IpcPing,
    IpcPong,
    ReadyState,
    Shutdown,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- the verdicts -------------------------------------------------------------------------------


def test_nothing_is_healthy_before_the_supervisor_spoke() -> None:
    state = State(Clock())
    assert state.unhealthy() == "the supervisor has not said anything yet"
    assert state.unready() == state.unhealthy()


def test_health_lasts_as_long_as_the_supervisor_speaks() -> None:
    clock = Clock()
    state = State(clock)
    state.push("no link is up")
    assert state.unhealthy() is None
    assert state.unready() == "no link is up"
    state.push(None)
    clock.now += STATE_MAX_AGE
    assert (state.unhealthy(), state.unready()) == (None, None)
    clock.now += 0.1
    assert state.unhealthy() == "the supervisor has not said anything for 15 s"
    assert state.unready() == state.unhealthy()
    state.push(None)
    assert state.unready() is None


# --- the pages ----------------------------------------------------------------------------------


class Setup:
    def __init__(self) -> None:
        self.clock = Clock()
        self.state = State(self.clock)
        self.render: Callable[[Format], bytes] = lambda _: b"metric 1\n"
        self.refused: list[str] = []
        self.exporter = Exporter(
            self.state, lambda wanted: self.render(wanted), refused=self.refused.append
        )

    async def ask(self, path: str) -> Response:
        return await self.exporter.answer(Request("GET", path, b"", "127.0.0.1"))

    async def get(self, path: str) -> tuple[int, str]:
        response = await self.ask(path)
        return response.status, response.body.decode()


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_health_and_readiness_follow_the_state(setup: Setup) -> None:
    assert await setup.get("/healthz") == (503, "the supervisor has not said anything yet\n")
    setup.state.push("starting")
    assert await setup.get("/healthz") == (200, "ok\n")
    assert await setup.get("/readyz") == (503, "starting\n")
    setup.state.push(None)
    assert await setup.get("/readyz") == (200, "ok\n")
    setup.clock.now += STATE_MAX_AGE + 1
    assert (await setup.get("/healthz"))[0] == 503
    assert (await setup.get("/readyz"))[0] == 503


async def test_metrics_are_served_with_their_content_type(setup: Setup) -> None:
    response = await setup.ask("/metrics?name=x")
    assert response.headers["Content-Type"] == CONTENT_TYPES["text"]
    assert response.body == b"metric 1\n"
    accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    asked = Request("GET", "/metrics", b"", "127.0.0.1", accept)
    assert (await setup.exporter.answer(asked)).headers["Content-Type"] == (
        CONTENT_TYPES["openmetrics"]
    )


async def test_metrics_that_cannot_be_read_are_an_error_in_the_log(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Format) -> bytes:
        raise PermissionError(13, "Permission denied", "/x")

    setup.render = fail
    assert await setup.get("/metrics") == (503, "the metrics cannot be read\n")
    assert "the metrics cannot be read: [Errno 13] Permission denied" in caplog.text


async def test_a_scrape_that_takes_long_holds_up_no_health_check_and_few_others(
    setup: Setup,
) -> None:
    go = threading.Event()
    rendered = 0

    def slow(_: Format) -> bytes:
        nonlocal rendered
        go.wait(60)
        rendered += 1
        return b"metric 2\n"

    setup.render = slow
    setup.state.push(None)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        scrapes = [
            group.create_task(setup.get("/metrics")) for _ in range(site.RENDERS_WAITING_MAX)
        ]
        while setup.exporter._waiting < site.RENDERS_WAITING_MAX:
            await asyncio.sleep(0.01)
        assert await setup.get("/healthz") == (200, "ok\n")
        assert await setup.get("/metrics") == (503, "8 scrapes wait already; try again later\n")
        go.set()
    assert {scrape.result() for scrape in scrapes} == {(200, "metric 2\n")}
    assert rendered == site.RENDERS_WAITING_MAX


async def test_a_scraper_that_leaves_lets_no_second_rendering_begin(setup: Setup) -> None:
    go, running, most = threading.Event(), 0, 0

    def slow(_: Format) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go.wait(60)
        running -= 1
        return b"metric 3\n"

    setup.render = slow
    for _ in range(5):
        leaving = asyncio.create_task(setup.get("/metrics"))
        while not running:
            await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.wait([leaving])
    go.set()
    assert await setup.get("/metrics") == (200, "metric 3\n")
    assert most == 1


async def test_other_paths_are_refused(setup: Setup) -> None:
    assert (await setup.get("/x"))[0] == 404
    assert (await setup.get("/metrics/x"))[0] == 404
    assert setup.refused == ["unknown-page"] * 2


async def test_a_name_that_is_not_ours_gets_no_page(setup: Setup) -> None:
    setup.state.push(None)
    for path in setup.exporter.pages:
        rebound = Request("GET", path, b"", "127.0.0.1", {"host": "evil.example:9464"})
        assert (await setup.exporter.answer(rebound)).status == 421
        other = {"host": "127.0.0.1:9464", "sec-fetch-site": "cross-site"}
        assert (await setup.exporter.answer(Request("GET", path, b"", "", other))).status == 403
        assert setup.refused[-2:] == ["foreign-name", "other-site"]
    assert len(setup.refused) == 2 * len(setup.exporter.pages)


async def test_every_answer_forbids_other_sites_and_caches(setup: Setup) -> None:
    for path in (*setup.exporter.pages, "/nothing"):
        headers = (await setup.ask(path)).headers
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"


# --- the stream to the supervisor ---------------------------------------------------------------


class Supervisor(Channel):
    def __init__(self) -> None:
        super().__init__()
        self.frames: asyncio.Queue[Control | None] = asyncio.Queue()

    def on_control(self, session: int, message: Control) -> None:
        self.frames.put_nowait(message)

    def on_closed(self, error: Exception | None) -> None:
        self.frames.put_nowait(None)

    async def next(self) -> Control | None:
        async with asyncio.timeout(60):
            return await self.frames.get()


async def test_the_exporter_does_as_the_supervisor_says() -> None:
    ours, theirs = socket.socketpair()
    state, done = State(), asyncio.Event()
    supervisor = await connect(ours, Supervisor)
    await connect(theirs, lambda: SupervisorChannel(state, done.set))
    assert await supervisor.next() == ChildHello(os.getpid())
    supervisor.send_control(0, ReadyState("no link is up"))
    supervisor.send_control(0, IpcPing(4))
    assert await supervisor.next() == IpcPong(4)
    assert state.unready() == "no link is up"
    supervisor.send_control(0, ReadyState(None))
    supervisor.send_control(0, Shutdown())
    assert await supervisor.next() is None
    assert state.unready() is None
    assert done.is_set()


async def test_the_supervisor_is_asked_and_answers_in_parts() -> None:
    ours, theirs = socket.socketpair()
    supervisor = await connect(ours, Supervisor)
    channel = await connect(theirs, lambda: SupervisorChannel(State(), lambda: None))
    assert await supervisor.next() == ChildHello(os.getpid())
    asking = [asyncio.create_task(channel.ask("overview")) for _ in range(QUESTIONS_MAX)]
    questions = [await supervisor.next() for _ in asking]
    assert [q.what for q in questions if isinstance(q, Ask)] == ["overview"] * QUESTIONS_MAX
    with pytest.raises(ConnectionError, match="no questions at the moment"):
        await channel.ask("overview")
    supervisor.send_control(0, Answer(99, [{"of": "nobody"}], more=False))
    for number in (2, 1):
        supervisor.send_control(0, Answer(number, [{"part": 1}], more=True))
        supervisor.send_control(0, Answer(number, [{"part": 2}], more=False))
        assert await asking[number - 1] == [{"part": 1}, {"part": 2}]
    asking[2].cancel()  # whoever asked has left: there is room for another
    await asyncio.wait([asking[2]])
    again = asyncio.create_task(channel.ask("overview"))
    assert isinstance(await supervisor.next(), Ask)
    supervisor.abort()
    for task in (asking[3], again):
        with pytest.raises(ConnectionError, match="the supervisor has ended"):
            await task
    with pytest.raises(ConnectionError, match="no questions"):
        await channel.ask("overview")


async def test_an_answer_without_end_is_cut() -> None:
    ours, theirs = socket.socketpair()
    supervisor = await connect(ours, Supervisor)
    channel = await connect(theirs, lambda: SupervisorChannel(State(), lambda: None))
    await supervisor.next()
    asking = asyncio.create_task(channel.ask("overview"))
    await supervisor.next()
    for more in (True, True, False):
        supervisor.send_control(0, Answer(1, [{}] * (ROWS_MAX - 1), more=more))
    assert len(await asking) == ROWS_MAX
    channel.abort()


async def test_frames_that_have_no_business_here_end_the_stream() -> None:
    channel = SupervisorChannel(State(), lambda: None)
    with pytest.raises(RemoteProtocolError):
        channel.on_messages(1, [memoryview(b"x")])
    with pytest.raises(RemoteProtocolError):
        channel.on_control(0, Drain())


# --- the process --------------------------------------------------------------------------------


class Process:
    def __init__(self, directory: Path) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.ours, theirs = socket.socketpair()
        self.popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "socks_tunnel.exporter",
                f"--ipc-fd={theirs.fileno()}",
                f"--listen-fd={self.listening.fileno()}",
                f"--metrics-dir={directory}",
                "--log-format=text",
            ],
            pass_fds=(theirs.fileno(), self.listening.fileno()),
            stderr=subprocess.PIPE,
        )
        theirs.close()

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as response,
        ):
            return response.status, await response.text()

    async def status(self, method: str, path: str, **options: Any) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", **options) as response,
        ):
            assert method != "HEAD" or response.headers["Content-Length"] == "3"
            return response.status

    async def first_overview(self) -> dict[str, Any]:
        """The first event that has an answer of the supervisor."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}/events") as response,
        ):
            async for line in response.content:
                if line.startswith(b"data: "):
                    event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                    if event["overview"] is not None:
                        return event
        raise AssertionError("the stream has ended")

    async def wait(self) -> tuple[int, bytes]:
        _, errors = await asyncio.to_thread(self.popen.communicate, timeout=60)
        self.listening.close()
        return self.popen.returncode, errors


async def test_the_process_serves_on_the_inherited_socket_until_it_is_told_to_end(
    tmp_path: Path,
) -> None:
    process = Process(tmp_path)
    supervisor = await connect(process.ours, Supervisor)
    hello = await supervisor.next()
    assert hello == ChildHello(process.popen.pid)
    assert await supervisor.next() == ChildReady()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.popen.send_signal(number)  # as for the whole group: not its business
    supervisor.send_control(0, ReadyState(None))
    supervisor.send_control(0, IpcPing(1))
    assert await supervisor.next() == IpcPong(1)
    assert await process.get("/readyz") == (200, "ok\n")
    assert (await process.get("/metrics"))[0] == 200
    assert (await process.get("/nothing"))[0] == 404
    assert await process.status("HEAD", "/readyz") == 200
    assert await process.status("POST", "/metrics") == 405
    assert await process.status("GET", "/metrics", data=b"x") == 413
    status, page = await process.get("/")
    assert status == 200
    assert "EventSource" in page
    watching = asyncio.create_task(process.first_overview())
    question = await supervisor.next()
    assert isinstance(question, Ask)
    supervisor.send_control(0, Answer(question.number, [{"instance": "a"}], more=False))
    assert (await watching)["overview"] == {"instance": "a"}
    supervisor.send_control(0, Shutdown())
    assert await process.wait() == (0, b"")


async def test_the_process_ends_when_the_supervisor_is_gone(tmp_path: Path) -> None:
    process = Process(tmp_path)
    supervisor = await connect(process.ours, Supervisor)
    await supervisor.next()
    supervisor.abort()
    assert (await process.wait())[0] == 0
