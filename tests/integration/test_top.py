"""`socks-tunnel top` in a terminal, about an instance that the test plays."""

import contextlib
import json
import os
import re
import signal
import socketserver
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import SOCKS_TUNNEL, wait_until
from support.terminal import Screen, Terminal

RATE = 5000
"""Bytes per second of flow 0; flow N has N times less."""


class Played(socketserver.ThreadingUnixStreamServer):
    """Answers on a control socket as an instance does whose flows carry bytes all the time."""

    daemon_threads = True

    def __init__(self, path: Path, flows: int = 3) -> None:
        super().__init__(str(path), Answering)
        self.flows = flows
        self.pid = 4711
        self.began = time.monotonic()
        self.asked: list[dict[str, Any]] = []
        self.connections: list[Any] = []
        self.answering = threading.Event()
        """Cleared by a test that wants to see what is shown without an answer."""
        self.answering.set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, request: dict[str, Any]) -> Any:
        self.asked.append(request)
        age = time.monotonic() - self.began
        if request["op"] == "status":
            return {
                "instance": "laptop",
                "role": "gateway",
                "version": "0.1.0",
                "pid": self.pid,
                "uptime": age,
                "state": "ready",
                "listen": ["127.0.0.1:1080"],
                "metrics": None,
                "links": [
                    {"peer": "office", "state": "up", "rtt_ms": 12.41, "flows": 3, "buffered": 0, "path": "a -> b"},
                    {"peer": "lab", "state": "down", "rtt_ms": None, "flows": 0, "buffered": 0, "path": None, "detail": "it refused"},
                ],
                "workers": [
                    {"index": 0, "pid": 4712, "state": "running", "restarts": 0, "flows_tcp": self.flows, "flows_udp": 0, "bytes_up": int(age * RATE), "bytes_down": 0, "buffered": 0}
                ],
                "counters": {"flows_tcp": self.flows, "flows_udp": 0, "bytes_up": int(age * RATE), "bytes_down": 0, "buffered": 0, "restarts": 0},
            }  # fmt: skip
        return [
            {"peer": "office", "conn_id": n, "kind": "tcp", "command": "connect", "client": "127.0.0.1:50284", "destination": f"host-{n}.corp:443", "state": "open", "seconds": round(age, 3), "up": int(age * RATE / (n + 1)), "down": 0, "worker": 0}
            for n in range(min(self.flows, request.get("limit", self.flows)))
        ]  # fmt: skip

    def hang_up(self) -> None:
        """End as an instance does."""
        self.answering.set()
        self.shutdown()
        self.thread.join()
        self.server_close()
        Path(str(self.server_address)).unlink()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)


class Answering(socketserver.StreamRequestHandler):
    server: Played

    def handle(self) -> None:
        self.server.connections.append(self.request)
        with contextlib.suppress(OSError):
            for line in self.rfile:
                self.server.answering.wait()
                answer = {"ok": True, "result": self.server.answer(json.loads(line))}
                self.wfile.write(json.dumps(answer).encode() + b"\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def instance(path: Path) -> Iterator[Played]:
    played = Played(path)
    yield played
    if played.thread.is_alive():
        played.hang_up()


def rate_of(screen: Screen, flow: int) -> float | None:
    """Returns the bytes per second of a flow, as they are shown; None if there are none."""
    found = re.search(rf"host-{flow}\.corp:443 +\S+ +(\d+\.\d+)k +0 ", screen.text)
    return float(found[1]) * 1000 if found else None


def top(path: Path, **options: Any) -> Terminal:
    return Terminal([SOCKS_TUNNEL, "top", "--socket", path], **options)


def test_it_shows_rates_and_quits_with_q(instance: Played, path: Path) -> None:
    with top(path) as terminal:
        terminal.shows(r"^gateway laptop  ready")
        assert terminal.screen.alternate
        assert not terminal.screen.cursor_shown
        terminal.shows(r"^office +up +12\.4 +3")
        terminal.shows(r"^lab +down +- .* it refused")
        # Measured between two samples of about a second: 5000 B/s, and a half and a third of it. The
        # samples are not that far apart on a busy machine, and a frame may be there in part.
        terminal.wait(
            lambda screen: all(
                abs((rate_of(screen, flow) or 0) * (flow + 1) - RATE) < RATE / 8
                for flow in range(3)
            ),
            "the rates",
        )
        terminal.shows(r"^q quit   s sort, now by bytes/s\Z")
        settings = termios.tcgetattr(terminal._slave)
        assert settings != terminal.settings_before
        terminal.type("q")
        assert terminal.ended() == 0
        terminal.assert_restored()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, None])
