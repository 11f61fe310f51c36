"""Logins for TURN servers, as coturn checks them."""

import pytest

from socks_tunnel.protocol.rendezvous import TurnServer, Welcome
from socks_tunnel.rendezvous.registry import Registry
from socks_tunnel.rendezvous.turn import LIFETIME, RENEWAL, TurnLogins

KEY = bytes(range(32))
SERVERS = (("turn:a.example:3478", "turns:a.example:443"), ("turn:b.example",))


def test_the_login_is_the_one_of_the_draft() -> None:
    """Computed once with `openssl dgst -sha1 -hmac north -binary | base64`."""
    logins = TurnLogins(SERVERS, b"north")
    username = "1700003600:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    expected = tuple(TurnServer(urls, username, "gXdj3n6nbSBpGpORbY+Q2Dh4wwI=") for urls in SERVERS)
    assert logins.for_key(KEY, 1_700_000_000.9) == expected


def test_it_is_renewed_before_it_expires() -> None:
    assert 0 < RENEWAL < LIFETIME


def test_a_revoked_host_loses_it_within_an_hour() -> None:
    """It is told no other one, because it is put out of the service at once."""
    assert LIFETIME <= 3600


@pytest.mark.parametrize(("until", "good"), [(0, LIFETIME), (100, 100), (LIFETIME + 1, LIFETIME)])
def test_it_is_good_no_longer_than_the_enrolment(until: int, good: int) -> None:
    by, now = bytes(32), 1_700_000_000
    until = until and now + until
    for names in ({by: "endpoint"}, {by: "endpoint", KEY: "listed too"}):
        registry = Registry(names, clients="enrolled")
        registry.turn = TurnLogins(SERVERS, b"north")
        client = registry.join(
            KEY, 0, enrolled_by=by, enrolled_until=until, wake=lambda: None, end=lambda *_: None
        )
        expiry, _, _ = registry.welcome(client, bytes(8), now).turn[0].username.partition(":")
        assert int(expiry) == now + (LIFETIME if client.listed else good)


def test_a_welcome_has_it() -> None:
    registry = Registry({}, clients="any")
    client = registry.join(KEY, 0, wake=lambda: None, end=lambda *_: None)
    assert registry.welcome(client, bytes(8), 5) == Welcome(bytes(8), 5, 66_048, 64, 10, load=5)
    registry.turn = TurnLogins(SERVERS, b"north")
    turn = registry.welcome(client, bytes(8), 5).turn
    assert [server.urls for server in turn] == list(SERVERS)
    assert turn == registry.turn.for_key(KEY, 5)


def test_a_guest_gets_no_login() -> None:
    """A guest may be anybody, and a login is good for whatever the TURN server reaches."""
    by = bytes(32)
    registry = Registry({by: "endpoint"}, clients="enrolled")
    registry.turn = TurnLogins(SERVERS, b"north")
    guest = registry.join(KEY, 0, wake=lambda: None, end=lambda *_: None)
    assert guest.guest
    assert registry.welcome(guest, bytes(8), 5).turn == ()
    enrolled = registry.join(KEY, 0, enrolled_by=by, wake=lambda: None, end=lambda *_: None)
    assert registry.welcome(enrolled, bytes(8), 5).turn == registry.turn.for_key(KEY, 5)
