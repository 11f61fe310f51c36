"""Processes that the benchmark's harness commands, and what they use of the machine."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from socks_tunnel.ops.compiled import compiled_state
from support.hosts import Host
from support.peers import libdatachannel_python
from support.processes import resident

HERE = Path(__file__).parent


class Worker:
    """A process that carries out commands given as lines of JSON."""

    def __init__(
        self,
        host: Host,
        script: str,
        *arguments: str,
        python: str = sys.executable,
        stderr: int | None = None,
    ) -> None:
        self.popen = host.start(
            *(python, str(HERE / script), *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    def tell(self, **command: Any) -> None:
        """Send an object."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(command).encode() + b"\n")
        self.popen.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for an object."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.popen.args!r} ended with status {self.popen.wait()}")
        decoded: dict[str, Any] = json.loads(line)
        return decoded

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command, wait for its result."""
        self.tell(**command)
        return self.hear()

    def quit(self) -> None:
        """End the process."""
        self.tell(do="quit")
        self.popen.communicate(timeout=30)


class RawPair:
    """A bare data channel from one host to another; `kinds` are the dialling and the other end's.

    They are those of rawpeer.py, or both are `libdatachannel`.
    """

    def __init__(
        self, hosts: tuple[Host, Host], kinds: tuple[str, str] = ("stock", "stock")
    ) -> None:
        self.dialler, self.answerer = (
            Worker(host, "rawlibdatachannel.py", role, python=libdatachannel_python())
            if kind == "libdatachannel"
            else Worker(host, "rawpeer.py", role, kind)
            for host, role, kind in zip(hosts, ("dial", "answer"), kinds, strict=True)
        )
        self.answerer.tell(sdp=self.dialler.hear()["sdp"])
        self.dialler.tell(sdp=self.answerer.hear()["sdp"])
        self.dialler.hear()

    def memory(self) -> int:
        """Bytes of memory of both ends (PSS)."""
        return sum(resident(w.popen.pid) for w in (self.dialler, self.answerer))

    def quit(self) -> None:
        """End both."""
        self.dialler.quit()
        self.answerer.quit()


def cpu_seconds(pid: int) -> float:
    """Processor time that the threads of a process have used, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def machine() -> str:
    """The shape of this machine and of the data path, in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 30)
    return (
        f"{os.cpu_count()} cores ({model}), {memory} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, data path: {compiled_state()}"
    )
