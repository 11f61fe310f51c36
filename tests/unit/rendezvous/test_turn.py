"""Logins for TURN servers, as coturn checks them."""

from socks_tunnel.protocol.rendezvous import TurnServer, Welcome
from socks_tunnel.rendezvous.registry import Registry
from socks_tunnel.rendezvous.turn import LIFETIME, RENEWAL, TurnLogins

KEY = bytes(range(32))
SERVERS = (("turn:a.example:3478", "turns:a.example:443"), ("turn:b.example",))


def test_the_login_is_the_one_of_the_draft() -> None:
    """Computed once with `openssl dgst -sha1 -hmac north -binary | base64`."""
    logins = TurnLogins(SERVERS, b"north")
    username = "1700086400:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    expected = tuple(TurnServer(urls, username, "CEjxljdOElJRbh+SFbQPW08Kht8=") for urls in SERVERS)
    assert logins.for_key(KEY, 1_700_000_000.9) == expected


def test_it_is_renewed_before_it_expires() -> None:
    assert 0 < RENEWAL < LIFETIME


def test_a_welcome_has_it() -> None:
    registry = Registry({}, clients="any")
    client = registry.join(KEY, 0, wake=lambda: None, end=lambda *_: None)
    assert registry.welcome(client, bytes(8), 5) == Welcome(bytes(8), 5, 66_048, 64, 10, load=5)
    registry.turn = TurnLogins(SERVERS, b"north")
    turn = registry.welcome(client, bytes(8), 5).turn
    assert [server.urls for server in turn] == list(SERVERS)
    assert turn == registry.turn.for_key(KEY, 5)


def test_a_guest_gets_no_login() -> None:
    """A guest may be anybody, and a login is good for a day, and for whatever the server reaches."""
    by = bytes(32)
    registry = Registry({by: "endpoint"}, clients="enrolled")
    registry.turn = TurnLogins(SERVERS, b"north")
    guest = registry.join(KEY, 0, wake=lambda: None, end=lambda *_: None)
    assert guest.guest
    assert registry.welcome(guest, bytes(8), 5).turn == ()
    enrolled = registry.join(KEY, 0, enrolled_by=by, wake=lambda: None, end=lambda *_: None)
    assert registry.welcome(enrolled, bytes(8), 5).turn == registry.turn.for_key(KEY, 5)
