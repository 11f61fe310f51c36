"""Fixtures of the packaging tests: further packages, and booted hosts that have them installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import audit_records
from support.installed import Scene
from support.workshop import Workshop


@pytest.fixture(scope="session")
def quality(workshop: Workshop) -> Workshop:
    """The workshop, for what it does only if some test asks for this fixture."""
    return workshop


@pytest.fixture(scope="session")
def rebuilt_packages(quality: Workshop) -> dict[str, Path]:
    """The packages, built a second time."""
    return quality.rebuilt.result()


@pytest.fixture(scope="session")
def previous_packages(workshop: Workshop) -> dict[str, Path]:
    """The packages under an earlier version number, as what a host has that is to be upgraded."""
    return workshop.previous.result()


@pytest.fixture(
    scope="session",
    params=[("bookworm", "trixie"), ("trixie", "bookworm")],
    ids=["gateway-deb12-endpoint-deb13", "gateway-deb13-endpoint-deb12"],
)
def scene(request: pytest.FixtureRequest, previous_packages: dict[str, Path]) -> Iterator[Scene]:
    """Two hosts that run the previous version; the last test of test_service.py removes it."""
    scene = Scene(*request.param)
    try:
        scene.prepare(previous_packages)
        for host in scene.both:
            host.systemctl("start")
        scene.wait_works()
        yield scene
        for host in scene.both:
            audit_records.check(host.machine.journal())
    finally:
        scene.close()
