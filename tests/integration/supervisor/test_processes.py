"""The process table, with real processes that misbehave in every way that it has to deal with."""

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import Configure, Credit
from socks_tunnel.supervisor import processes
from socks_tunnel.supervisor.processes import (
    BOOT_TICKS,
    UNANSWERED_MAX,
    UNANSWERED_RECENT,
    Slot,
    describe_exit,
)

FAKE = str(Path(__file__).with_name("fake_child.py"))


class FakeSlot(Slot):
    """Runs fake children; the last behaviour is repeated."""

    def __init__(self, *behaviours: str, **options: Any) -> None:
        super().__init__("worker 7", first_delay=0.01, longest_delay=0.04, **options)
        self.behaviours = list(behaviours)
        self.events: list[str] = []
        self.unbootable: list[tuple[str, int | None]] = []
        self.messages: list[tuple[int, bytes]] = []
        self.extra_fds: list[int] = []
        self.changed = asyncio.Event()

    def command(self, ipc_fd: int) -> Sequence[str]:
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        return [sys.executable, FAKE, behaviour, f"--ipc-fd={ipc_fd}"]

    def environment(self) -> dict[str, str]:
        return {"GREETING": "hello"}

    def inherited_fds(self) -> Sequence[int]:
        return self.extra_fds

    def note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    def on_hello(self) -> None:
        self.note("hello")
        assert self.channel is not None
        self.channel.send_control(0, Configure(1, {}, []))

    def on_ready(self) -> None:
        self.note("ready")

    def on_lost(self) -> None:
        self.note("lost")

    def on_restart(self) -> None:
        self.note("restart")

    def on_unbootable(self, reason: str, status: int | None) -> None:
        self.unbootable.append((reason, status))
        self.note("unbootable")

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        self.messages += [(session, bytes(body)) for body in messages]
        self.note("message")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_event(self, event: str, count: int = 1) -> None:
        await self.until(lambda: self.events.count(event) >= count)


def state_of(slot: Slot) -> str:
    return slot.state


MakeSlot = Callable[..., FakeSlot]


@pytest.fixture
async def make_slot() -> AsyncIterator[MakeSlot]:
    made: list[FakeSlot] = []

    def make(*behaviours: str, **options: Any) -> FakeSlot:
        slot = FakeSlot(*behaviours, **options)
        made.append(slot)
        return slot

    yield make
    for slot in made:
        slot.kill()
        if slot.ended is not None:
            await slot.ended


