"""A slow path between gateway and endpoint, beside the fast one: `bench/linkemu.c` between their hosts.

Signalling goes the fast way (10.77.0.0/24); the link's packets go the slow one, because the only
addresses that ICE may use are its ends.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from support.hosts import ThreeHosts

GATEWAY_SLOW_ADDRESS: Final = "10.78.0.1"
ENDPOINT_SLOW_ADDRESS: Final = "10.78.0.2"

PROGRAM: Final = Path(__file__).parents[1] / "bench" / "linkemu.c"

GATEWAY_ICE: Final[Mapping[str, Any]] = {"ice": {"addresses": [GATEWAY_SLOW_ADDRESS]}}
ENDPOINT_ICE: Final[Mapping[str, Any]] = {"ice": {"addresses": [ENDPOINT_SLOW_ADDRESS]}}


class SlowPath:
    """The path, for as long as the block lasts.

    `delay` and `jitter` are in milliseconds each way, `rate` is in Mbit/s (0: no bottleneck), `queue`
    in packets, `loss` in percent.
    """

    def __init__(
        self,
        hosts: ThreeHosts,
        *,
        rate: float,
        delay: float = 10,
        jitter: float = 0,
        loss: float = 0,
        queue: int = 20,
    ) -> None:
        self._hosts = hosts
        self._values = [str(value) for value in (delay, jitter, loss, rate, queue)]
        self._folder = Path(tempfile.mkdtemp(prefix="socks-tunnel-path-"))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        program = self._folder / "linkemu"
        subprocess.run(["cc", "-O2", "-o", program, PROGRAM], check=True)
        gateway, endpoint = self._hosts.gateway, self._hosts.endpoint
        self._process = subprocess.Popen(
            [program, gateway.name, endpoint.name, *self._values],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "up\n":
            raise RuntimeError("linkemu did not start")
        for host, ours, theirs in (
            (gateway, GATEWAY_SLOW_ADDRESS, ENDPOINT_SLOW_ADDRESS),
            (endpoint, ENDPOINT_SLOW_ADDRESS, GATEWAY_SLOW_ADDRESS),
        ):
            host.run("ip", "address", "add", ours, "peer", theirs, "dev", "path0")
            host.run("ip", "link", "set", "path0", "mtu", "1500", "up")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=60)
        shutil.rmtree(self._folder)
