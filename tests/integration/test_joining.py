"""Hosts that join an endpoint: real processes and commands, by both carriers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.supervisor import control_client
from support.enrolling import Place, reply_of
from support.processes import toml, wait_until


@pytest.fixture(params=["direct", "rendezvous"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        made.begin(rendezvous=request.param == "rendezvous")
        yield made
    finally:
        made.close()


def test_from_an_invitation_to_a_flow_and_to_its_end(place: Place) -> None:
    token = place.invite("--tag", "staff")
    told = place.join(token)
    assert "joined as laptop with the tag staff" in told
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    with sock:
        assert reply == 0
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        rows = json.loads(place.ask_endpoint("peers", "--json"))
        (peer,) = rows["peers"]
        assert (peer["name"], peer["tag"], peer["until"]) == ("laptop", "staff", None)
        assert peer["seen"] is not None
        assert [each["uses_left"] for each in rows["invitations"]] == [0]

        control = place.endpoint.runtime_directory / "control.sock"
        place.command("peers", "--socket", str(control), "revoke", "laptop")
        with pytest.raises(ConnectionResetError):  # it was cut off, and has not ended in order
            sock.recv(1)
    (row,) = json.loads(place.ask_endpoint("peers", "--json"))["revoked"]
    assert row["name"] == "laptop"
    told = place.command("peers", "--socket", str(control), "forget", "laptop")
    assert f"forgotten: {row['public_key']}" in told
    place.endpoint.wait_log(r"the enrolment of laptop is revoked")
    gateway.wait_log("link endpoint is down")
    if place.url.startswith("ws"):
        gateway.wait_log("it does not know this host's key")
    else:
        gateway.wait_log(r"cannot reach endpoint: .* refused the offer")
    assert token not in place.endpoint.log_text() + gateway.log_text()


def test_another_key_for_a_host_that_has_joined(place: Place) -> None:
    place.join(place.invite("--tag", "staff"))
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    with sock:
        assert reply == 0
        before = (place.directory / "gateway.key").read_bytes()
        config = str(place.directory / "gateway.toml")
        told = place.command("join", place.url, "--renew", "--config", config)
        assert "the old one is good for a day" in told
        assert (place.directory / "gateway.key").read_bytes() != before
        (peer,) = json.loads(place.ask_endpoint("peers", "--json"))["peers"]
        assert len(peer["public_keys"]) == 2
        gateway.reload()
        gateway.wait_log("the private key has changed: the next links use the public key")
        sock.sendall(b"both")
        assert sock.recv(4) == b"both"
    place.command("check-config", config)
    gateway.stop()
    place.running.remove(gateway)
    again = place.start("gateway")
    again.wait_log(r"link endpoint is up[\s\S]*link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    sock.close()
    assert reply == 0


def test_what_is_refused_is_said(place: Place) -> None:
    assert "there is no [policies.guests]" in place.ask_endpoint(
        "invite", "--tag", "guests", status=1
    )
    wrong = place.join("st1_" + "A" * 74, status=2)
    assert "the token is damaged" in wrong
    token = place.invite()
    place.join(token, "first")
    assert "the invitation has been used up" in place.join(token, "second", status=1)
    assert (place.directory / "second.key").exists(), "another attempt uses the same key"
    assert not (place.directory / "second.toml").exists()
    (left,) = json.loads(place.ask_endpoint("peers", "--json"))["invitations"]
    control = str(place.endpoint.runtime_directory / "control.sock")
    place.command("peers", "--socket", control, "withdraw", left["invitation"])
    assert "refused" in place.join(token, "second", status=1)
    place.endpoint.wait_log("refused a request to join from .*: there is no such invitation")
    assert "is there already" in place.join(token, "first", status=73)
    refused = control_client.request(Path(control), {"op": "revoke", "name": "nobody"})
    assert refused == {"ok": False, "error": "no host of the name nobody has joined"}


def test_members_survive_a_restart_and_their_policy(place: Place) -> None:
    place.join(place.invite("--tag", "staff"))
    place.endpoint.stop()
    place.running.remove(place.endpoint)
    place.endpoint = place.start("endpoint")
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    with sock:
        assert reply == 0
        del place.settings["policies"]
        (place.directory / "endpoint.toml").write_text(toml(place.settings))
        place.endpoint.reload()
        place.endpoint.wait_log(
            r"the host laptop has joined, but its links are refused: there is no \[policies"
        )
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    wait_until(lambda: not place.endpoint.control("status")["links"], "no peers left")
