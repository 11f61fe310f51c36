"""Forty cuts at any moment, of 0.05 to 3 s, while flows of every kind are open. Ten more are in test_alive.py.

They are four runs of ten, each with moments and lengths of its own, so that a test run with several processes
has several under way. Each run compares what came out with what went in: downloads and echoes byte by byte,
uploads by their hash and length. tests/property has a thousand cuts and more in virtual time.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator

import pytest

from support.figures import Told
from support.load import Load
from support.processes import wait_until
from support.tunnels import Site, Tunnel

CUTS = 10
RUNS = 4

PACE = 1_000_000
"""Bytes per second of each bulk transfer: several runs share a machine."""

RECOVERED_MAX = 45.0
"""Seconds; a loose bound on a loaded machine. What it really took is printed."""

pytestmark = pytest.mark.timeout(600)  # on a loaded machine; a tunnel is made within the first run


@pytest.fixture(scope="module")
def scene(make_site: Callable[[], Site]) -> Iterator[Tunnel]:
    with contextlib.closing(make_site()) as site, site.tunnel().running() as tunnel:
        yield tunnel


@pytest.mark.parametrize("seed", range(RUNS))
def test_cuts_at_any_moment(scene: Tunnel, seed: int, told: Told) -> None:
    scene.wait_linked(120)
    moments = random.Random(seed)
    took = []
    with Load(scene, pace=PACE, ssh=True) as load:
        for _ in range(CUTS):
            load.stop.wait(moments.uniform(0, 0.5))
            scene.site.hosts.cut()
            try:
                load.stop.wait(moments.uniform(0.05, 3))
            finally:
                scene.site.hosts.mend()
            took.append(load.recovered_after(time.monotonic()))
            load.goes_on()
        load.ended_as_wanted()
    told(
        f"after cuts of 0.05 to 3 s (run {seed}), flows went on within {sorted(took)[CUTS // 2]:.2f} s "
        f"at the median, within {max(took):.2f} s always"
    )
    assert max(took) < RECOVERED_MAX
    for role, daemon in (("gateway", scene.gateway), ("endpoint", scene.endpoint)):
        wait_until(lambda: not daemon.control("connections"), f"no flow left on the {role}")  # noqa: B023
    for daemon in scene.daemons[-2:]:
        daemon.assert_clean()
