"""Options and fixtures that hold for all tests."""

import os
import tempfile
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import HealthCheck, settings

from support.machines import why_no_boot
from support.workshop import Workshop, given_packages

# No deadlines: the machine that runs the tests may be busy with something else.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

Hosts = Literal["booted", "namespaces"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the hosts of the system tests are."""
    parser.addoption(
        "--hosts",
        choices=get_args(Hosts),
        help="system tests: hosts that boot systemd with the package installed (the default where "
        "this machine can boot them), or network namespaces with daemons from the checkout",
    )


def chosen_hosts(config: pytest.Config) -> tuple[Hosts, str]:
    """What the hosts of the system tests are, and why."""
    if given := config.getoption("--hosts"):
        return given, "as asked for"
    reason = why_no_boot()
    return ("namespaces", f"cannot boot any: {reason}") if reason else ("booted", "the default")


def pytest_report_header(config: pytest.Config) -> str:
    """Say it."""
    hosts, why = chosen_hosts(config)
    return f"hosts of the system tests: {hosts} ({why})"


@pytest.fixture(scope="session")
def hosts_are(pytestconfig: pytest.Config) -> Hosts:
    """What the hosts of the system tests are."""
    return chosen_hosts(pytestconfig)[0]


# --- the packages -----------------------------------------------------------------------------

_workshop = pytest.StashKey[Workshop]()

BUILD_TIMEOUT = 1500
"""Seconds; on a machine that has made no root yet, most of the time goes into downloads."""


def needs_packages(item: pytest.Item) -> bool:
    """Whether a test needs the packages, or the system tests' hosts with the packages on them."""
    names = _fixtures(item)
    return bool(names & {"packages", "workshop"}) or (
        "make_site" in names and chosen_hosts(item.config)[0] == "booted"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test that waits for the packages the time for that."""
    first = next(filter(needs_packages, items), None)
    if first is not None:
        first.add_marker(pytest.mark.timeout(BUILD_TIMEOUT), append=False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build the packages while tests run that do not need them."""
    config = session.config
    if config.option.collectonly or why_no_boot():
        return
    if any(map(needs_packages, session.items)):
        output = tempfile.TemporaryDirectory(prefix="socks-tunnel-packages-")
        given = os.environ.get("SOCKS_TUNNEL_PACKAGES")  # while working on these tests
        workshop = Workshop(
            Path(output.name),
            given_packages(Path(given)) if given else None,
            quality=any("quality" in _fixtures(item) for item in session.items),
        )
        config.stash[_workshop] = workshop
        config.add_cleanup(output.cleanup)
        config.add_cleanup(workshop.close)


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def workshop(pytestconfig: pytest.Config) -> Workshop:
    """Where the packages are made, and all that is made of them."""
    if reason := why_no_boot():
        pytest.skip(reason)
    return pytestconfig.stash[_workshop]


@pytest.fixture(scope="session")
def packages(pytestconfig: pytest.Config) -> dict[str, Path]:
    """The package of each release, built from this checkout."""
    if reason := why_no_boot():
        pytest.skip(reason)
    return pytestconfig.stash[_workshop].packages.result()
