"""The keys of an identity provider, by real HTTP and HTTPS on loopback, and from a file."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.signaling import jwks as module
from socks_tunnel.signaling.jwks import Jwks, KeysUnavailable
from socks_tunnel.signaling.jwt_tokens import JWKS_MAX, Header, JwtRefused, header_of
from support.certificates import Authority
from support.identity_provider import JwksServer, Provider


class Web:
    """A provider whose web server answers as a test says."""

    def __init__(self) -> None:
        self.provider = Provider("ES256", "EdDSA")
        self.status = 200
        self.body: bytes | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.server = JwksServer(self._answer)

    def _answer(self) -> tuple[int, bytes]:
        self.gate.wait(60)
        return self.status, self.provider.jwks() if self.body is None else self.body

    def close(self) -> None:
        self.gate.set()
        self.server.close()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    try:
        yield made
    finally:
        made.close()


async def test_keys_are_asked_for_once_and_again_after_a_rotation(web: Web) -> None:
    jwks = Jwks(web.server.url, proxy=None)
    header = header_of(web.provider.token("ES256"))
    first = await jwks.find(header)
    assert await jwks.find(header_of(web.provider.token("EdDSA"))) is not None
    assert web.server.requests == ["/certs"]
    web.provider.rotate("ES256")
    second = await jwks.find(header_of(web.provider.token("ES256")))
    assert second.public_numbers() != first.public_numbers()
    assert len(web.server.requests) == 2
    with pytest.raises(JwtRefused, match="kid 'ES256-1'"):  # the old one is withdrawn
        await jwks.find(header)


async def test_a_flood_of_unknown_keys_asks_the_provider_a_few_times(web: Web) -> None:
    jwks = Jwks(web.server.url, proxy=None)
    for number in range(50):
        header = header_of(web.provider.token("ES256", headers={"kid": f"unknown-{number}"}))
        with pytest.raises(JwtRefused, match="no key of the issuer"):
            await jwks.find(header)
    assert len(web.server.requests) == module.FETCHES_BURST
    assert await jwks.find(header_of(web.provider.token("ES256"))) is not None


async def test_questions_that_come_together_share_one(web: Web) -> None:
    jwks = Jwks(web.server.url, proxy=None)
    web.gate.clear()
    header = header_of(web.provider.token("ES256"))
    asked = [asyncio.create_task(jwks.find(header)) for _ in range(16)]
    while not web.server.requests:
        await asyncio.sleep(0.01)
    asked.pop().cancel()  # whoever leaves takes nobody along
    web.gate.set()
    assert len(await asyncio.gather(*asked)) == 15
    assert len(web.server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (503, b"", "HTTP status 503"),
        (302, b"", "HTTP status 302"),
        (200, b"<html>", "it is no JSON"),
        (200, b'{"keys": 1}', "no list of keys"),
        (200, b" " * (JWKS_MAX + 1), f"over {JWKS_MAX} bytes"),
    ],
)
async def test_answers_that_are_no_keys(
    web: Web, caplog: pytest.LogCaptureFixture, status: int, body: bytes, sentence: str
) -> None:
    now = 1000.0
    jwks = Jwks(web.server.url, proxy=None, clock=lambda: now)
    web.status, web.body = status, body
    header = header_of(web.provider.token("ES256"))
    for _ in range(2):
        with pytest.raises(KeysUnavailable, match=sentence):
            await jwks.find(header)
        now += module.RETRY
    told = [r for r in caplog.records if "cannot be fetched" in r.message]
    assert len(told) == 1, "once, and not for each request"
    assert len(web.server.requests) == 2
    web.status, web.body = 200, None
    await found(jwks, header)


async def found(jwks: Jwks, header: Header) -> None:
    """Waits until a key is found, of a provider that was away."""
    while True:
        try:
            assert await jwks.find(header) is not None
        except KeysUnavailable:  # it did not answer within AWAY_PATIENCE
            await asyncio.sleep(0.01)
        else:
            return


async def test_nobody_waits_for_a_provider_that_is_away(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "FETCH_TIMEOUT", 2.0
    )  # all of them wait within that, on any machine
    now = 1000.0
    jwks = Jwks(web.server.url, proxy=None, clock=lambda: now)
    web.gate.clear()
    header = header_of(web.provider.token("ES256"))
    unknown = header_of(web.provider.token("ES256", headers={"kid": "unknown"}))
    asked = [asyncio.create_task(jwks.find(each)) for each in [header, unknown] * 8]
    assert len(asked) == module.WAITING_MAX
    while jwks._waiting < module.WAITING_MAX:
        await asyncio.sleep(0)
    with pytest.raises(KeysUnavailable, match=r"16 requests wait for .* already"):
        await jwks.find(header)
    assert len(web.server.requests) <= 1
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, KeysUnavailable)
        assert "did not answer within" in str(outcome)
    # From now on it is known to be away, and asked now and then.
    loop = asyncio.get_running_loop()
    before = loop.time()
    for _ in range(100):
        with pytest.raises(KeysUnavailable, match="did not answer within"):
            await jwks.find(unknown)
    assert loop.time() - before < 60, "at 2 s each it would be three times as long"
    assert len(web.server.requests) == 1
    monkeypatch.setattr(module, "FETCH_TIMEOUT", 60)
    monkeypatch.setattr(module, "AWAY_PATIENCE", 0.01)
    now += module.RETRY
    with pytest.raises(KeysUnavailable, match="did not answer within"):
        await jwks.find(unknown)
    web.gate.set()
    await found(jwks, header)
    assert len(web.server.requests) == 2


async def test_an_unknown_key_is_no_verdict_while_newer_ones_cannot_be_had(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    jwks = Jwks(web.server.url, proxy=None, clock=lambda: now)
    header = header_of(web.provider.token("ES256"))
    await jwks.find(header)
    web.provider.rotate("ES256")
    rotated = header_of(web.provider.token("ES256"))
    web.status = 500
    for _ in range(2):
        with pytest.raises(KeysUnavailable, match=r"key \(kid 'ES256-2'\) is not known: .* 500"):
            await jwks.find(rotated)
        assert await jwks.find(header) is not None
    assert len(web.server.requests) == 2
    now += module.FRESH + 1
    monkeypatch.setattr(module, "WAITING_MAX", 0)
    assert await jwks.find(header) is not None, "it serves, though nobody may wait"
    monkeypatch.undo()
    web.status = 200
    now += module.RETRY
    await found(jwks, rotated)


async def test_a_key_that_the_provider_does_not_have_is_not_asked_for_again_at_once(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    jwks = Jwks(web.server.url, proxy=None, clock=lambda: now)
    unknown = header_of(web.provider.token("ES256", headers={"kid": "unknown"}))
    for _ in range(3):
        with pytest.raises(JwtRefused, match="no key of the issuer"):
            await jwks.find(unknown)
    assert len(web.server.requests) == 1
    now += module.UNKNOWN_KEPT
    with pytest.raises(JwtRefused, match="no key of the issuer"):
        await jwks.find(unknown)
    assert len(web.server.requests) == 2
    monkeypatch.setattr(module, "UNKNOWN_MAX", 1)
    now += 1000
    for name in ("a", "b"):
        with pytest.raises(JwtRefused, match="no key of the issuer"):
            await jwks.find(header_of(web.provider.token("ES256", headers={"kid": name})))
    assert list(jwks._unknown) == ["b"]


async def test_known_keys_serve_while_the_provider_is_away(web: Web) -> None:
    now = 1000.0
    jwks = Jwks(web.server.url, proxy=None, clock=lambda: now)
    header = header_of(web.provider.token("ES256"))
    await jwks.find(header)
    web.status = 500
    now += module.FRESH + 1
    assert await jwks.find(header) is not None
    assert len(web.server.requests) == 2
    now += module.STALE
    with pytest.raises(KeysUnavailable, match="HTTP status 500"):
        await jwks.find(header)


async def test_a_provider_that_does_not_answer(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_TIMEOUT", 0.2)
    web.gate.clear()
    with pytest.raises(KeysUnavailable, match="did not answer within"):
        await Jwks(web.server.url, proxy=None).find(header_of(web.provider.token("ES256")))


async def test_https_and_whose_certificate_it_is(tmp_path: Path) -> None:
    provider = Provider("ES256")
    authority = Authority("Test Root")
    pem = tmp_path / "server.pem"
    pem.write_text(authority.issue("127.0.0.1").both)
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.certificate)
    server = JwksServer(lambda: (200, provider.jwks()), pem)
    try:
        header = header_of(provider.token())
        assert await Jwks(server.url, ca=ca, proxy=None).find(header) is not None
        with pytest.raises(KeysUnavailable, match="does not verify"):
            await Jwks(server.url, proxy=None).find(header)
        assert server.requests == ["/certs"]
        with pytest.raises(KeysUnavailable, match="No such file"):
            await Jwks(server.url, ca=tmp_path / "none.pem", proxy=None).find(header)
    finally:
        server.close()


async def test_from_a_file_that_is_replaced(tmp_path: Path) -> None:
    provider = Provider("EdDSA")
    file = tmp_path / "jwks.json"
    now = 1000.0
    jwks = Jwks(file, proxy=None, clock=lambda: now)
    with pytest.raises(KeysUnavailable, match="No such file"):
        await jwks.find(header_of(provider.token()))
    file.write_bytes(provider.jwks())
    now += module.RETRY
    await found(jwks, header_of(provider.token()))
    provider.rotate("EdDSA")
    file.write_bytes(provider.jwks())
    assert await jwks.find(header_of(provider.token())) is not None
