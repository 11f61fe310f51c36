"""What an idle gateway holds in memory (PSS, proc_pid_smaps(5)), and what commands cost: a table.

    python -m bench.memory [--seconds 5] [--workers 2]

A gateway and an endpoint are started on loopback, with one link. Each process of the gateway is
looked at once the nursery of its children has ended, and after a while of silence. PSS shares what processes have in common among them, so the sum is
what the instance costs the host.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

COMMAND = Path(sys.executable).with_name("socks-tunnel")

BUDGET = 90e6 / (1 << 20)
"""MiB that an idle gateway with two workers may hold in all its processes: 90 MB."""

STATUS_BUDGET = 0.3
"""Seconds of processor time that `socks-tunnel status` may take."""

HEAVY = ("pydantic", "aiohttp", "rich", "av", "prometheus_client")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def tunnel(
    directory: Path, workers: int, *, more_policy: str = "", command: Path = COMMAND
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A gateway with a link to an endpoint; yields both supervisors, the gateway's last.

    `more_policy` are lines for the endpoint's `[policy]`, `command` the program that is run. One
    that is killed meanwhile stays so.
    """
    signaling, socks, metrics = free_port(), free_port(), free_port()
    subprocess.run(
        [
            *(command, "pair", "--gateway", directory / "g", "--endpoint", directory / "e"),
            *("--url", f"http://127.0.0.1:{signaling}/"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    ports = {"1080": socks, "9464": metrics, "9465": free_port()}
    for path in (directory / "g" / "gateway.toml", directory / "e" / "endpoint.toml"):
        text = path.read_text()
        for usual, port in ports.items():
            text = text.replace(f":{usual}", f":{port}")
        if more_policy and "[policy]" in text:
            start = text.index("[policy]") + len("[policy]")
            text = f"{text[:start]}\n{more_policy}\n{text[text.index('[metrics]') :]}"
        path.write_text(f"{text}\n[workers]\ncount = {workers}\n")
    running = []
    try:
        for role in ("endpoint", "gateway"):
            (path,) = (directory / role[0]).glob("*.toml")
            runtime = directory / f"run-{role}"
            running.append(
                subprocess.Popen(
                    [command, "run", "--config", path],
                    env=os.environ | {"RUNTIME_DIRECTORY": str(runtime)},
                    stderr=(directory / f"{role}.log").open("wb"),
                )
            )
        yield running
    finally:
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(60)


def status(directory: Path, command: Path = COMMAND) -> dict[str, object]:
    done = subprocess.run(
        [command, "status", "--json", "--socket", directory / "run-gateway" / "control.sock"],
        capture_output=True,
        check=False,
    )
    found: dict[str, object] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def wait_until_up(
    directory: Path, gateway: subprocess.Popen[bytes], command: Path = COMMAND
) -> None:
    end = time.monotonic() + 60
    while '"up"' not in json.dumps(status(directory, command).get("links", "")):
        if gateway.poll() is not None or time.monotonic() > end:
            sys.exit((directory / "gateway.log").read_text())
        time.sleep(0.2)


def wait_until_at_rest(gateway: subprocess.Popen[bytes]) -> None:
    """Waits until no child has been started for so long that their nursery has ended."""
    (nursery,) = [pid for pid in processes(gateway.pid) if name(pid) == "nursery"] or [0]
    end = time.monotonic() + 60
    while nursery in processes(gateway.pid):
        if time.monotonic() > end:
            sys.exit("the nursery does not end")
        time.sleep(0.2)


def scrape(directory: Path) -> None:
    """Asks for the metrics as Prometheus does: what that loads, stays."""
    config = tomllib.loads((directory / "g" / "gateway.toml").read_text())
    for accept in ("text/plain", "application/openmetrics-text"):
        request = urllib.request.Request(
            f"http://{config['metrics']['listen']}/metrics", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()


def processes(root: int) -> list[int]:
    """The process and all below it."""
    found = [root]
    for pid in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def pss(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(pid)


def name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if b"socks_tunnel_workers" in words:
        return "worker"
    if b"socks_tunnel.nursery" in words:
        return "nursery"
    return "exporter" if b"socks_tunnel.exporter" in words else "supervisor"


def libraries(pid: int) -> str:
    """Which heavy libraries a process has mapped, by their compiled parts."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return ", ".join(lib for lib in HEAVY if f"/{lib}/" in maps or f"/{lib}_core/" in maps)


def cpu_of_status(directory: Path) -> float:
    """Seconds of processor time of one `status`, the least of five."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        status(directory)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def main() -> int:
    """Prints the table; 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        with tunnel(directory, arguments.workers) as (_, gateway):
            wait_until_up(directory, gateway)
            wait_until_at_rest(gateway)
            time.sleep(arguments.seconds)
            rows = [(name(pid), pss(pid), libraries(pid)) for pid in processes(gateway.pid)]
            scrape(directory)
            scraped = sum(pss(pid) for pid in processes(gateway.pid))
            cpu = cpu_of_status(directory)
    for process, size, mapped in rows:
        print(f"{process:<12} {size:6.1f} MiB  {mapped}")
    total = sum(size for _, size, _ in rows)
    print(f"{'all':<12} {total:6.1f} MiB  (budget {BUDGET:.1f})")
    print(f"{'scraped':<12} {scraped:6.1f} MiB  after Prometheus has asked for both formats")
    print(f"{'status':<12} {cpu:6.2f} s of processor time (budget {STATUS_BUDGET})")
    return int(total > BUDGET or cpu > STATUS_BUDGET)


if __name__ == "__main__":
    sys.exit(main())
