"""The same two endpoints as in test_routes, reached through a rendezvous service: one of them fails."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from network.test_routes import ELSEWHERE_MAX, Scene
from support.figures import Told
from support.hosts import TARGET_ADDRESS, why_no_namespaces

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]  # on a loaded machine


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    if why := why_no_namespaces():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="socks-tunnel-test-") as name:
        directory = Path(name)
        with contextlib.ExitStack() as exit_stack:
            made = Scene(directory, exit_stack, rendezvous=True)
            try:
                yield made
            finally:
                for log in sorted(directory.glob("*.log")):
                    print(f"== {log.name} ==\n{log.read_text()[-8000:]}")
            made.daemon.assert_clean()


@pytest.fixture
def scene(shared: Scene) -> Scene:
    """The gateway and both offices, all of them well."""
    shared.wait_preferred("berlin", "paris")
    shared.wait_who(TARGET_ADDRESS, "berlin")
    return shared


def test_a_killed_endpoint(scene: Scene, told: Told) -> None:
    berlin = scene.offices["berlin"]
    os.kill(berlin.daemon.pid, signal.SIGKILL)
    seconds = scene.elsewhere()
    told(f"new flows go elsewhere {seconds:.2f} s after an endpoint's process is killed")
    assert seconds < ELSEWHERE_MAX
    scene.wait_preferred("paris")
    berlin.daemon.kill()
    berlin.start(scene.key)
    scene.wait_preferred("berlin", "paris")
    scene.wait_who(TARGET_ADDRESS, "berlin")


def test_a_blackholed_endpoint(scene: Scene, told: Told) -> None:
    """It is cut off from the service as well."""
    with scene.offices["berlin"].cut("ep0"):
        seconds = scene.elsewhere()
        told(f"new flows go elsewhere {seconds:.2f} s after an endpoint is gone silently")
        assert seconds < ELSEWHERE_MAX
        scene.wait_preferred("paris")
    scene.wait_preferred("berlin", "paris")
    scene.wait_who(TARGET_ADDRESS, "berlin")