def test_signals_restore_the_terminal(
    instance: Played, path: Path, number: signal.Signals | None
) -> None:
    with top(path) as terminal:
        terminal.shows(r"^gateway laptop")
        if number is None:
            terminal.type("\x03")
        else:
            os.kill(terminal.popen.pid, number)
        assert terminal.ended() == 0
        terminal.assert_restored()
        assert "Traceback" not in terminal.written


def test_a_suspended_watch_gives_the_terminal_back_and_takes_it_again(
    instance: Played, path: Path
) -> None:
    with top(path) as terminal:
        terminal.shows(r"^gateway laptop")
        terminal.type("\x1a")  # Ctrl-Z
        terminal.wait(lambda screen: not screen.alternate and screen.cursor_shown, "the end of it")
        stat = Path(f"/proc/{terminal.popen.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "stopped")
        terminal.assert_restored()
        os.kill(terminal.popen.pid, signal.SIGCONT)
        terminal.wait(lambda screen: screen.alternate, "it back")
        terminal.shows(r"^gateway laptop  ready")
        terminal.type("q")
        assert terminal.ended() == 0
        terminal.assert_restored()


def test_the_order_changes_with_s_and_the_instance_is_asked_for_it(
    instance: Played, path: Path
) -> None:
    with top(path) as terminal:
        for key, words in (("", "bytes/s"), ("s", "total"), ("s", "age"), ("s", "bytes/s")):
            terminal.type(key)
            terminal.shows(rf"^q quit   s sort, now by {words}$")
        terminal.type("s")
        wait_until(
            lambda: instance.asked[-1].get("by") == "total" or None,
            "a question for the flows with the most bytes",
        )
        assert {request.get("limit") for request in instance.asked} == {None, 250}


def test_a_large_table_is_cut_and_follows_the_size_of_the_window(
    instance: Played, path: Path
) -> None:
    instance.flows = 4321
    with top(path) as terminal:
        terminal.shows(r"^… 4,3\d\d more flows$")
        terminal.shows(r"^4,321 TCP flows")
        instance.answering.clear()  # another size is followed at once, and not with the next answer
        terminal.resize(120, 40)
        terminal.shows(r"^peer +kind +client +destination +state")
        instance.answering.set()

        def is_whole(screen: Screen) -> bool:
            shown = len(re.findall(r"host-\d", screen.text))
            return shown > 20 and f"… {4321 - shown:,} more flows" in screen.lines

        terminal.wait(is_whole, "as many flows as there is room for")
        terminal.resize(40, 8)
        terminal.shows(r"^q quit")
        terminal.shows(r"^gateway laptop")


def test_an_instance_that_goes_away_is_waited_for(instance: Played, path: Path) -> None:
    with top(path) as terminal:
        terminal.shows(r"host-0\.corp:443 +\S+ +\d\.\d\dk")
        instance.hang_up()
        terminal.shows(r"^gateway laptop  no answer: .+; trying again")
        assert "host-0.corp" in terminal.screen.text, "what was known last stays"
        terminal.shows(r"No such file or directory; trying again")
        successor = Played(path, flows=2)
        successor.pid = 5000
        try:
            terminal.shows(r"^gateway laptop  ready")
            terminal.shows(r"^2 TCP flows")
            terminal.shows(r"host-0\.corp:443 +\S+ +\d\.\d\dk")
            terminal.type("q")
            assert terminal.ended() == 0
            terminal.assert_restored()
        finally:
            successor.hang_up()


def test_one_connection_serves_all_questions(instance: Played, path: Path) -> None:
    with top(path) as terminal:
        terminal.shows(r"^gateway laptop")
        wait_until(lambda: len(instance.asked) >= 6, "three samples")
        began, asked = time.monotonic(), len(instance.asked)
        wait_until(lambda: len(instance.asked) >= asked + 4, "two more")
        assert time.monotonic() - began > 0.9
        assert len(instance.connections) == 1


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_without_a_terminal_it_names_what_to_use_instead(
    instance: Played, path: Path, stream: str
) -> None:
    master, slave = os.openpty()
    streams: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": subprocess.PIPE}
    done = subprocess.run(
        [SOCKS_TUNNEL, "top", "--socket", path],
        **streams | {stream: subprocess.DEVNULL},
        check=False,
    )
    os.close(master)
    os.close(slave)
    assert done.returncode == 2
    assert b"socks-tunnel status --json" in done.stderr
    assert instance.asked == []


def test_an_instance_that_is_not_there_at_first_is_an_error(path: Path) -> None:
    with top(path) as terminal:
        assert terminal.ended() == 69
        assert f"no instance answers on {path}: No such file" in terminal.written.replace(
            "\r\n", ""
        )
        terminal.assert_restored()