async def test_a_child_says_hello_is_configured_gets_ready_and_ends_on_shutdown(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot("good")
    slot.start()
    assert state_of(slot) == "starting"
    await slot.until_event("ready")
    assert state_of(slot) == "running"
    assert slot.was_ready.is_set()
    assert slot.channel is not None
    slot.channel.send_message(9, b"payload")
    await slot.until_event("message")
    assert slot.messages == [(9, b"payload")]
    await slot.stop(30)
    assert slot.state == "stopped"
    assert slot.pid is None
    assert slot.events == ["hello", "ready", "message", "lost"]
    assert slot.restarts == 0


async def test_a_child_is_in_a_session_of_its_own_without_what_is_ours_alone(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("LISTEN_FDS", "2")
    slot = make_slot("good")
    with socket.create_server(("127.0.0.1", 0)) as shared:
        slot.extra_fds = [shared.fileno()]
        slot.start()
        await slot.until_event("ready")
        assert slot.pid is not None
        process = Path(f"/proc/{slot.pid}")
        environment = (process / "environ").read_bytes().split(b"\0")
        assert b"GREETING=hello" in environment
        assert not [v for v in environment if v.startswith((b"NOTIFY_SOCKET", b"LISTEN_FDS"))]
        assert os.getsid(slot.pid) == slot.pid
        fds = {fd.name: str(fd.readlink()) for fd in (process / "fd").iterdir()}
        assert fds["0"] == "/dev/null"
        assert fds[str(shared.fileno())] == str(Path(f"/proc/self/fd/{shared.fileno()}").readlink())
        assert sum(target.startswith("socket:") for target in fds.values()) == 2


async def test_a_killed_child_is_reported_lost_at_once_and_started_again(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slot = make_slot("good")
    slot.start()
    pids = []
    for count in range(1, 4):
        await slot.until_event("ready", count)
        assert slot.pid is not None
        pids.append(slot.pid)
        os.kill(slot.pid, signal.SIGKILL)
        await slot.until_event("lost", count)
        assert slot.channel is None
    await slot.until_event("ready", 4)
    assert slot.restarts == 3
    assert slot.events == ["hello", "ready", "lost", "restart"] * 3 + ["hello", "ready"]
    lines = [record.getMessage() for record in caplog.records]
    killed = "worker 7 was killed by SIGKILL (by the kernel for want of memory, or by hand)"
    assert lines == [
        line
        for old, new in pairwise([*pids, slot.pid])
        for line in (
            f"{killed}; it had PID {old}; restarting in 0.0 s",
            f"worker 7 is running again (PID {new})",
        )
    ]


async def test_an_exit_after_ready_is_restarted_whatever_its_status(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("boot-exit-3", "boot-exit-78", "good")
    slot.start()
    await slot.until_event("ready", 3)
    assert slot.restarts == 2
    assert slot.unbootable == []
    assert re.search(
        r"worker 7 exited with status 3; it had PID \d+; restarting in \d", caplog.text
    )
    assert re.search(
        r"worker 7 exited with status 78; it had PID \d+; restarting in \d", caplog.text
    )


async def test_a_child_that_never_gets_ready_is_given_up_after_three_attempts(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot("exit-1")
    slot.start()
    await slot.until_event("unbootable")
    assert slot.unbootable == [("worker 7 exited with status 1 before it was ready", 1)]
    assert slot.restarts == 2
    assert slot.ended is not None
    await slot.ended
    assert slot.state == "stopped"


async def test_a_child_that_cannot_use_its_configuration_is_given_up_at_once(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot("exit-78")
    slot.start()
    await slot.until_event("unbootable")
    assert slot.unbootable == [("worker 7 exited with status 78 before it was ready", 78)]
    assert slot.restarts == 0


async def test_a_child_without_a_limit_is_tried_for_ever(make_slot: MakeSlot) -> None:
    slot = make_slot(*["exit-78"] * 6, "good", boot_attempts=None)
    slot.start()
    await slot.until_event("ready")
    assert slot.restarts == 6
    assert slot.unbootable == []


async def test_a_command_that_does_not_exist_counts_as_a_failed_attempt(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = make_slot("good")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    slot.start()
    await slot.until_event("unbootable")
    ((reason, status),) = slot.unbootable
    assert "cannot be started" in reason
    assert "/nonexistent/python" in reason
    assert status is None


async def test_pings_are_answered_and_acknowledge_what_was_sent_before(
    make_slot: MakeSlot,
) -> None:
    slot = make_slot("good")
    slot.start()
    assert not await slot.acknowledged(1), "nothing was sent to a child that is not there"
    await slot.until_event("ready")
    for _ in range(3 * UNANSWERED_MAX):
        slot.tick()
        assert slot.channel is not None
        slot.channel.send_message(1, b"x")
        assert await slot.acknowledged(30)
        assert slot.messages, "the answer to what was sent before is there"
        slot.messages.clear()
        assert slot.responsive


async def test_a_child_that_does_not_answer_is_aborted(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("deaf", "good")
    slot.start()
    await slot.until_event("ready")
    assert not await slot.acknowledged(0.01)
    for sent in range(1, UNANSWERED_MAX):
        assert slot.responsive == (sent <= UNANSWERED_RECENT)
        slot.tick()
    assert slot.events == ["hello", "ready"], "the last ping still has its time"
    slot.tick()
    await slot.until_event("ready", 2)
    assert "worker 7 has not answered for 20 s; aborting it (SIGABRT)" in caplog.text
    assert re.search(
        r"worker 7 was killed by SIGABRT; it had PID \d+; restarting in \d", caplog.text
    )
    assert slot.responsive


async def test_a_child_that_survives_sigabrt_is_killed(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("numb", "good")
    slot.start()
    await slot.until_event("ready")
    for _ in range(UNANSWERED_MAX + 2):
        slot.tick()
    await slot.until_event("ready", 2)
    assert "survived SIGABRT; killing it (SIGKILL)" in caplog.text
    assert re.search(
        r"worker 7 was killed by SIGKILL; it had PID \d+; restarting in \d", caplog.text
    )


async def test_a_child_that_never_says_hello_is_aborted(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("mute", "good")
    slot.start()
    async with asyncio.timeout(60):
        while slot.pid is None:
            await asyncio.sleep(0.01)
        for _ in range(BOOT_TICKS):
            slot.tick()
    await slot.until_event("ready")
    assert "worker 7 was not ready within 60 s; aborting it (SIGABRT)" in caplog.text


@pytest.mark.parametrize("behaviour", ["garbage", "impostor"])
async def test_a_child_that_breaks_the_protocol_is_killed(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture, behaviour: str
) -> None:
    slot = make_slot(behaviour, "good")
    slot.start()
    await slot.until_event("restart")
    await slot.until_event("ready", slot.events.count("ready") + 1)
    assert "worker 7 broke the IPC protocol" in caplog.text
    assert re.search(
        r"worker 7 was killed by SIGKILL; it had PID \d+; restarting in \d", caplog.text
    )


async def test_a_child_that_closes_its_stream_and_stays_is_killed(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CHANNEL_GRACE", 0.05)
    slot = make_slot("leaver", "good")
    slot.start()
    await slot.until_event("lost")
    assert slot.state == "starting", "its flows are somebody else's problem at once"
    # It may have closed its stream before the answer to its hello was written: that write fails, but
    # what the child had said last is read.
    assert slot.events == ["hello", "ready", "lost"]
    await slot.until_event("restart")
    await slot.until_event("ready", 2)
    assert "worker 7 closed its stream but lives on; killing it (SIGKILL)" in caplog.text


async def test_a_child_that_ignores_shutdown_is_killed(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("stubborn")
    slot.start()
    await slot.until_event("ready")
    await slot.stop(0.1)
    assert slot.state == "stopped"
    assert "worker 7 did not shut down within 0 s; killing it (SIGKILL)" in caplog.text
    assert "restarting" not in caplog.text


async def test_stopping_while_the_child_starts_or_waits_leaves_nothing_behind(
    make_slot: MakeSlot,
) -> None:
    starting = make_slot("mute")
    starting.start()
    await asyncio.sleep(0)
    await starting.stop(30)
    assert starting.state == "stopped"
    waiting = make_slot("exit-1", boot_attempts=None)
    waiting._backoff._first = waiting._backoff._ceiling = 600.0
    waiting.start()
    async with asyncio.timeout(60):
        while state_of(waiting) != "waiting":
            await asyncio.sleep(0.01)
    await waiting.stop(30)
    assert waiting.state == "stopped"
    never = make_slot("good")
    await never.stop(1)


async def test_a_retired_slot_keeps_its_process_but_starts_no_other(
    make_slot: MakeSlot, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("good")
    slot.start()
    await slot.until_event("ready")
    slot.retire()
    assert await slot.acknowledged(30)
    pid = slot.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert slot.ended is not None
    await slot.ended
    assert slot.restarts == 0
    assert f"; it had PID {pid}; this program does not start it again" in caplog.text
    assert "restarting" not in caplog.text
    booting = make_slot("mute")
    booting.start()
    await asyncio.sleep(0)
    booting.retire()
    assert booting.ended is not None
    await booting.ended


async def test_a_bug_in_a_hook_does_not_keep_the_child_from_being_started_again(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = make_slot("boot-exit-1", "good")

    def fail() -> None:
        slot.note("lost")
        raise KeyError("a bug")

    monkeypatch.setattr(slot, "on_lost", fail)
    slot.start()
    await slot.until_event("ready", 2)
    monkeypatch.undo()


async def test_frames_that_make_no_sense_are_the_child_s_fault() -> None:
    slot = Slot("worker 7")
    with pytest.raises(RemoteProtocolError, match="tunnel messages"):
        slot.on_messages(1, [memoryview(b"x")])
    with pytest.raises(RemoteProtocolError, match="credit"):
        slot.on_control(0, Credit(1, 1, 1))
    with pytest.raises(NotImplementedError):
        slot.command(3)
    assert (slot.environment(), slot.inherited_fds()) == ({}, ())


@pytest.mark.parametrize(
    ("status", "by_us", "words"),
    [
        (0, False, "exited with status 0"),
        (78, False, "exited with status 78"),
        (-15, False, "was killed by SIGTERM"),
        (-9, True, "was killed by SIGKILL"),
        (-9, False, "was killed by SIGKILL (by the kernel for want of memory, or by hand)"),
        (-11, False, "was killed by SIGSEGV"),
        (-63, False, "was killed by signal 63"),
    ],
)
def test_how_a_process_ended_is_said_in_words(status: int, by_us: bool, words: str) -> None:
    assert describe_exit(status, killed_by_us=by_us) == words


async def test_a_bug_in_a_start_is_not_the_end_of_a_slot(
    make_slot: MakeSlot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slot = make_slot("good")
    environment = slot.environment

    def fails() -> dict[str, str]:
        monkeypatch.setattr(slot, "environment", environment)
        raise ZeroDivisionError

    monkeypatch.setattr(slot, "environment", fails)
    slot.start()
    await slot.until_event("ready")
    assert slot.restarts == 1
    assert "met a bug of the supervisor: ZeroDivisionError; restarting in" in caplog.text
