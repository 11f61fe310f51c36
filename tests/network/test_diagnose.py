"""`diagnose` where it takes two hosts: keys, candidates, UDP, STUN, TURN; and the support bundle."""

import contextlib
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.corporate import need
from support.hosts import ENDPOINT_ADDRESS, GATEWAY_ADDRESS
from support.processes import SOCKS_TUNNEL, wait_until
from support.tunnels import MakeTunnel, Tunnel, write_key

Findings = list[dict[str, str]]


def diagnose(tunnel: Tunnel, role: str, *options: str | Path) -> tuple[int, Findings]:
    """Runs the command on one side's host."""
    hosts = tunnel.site.hosts
    host = hosts.gateway if role == "gateway" else hosts.endpoint
    done = subprocess.run(
        host.command(SOCKS_TUNNEL, "diagnose", "--json", *options),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tunnel.directory)},
    )
    assert done.stdout.startswith("["), done.stderr
    return done.returncode, json.loads(done.stdout)


def about(findings: Findings, words: str) -> Findings:
    return [found for found in findings if words in found["about"]]


def trial(tunnel: Tunnel, seconds: int = 60) -> tuple[int, Findings]:
    """Lets the gateway be tried, which does not run."""
    config = tunnel.write("gateway")
    return diagnose(tunnel, "gateway", "--config", config, "--timeout", str(seconds))


def test_a_link_that_works(make_tunnel: MakeTunnel) -> None:
    only_ipv4 = {"ice": {"addresses": [GATEWAY_ADDRESS]}}
    tunnel = make_tunnel(only_ipv4, start=False, foreground=True)
    tunnel.start_endpoint()
    status, findings = trial(tunnel)
    assert status == 0, findings
    [link] = about(findings, "link office")
    assert link["level"] == "ok"
    assert f"up over {GATEWAY_ADDRESS} port " in link["sentence"]
    assert "nothing that changes addresses is in between" in link["sentence"]
    ours, theirs = link["sentence"].split("Our candidates: ")[1].split("; the peer's: ")
    assert f"host {GATEWAY_ADDRESS} port " in ours
    assert f"host {ENDPOINT_ADDRESS} port " in theirs


def test_keys_that_do_not_match(make_tunnel: MakeTunnel) -> None:
    """The gateway learns that it is refused; the endpoint knows why."""
    tunnel = make_tunnel(start=False, foreground=True)
    stranger = write_key(tunnel.directory / "stranger.key")
    tunnel.write("endpoint", {"peers": [{"name": "laptop-17", "public_key": stranger}]})
    tunnel.start_endpoint()
    status, findings = trial(tunnel)
    assert status == 1
    refused = about(findings, "offer refused")
    assert "Compare the public keys" in refused[0]["advice"]
    control = tunnel.endpoint.runtime_directory / "control.sock"
    _, findings = diagnose(tunnel, "endpoint", "--socket", control)
    found = about(findings, "wrong key")
    assert found
    assert "no configured peer has the public key" in found[0]["sentence"]
    assert "`socks-tunnel pubkey`" in found[0]["advice"]


