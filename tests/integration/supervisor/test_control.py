"""The control socket: questions, answers, and clients that misbehave."""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import socket
import stat
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.supervisor import control, control_client
from socks_tunnel.supervisor.control import ControlError, ControlServer


async def answer(request: dict[str, Any]) -> Any:
    match request["op"]:
        case "status":
            return {"state": "ready", "echo": request.get("extra")}
        case "drain":
            raise ControlError("not now")
        case "bug":
            raise KeyError("oops")
        case _:
            return "x" * 200_000


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    server = ControlServer(tmp_path / "control.sock", answer)
    await server.start()
    yield tmp_path / "control.sock"
    await server.stop()
    assert not (tmp_path / "control.sock").exists()


async def ask(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    return await asyncio.to_thread(control_client.request, path, fields)


async def raw(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:  # it was closed with what we sent still unread
        return b""
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_question_is_answered_and_its_asker_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert await ask(path, {"op": "status", "extra": [1, "ü"]}) == {
        "ok": True,
        "result": {"state": "ready", "echo": [1, "ü"]},
    }
    expected = f"'status' of process {os.getpid()} (uid {os.getuid()}, gid {os.getgid()})"
    assert expected in caplog.text


async def test_of_questions_that_are_repeated_on_a_connection_the_first_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await raw(path, (b'{"op": "status"}\n' + b'{"op": "drain"}\n') * 3)
    assert caplog.text.count("control request 'status'") == 1
    assert caplog.text.count("control request 'drain'") == 3, "of what changes something, each"
    await raw(path, b'{"op": "status"}\n')
    assert caplog.text.count("control request 'status'") == 2


async def deaf(path: Path) -> socket.socket:
    """A client that asks for 8 MB, and reads nothing of that; the first part has come."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, str(path))
    client.sendall(b'{"op": "other"}\n' * 40)
    async with asyncio.timeout(60):
        while waiting_in(client) < 50_000:
            await asyncio.sleep(0.01)
    return client


def waiting_in(client: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(client, termios.FIONREAD, bytes(4)), sys.byteorder)


async def test_a_client_that_reads_no_answer_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLOSE_TIMEOUT", 0.1)
    server = ControlServer(tmp_path / "control.sock", answer)
    await server.start()
    with await deaf(tmp_path / "control.sock"):
        async with asyncio.timeout(60):
            await server.stop()


async def test_a_client_that_reads_no_answer_is_hung_up_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(control, "IDLE_TIMEOUT", 2.0)  # in which its question comes on any machine
    with await deaf(path) as client:
        poll = select.poll()
        poll.register(client, 0)
        async with asyncio.timeout(60):
            while not poll.poll(0):  # POLLHUP: the server has closed its end
                await asyncio.sleep(0.01)


async def test_an_answer_that_comes_in_drops_has_a_bound_as_a_whole(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        await close(writer)
        ended.set()

    server = await asyncio.start_unix_server(dripping, tmp_path / "control.sock")
    async with server, asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(
                control_client.request, tmp_path / "control.sock", {"op": "status"}, timeout=0.3
            )
        await ended.wait()


async def test_only_owner_and_group_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


async def test_a_refusal_carries_its_sentence(path: Path) -> None:
    assert await ask(path, {"op": "drain"}) == {"ok": False, "error": "not now"}


async def test_a_bug_is_logged_and_the_next_question_is_answered(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await ask(path, {"op": "bug"}))["ok"] is False
    assert "KeyError" in caplog.text
    assert (await ask(path, {"op": "status"}))["ok"] is True


async def test_long_answers_come_whole(path: Path) -> None:
    assert len((await ask(path, {"op": "long"}))["result"]) == 200_000


async def test_several_questions_on_one_connection(path: Path) -> None:
    answers = (await raw(path, b'{"op": "status"}\n' * 3)).splitlines()
    assert [json.loads(line)["ok"] for line in answers] == [True] * 3


@pytest.mark.parametrize("line", [b"junk\n", b"[]\n", b'{"op": 1}\n', b"{}\n", b"\xff\n"])
async def test_what_is_no_request_is_refused_with_a_hint(path: Path, line: bytes) -> None:
    answer = json.loads(await raw(path, line))
    assert answer["ok"] is False
    assert "JSON object" in answer["error"]


async def test_a_line_without_end_is_cut_off(path: Path) -> None:
    assert await raw(path, b"x" * (control.REQUEST_MAX * 3)) == b""
    assert (await ask(path, {"op": "status"}))["ok"] is True


async def test_connections_are_bounded(path: Path) -> None:
    held = [await asyncio.open_unix_connection(path) for _ in range(control.CLIENTS_MAX)]
    for reader, writer in held:
        writer.write(b'{"op": "status"}\n')
        assert await reader.readline()
    assert await raw(path, b'{"op": "status"}\n') == b""
    for _, writer in held:
        await close(writer)


async def test_silent_connections_are_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_unix_connection(path)
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    await close(writer)


async def test_a_stale_socket_is_replaced_and_a_bad_path_is_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        stale = ControlServer(tmp_path / "control.sock", answer)
        await stale.start()
        assert stale._server is not None
        stale._server.close()  # as a killed process would leave it
    with pytest.raises(OSError, match="too long"):
        await ControlServer(tmp_path / ("x" * 120), answer).start()
    idle = ControlServer(tmp_path / "never", answer)
    await idle.stop()


async def test_the_client_says_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        control_client.request(tmp_path / "none", {"op": "status"})

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await close(writer)

    async with await asyncio.start_unix_server(hang_up, tmp_path / "mute"):
        with pytest.raises(OSError, match=r"without an answer|reset|Broken pipe"):
            await ask(tmp_path / "mute", {"op": "status"})
