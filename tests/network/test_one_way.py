"""One way of a path with a round trip of 50 ms fails: how soon flows go on."""

import time
from collections.abc import Iterator
from typing import Literal

import pytest

from support.figures import Told
from support.load import Load
from support.paths import distant_tunnel, one_way_blocked, settled_path, sooner_than_silence
from support.tunnels import Tunnel

DELAY = 25.0
"""Milliseconds each way."""

TIMES = 3

RECOVERED_MAX = 45.0
"""Seconds; a loose bound on a loaded machine. What it took is printed."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Tunnel]:
    with distant_tunnel(DELAY) as tunnel:
        yield tunnel


@pytest.mark.netns
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sender", ["gateway", "endpoint"])
def test_flows_go_on_soon_after_one_way_has_failed(
    scene: Tunnel, sender: Literal["gateway", "endpoint"], told: Told
) -> None:
    """The other way works all the time, and packets of the peer keep coming."""
    settled_path(scene)
    took: list[float] = []
    with Load(scene, pace=500_000, ssh=True) as load:
        for _ in range(TIMES):
            _, ours, theirs = settled_path(scene)
            blocked = time.monotonic()
            with (
                sooner_than_silence(scene),
                one_way_blocked(scene.site.hosts, sender, ours, theirs),
            ):
                # What was under way may still arrive.
                took.append(load.recovered_after(blocked + 0.3) + 0.3)
                load.goes_on()
            settled_path(scene, other_than=(ours, theirs))
        load.ended_as_wanted()
    told(
        f"after what the {sender} sends was lost, flows went on within "
        + ", ".join(f"{seconds:.2f}" for seconds in sorted(took))
        + " s"
    )
    assert max(took) < RECOVERED_MAX
    for daemon in scene.daemons[-2:]:
        daemon.assert_clean()
