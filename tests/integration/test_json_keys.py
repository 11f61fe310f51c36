"""Each key that a command prints as JSON is in a table of docs/operations.md, and each of these is printed."""

import inspect
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from socks_tunnel.cli import cli
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor.arrival import taken_over
from socks_tunnel.supervisor.binding import Bound
from socks_tunnel.supervisor.enroller import OPERATIONS, Enroller
from socks_tunnel.supervisor.handover import Legacy
from socks_tunnel.supervisor.instance import Instance
from support.configs import checked
from support.enrolling import Place, reply_of
from support.processes import toml, wait_until
from support.structure import ROOT

PAGE = ROOT / "docs/operations.md"

KEY = re.compile(r"`(\w+)`")


def documented() -> dict[str, set[str]]:
    """The keys that the section on JSON names, by the heading of their table."""
    text = PAGE.read_text("utf-8").partition("\n### JSON\n")[2].partition("\n### ")[0]
    tables: dict[str, set[str]] = {}
    for part in text.split("\n#### ")[1:]:
        heading, _, body = part.partition("\n")
        rows = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
        tables[heading.replace("`", "")] = {key for row in rows for key in KEY.findall(row)}
    return tables


def keys(*rows: Mapping[str, Any]) -> set[str]:
    assert rows
    return {key for row in rows for key in row}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        made.begin(rendezvous=False)
        yield made
    finally:
        made.close()


def ask(socket: Path, *command: str) -> Any:
    done = CliRunner().invoke(cli, [*command, "--json", "--socket", str(socket)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return json.loads(done.stdout)


def rows_of(socket: Path, *command: str) -> Any:
    """What is printed once there is something: a worker may be too busy to answer in time."""
    return wait_until(lambda: ask(socket, *command), f"rows of {command[0]}")


async def group_rows(directory: Path) -> list[dict[str, Any]]:
    """What `peers` says of the list of a group, at its owner and at another endpoint."""
    keys_of = {name: PrivateIdentity.generate() for name in ("a", "b")}
    config = checked(
        {
            "role": "endpoint",
            "source": str(directory / "endpoint.toml"),
            "identity": {"private_key_file": "key"},
            "signaling": {"rendezvous": "wss://rendezvous.example/"},
            "join": {
                "group": {
                    "name": "offices",
                    "owner": "a",
                    "endpoints": [
                        {"name": name, "public_key": key.public_text}
                        for name, key in keys_of.items()
                    ],
                }
            },
        },
        directory,
    )
    rows = []
    for name, identity in keys_of.items():
        (directory / name).mkdir()
        enroller = Enroller(directory / name, identity, config, nothing, Metrics())
        rows.append((await enroller.answer({"op": "peers"}))["list"])
    return rows


async def nothing() -> None:
    """Makes no change hold."""


def status_tables(answer: dict[str, Any]) -> dict[str, set[str]]:
    tables = {"status": keys(answer), "status: counters": keys(answer["counters"])}
    for name in ("links", "workers", "routes"):
        if rows := answer.get(name):
            tables[f"status: each of {name}"] = keys(*rows)
    if answer["upgrade"] is not None:
        tables["status: upgrade"] = keys(answer["upgrade"])
    return tables


def test_what_commands_print_is_what_the_page_names(place: Place) -> None:
    place.join(place.invite("--tag", "staff"))
    config = place.directory / "gateway.toml"
    route = {"hosts": ["*"], "ports": "*", "peers": ["endpoint"]}
    config.write_text(f"{config.read_text()}\n{toml({'routes': [route]})}")
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    control = gateway.runtime_directory / "control.sock"
    endpoint = place.endpoint.runtime_directory / "control.sock"
    tables: dict[str, set[str]] = {}

    def found(more: Mapping[str, set[str]]) -> None:
        for name, names in more.items():
            tables.setdefault(name, set()).update(names)

    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    assert reply == 0
    with sock:
        for each in (control, endpoint):
            found(status_tables(ask(each, "status")))
            found({"connections: each row": keys(*rows_of(each, "connections"))})
        narrow = place.directory / "narrow.toml"
        policies: dict[str, Any] = {"staff": {"allowed_hosts": [], "allowed_ports": []}}
        narrow.write_text(toml({**place.settings, "policies": policies}))
        old = str(place.directory / "endpoint.toml")
        changes = rows_of(endpoint, "policy", "diff", old, str(narrow))
        found({"policy diff: each row": keys(*changes)})
        assert keys(changes[0]["before"], changes[0]["after"]) == {"verdict", "rule"}
    found({"peers: each of peers": keys(*ask(endpoint, "peers")["peers"])})
    place.command("peers", "--socket", str(endpoint), "revoke", "laptop")
    answer = ask(endpoint, "peers")
    found({"peers": keys(answer) | {"list"}})  # which is that of a group
    for name in ("invitations", "revoked"):
        found({f"peers: each of {name}": keys(*answer[name])})
    place.endpoint.stop()
    gateway.wait_log("link endpoint is down")
    wait_until(lambda: "reason" in ask(control, "status"), "no flow can be served")
    found(status_tables(ask(control, "status")))
    assert tables == {name: names for name, names in documented().items() if name in tables}
    assert documented().keys() - tables.keys() == {
        "status: upgrade", "peers: list", "diagnose: each row"
    }  # fmt: skip


async def test_the_list_of_a_group(tmp_path: Path) -> None:
    owner, other = await group_rows(tmp_path)
    named = documented()["peers: list"]
    assert (keys(owner), keys(other)) == (named - {"heard", "problem"}, named - {"behind"})
    assert "list" in documented()["peers"]


def test_an_upgrade() -> None:
    legacy = Legacy(
        program="0.0.9",
        since=time.monotonic(),
        started_at=time.monotonic(),
        upgrades=0,
        lock=-1,
        control=None,
        bound=Bound(None, []),
        worker_count=1,
        workers={},
        links={},
    )
    assert keys(taken_over(legacy)) == documented()["status: upgrade"]


def test_a_diagnosis(tmp_path: Path) -> None:
    config = str(tmp_path / "nothing.toml")
    done = CliRunner().invoke(cli, ["diagnose", "--config", config, "--timeout", "0", "--json"])
    assert keys(*json.loads(done.stdout)) == documented()["diagnose: each row"]


def test_requests_on_the_control_socket() -> None:
    text = " ".join(PAGE.read_text("utf-8").split())
    sentence = text.partition("The ops are ")[2].partition(". ")[0]
    answered = re.findall(r'case "(\w+)":', inspect.getsource(Instance._answer))
    assert set(KEY.findall(sentence)) == {*answered, *OPERATIONS}
