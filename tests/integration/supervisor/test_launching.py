"""Children that are forked from a nursery are like those that are started by exec."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.supervisor.launching import PRELOADED, PYTHON, Exec, Launcher, Nursery
from support.processes import command_line, descendants

UNWANTED = (
    "aiohttp", "aiortc", "argparse", "click", "cryptography", "multiprocessing", "OpenSSL", "pickle",
    "prometheus_client", "pydantic", "shutil", "tempfile", "typing_extensions", "zlib",
)  # fmt: skip
"""What no worker and no exporter imports before it has something to do: each costs all of them."""

COMMAND = (*PYTHON, "nursery_child")


@pytest.fixture(autouse=True)
def _module_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    nursery = Nursery(["wave", "socks_tunnel.ops.process"])
    yield nursery
    await nursery.close()


@pytest.fixture
def leash() -> Iterator[int]:
    """A descriptor that ends a child `stay` when the test is over."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def shown(launcher: Launcher, texts: Sequence[str] = (), *, swapped: bool = False) -> Any:
    """What a child says of itself that gets pipes with these texts."""
    reading, writing = os.pipe()
    pipes = []
    for text in texts:
        end, start = os.pipe()
        os.write(start, text.encode())
        os.close(start)
        pipes.append(end)
    fds = [writing, *pipes]
    child = await launcher.start(
        (*COMMAND, "show", *map(str, fds)), fds[::-1] if swapped else fds, {"GREETING": "a=b"}
    )
    for fd in fds:
        os.close(fd)
    said = await asyncio.to_thread(os.read, reading, 65_536)
    os.close(reading)
    assert await child.wait() == 0
    assert child.returncode == 0
    return json.loads(said), [str(fd) for fd in fds]


@pytest.mark.parametrize("swapped", [False, True])
async def test_a_child_has_what_it_would_have_by_exec(nursery: Nursery, *, swapped: bool) -> None:
    of_exec, fds = await shown(Exec(), ["one", "two"], swapped=swapped)
    assert of_exec["command"] == [*COMMAND, "show", *fds]
    forked, fds = await shown(nursery, ["one", "two"], swapped=swapped)
    assert forked["argv"] == ["show", *fds]
    assert forked["original"] == [*COMMAND[1:], "show", *fds]
    assert forked["command"] == [*COMMAND, "show", *fds]
    assert forked["parent"] == os.getpid()
    assert forked["leader"]
    assert forked["greeting"] == "a=b"
    assert forked["notify"] is None
    assert forked["texts"] == ["one", "two"]
    assert forked["open"] == of_exec["open"]
    assert (of_exec["preloaded"], forked["preloaded"]) == (False, True)


async def test_more_descriptors_than_one_message_carries(nursery: Nursery) -> None:
    texts = [str(number) for number in range(300)]
    said, _ = await shown(nursery, texts)
    assert said["texts"] == texts
    said, _ = await shown(nursery, ["and", "again"])  # nothing of the former is left over
    assert said["texts"] == ["and", "again"]


@pytest.mark.parametrize("status", [0, 7])
async def test_its_exit_status_is_known(nursery: Nursery, status: int) -> None:
    child = await nursery.start((*COMMAND, "exit", str(status)), [0], {})
    assert await child.wait() == status
    with pytest.raises(ProcessLookupError):
        child.send_signal(signal.SIGKILL)


async def test_it_takes_signals_and_says_by_which_it_ended(nursery: Nursery, leash: int) -> None:
    child = await nursery.start((*COMMAND, "stay", str(leash)), [leash], {})
    assert child.returncode is None
    child.send_signal(signal.SIGTERM)  # ignored: the supervisor decides by other means
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL


async def test_children_outlive_their_nursery_and_another_takes_its_place(
    nursery: Nursery, leash: int
) -> None:
    child = await nursery.start((*COMMAND, "stay", str(leash)), [leash], {})
    first = nursery.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until_gone(first)
    second = await nursery.start((*COMMAND, "exit", "3"), [0], {})
    assert await second.wait() == 3
    assert nursery.pid not in {None, first}
    assert child.returncode is None
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL


