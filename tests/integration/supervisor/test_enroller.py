"""Hosts that join a running endpoint: many at once, and what goes wrong."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.supervisor.test_instance import Running, no_leftover_signals
from socks_tunnel.signaling import join_client, joining
from socks_tunnel.signaling.carrier import SignalingRefused
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import Joined, NotJoined, Token
from socks_tunnel.supervisor import enroller
from support.certificates import Authority

__all__ = ["no_leftover_signals"]  # a fixture

FLEET = 1000


class Office(Running):
    """A running endpoint."""

    async def invite(self, **fields: object) -> Token:
        answer = await self.ask("invite", **fields)
        assert answer["ok"], answer
        return Token.parse(answer["result"]["token"])

    async def close(self) -> None:
        assert self.task is not None
        self.instance._forced = True
        self.task.cancel()
        await asyncio.wait([self.task])
        self.manager.close()

    async def join(
        self, token: Token, name: str, identity: PrivateIdentity | None = None
    ) -> Joined | NotJoined:
        identity = identity or PrivateIdentity.generate()
        sent, request = joining.new_request(identity, token, name, time.time())
        url = f"unix:{self.directory}/offers.sock"
        answer = await join_client.bring(sent, token.endpoint, url, identity, seconds=280)
        return joining.open_answer(answer, request)


@pytest.fixture
async def office(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leftover_signals: None
) -> AsyncIterator[Office]:
    made = Office(tmp_path, monkeypatch)
    made.endpoint()
    made.start()
    await made.ready()
    yield made
    await made.close()


@pytest.mark.timeout(600)
async def test_a_fleet_joins_with_one_token(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last of a thousand may be served after more than a minute where all are on one busy machine.
    monkeypatch.setattr(joining, "LIFETIME", joining.LIFETIME_MAX)
    applied = 0
    apply = office.instance.links.apply

    def counted(config: object) -> None:
        nonlocal applied
        applied += 1
        apply(config)  # type: ignore[arg-type] # handed on as it came

    office.instance.links.apply = counted  # type: ignore[method-assign]
    token = await office.invite(uses=FLEET)
    joined = await asyncio.gather(*(office.join(token, "laptop") for _ in range(FLEET)))
    names = {each.name for each in joined if isinstance(each, Joined)}
    assert len(names) == FLEET
    assert applied < FLEET / 4, "those that come together are applied together"
    assert names < office.instance.links.peers.keys()
    assert await office.join(token, "late") == NotJoined("the invitation has been used up")
    rows = (await office.ask("peers"))["result"]
    assert len(rows["peers"]) == FLEET


async def test_what_cannot_be_written_down_is_refused(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    token = await office.invite()
    path = office.runtime / enroller.FILE
    path.rename(path.with_suffix(".away"))
    path.mkdir()
    decided = await office.join(token, "laptop")
    assert isinstance(decided, NotJoined)
    assert "cannot save its list of members" in decided.reason
    assert "a host cannot join, because the list of members cannot be saved: " in caplog.text
    answer = await office.ask("invite")
    assert not answer["ok"]
    assert answer["error"].startswith("nothing has changed: ")


async def test_strangers_cannot_fill_the_log(
    office: Office, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enroller, "REQUESTS_PERIOD", 3600.0)
    key = (await office.invite()).endpoint
    for _ in range(enroller.REQUESTS_LOGGED + 5):
        with pytest.raises(SignalingRefused):
            await office.join(Token(key, bytes(8), bytes(16)), "laptop")
    assert caplog.text.count("refused a request to join") == enroller.REQUESTS_LOGGED
    assert caplog.text.count("are only counted") == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tag": 5}, "tag has to be text"),
        ({"tag": "no"}, "there is no [policies.no]; those that there are: none"),
        ({"uses": 0}, "uses has to be a number from 1"),
        ({"uses": True}, "uses has to be a number"),
        ({"uses": 1_000_000}, "an invitation is for 1 to"),
        ({"expires": 0}, "expires has to be"),
        ({"lifetime": -1}, "lifetime has to be"),
    ],
)
async def test_invitations_that_are_none(
    office: Office, fields: dict[str, object], sentence: str
) -> None:
    answer = await office.ask("invite", **fields)
    assert not answer["ok"]
    assert sentence in answer["error"]


async def test_a_host_stays_for_its_lifetime(office: Office) -> None:
    token = await office.invite(lifetime=1)
    assert isinstance(await office.join(token, "laptop"), Joined)
    await office.until(lambda: "laptop-2" not in office.instance.links.peers)
    assert (await office.ask("peers"))["result"]["peers"] == []


async def test_it_is_exported_when_the_first_host_must_leave(office: Office) -> None:
    def exported() -> list[float]:
        return [
            sample.value for sample in office.instance.metrics.membership_expires_seconds.samples()
        ]

    assert isinstance(await office.join(await office.invite(), "stays"), Joined)
    assert exported() == []
    names = {}
    for lifetime in (7200, 3600):
        joined = await office.join(await office.invite(lifetime=lifetime), "laptop")
        assert isinstance(joined, Joined)
        names[joined.until] = joined.name
        assert exported() == [min(names)]
    assert (await office.ask("revoke", name=names.pop(min(names))))["ok"]
    assert exported() == [min(names)]
    assert (await office.ask("revoke", name=names.pop(min(names))))["ok"]
    assert exported() == []


async def test_nobody_joins_a_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leftover_signals: None
) -> None:
    made = Office(tmp_path, monkeypatch)
    made.gateway()
    made.start()
    await made.ready()
    try:
        answer = await made.ask("invite")
        assert answer == {
            "ok": False,
            "error": "this instance is a gateway, and hosts join an endpoint",
        }
    finally:
        await made.close()


async def test_a_configuration_that_was_refused_is_not_used_for_who_joins(office: Office) -> None:
    token = await office.invite()
    other = PrivateIdentity.generate().public_text
    office.config.write_text(
        office.config.read_text()
        + f'''[[peers]]\nname = "other"\npublic_key = "{other}"\n'''
        + """[audit]\nfile = "/nonexistent/audit.log"\n"""
    )
    answer = await office.ask("reload")
    assert "/nonexistent/audit.log cannot be written" in answer["error"]
    joined = await office.join(token, "host")
    assert isinstance(joined, Joined)
    assert office.instance.links.peers.keys() == {"laptop", "host"}


async def test_who_joins_and_leaves_needs_no_file_that_a_reload_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leftover_signals: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    certificate = tmp_path / "server.pem"
    certificate.touch(0o600)
    certificate.write_text(Authority("Test Root").issue("localhost").both)
    made = Office(tmp_path, monkeypatch)
    made.endpoint()
    listen = f'listen = "127.0.0.1:0"\ntls_certificate = "{certificate}"'
    made.config.write_text(made.config.read_text().replace('listen = "unix:offers.sock"', listen))
    made.start()
    await made.ready()
    try:
        token, identity = await made.invite(), PrivateIdentity.generate()
        certificate.unlink()  # a renewal is half done
        sent, _ = joining.new_request(identity, token, "host", time.time())
        assert made.instance.enroller is not None
        assert await made.instance.enroller.handle(sent) is not None
        assert made.instance.links.peers.keys() == {"laptop", "host"}
        assert (await made.ask("revoke", name="host"))["ok"]
        assert made.instance.links.peers.keys() == {"laptop"}
        assert caplog.text.count("TLS certificate") == 1, "it has not changed"
    finally:
        await made.close()


async def test_a_revoked_host_joins_again_only_once_its_key_is_forgotten(office: Office) -> None:
    token, host = await office.invite(uses=5), PrivateIdentity.generate()
    sent, request = joining.new_request(host, token, "host", time.time())
    enrol = office.instance.enroller
    assert enrol is not None
    assert isinstance(joining.open_answer(await enrol.handle(sent) or b"", request), Joined)
    revoked = (await office.ask("revoke", name="host"))["result"]
    assert revoked == {"revoked": "host", "invitation": token.id.hex(), "uses_left": 4}
    refused = NotJoined("this key is revoked; the endpoint's administrator can have it forgotten")
    assert joining.open_answer(await enrol.handle(sent) or b"", request) == refused
    assert await office.join(token, "host", host) == refused
    assert "host" not in office.instance.links.peers
    (row,) = (await office.ask("peers"))["result"]["revoked"]
    assert (row["name"], row["public_key"]) == ("host", host.public_text)
    answer = await office.ask("forget", name=host.public_text)
    assert answer["result"] == {"forgotten": [host.public_text]}
    answer = await office.ask("forget", name="host")
    assert answer == {
        "ok": False,
        "error": "host is neither a revoked key nor the name of a host with one",
    }
    assert isinstance(await office.join(token, "host", host), Joined)


async def test_a_revocation_that_is_not_on_the_disk_is_no_success(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(await office.join(await office.invite(), "host"), Joined)

    def full() -> None:
        raise OSError("the disk is gone")

    assert office.instance.enroller is not None
    monkeypatch.setattr(office.instance.enroller._file, "sync", full)
    answer = await office.ask("revoke", name="host")
    assert answer == {"ok": False, "error": "host is revoked until a restart: the disk is gone"}
    assert "host" not in office.instance.links.peers


async def test_a_revocation_that_does_not_hold_is_no_success(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(await office.join(await office.invite(), "host"), Joined)

    def fails(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(office.instance.links, "apply", fails)
    answer = await office.ask("revoke", name="host")
    assert answer == {"ok": False, "error": "host is revoked from the next start on; see the log"}


async def test_what_is_said_of_refused_hosts_is_remembered_as_long_as_they_are_members(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    def refusals() -> int:
        return caplog.text.count("the host short has joined, but its links are refused")

    enrol, config = office.instance.enroller, office.instance.config
    assert enrol is not None
    for again in (1, 2):
        joined = await office.join(await office.invite(), "short")
        assert isinstance(joined, Joined)
        other = replace(config, peers=(replace(config.peers[0], name="short"),))
        for _ in range(2):
            enrol.extend(other)
        assert refusals() == again
        assert (await office.ask("revoke", name="short"))["ok"]
        enrol.extend(other)
        assert not enrol._told
