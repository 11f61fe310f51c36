"""What idle flows without a link hold in memory: bytes of a gateway's worker for each of them.

    python -m bench.detached [--flows 5000]

A gateway and an endpoint on loopback, one worker each. Each flow carries a few bytes both ways, and is
idle from then on. Then the endpoint is killed, and the gateway's flows wait for a link that does not
come. Memory is the PSS of the worker (proc_pid_smaps(5)), beyond what it held before the first flow.
"""

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import memory

BUDGET = 6.0
"""KiB for each flow without a link."""

WARM_UP = 200
"""Flows that come and go before the first look: code, caches and pools are not a flow's."""


class Echo:
    """Sends back what comes, on any number of connections, in a thread."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self.listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        chosen = selectors.DefaultSelector()
        chosen.register(self.listening, selectors.EVENT_READ)
        while True:
            for key, _ in chosen.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self.listening:
                    chosen.register(sock.accept()[0], selectors.EVENT_READ)
                    continue
                with contextlib.suppress(OSError):
                    if data := sock.recv(4096):
                        sock.sendall(data)
                        continue
                chosen.unregister(sock)
                sock.close()


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            sys.exit("a flow ended")
        data += piece
    return data


def flow(proxy: int, target: int) -> socket.socket:
    """A flow through the tunnel that has carried a few bytes each way."""
    sock = socket.create_connection(("127.0.0.1", proxy), timeout=60)
    sock.sendall(b"\x05\x01\x00")
    exactly(sock, 2)
    sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + target.to_bytes(2))
    answer = exactly(sock, 10)
    if answer[1]:
        sys.exit(f"SOCKS5 reply {answer[1]}")
    sock.sendall(b"a few bytes")
    exactly(sock, 11)
    return sock


def until(probe: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > end:
            sys.exit(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


def settled(pid: int) -> float:
    """Returns the PSS in KiB once it no longer changes: timers and the collector have done their part."""
    last, same = memory.pss(pid) * 1024, 0
    while same < 3:
        time.sleep(1)
        now = memory.pss(pid) * 1024
        same = same + 1 if abs(now - last) < 64 else 0
        last = now
    return last


def numbers(directory: Path) -> Iterator[dict[str, object]]:
    links = memory.status(directory).get("links", [])
    assert isinstance(links, list)
    yield from links


def main() -> int:
    """Prints the figures; 1 if the budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=5000)
    count = parser.parse_args().flows
    echo = Echo()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as held:
        directory = Path(place)
        policy = f'allowed_hosts = ["127.0.0.1"]\nallowed_ports = [{echo.port}]'
        endpoint, gateway = held.enter_context(memory.tunnel(directory, 1, more_policy=policy))
        memory.wait_until_up(directory, gateway)
        found = memory.status(directory)["listen"]
        proxy = int(json.dumps(found).rpartition(":")[2].strip('"]'))
        (worker,) = [pid for pid in memory.processes(gateway.pid) if memory.name(pid) == "worker"]
        for sock in [flow(proxy, echo.port) for _ in range(WARM_UP)]:
            sock.close()
        before = settled(worker)
        for _ in range(count):
            held.enter_context(flow(proxy, echo.port))
        linked = settled(worker)
        for pid in reversed(memory.processes(endpoint.pid)):
            os.kill(pid, signal.SIGKILL)
        until(
            lambda: any(row.get("waiting_flows") == count for row in numbers(directory)),
            "flows that wait",
        )
        detached = settled(worker)
    for what, size in (("with a link", linked), ("without", detached)):
        print(f"{count} idle flows {what}: {(size - before) / count:.2f} KiB each")
    print(f"budget without a link: {BUDGET} KiB each")
    return int((detached - before) / count > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
