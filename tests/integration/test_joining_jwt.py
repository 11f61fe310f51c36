"""Hosts that join with tokens of an identity provider: real processes, commands, keys and HTTPS."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining_jwt import JoinAddress
from socks_tunnel.supervisor import control_client
from support.certificates import Authority
from support.enrolling import Place, reply_of
from support.identity_provider import JwksServer, Provider
from support.processes import SOCKS_TUNNEL, toml


class Company:
    """A provider with a web server, an endpoint that takes its tokens, and who joins it."""

    def __init__(self, directory: Path, *, rendezvous: bool, metrics: str = "") -> None:
        self.provider = Provider("RS256", "ES256")
        authority = Authority("Company Root")
        pem = directory / "sso.pem"
        pem.write_text(authority.issue("127.0.0.1").both)
        ca = directory / "sso-ca.pem"
        ca.write_text(authority.certificate)
        self.web = JwksServer(lambda: (200, self.provider.jwks()), pem)
        self.place = Place(directory)
        self.jwt: dict[str, Any] = {
            "issuer": self.provider.issuer,
            "audience": self.provider.audience,
            "jwks": self.web.url,
            "tls_ca": str(ca),
            "tag_claim": "realm_access.roles",
            "tags": {"vpn-staff": "staff"},
        }
        self.place.begin(rendezvous=rendezvous, join={"jwt": self.jwt})
        self.address = self.place.ask_endpoint("invite", "--jwt").strip()

    def join(self, token: str, name: str = "gateway", status: int = 0) -> str:
        config = self.place.directory / f"{name}.toml"
        more = ["--config", str(config), "--name", "laptop", "--timeout", "60"]
        ended = subprocess.run(
            [SOCKS_TUNNEL, "join", self.place.url, "--address", self.address, "--jwt", "-", *more],
            input=token + "\n",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == status, ended
        return ended.stdout if status == 0 else ended.stderr

    def members(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.place.ask_endpoint("peers", "--json"))["peers"]
        return rows

    def close(self) -> None:
        try:
            self.place.close()
        finally:
            self.web.close()


@pytest.fixture
def company(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Company]:
    made = Company(tmp_path, rendezvous=getattr(request, "param", False))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("company", [False, True], indirect=True, ids=["direct", "rendezvous"])
def test_from_a_token_to_a_flow(company: Company) -> None:
    token = company.provider.token("RS256")
    told = company.join(token)
    assert "joined as laptop with the tag staff" in told
    gateway, proxy = company.place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, company.place.targets.ports["echo"])
    with sock:
        assert reply == 0
    (member,) = company.members()
    assert (member["name"], member["tag"]) == ("laptop", "staff")
    assert member["subject"] == "f3d1c9f4-0000-4000-8000-alice"
    company.place.endpoint.wait_log("the host laptop has joined as f3d1c9f4-0000-4000-8000-alice")
    logs = company.place.endpoint.log_text() + gateway.log_text()
    assert token not in logs
    assert token.rpartition(".")[2] not in logs


def test_each_refusal_is_told_on_both_sides(company: Company) -> None:
    provider = company.provider
    now = int(time.time())
    refused = {
        "it has expired, 4[0-9][0-9] s ago": provider.token(iat=now - 700, exp=now - 400),
        "it was issued too long ago": provider.token(iat=now - 8000),
        "it is for another audience than socks-tunnel": provider.token(aud="mail"),
        "its roles lead to no tag: realm_access.roles has none of vpn-staff": provider.token(
            realm_access={"roles": ["guest"]}
        ),
        "no key of the issuer has signed it": Provider("RS256").token(headers={"kid": "other"}),
        "its signature is wrong": Provider("RS256").token(),
        "its algorithm is not accepted": "eyJhbGciOiJub25lIn0.e30.",
        "it is no JWT": "not-a-token",
    }
    after = 0
    for sentence, token in refused.items():
        told = company.join(token, status=1)
        assert "not joined: the JWT is not accepted: " in told
        company.place.endpoint.wait_log(f"refused a request to join from .*{sentence}", after=after)
        after = len(company.place.endpoint.log_text())
        plain = sentence.partition(",")[0]
        assert plain in told
    assert company.members() == []

    del company.place.settings["join"]
    path = company.place.directory / "endpoint.toml"
    path.write_text(toml(company.place.settings))
    company.place.endpoint.reload()
    assert "this endpoint accepts no JWT" in company.join(provider.token(), status=1)
    control = company.place.endpoint.runtime_directory / "control.sock"
    answer = control_client.request(control, {"op": "invite", "jwt": True})
    assert "no [join.jwt]" in answer["error"]


def test_keys_are_rotated_and_a_token_is_good_for_one_host(company: Company) -> None:
    company.join(company.provider.token("ES256"), "first")
    company.provider.rotate("ES256")
    token = company.provider.token("ES256")
    company.join(token, "second")
    assert "the JWT was used already" in company.join(token, "third", status=1)
    assert len(company.members()) == 2
    # Also after a restart, and for a host that is gone.
    control = company.place.endpoint.runtime_directory / "control.sock"
    company.place.command("peers", "--socket", str(control), "revoke", "laptop-2")
    company.place.endpoint.stop()
    company.place.running.remove(company.place.endpoint)
    company.place.endpoint = company.place.start("endpoint")
    assert "the JWT was used already" in company.join(token, "second-again", status=1)
    # The same host, again, with a fresh one: another name would be another host.
    again = company.join(company.provider.token("ES256"), "first")
    assert "joined as laptop with" in again
    assert len(company.members()) == 1


def test_what_is_no_address_and_what_does_not_go_together(tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.write_text("x" * 20_000)
    address = str(JoinAddress.of(PrivateIdentity.generate()))

    def refused(*arguments: str) -> str:
        command = [SOCKS_TUNNEL, "join", "ws://127.0.0.1:9/", "--config", str(tmp_path / "g.toml")]
        ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
        assert ended.returncode == 2, ended
        return ended.stderr

    jwt = ["--jwt", str(file)]
    assert "an address to join begins with sj1_" in refused(*jwt, "--address", "st1_x")
    assert "--jwt and --address go together" in refused(*jwt)
    assert "give one of" in refused(*jwt, "--address", address, "--token", "st1_x")
    assert "a JWT has 1 to 16384" in refused(*jwt, "--address", address)
