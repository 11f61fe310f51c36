"""One tunnel into the office for all protocols; it has to survive them all."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.corporate import OTHER_ADDRESS, Corporate, corporate_tunnel
from support.tunnels import Site, Tunnel


@pytest.fixture(scope="session")
def office_site(site: Site) -> Site:
    """The three hosts, with a second address on the target's.

    On an interface of its own: dnsmasq serves port 53 on every address of the usual one.
    """
    target = site.hosts.target
    target.run("ip", "link", "add", "office0", "type", "veth", "peer", "name", "office1")
    target.run("ip", "address", "add", f"{OTHER_ADDRESS}/32", "dev", "office0")
    target.run("ip", "link", "set", "office0", "up")
    return site


@pytest.fixture(scope="session")
def shared_corporate(office_site: Site) -> Iterator[Corporate]:
    """The tunnel that the tests share one after another."""
    with corporate_tunnel(office_site) as tunnel:
        yield tunnel


@pytest.fixture
def corporate(
    shared_corporate: Corporate, report_logs: Callable[[Tunnel], None]
) -> Iterator[Corporate]:
    """The shared tunnel; its processes must be the same and without a traceback after the test."""
    before = [d.workers() for d in shared_corporate.daemons]
    report_logs(shared_corporate)
    yield shared_corporate
    assert [d.workers() for d in shared_corporate.daemons] == before
    for daemon in shared_corporate.daemons:
        daemon.assert_clean()


@pytest.fixture(scope="module")
def folder(shared_corporate: Corporate, request: pytest.FixtureRequest) -> Path:
    """A directory for the servers and clients of one module."""
    return shared_corporate.folder(request.path.stem.removeprefix("test_"))
