"""One instance with fake children: its start, signals, requests, reload, drain and end.

This file is long because all of its tests share one running instance.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.config.loader import load
from socks_tunnel.config.reading import Reading
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.notify import Notifier
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor import control_client, instance, main, processes
from socks_tunnel.supervisor.instance import Instance
from socks_tunnel.supervisor.problems import StartError
from socks_tunnel.supervisor.processes import UNANSWERED_RECENT
from support.heap import set_heap_aside

FAKE = str(Path(__file__).with_name("fake_child.py"))
PEER = PrivateIdentity.generate().public_text

GATEWAY = """
role = "gateway"
drain_timeout = {drain_timeout}
[identity]
private_key_file = "instance.key"
[socks]
listen = ["127.0.0.1:{port}"]
[[peers]]
name = "office"
public_key = "{peer}"
url = "unix:nobody.sock"
[workers]
count = 2
[metrics]
listen = "{metrics}"
"""

ENDPOINT = """
role = "endpoint"
[identity]
private_key_file = "instance.key"
[signaling]
listen = "unix:{signaling}"
[[peers]]
name = "laptop"
public_key = "{peer}"
[workers]
count = 1
[metrics]
listen = ""
"""


def fake(behaviour: str) -> Sequence[str]:
    return [sys.executable, FAKE, behaviour]


class Running:
    """An instance in this process, and what a service manager and an operator see of it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.config = directory / "office.toml"
        self.runtime = directory / "run"
        (self.runtime / "metrics").mkdir(parents=True)
        key = directory / "instance.key"
        key.touch(mode=0o600)
        key.write_bytes(PrivateIdentity.generate().to_pem())
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.manager.bind(str(directory / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(directory / "notify"))
        self.said: list[str] = []
        self.task: asyncio.Task[None] | None = None
        self.instance: Instance

    def gateway(self, *, port: int = 0, metrics: str = "", drain_timeout: int = 30) -> None:
        self.config.write_text(
            GATEWAY.format(port=port, metrics=metrics, drain_timeout=drain_timeout, peer=PEER)
        )

    def endpoint(self, *, signaling: str = "offers.sock") -> None:
        self.config.write_text(ENDPOINT.format(signaling=signaling, peer=PEER))

    def start(self, worker: str = "good", exporter: str = "good") -> None:
        self.instance = Instance(
            load(self.config),
            self.runtime,
            worker_command=fake(worker),
            exporter_command=fake(exporter),
        )
        self.task = spawn("instance", self.instance.run())

    async def ready(self) -> None:
        await self.until(lambda: "READY=1" in self.notified())

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                if self.task is not None and self.task.done():
                    self.task.result()
                    pytest.fail("the instance has ended")
                await asyncio.sleep(0.01)

    async def ended(self) -> None:
        assert self.task is not None
        async with asyncio.timeout(60):
            await self.task

    def notified(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said += self.manager.recv(65_536).decode().splitlines()
        return self.said

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        path = self.runtime / "control.sock"
        return await asyncio.to_thread(control_client.request, path, {"op": op, **fields})

    @property
    def listener(self) -> HostPort:
        """The only SOCKS listener of a gateway."""
        (address,) = self.instance.addresses
        assert isinstance(address, HostPort)
        return address

    @property
    def children(self) -> list[int]:
        return [slot.pid for slot in self.instance._slots() if slot.pid is not None]

    def signal(self, number: signal.Signals) -> None:
        os.kill(os.getpid(), number)


@pytest.fixture
def no_leftover_signals() -> Iterator[None]:
    """Leave the process as it was: no test may end pytest with a signal that comes too late."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
async def running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leftover_signals: None
) -> AsyncIterator[Running]:
    made = Running(tmp_path, monkeypatch)
    yield made
    if made.task is not None and not made.task.done():
        made.instance._forced = True
        made.task.cancel()
        await asyncio.wait([made.task])
    made.manager.close()


# --- the start ----------------------------------------------------------------------------------


async def test_ready_is_told_when_all_workers_are_ready(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    running.gateway(metrics="127.0.0.1:0")
    running.start()
    await running.ready()
    assert all(slot.running for slot in running.instance.workers)
    assert len(running.children) == 3
    (address,) = running.instance.addresses
    assert "ready: gateway office, socks-tunnel/" in caplog.text
    assert f", 2 workers, SOCKS5 on {address}" in caplog.text
    assert any(line.startswith("STATUS=gateway: link office ") for line in running.notified())
    status = (await running.ask("status"))["result"]
    assert status["instance"] == "office"
    assert status["role"] == "gateway"
    assert status["state"] == "ready"
    assert status["pid"] == os.getpid()
    assert status["listen"] == [str(address)]
    assert status["metrics"].startswith("127.0.0.1:")
    assert [link["peer"] for link in status["links"]] == ["office"]
    assert status["links"][0]["state"] in {"down", "connecting"}
    assert [worker["state"] for worker in status["workers"]] == ["running"] * 2
    assert {worker["pid"] for worker in status["workers"]} < set(running.children)
    assert status["counters"]["restarts"] == 0
    json.dumps(status)


async def test_an_endpoint_without_an_exporter_listens_for_offers(running: Running) -> None:
    running.endpoint()
    running.start()
    await running.ready()
    assert (running.directory / "offers.sock").is_socket()
    status = (await running.ask("status"))["result"]
    assert status["listen"] == [f"unix:{running.directory / 'offers.sock'}"]
    assert status["metrics"] is None
    assert status["links"][0]["state"] == "down"


async def test_nothing_is_ready_before_the_last_worker(running: Running) -> None:
    running.gateway()
    running.start("mute")
    await running.until(lambda: len(running.children) == 2)
    assert (await running.ask("status"))["result"]["state"] == "starting"
    assert "READY=1" not in running.notified()
    assert (await running.ask("reload"))["ok"] is False
    assert (await running.ask("drain"))["ok"] is False
    running.signal(signal.SIGTERM)
    await running.ended()
    assert "READY=1" not in running.notified()
    assert running.children == []


async def test_an_occupied_listener_ends_the_start_with_73(running: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        running.gateway(port=port)
        running.start()
        with pytest.raises(StartError, match=rf"socks.listen: .*127.0.0.1:{port}: another"):
            await running.ended()
        running.gateway(metrics=f"127.0.0.1:{port}")
        running.start()
        with pytest.raises(StartError, match=rf"metrics.listen: .*:{port}: another") as caught:
            await running.ended()
    assert caught.value.exit_code == 73


async def test_signalling_that_cannot_listen_ends_the_start_with_73(running: Running) -> None:
    running.endpoint(signaling="missing-directory/offers.sock")
    running.start()
    with pytest.raises(StartError, match=r"signaling.listen: .*offers.sock: No such") as caught:
        await running.ended()
    assert caught.value.exit_code == 73
    assert running.children == []


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "words"),
    [
        ("exit-78", 78, r"worker [01] exited with status 78 before it was ready"),
        ("exit-3", 70, r"worker [01] exited with status 3 before it was ready"),
    ],
)
async def test_workers_that_cannot_boot_end_the_start(
    running: Running, behaviour: str, exit_code: int, words: str
) -> None:
    running.gateway()
    running.start(behaviour)
    with pytest.raises(StartError, match=words) as caught:
        await running.ended()
    assert caught.value.exit_code == exit_code
    assert running.children == []
    assert not (running.runtime / "control.sock").exists()


async def test_workers_that_take_too_long_end_the_start(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "START_TIMEOUT", 0.2)
    running.gateway()
    running.start("mute")
    with pytest.raises(StartError, match=r"worker 0 and worker 1 did not become ready within 0 s"):
        await running.ended()


async def test_an_exporter_that_cannot_start_is_no_reason_not_to(running: Running) -> None:
    running.gateway(metrics="127.0.0.1:0")
    running.start(exporter="exit-1")
    await running.ready()
    assert running.instance.exporter is not None
    await running.until(lambda: running.instance.exporter.restarts >= 2)  # type: ignore[union-attr]
    assert (await running.ask("status"))["result"]["state"] == "ready"


def test_a_key_that_is_none_is_a_configuration_error(running: Running) -> None:
    running.gateway()
    (running.directory / "instance.key").write_text("nonsense")

    async def make() -> None:
        Instance(load(running.config), running.runtime)

    with pytest.raises(StartError, match="no private key in PEM form") as caught:
        asyncio.run(make())
    assert caught.value.exit_code == 78


# --- signals and requests -----------------------------------------------------------------------


async def test_sigterm_drains_refuses_clients_and_ends(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    running.gateway(metrics="127.0.0.1:0")
    running.start()
    await running.ready()
    address = running.listener
    socket.create_connection(address).close()
    running.signal(signal.SIGTERM)
    await running.ended()
    assert "SIGTERM: draining; 0 flows have up to 30 s to end" in caplog.text
    assert "all flows have ended" in caplog.text
    assert "STOPPING=1" in running.notified()
    assert running.children == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_a_drain_waits_for_workers_with_flows_as_long_as_it_may(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.gateway(drain_timeout=1)
    running.start()
    await running.ready()
    for slot in running.instance.workers:
        slot.drained.set = lambda: None  # type: ignore[method-assign] # as if a flow stayed open
    loop = asyncio.get_running_loop()
    began = loop.time()
    running.signal(signal.SIGTERM)
    await running.ended()
    lasted = loop.time() - began
    assert lasted >= 1
    assert "flows are still open after 1 s" in caplog.text
    said = running.notified()
    extensions = said[said.index("STOPPING=1") :].count("EXTEND_TIMEOUT_USEC=20000000")
    assert 1 < extensions <= lasted + 2, "at once, and each second"


async def test_while_it_drains_it_refuses_clients_and_says_so(running: Running) -> None:
    running.gateway(drain_timeout=3600)
    running.start()
    await running.ready()
    for slot in running.instance.workers:
        slot.drained.set = lambda: None  # type: ignore[method-assign] # as if a flow stayed open
    running.signal(signal.SIGTERM)
    await running.until(lambda: running.instance.state == "draining")
    address = running.listener

    def refused() -> bool:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            return True
        return False

    await running.until(refused)
    assert (await running.ask("status"))["result"]["state"] == "draining"
    assert (await running.ask("drain"))["error"] == "the instance is draining"
    await running.until(lambda: any(x.startswith("STATUS=draining; ") for x in running.notified()))
    running.signal(signal.SIGTERM)
    await running.ended()


async def test_the_service_manager_waits_only_while_a_drain_lasts(running: Running) -> None:
    running.gateway()
    running.start()
    await running.ready()
    running.signal(signal.SIGTERM)
    await running.ended()
    said = running.notified()
    first = next(i for i, line in enumerate(said) if line.startswith("EXTEND_TIMEOUT_USEC="))
    assert first == said.index("STOPPING=1") + 1


async def test_a_second_signal_ends_at_once(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.gateway(drain_timeout=3600)
    running.start()
    await running.ready()
    for slot in running.instance.workers:
        slot.drained.set = lambda: None  # type: ignore[method-assign]
    running.signal(signal.SIGINT)
    await running.until(lambda: running.instance.state == "draining")
    running.signal(signal.SIGTERM)
    await running.ended()
    assert "SIGTERM again: ending at once" in caplog.text
    assert running.children == []


async def test_a_drain_can_be_asked_for_with_a_time_of_its_own(running: Running) -> None:
    running.gateway(drain_timeout=3600)
    running.start()
    await running.ready()
    assert (await running.ask("drain", timeout="x"))["ok"] is False
    answer = await running.ask("drain", timeout=0)
    assert answer == {"ok": True, "result": {"draining": True, "timeout": 0, "flows": 0}}
    await running.ended()


async def test_unknown_requests_are_refused(running: Running) -> None:
    running.gateway()
    running.start()
    await running.ready()
    assert await running.ask("dance") == {"ok": False, "error": "there is no request 'dance'"}


async def test_connections_come_from_all_workers_with_their_index(running: Running) -> None:
    running.gateway()
    running.start()
    await running.ready()
    rows = (await running.ask("connections"))["result"]
    assert rows == [
        {
            "part": part,
            "worker": worker,
            "linked": True,
            "waiting_since": None,
            "waiting_left": None,
        }
        for worker in (0, 1)
        for part in (1, 2)
    ]


async def test_the_first_flows_by_something_are_asked_of_the_workers(running: Running) -> None:
    running.gateway()
    running.start()
    await running.ready()
    rows = (await running.ask("connections", limit=1, by="age"))["result"]
    assert {row["worker"] for row in rows} == {0, 1}
    for limit in (-1, True, "all", 1.5):
        answer = await running.ask("connections", limit=limit)
        assert answer == {"ok": False, "error": f"a limit is a number of flows, not {limit}"}
    answer = await running.ask("connections", limit=1, by="size")
    assert answer["error"] == "flows are sorted by rate, total, age, not by size"


async def test_sigusr1_logs_a_report(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    running.gateway()
    running.start()
    await running.ready()
    running.signal(signal.SIGUSR1)
    await running.until(lambda: "report: worker 1 is running" in caplog.text)
    assert "report: gateway office, version" in caplog.text
    assert "report: link office is" in caplog.text


# --- reload -------------------------------------------------------------------------------------


async def test_sighup_reloads_what_can_be_and_names_what_cannot(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.gateway()
    running.start()
    await running.ready()
    text = running.config.read_text()
    running.config.write_text(
        text.replace("drain_timeout = 30", "drain_timeout = 31").replace("count = 2", "count = 1")
        + '[[peers]]\nname = "branch"\n'
        + f'public_key = "{PrivateIdentity.generate().public_text}"\nurl = "unix:branch.sock"\n'
    )
    running.signal(signal.SIGHUP)
    await running.until(lambda: "RELOADING=1" in running.notified())
    await running.until(lambda: running.notified().count("READY=1") == 2)
    assert running.instance.config.drain_timeout == 31
    assert "changes to workers take effect with a restart" in caplog.text
    status = (await running.ask("status"))["result"]
    assert [link["peer"] for link in status["links"]] == ["office", "branch"]
    assert len(status["workers"]) == 2


async def test_a_bad_file_changes_nothing(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.gateway()
    running.start()
    await running.ready()
    before = running.instance.config
    running.config.write_text(running.config.read_text() + "\n[sox]\n")
    running.signal(signal.SIGHUP)
    await running.until(lambda: "not reloaded: the old configuration stays" in caplog.text)
    assert "office.toml:17: sox: unknown key" in caplog.text
    assert running.instance.config is before
    await running.until(lambda: running.notified().count("READY=1") == 2)
    answer = await running.ask("reload")
    assert answer["ok"] is False
    assert "the old configuration stays: " in answer["error"]
    assert "sox" in answer["error"]


async def test_a_reload_warns_of_an_old_key(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.endpoint()
    running.start()
    await running.ready()
    with running.config.open("a") as file:
        file.write("[socks]\nconnect_timeout = 9\n")
    assert (await running.ask("reload"))["ok"]
    assert running.instance.config.targets.connect_timeout == 9
    assert "socks.connect_timeout: is the old name of targets.connect_timeout" in caplog.text


async def test_a_reload_can_be_asked_for(running: Running) -> None:
    running.gateway()
    running.start()
    await running.ready()
    assert await running.ask("reload") == {
        "ok": True,
        "result": {"reloaded": True, "needs_restart": [], "replacing": []},
    }


# --- while it runs ------------------------------------------------------------------------------


async def test_the_watchdog_is_fed_only_while_all_workers_answer(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setattr(instance, "TICK", 3600.0)  # a PONG would count as a sign of life
    running.gateway()
    running.start()
    await running.ready()
    await running.until(lambda: running.notified().count("WATCHDOG=1") > 3)
    worker = running.instance.workers[1]
    worker._unanswered = UNANSWERED_RECENT + 1
    await running.until(lambda: "no answer from worker 1: systemd's watchdog" in caplog.text)
    states = [row["state"] for row in (await running.ask("status"))["result"]["workers"]]
    assert states == ["running", "hanging"]
    running.notified().clear()
    await asyncio.sleep(0.2)
    assert "WATCHDOG=1" not in running.notified()
    worker._unanswered = 0
    await running.until(lambda: "WATCHDOG=1" in running.notified())


async def test_children_are_looked_after(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "TICK", 0.01)
    monkeypatch.setattr(processes, "BOOT_TICKS", 1_000_000)  # on any machine it gets ready first
    running.gateway()
    running.start("deaf")
    await running.ready()
    await running.until(lambda: "has not answered for 20 s; aborting it" in caplog.text)
    await running.until(lambda: sum(slot.restarts for slot in running.instance.workers) >= 1)


async def test_a_bug_ends_nothing_that_is_done_again_and_again(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance, "TICK", 0.01)
    monkeypatch.setattr(processes, "BOOT_TICKS", 1_000_000)  # no look is to be the end of a worker
    monkeypatch.setattr(processes, "UNANSWERED_MAX", 1_000_000)
    monkeypatch.setattr(instance, "_bugs", BugLog())
    running.gateway()
    running.start()
    await running.ready()
    looks: list[str] = []

    def router_fails(_: float) -> None:
        looks.append("router")
        raise ZeroDivisionError

    def first_fails() -> None:  # on a line of its own: each is a kind of bug of its own
        looks.append("first")
        raise ZeroDivisionError

    first, second = running.instance.workers
    monkeypatch.setattr(running.instance.router, "tick", router_fails)
    monkeypatch.setattr(first, "tick", first_fails)
    monkeypatch.setattr(second, "tick", lambda: looks.append("second"))
    await running.until(lambda: min(map(looks.count, ("router", "first", "second"))) > 1)
    for what in (f"a look at {first.name}", "what is done each second"):
        assert f"{what} met a bug; this is logged once for its kind" in caplog.messages


@pytest.mark.parametrize("role", ["gateway", "endpoint"])
async def test_why_it_is_not_ready(running: Running, role: str) -> None:
    getattr(running, role)()
    running.start()
    assert running.instance.why_not_ready() == "starting"
    await running.ready()
    no_link = "no link is up" if role == "gateway" else None
    assert running.instance.why_not_ready() == no_link
    for slot in running.instance.workers:
        slot.retire()
        os.kill(slot.pid or 0, signal.SIGKILL)
        assert slot.ended is not None
        await slot.ended
    assert (
        running.instance.why_not_ready()
        == f"0 of {len(running.instance.workers)} workers are running"
    )


async def test_it_is_ready_as_long_as_half_of_its_workers_run(running: Running) -> None:
    """Half of three is two: with one that is gone it serves, with one that is left it does not."""
    running.endpoint()
    running.config.write_text(running.config.read_text().replace("count = 1", "count = 3"))
    running.start()
    await running.ready()
    said = []
    for slot in running.instance.workers:
        said.append(running.instance.why_not_ready())
        slot.retire()
        os.kill(slot.pid or 0, signal.SIGKILL)
        assert slot.ended is not None
        await slot.ended
    said.append(running.instance.why_not_ready())
    left = [f"{count} of 3 workers are running" for count in (1, 0)]
    assert said == [None, None, *left]


# --- before and after the loop ------------------------------------------------------------------


def test_a_bad_configuration_is_printed_with_every_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "bad.toml"
    config.write_text('role = "gateway"\nnonsense = 1\n')
    assert main.run(Reading(config)) == 78
    errors = capsys.readouterr().err
    assert "nonsense" in errors
    assert "private_key_file" in errors
    assert "Traceback" not in errors


def test_only_one_instance_uses_a_runtime_directory(tmp_path: Path) -> None:
    lock = main._lock(tmp_path, "office")
    with pytest.raises(StartError, match="'office' is running already") as caught:
        main._lock(tmp_path, "office")
    assert caught.value.exit_code == 73
    os.close(lock)
    os.close(main._lock(tmp_path, "office"))


def test_no_notify_socket_is_no_problem() -> None:
    assert Notifier({}).watchdog_interval is None


async def test_a_socket_off_loopback_is_refused_as_a_configuration(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.gateway()
    with socket.create_server(("0.0.0.0", 0)) as sock:
        monkeypatch.setattr(
            "socks_tunnel.supervisor.binding.activated_sockets", lambda _: [sock.dup()]
        )
        running.start()
        assert running.task is not None
        with pytest.raises(StartError, match=r"bound to 0\.0\.0\.0:.*remote clients") as caught:
            await asyncio.wait_for(running.task, 60)
        assert caught.value.exit_code == 78


async def test_a_reload_of_5000_peers_leaves_the_loop_its_turns(running: Running) -> None:
    """Measures what each turn of the loop takes of its thread during reloads."""
    set_heap_aside()
    running.endpoint()
    peers = "".join(
        f'[[peers]]\nname = "peer-{n}"\npublic_key = "{base64.b64encode(n.to_bytes(32, "big")).decode()}"\n'
        for n in range(1, 5001)
    )
    running.config.write_text(running.config.read_text() + peers)
    running.start()
    await running.ready()
    assert (await running.ask("status"))["ok"]  # what the start takes is over then
    loop, longest, last = asyncio.get_running_loop(), 0.0, time.thread_time()

    def probe() -> None:
        # Processor time of the loop's own thread: what others on the machine do is not in it.
        nonlocal longest, last
        now = time.thread_time()
        longest, last = max(longest, now - last), now
        if not done.is_set():
            loop.call_later(0.001, probe)

    done = asyncio.Event()
    loop.call_later(0, probe)
    lag = running.instance.metrics.loop_lag_seconds.labels("alone")
    before = sum(lag.counts)
    for _ in range(3):
        assert (await running.ask("reload"))["ok"]
        assert len((await running.ask("status"))["result"]["links"]) >= 5000
    await running.until(lambda: sum(lag.counts) >= before + 3)  # it is measured all the while
    done.set()
    assert longest < 0.1, "a reload on the loop took it 0.4 s"
