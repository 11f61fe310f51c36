"""How soon flows go on once the path is back, at a round trip of 50 ms: figures of many recoveries.

All kinds of flows are open meanwhile, and what they carry is compared at the end. A recovery is the time
from the return of the path to the first answer of an echo that came after it; for a path that fails one
way, and for another address, it is the time from the failure.
"""

import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from support.figures import Told
from support.load import Load
from support.paths import distant_tunnel, one_way_blocked, path
from support.tunnels import Tunnel

DELAY = 25.0
"""Milliseconds each way."""

PACE = 500_000
"""Bytes per second of the bulk transfers."""

CUTS = 50
TIMES = 20

SLEEP = 60.0
"""Seconds that all processes of the gateway are stopped."""

RECOVERED_MAX = 15.0
"""Seconds; a loose bound on a loaded machine. What it took is printed."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Tunnel]:
    with distant_tunnel(DELAY) as tunnel:
        yield tunnel


@pytest.fixture
def alive(scene: Tunnel) -> Iterator[Tunnel]:
    scene.wait_linked(60)
    yield scene
    for daemon in scene.daemons[-2:]:
        daemon.assert_clean()


def tell(told: Told, what: str, took: list[float]) -> None:
    told(
        f"{what}, flows went on within {statistics.median(took):.2f} s at the median of {len(took)}, "
        f"within {max(took):.2f} s always; all: " + " ".join(f"{s:.2f}" for s in sorted(took))
    )
    assert max(took) < RECOVERED_MAX


def cuts(tunnel: Tunnel, lengths: list[float], moments: random.Random) -> list[float]:
    """Cuts all paths for so long each; returns how soon flows went on after each."""
    took = []
    with Load(tunnel, pace=PACE, ssh=True) as load:
        for length in lengths:
            load.stop.wait(moments.uniform(0, 0.5))
            tunnel.site.hosts.cut("path0")
            load.stop.wait(length)
            tunnel.site.hosts.mend()
            took.append(load.recovered_after(time.monotonic()))
            load.goes_on()
        load.ended_as_wanted()
    return took


@pytest.mark.netns
@pytest.mark.timeout(900)
def test_fifty_cuts_of_up_to_three_seconds(alive: Tunnel, told: Told) -> None:
    moments = random.Random(11)
    took = cuts(alive, [moments.uniform(0.05, 3) for _ in range(CUTS)], moments)
    tell(told, "after cuts of 0.05 to 3 s", took)


@pytest.mark.netns
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("shortest", "longest"), [(3.0, 12.0), (16.0, 30.0)], ids=["lives", "is-given-up"]
)
def test_cuts_while_the_link_lives_and_after_it_is_given_up(
    alive: Tunnel, shortest: float, longest: float, told: Told
) -> None:
    moments = random.Random(12)
    took = cuts(alive, [moments.uniform(shortest, longest) for _ in range(TIMES)], moments)
    tell(told, f"after cuts of {shortest:.0f} to {longest:.0f} s", took)


@pytest.mark.netns
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sender", ["gateway", "endpoint"])
def test_one_way_fails(alive: Tunnel, sender: Literal["gateway", "endpoint"], told: Told) -> None:
    took = []
    with Load(alive, pace=PACE, ssh=True) as load:
        for _ in range(TIMES):
            _, ours, theirs = path(alive)
            blocked = time.monotonic()
            with one_way_blocked(alive.site.hosts, sender, ours, theirs):
                # What was under way may still arrive.
                took.append(load.recovered_after(blocked + 0.3) + 0.3)
                load.goes_on()
        load.ended_as_wanted()
    tell(told, f"after what the {sender} sends was lost", took)


@pytest.mark.netns
@pytest.mark.timeout(600)
def test_all_processes_of_the_gateway_stop_for_a_minute(alive: Tunnel, told: Told) -> None:
    """A closed lid: nobody is blamed for the time in which nothing ran."""
    workers = alive.gateway.workers()
    processes = [alive.gateway.pid, *alive.gateway.lasting()]
    with Load(alive, pace=PACE, ssh=True) as load:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        load.stop.wait(SLEEP)
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        woke = time.monotonic()
        with alive.connect("echo") as sock:
            sock.sendall(b"first")
            assert sock.recv(100) == b"first"
        first = time.monotonic() - woke
        took = load.recovered_after(woke)
        load.ended_as_wanted()
    told(f"after a sleep of {SLEEP:.0f} s, the first request was answered within {first:.2f} s")
    told(f"and flows went on within {took:.2f} s")
    assert max(first, took) < RECOVERED_MAX
    assert alive.gateway.workers() == workers
    assert "SIGABRT" not in alive.gateway.log_text()
