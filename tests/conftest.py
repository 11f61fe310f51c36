"""Options and fixtures that hold for all tests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from hypothesis import HealthCheck, settings

from support import audit_records, groups
from support.machines import why_no_boot
from support.workshop import Workshop, given_packages

pytest_plugins = ["support.scenes", "support.figures", "support.leftovers"]

# Hypothesis: `fast` in every test run, `deep` for `make fuzz`.
# No deadlines: how long an example takes says more about the machine than about the code.
settings.register_profile(
    "fast",
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    # The same examples in each run, so that a failure is the change's; `deep` looks for new ones.
    derandomize=True,
    print_blob=True,
)
settings.register_profile(
    "deep",
    max_examples=5_000,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

Hosts = Literal["booted", "namespaces"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that says what the hosts of the system tests are."""
    parser.addoption(
        "--hosts",
        choices=get_args(Hosts),
        default="namespaces",
        help="system and network tests: network namespaces with daemons from the checkout (the default), or hosts "
        "that boot systemd with the package installed",
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Says it."""
    return f"hosts of the system tests: {config.getoption('--hosts')}"


@pytest.fixture(scope="session")
def hosts_are(pytestconfig: pytest.Config) -> Hosts:
    """What the hosts of the system tests are."""
    hosts: Hosts = pytestconfig.getoption("--hosts")
    return hosts


@pytest.fixture(autouse=True)
def audited() -> Iterator[None]:
    """Fails a test in whose process an audit record does not fit the schema.

    Records of other processes are looked at where their log is read.
    """
    audit_records.validator()  # read and compiled before a test forbids that
    with audit_records.judged():
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> groups.GroupScheduling:
    """Keeps the tests together that have to run one after another in one process."""
    return groups.GroupScheduling(config, log)


# --- the packages -----------------------------------------------------------------------------

_output = pytest.StashKey[Path]()
_workshop = pytest.StashKey[Workshop]()


def needs_packages(item: pytest.Item) -> bool:
    """Whether a test needs the packages, or the system tests' hosts with the packages on them."""
    names = _fixtures(item)
    # `make_tunnel` asks for the fixture `make_site` only when it is called.
    return bool(names & {"packages", "workshop"}) or (
        bool(names & {"make_site", "make_tunnel"}) and item.config.getoption("--hosts") == "booted"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the folder for the packages, which the processes of one run share."""
    if hasattr(config, "workerinput"):
        config.stash[_output] = Path(config.workerinput["workshop"])
        return
    output = tempfile.TemporaryDirectory(prefix="socks-tunnel-packages-")
    config.add_cleanup(output.cleanup)
    config.stash[_output] = Path(output.name)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a process of pytest-xdist where the folder for the packages is."""
    node.workerinput["workshop"] = str(node.config.stash[_output])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins to build the packages while tests run that do not need them."""
    config = session.config
    if config.option.collectonly or not any(map(needs_packages, session.items)) or why_no_boot():
        return
    given = os.environ.get("SOCKS_TUNNEL_PACKAGES")  # while working on these tests
    workshop = Workshop(
        config.stash[_output],
        given_packages(Path(given)) if given else None,
        quality=any("quality" in _fixtures(item) for item in session.items),
    )
    config.stash[_workshop] = workshop
    config.add_cleanup(workshop.close)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-timeout starts its clock
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Waits for the packages outside the time that a test has."""
    workshop = item.config.stash.get(_workshop, None)
    if workshop is not None and needs_packages(item):
        workshop.packages.exception()  # raised by the fixture, in the name of the test
    return (yield)


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
