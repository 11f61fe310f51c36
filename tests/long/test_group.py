"""Two endpoints with one list of members, and a gateway that has joined once: real processes."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.supervisor import control_client
from support.enrolling import Place, free_port, reply_of
from support.processes import Daemon, Targets, toml, wait_until


class Group(Place):
    """The service, the owner of the list, and an endpoint with a copy."""

    def begin_group(self) -> None:
        port = free_port()
        self.url = f"ws://127.0.0.1:{port}/"
        keys = {name: self.key(name) for name in ("a", "b")}
        named = [{"name": name, "public_key": key.public_text} for name, key in keys.items()]
        self.texts = {name: key.public_text for name, key in keys.items()}
        settings = {"listen": f"127.0.0.1:{port}", "clients": "enrolled", "keys": named}
        (self.directory / "rendezvous.toml").write_text(toml(settings))
        self.begin_service()
        for name in keys:
            table = {
                "role": "endpoint",
                "identity": {"private_key_file": f"{name}.key"},
                "signaling": {"rendezvous": self.url},
                "policies": {"staff": {"allowed_hosts": ["127.0.0.1"], "allowed_ports": ["*"]}},
                "ice": {"addresses": ["127.0.0.1"]},
                "workers": {"count": 1},
                "metrics": {"listen": ""},
                "audit": {"file": str(self.directory / f"{name}.audit")},
                "join": {"group": {"name": "offices", "owner": "a", "endpoints": named}},
            }
            (self.directory / f"{name}.toml").write_text(toml(table))
        self.endpoint = self.start("a")

    def control(self, daemon: Daemon, **request: str) -> dict[str, object]:
        path = daemon.runtime_directory / "control.sock"
        answer = control_client.request(path, request)
        assert answer["ok"], answer
        result: dict[str, object] = answer["result"]
        return result


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path)
    try:
        made.begin_group()
        yield made
    finally:
        made.close()


def test_a_host_that_the_owner_revokes_loses_its_link_to_the_other_endpoint(group: Group) -> None:
    group.join(group.invite("--tag", "staff"))
    b = group.start("b")
    b.wait_log(r"list of version \S+ from a: 1 members")
    config = group.directory / "gateway.toml"
    config.write_text(config.read_text().replace(group.texts["a"], group.texts["b"]))
    gateway, proxy = group.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, group.targets.ports["echo"])
    with sock:
        assert reply == 0
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        began = time.monotonic()
        result = group.control(group.endpoint, op="revoke", name="laptop")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    print(f"revoked at a, a flow through b ended within {time.monotonic() - began:.2f} s")
    assert result["revoked"] == "laptop"
    gateway.wait_log("it does not know this host's key")
    assert "laptop" in str(group.control(b, op="peers")["revoked"])

    def ended() -> list[str]:
        lines = (group.directory / "b.audit").read_text().splitlines()
        return [line for line in lines if json.loads(line)["message"] == "flow ended"]

    wait_until(ended, "the end of the flow in the audit log")


def test_a_host_that_its_endpoint_revokes_loses_its_flow(group: Group) -> None:
    group.join(group.invite("--tag", "staff"))
    gateway, proxy = group.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, group.targets.ports["echo"])
    with sock, ThreadPoolExecutor(1) as pool:
        assert reply == 0
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        began = time.monotonic()
        # Its answer waits for the other endpoint, which does not run.
        revoking = pool.submit(group.control, group.endpoint, op="revoke", name="laptop")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        print(f"revoked, a flow ended within {time.monotonic() - began:.2f} s")
        assert revoking.result() == {"revoked": "laptop", "not_told": ["b"]}


SECOND = """
[[peers]]
name = "b"
public_key = "{key}"
rendezvous = "{url}"
enrolment_file = "gateway.enrolment"

[[routes]]
hosts = ["*"]
ports = [{port}]
peers = ["b"]

[[routes]]
hosts = ["*"]
ports = "*"
peers = ["endpoint"]
"""


def test_another_key_is_good_at_all_endpoints_and_ends_no_link(group: Group) -> None:
    group.join(group.invite("--tag", "staff"))
    b = group.start("b")
    b.wait_log(r"list of version \S+ from a: 1 members")
    config, others = group.directory / "gateway.toml", Targets()
    ports = [group.targets.ports["echo"], others.ports["echo"]]
    second = SECOND.format(key=group.texts["b"], url=group.url, port=ports[1])
    config.write_text(config.read_text() + second)
    gateway, proxy = group.start_gateway()
    gateway.wait_log("link endpoint is up")
    gateway.wait_log("link b is up")
    with contextlib.ExitStack() as stack:
        stack.callback(others.stop)
        flows = []
        for port in ports:
            sock, reply = reply_of(proxy, port)
            flows.append(stack.enter_context(sock))
            assert reply == 0
        began = time.monotonic()
        group.command("join", group.url, "--renew", "--config", str(config))

        def are_both_at_b() -> bool:
            rows: Any = group.control(b, op="peers")["peers"]
            return len(rows[0]["public_keys"]) == 2

        wait_until(are_both_at_b, "both keys at b")
        print(f"another key, made at a, was good at b after {time.monotonic() - began:.2f} s")
        gateway.reload()
        gateway.wait_log("the private key has changed: the next links use the public key")
        for sock in flows:
            sock.sendall(b"both")
            assert sock.recv(4) == b"both", "the links go on"
        gateway.stop()
        again = group.start("gateway")
        again.wait_log("link endpoint is up")
        again.wait_log("link b is up")
        for port in ports:
            sock, reply = reply_of(proxy, port)
            stack.enter_context(sock)
            assert reply == 0, "by the new key"
