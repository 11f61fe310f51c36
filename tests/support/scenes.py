"""Fixtures that tests/system and tests/network share: real processes, on three hosts with their own network.

With `--hosts=booted`, gateway and endpoint are hosts that boot systemd and have the package installed:
each daemon is its hardened unit, on the Python of its release. With `--hosts=namespaces`, the default,
they are plain network namespaces, and daemons run in the foreground, from the checkout.

tests/conftest.py loads this file as a plugin, so that a process makes one site for both folders.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from support.hosts import why_no_namespaces
from support.tunnels import MakeTunnel, Site, Tunnel
from support.units import InstalledSite

_TESTS = Path(__file__).parent.parent

FOLDERS = {_TESTS / "system", _TESTS / "network", _TESTS / "long"}
"""The folders whose tests use these fixtures."""

BOOTED_TIMEOUT = 900
"""Seconds that a test has whose hosts boot and get the package, on a machine that does much else."""

NEED_NAMESPACES = {"make_site", "site", "make_tunnel", "lonely_host"}
"""The fixtures that make network namespaces."""


@pytest.fixture(scope="session")
def make_site(
    request: pytest.FixtureRequest, hosts_are: Literal["booted", "namespaces"]
) -> Callable[[], Site]:
    """A function that makes three hosts with target servers; the caller closes them."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    if hosts_are == "namespaces":
        return Site
    packages: dict[str, Path] = request.getfixturevalue("packages")
    return lambda: InstalledSite(packages)


@pytest.fixture(scope="session")
def site(make_site: Callable[[], Site]) -> Iterator[Site]:
    """The three hosts and the target servers, for the whole run."""
    site = make_site()
    yield site
    site.close()


@pytest.fixture(scope="session")
def shared_tunnel(site: Site) -> Iterator[Tunnel]:
    """A tunnel that many tests share one after another; it has to survive them all."""
    tunnel = site.tunnel()
    try:
        tunnel.start()
    except BaseException:
        for daemon in tunnel.daemons:
            daemon.kill()
        raise
    yield tunnel
    tunnel.stop()


@pytest.fixture
def tunnel(
    shared_tunnel: Tunnel, request: pytest.FixtureRequest, report_logs: Callable[[Tunnel], None]
) -> Iterator[Tunnel]:
    """The shared tunnel; its processes must be the same and without a traceback after the test."""
    before = [d.workers() for d in shared_tunnel.daemons]
    report_logs(shared_tunnel)
    yield shared_tunnel
    assert [d.workers() for d in shared_tunnel.daemons] == before
    for daemon in shared_tunnel.daemons:
        daemon.assert_clean()


@pytest.fixture
def make_tunnel(
    request: pytest.FixtureRequest, report_logs: Callable[[Tunnel], None]
) -> Iterator[MakeTunnel]:
    """A function that makes tunnels for this test alone; at the end each is stopped and checked."""
    made: list[Tunnel] = []
    sites = contextlib.ExitStack()

    def make(
        gateway: Mapping[str, Any] | None = None,
        endpoint: Mapping[str, Any] | None = None,
        *,
        start: bool = True,
        own_network: bool = False,
        foreground: bool = False,
    ) -> Tunnel:
        if own_network:
            chosen: Site = request.getfixturevalue("make_site")()
            sites.callback(chosen.close)
        else:
            chosen = request.getfixturevalue("site")
        tunnel = chosen.tunnel(gateway, endpoint, foreground=foreground)
        made.append(tunnel)
        report_logs(tunnel)
        if start:
            tunnel.start()
        return tunnel

    yield make
    with sites:
        for tunnel in reversed(made):
            sites.callback(tunnel.stop)


@pytest.fixture
def report_logs(request: pytest.FixtureRequest) -> Iterator[Callable[[Tunnel], None]]:
    """A function that takes a tunnel, whose logs are shown with the report if the test fails."""
    tunnels: list[Tunnel] = []
    yield tunnels.append
    report = request.node.stash.get(FAILED, None)
    if report:
        for tunnel in tunnels:
            print(tunnel.logs())


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers for `report_logs` whether a phase of the test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests that need namespaces, by the fixtures that they use.

    Where hosts boot, each test has time for it: any may be the first that wants the hosts.
    """
    booted = config.getoption("--hosts") == "booted"
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if FOLDERS & set(item.path.parents) and fixtures & NEED_NAMESPACES:
            item.add_marker("netns")
            own = item.get_closest_marker("timeout")
            if booted and (own is None or own.args[0] < BOOTED_TIMEOUT):
                item.add_marker(pytest.mark.timeout(BOOTED_TIMEOUT), append=False)
