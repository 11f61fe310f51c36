"""What the old program does before the new one takes its place, with real links."""

from pathlib import Path

import pytest

from integration.links_world import Side, World, linked, until
from socks_tunnel.supervisor.binding import Bound
from socks_tunnel.supervisor.control import ControlServer
from socks_tunnel.supervisor.departure import depart
from socks_tunnel.supervisor.handover import Legacy
from socks_tunnel.supervisor.launching import Nursery


async def left(side: Side, directory: Path) -> Legacy:
    """Lets a host leave that has no workers: the fake one knows no hand-over."""

    async def no_request(_: object) -> None:
        raise AssertionError

    return await depart(
        workers=[],
        exporter=None,
        nursery=Nursery(),
        links=side.manager,
        router=side.router,
        control=ControlServer(directory / "control.sock", no_request),
        bound=Bound(None, []),
        lock=-1,
        started_at=1.0,
        upgrades=2,
    )


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_link_that_does_not_end_is_cut_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stuck: bool,
) -> None:
    world = World(tmp_path)
    try:
        laptop, office = await linked(world)
        (link,) = office.up
        with monkeypatch.context() as patched:
            if stuck:

                def fails(*_: object) -> None:
                    raise ZeroDivisionError("it cannot end")

                patched.setattr(link.link.protocol, "fail", fails)
            legacy = await left(office, tmp_path)
        assert office.up == []
        assert legacy.sessions == [], "a session without flows ends with its link"
        assert ("link laptop does not end; its session goes on without it" in caplog.text) == stuck
        if not stuck:
            await until(lambda: not laptop.up)
    finally:
        for side in world.sides:
            await side.manager.stop("the test is over")
