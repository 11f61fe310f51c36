"""What integration tests share."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from integration.link_pair import Site
from integration.links_world import World
from socks_tunnel.peer import quiet_loop_exceptions
from socks_tunnel.supervisor import dialler


@pytest.fixture(params=["plain", "fast"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on unmodified aiortc and on the fast path."""
    monkeypatch.setattr(Site, "kind", request.param)
    return str(request.param)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Endpoints and gateways without workers, which end with the test."""
    quiet_loop_exceptions(asyncio.get_running_loop())
    made = World(tmp_path)
    yield made
    for side in made.sides:
        await side.manager.stop("the test is over")


@pytest.fixture
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways that have lost their link wait hardly at all before the first attempt."""
    monkeypatch.setattr(dialler, "FIRST_DELAY", 0.05)
