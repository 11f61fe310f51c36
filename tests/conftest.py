"""Options and fixtures that hold for all tests."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import HealthCheck, settings

from support.installed import SUITES, build_packages
from support.machines import tool, why_no_boot

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


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The package of each release, built from this checkout."""
    if reason := why_no_boot():
        pytest.skip(reason)
    if given := os.environ.get("SOCKS_TUNNEL_PACKAGES"):  # while working on these tests
        numbers = dict(zip(SUITES, ("12", "13"), strict=True))
        return {s: next(Path(given).glob(f"*~deb{numbers[s]}u1_amd64.deb")) for s in SUITES}
    with ThreadPoolExecutor() as pool:
        # Where roots are not in the cache, most of the time goes into waiting for downloads.
        roots = [*(("root", suite, "run") for suite in SUITES), ("root", "trixie", "lint")]
        made = pool.map(lambda command: tool(*command), roots)
        built = build_packages(tmp_path_factory.mktemp("packages"))
        list(made)
    return built