def test_no_common_candidate(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(
        {"ice": {"addresses": [GATEWAY_ADDRESS]}},
        {"ice": {"addresses": ["fd77::2"]}},
        start=False,
        foreground=True,
    )
    tunnel.start_endpoint()
    status, findings = trial(tunnel)
    assert status == 1
    assert "ice.addresses" in about(findings, "offer refused")[0]["advice"]
    control = tunnel.endpoint.runtime_directory / "control.sock"
    _, findings = diagnose(tunnel, "endpoint", "--socket", control)
    found = about(findings, "no common candidate")
    assert found, findings
    assert "one side has only IPv4 addresses, the other only IPv6" in found[0]["sentence"]


def test_udp_that_is_blocked(make_tunnel: MakeTunnel) -> None:
    stun = f"stun:{ENDPOINT_ADDRESS}:3478"
    tunnel = make_tunnel(
        {"ice": {"servers": [{"urls": [stun]}]}}, start=False, own_network=True, foreground=True
    )
    tunnel.site.hosts.endpoint.run(
        "nft",
        "add table inet wall; add chain inet wall in { type filter hook input priority 0; }; "
        "add rule inet wall in iifname ep0 meta l4proto udp drop",
    )
    tunnel.start_endpoint()
    # It ends with the first attempt that has failed, or after these seconds in the middle of one.
    status, findings = trial(tunnel, 60)
    assert status == 1
    blocked = about(findings, "UDP blocked")
    assert blocked[0]["about"] == "ICE: UDP blocked"
    assert stun in blocked[0]["sentence"]
    [link] = about(blocked, "link")
    assert "no ICE candidate pair has answered" in link["sentence"]
    assert "TURN server in [ice]" in link["advice"]


@contextlib.contextmanager
def turn_server(tunnel: Tunnel) -> Iterator[str]:
    """coturn on the endpoint's host, with the user alice."""
    folder = tunnel.directory
    config = folder / "turn.conf"
    config.write_text(
        f"listening-ip={ENDPOINT_ADDRESS}\nlistening-port=3478\nlt-cred-mech\nuser=alice:right\n"
        f"realm=example.net\nno-cli\nno-dtls\nno-tls\nlog-file=stdout\nsimple-log\n"
        f"pidfile={folder}/turn.pid\nuserdb={folder}/turn.db\n"
    )
    host = tunnel.site.hosts.endpoint
    server = host.start(
        need("turnserver"), "-c", config, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: ":3478" in host.run("ss", "-lun").stdout, "coturn")
        yield f"turn:{ENDPOINT_ADDRESS}:3478"
    finally:
        server.terminate()
        server.wait()


def test_a_turn_server_that_refuses_the_credential(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(start=False, foreground=True)
    with turn_server(tunnel) as url:

        def asked(credential: str) -> Findings:
            servers = [{"urls": [url], "username": "alice", "credential": credential}]
            config = tunnel.write("gateway", {"ice": {"servers": servers}})
            _, findings = diagnose(tunnel, "gateway", "--config", config, "--timeout", "0")
            return about(findings, "ICE")

        def found(credential: str, about_it: str) -> dict[str, str]:
            """What is said once the server has answered in time, for which it may be too busy."""
            return wait_until(
                lambda: next((f for f in asked(credential) if about_it in f["sentence"]), None),
                f"{about_it!r} of the TURN server",
            )

        wrong = found("wrong", "(401)")
        assert wrong["about"] == "ICE: TURN credentials"
        assert "it refuses the user name 'alice' or the credential (401)" in wrong["sentence"]
        assert "Correct username and credential" in wrong["advice"]
        right = found("right", "answers.")
        assert (right["level"], right["sentence"]) == (
            "ok",
            f"the TURN server {url}?transport=udp answers.",
        )


SECRETS = {
    "credential": "the-TURN-credential",
    "proxy": "the-proxy-password",
    "peer": "the-peer-proxy-p%40ssword",
    "login": "the-login-password",
}


def test_a_support_bundle_has_no_secret(make_tunnel: MakeTunnel) -> None:
    server = {"urls": ["turn:192.0.2.1"], "username": "alice", "credential": SECRETS["credential"]}
    ice = {"servers": [server], "proxy": f"http://user:{SECRETS['proxy']}@192.0.2.3:3128"}
    tunnel = make_tunnel(
        {"ice": ice, "socks": {"users_file": "users"}}, start=False, foreground=True
    )
    peer: dict[str, Any] = tunnel.gateway_settings["peers"][0]
    peer["proxy"] = f"http://user:{SECRETS['peer']}@192.0.2.3:3128"
    passwd = [SOCKS_TUNNEL, "passwd", "bob", "--password", SECRETS["login"]]
    line = subprocess.run(passwd, capture_output=True, text=True, check=True).stdout
    tunnel.homes["gateway"].put("users", line)
    tunnel.start_gateway()
    bundle = tunnel.directory / "bundle.tar.gz"
    control = tunnel.gateway.runtime_directory / "control.sock"
    status, findings = diagnose(tunnel, "gateway", "--socket", control, "--bundle", bundle)
    assert status == 1, findings
    [whole] = [found for found in findings if found["about"] == "instance"]
    assert whole["level"] == "warning"
    assert whole["sentence"].endswith("with 0 flows, and serves no new flow: no link is up.")
    assert tunnel.gateway.control("status")["reason"] == "no link is up"
    # Its directories are those that it has, and not those that an instance of this name would get.
    assert not [found for found in about(findings, "disk") if found["level"] == "problem"]
    assert bundle.stat().st_mode & 0o777 == 0o600
    files = contents(bundle)
    assert {"diagnose.txt", "config.json", "instance.json", "host.txt", "journal.log"} <= set(files)
    key = (tunnel.directory / "gateway.key").read_text().splitlines()[1]
    hidden = [*SECRETS.values(), "the-peer-proxy-p@ssword", line.strip().split(":", 1)[1], key]
    for name, text in files.items():
        for secret in hidden:
            assert secret not in text, (name, secret)
    config = json.loads(files["config.json"])
    assert config["ice"]["servers"][0]["credential"] == "[secret]"
    assert config["ice"]["proxy"] == "http://[secret]@192.0.2.3:3128"
    assert config["users"] == "1 users"
    assert "192.0.2.3" in files["config.json"]
    assert json.loads(files["instance.json"])["instance"] == "gateway"
    assert "PROBLEM" in files["diagnose.txt"]
    # What is there is not overwritten.
    again = tunnel.site.gateway.run(
        SOCKS_TUNNEL, "diagnose", "--socket", control, "--bundle", bundle, check=False
    )
    assert again.returncode == 73
    assert "File exists" in again.stderr


def contents(bundle: Path) -> Mapping[str, str]:
    with tarfile.open(bundle) as archive:
        found = {}
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            found[member.name.partition("/")[2]] = stream.read().decode()
        return found
