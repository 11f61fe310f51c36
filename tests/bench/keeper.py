"""Keeper's tunnel (PyPI: keeper-pam-webrtc-rs) beside this one, in turns, on loopback.

    python -m bench.keeper PYTHON [--rounds 5] [--seconds 3]

PYTHON is an interpreter of an environment that has the wheel, whose own requirements do not matter here.
Each end of its tunnel is a process; offer and answer go through their pipes. It forwards a port to one
target, without SOCKS, so it is spared a round trip for each connection. This project's gateway and
endpoint run with one worker a side.
"""

import argparse
import contextlib
import importlib
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 1.0
CONNECTED_WITHIN = 30.0


def end() -> None:
    """Is one end of a tunnel: a command a line, each answered by a line."""
    registry: Any = importlib.import_module("keeper_pam_webrtc_rs").PyTubeRegistry()
    made: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        match command.pop("do"):
            case "tube":
                made = registry.create_tube(
                    conversation_id="bench",
                    trickle_ice=False,
                    callback_token="TEST_CALLBACK_TOKEN",
                    krelay_server="127.0.0.1",
                    client_version="ms16.5.0",
                    ksm_config="TEST_MODE_KSM_CONFIG",  # nothing is asked of Keeper's servers
                    signal_callback=lambda _: None,
                    **command,
                )
                answer = dict(made)
            case "answered":
                registry.set_remote_description(made["tube_id"], command["sdp"], is_answer=True)
                answer = {}
            case _:
                answer = {"state": registry.get_connection_state(made["tube_id"])}
        print(json.dumps(answer), flush=True)


class End:
    """An end in a process of its own."""

    def __init__(self, python: str, held: contextlib.ExitStack) -> None:
        self.process = held.enter_context(
            subprocess.Popen(
                [python, __file__, "--end"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        held.callback(self.process.kill)

    def ask(self, **command: Any) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer


def forwarded(python: str, held: contextlib.ExitStack, port: int) -> int:
    """Makes a tunnel to a target on loopback; returns the port that leads there."""
    near, far = End(python, held), End(python, held)
    settings = {"conversationType": "tunnel"}
    offer = near.ask(do="tube", settings=settings | {"local_listen_addr": "127.0.0.1:0"})
    target = {"target_host": "127.0.0.1", "target_port": str(port)}
    answer = far.ask(do="tube", settings=settings | target, offer=offer["offer"])
    near.ask(do="answered", sdp=answer["answer"])
    limit = time.monotonic() + CONNECTED_WITHIN
    while {each.ask(do="state")["state"] for each in (near, far)} != {"Connected"}:
        if time.monotonic() > limit:
            raise SystemExit("Keeper's tunnel does not connect")
        time.sleep(0.1)
    return int(offer["actual_local_listen_addr"].rpartition(":")[2])


def download(sock: socket.socket, seconds: float) -> float:
    """Megabits a second that come."""
    buffer = bytearray(1 << 18)
    start = time.perf_counter() + WARM_UP
    moved = 0
    while (now := time.perf_counter()) < start + seconds:
        count = sock.recv_into(buffer)
        if not count:
            raise ConnectionError("the download ended")
        moved += count if now >= start else 0
    return moved * 8 / seconds / 1e6


def round_trip(sock: socket.socket, count: int = 500) -> float:
    """Milliseconds of an echo of 64 bytes, the median."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        sock.send(bytes(64))
        left = 64
        while left:
            left -= len(sock.recv(left))
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    # The process of an end has nothing but its own environment.
    from bench.checkouts import targets
    from bench.connections import Side

    parser = argparse.ArgumentParser(prog="bench.keeper")
    parser.add_argument("python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    figures: dict[str, list[float]] = {}
    with contextlib.ExitStack() as held:
        ports = held.enter_context(targets())
        ours = Side(Path(__file__).parents[2], held, ports)
        theirs = {n: forwarded(arguments.python, held, ports[n]) for n in ("source", "echo")}
        for number in range(arguments.rounds):
            for who in ("tunnel", "Keeper") if number % 2 else ("Keeper", "tunnel"):
                for name, port in theirs.items():
                    address = ("127.0.0.1", port)
                    with (
                        ours.load.connect(name)
                        if who == "tunnel"
                        else socket.create_connection(address, timeout=60)
                    ) as sock:
                        value = (
                            download(sock, arguments.seconds)
                            if name == "source"
                            else round_trip(sock)
                        )
                    figures.setdefault(f"{name} {who}", []).append(value)
    for name, unit in (("source", "download, Mbit/s"), ("echo", "round trip of 64 bytes, ms")):
        pair = figures[f"{name} tunnel"], figures[f"{name} Keeper"]
        ratio = statistics.median(a / b for a, b in zip(*pair, strict=True))
        medians = [statistics.median(each) for each in pair]
        print(f"{unit}: tunnel {medians[0]:.2f}, Keeper {medians[1]:.2f}, quotient {ratio:.2f}")


if __name__ == "__main__":
    end() if sys.argv[1:] == ["--end"] else main()
