"""What the status page is told: counts and states, and no more than is allowed."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from integration.links_world import World
from socks_tunnel.ops.recent import RecentProblems
from socks_tunnel.protocol.ipc import Answer as IpcAnswer
from socks_tunnel.protocol.ipc import encode_control
from socks_tunnel.protocol.settings import RouteSettings
from socks_tunnel.supervisor import overview as module
from socks_tunnel.supervisor.listeners import Address
from socks_tunnel.supervisor.overview import overview


class Instance:
    """An endpoint without links, whose workers are not there."""

    state = "ready"
    upgrades = 0
    upgrade = None
    started_at = 0.0
    addresses: Sequence[Address] = ()
    metrics_address = None
    workers: Sequence[object] = ()

    def __init__(self, directory: Path, *, peers: int = 1, shown: bool = False) -> None:
        world = World(directory)
        names = [f"laptop-{number}" for number in range(peers)]
        side = world.side(
            "endpoint",
            "office",
            *names,
            metrics={"show_destinations": shown},
            policy={"allowed_hosts": "10.77.0.0/16\n*.secret.corp\n", "allowed_ports": [443]},
            policies={"guests": {"allowed_hosts": ["192.0.2.1"], "denied_ports": [22, 25]}},
            ice={
                "addresses": ["127.0.0.1"],
                "servers": [
                    {"urls": "turn:turn.corp:3478", "username": "u", "credential": "hush-hush"}
                ],
                "proxy": "http://user:pass-word@proxy.corp:3128",
            },
        )
        self.links = side.manager
        self.config = side.manager.config

    def why_not_ready(self) -> str | None:
        return "no link is up"


class Link:
    accepts = resumed = True
    doubted = False
    rtt = None


class View:
    """A session of the peers of a route, whose link works."""

    link = Link()
    transmits = True
    flows = 0

    def __init__(self, peer: str, number: int) -> None:
        self.peer = peer
        self.number = self.rank = number


async def test_counts_are_shown_and_rules_are_not(tmp_path: Path) -> None:
    told = await overview(Instance(tmp_path), RecentProblems())  # type: ignore[arg-type]
    assert told["role"] == "endpoint"
    assert told["reason"] == "no link is up"
    assert (told["peers"], told["links_up"], told["sessions"]) == (1, 0, 0)
    assert [link["state"] for link in told["links"]] == ["down"]
    assert told["flows"] is None
    assert told["policies"] == [
        {
            "name": "(default)",
            "peers": 1,
            "rules": {
                "allowed_hosts": 2,
                "allowed_ports": 1,
                "denied_hosts": 0,
                "denied_ports": 0,
            },
            "shown": None,
        },
        {
            "name": "guests",
            "peers": 0,
            "rules": {
                "allowed_hosts": 1,
                "allowed_ports": 0,
                "denied_hosts": 0,
                "denied_ports": 2,
            },
            "shown": None,
        },
    ]
    assert "secret.corp" not in str(told)


async def test_rules_and_flows_are_shown_if_it_is_allowed(tmp_path: Path) -> None:
    told = await overview(Instance(tmp_path, shown=True), RecentProblems())  # type: ignore[arg-type]
    assert told["flows"] == []
    assert told["policies"][0]["shown"]["allowed_hosts"] == ["10.77.0.0/16", "*.secret.corp"]
    assert told["policies"][0]["shown"]["allowed_ports"] == ["443"]


@pytest.mark.parametrize("shown", [False, True])
async def test_why_a_peer_is_passed_over_names_destinations_only_if_it_is_allowed(
    tmp_path: Path, shown: bool
) -> None:
    instance = Instance(tmp_path, shown=shown)
    problems = RecentProblems()
    logger = logging.getLogger("socks_tunnel.supervisor.choosing")
    logger.addHandler(problems)
    chooser = instance.links.router.chooser
    chooser.configure([RouteSettings("branch", peers=("a", "b"), failures=3, recover_after=10)])
    try:
        views = [View("a", 0), View("b", 1)]
        chooser.choose(views, 0.0)
        for host in ("one.secret.corp", "two.secret.corp", "three.secret.corp"):
            chooser.dial_failed("branch", "a", host, 1.0)
        chooser.choose(views, 1.1)
        told = await overview(instance, problems)  # type: ignore[arg-type]
    finally:
        logger.removeHandler(problems)
    assert [row["state"] for row in told["routes"]] == ["passed over", "preferred"]
    assert told["routes"][0]["cause"] == "dials"
    assert [row["level"] for row in told["problems"]] == ["warning"]
    assert ("one.secret.corp" in told["routes"][0]["why"]) == shown
    assert ("one.secret.corp" in told["problems"][0]["message"]) == shown
    assert shown or "secret.corp" not in str(told)


@pytest.mark.parametrize("shown", [False, True])
async def test_no_secret_is_in_it(tmp_path: Path, shown: bool) -> None:
    told = await overview(Instance(tmp_path, shown=shown), RecentProblems())  # type: ignore[arg-type]
    for secret in ("hush-hush", "pass-word", "turn.corp", "key"):
        assert secret not in str(told)


async def test_thousands_of_peers_are_counted_and_some_are_listed(tmp_path: Path) -> None:
    instance = Instance(tmp_path, peers=module.LINKS_SHOWN + 50)
    problems = RecentProblems()
    for number in range(50):
        record = logging.LogRecord("x", logging.ERROR, "", 1, "x" * 1000 + str(number), (), None)
        problems.emit(record)
    told = await overview(instance, problems)  # type: ignore[arg-type]
    assert told["peers"] == module.LINKS_SHOWN + 50
    assert len(told["links"]) == module.LINKS_SHOWN
    assert len(encode_control(0, IpcAnswer(1, [told], more=False))) < 100_000