async def test_an_order_that_nobody_has_read_is_given_to_the_next_nursery(nursery: Nursery) -> None:
    """A child closes the socket of its dead nursery only after it has started."""
    child = await nursery.start((*COMMAND, "exit", "0"), [0], {})
    assert await child.wait() == 0
    first = nursery.pid
    assert nursery._socket is not None
    nursery._socket.close()
    nursery._socket, of_a_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nursery._socket.setblocking(False)
    starting = asyncio.create_task(nursery.start((*COMMAND, "exit", "3"), [0], {}))
    await asyncio.to_thread(of_a_child.recv, 1, socket.MSG_PEEK)
    of_a_child.close()
    second = await starting
    assert await second.wait() == 3
    assert nursery.pid not in {None, first}


async def test_a_nursery_without_orders_ends_and_its_children_live_on(leash: int) -> None:
    nursery = Nursery(["wave", "socks_tunnel.ops.process"], rest=0.01)
    child = await nursery.start((*COMMAND, "stay", str(leash)), [leash], {})
    first = nursery.pid
    async with asyncio.timeout(60):
        while nursery.pid is not None:
            await asyncio.sleep(0.01)
    assert child.returncode is None
    second = await nursery.start((*COMMAND, "exit", "3"), [0], {})
    assert await second.wait() == 3
    assert first is not None
    assert not Path(f"/proc/{first}").exists()
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    await nursery.close()


async def test_a_nursery_that_cannot_import_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    nursery = Nursery(["no_such_module"])
    for _ in range(2):
        with pytest.raises(OSError, match="the nursery ended with status 1"):
            await nursery.start((*COMMAND, "exit", "0"), [0], {})
    assert "no_such_module" in capfd.readouterr().err


async def test_a_command_line_that_is_too_long_is_refused(nursery: Nursery) -> None:
    with pytest.raises(OSError, match=r"a command line with its environment has 7\d+ bytes"):
        await nursery.start((*COMMAND, "exit", "0" * 70_000), [0], {})
    child = await nursery.start((*COMMAND, "exit", "0"), [0], {})
    assert await child.wait() == 0


async def test_a_closed_nursery_starts_nothing_more(nursery: Nursery) -> None:
    reading, writing = os.pipe()
    stay = (*COMMAND, "stay", str(reading))
    starting = [asyncio.ensure_future(nursery.start(stay, [reading], {})) for _ in range(3)]
    await asyncio.sleep(0)  # the first has begun, the others wait for it
    await nursery.close()
    for outcome in await asyncio.gather(*starting, return_exceptions=True):
        assert isinstance(outcome, OSError)
    with pytest.raises(OSError, match="starts no child any more"):
        await nursery.start(stay, [reading], {})
    os.close(reading)
    os.close(writing)
    async with asyncio.timeout(60):  # one that was forked at that moment reads end-of-file
        while [pid for pid in descendants(os.getpid()) if "stay" in command_line(pid)]:
            await asyncio.sleep(0.01)


async def test_nobody_is_left_behind_by_an_order_that_is_cancelled(nursery: Nursery) -> None:
    first = await nursery.start((*COMMAND, "exit", "0"), [0], {})
    assert await first.wait() == 0
    order = asyncio.ensure_future(nursery.start((*COMMAND, "exit", "5"), [0], {}))
    await asyncio.sleep(0)
    order.cancel()
    with pytest.raises(asyncio.CancelledError):
        await order
    child = await nursery.start((*COMMAND, "exit", "6"), [0], {})
    assert await child.wait() == 6  # and not the answer that came too late


async def test_a_nursery_ends_when_nobody_can_give_it_orders(nursery: Nursery) -> None:
    child = await nursery.start((*COMMAND, "exit", "0"), [0], {})
    assert await child.wait() == 0
    pid = nursery.pid
    assert pid is not None
    assert nursery._socket is not None
    nursery._socket.close()
    await until_gone(pid)


def test_what_children_share_is_what_they_need() -> None:
    modules = (*PRELOADED, "socks_tunnel.exporter.__main__", "socks_tunnel_workers.__main__")
    program = (
        f"import {', '.join(modules)}, sys; print(sorted({{*{UNWANTED}}} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [*PYTHON[:-1], "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_the_python_of_children_is_ours() -> None:
    assert PYTHON[0] == sys.executable
