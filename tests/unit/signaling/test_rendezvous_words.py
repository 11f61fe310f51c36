"""What a rendezvous service offers, and how the connection to it ended, in words."""

import pytest

from socks_tunnel.protocol.rendezvous import TurnServer
from socks_tunnel.signaling.rendezvous_words import failure_sentence, usable_servers

URL = "wss://r.example/"


def test_servers_in_the_form_of_a_configuration() -> None:
    urls = ("turn:a.example", "turns:a.example:443")
    servers = usable_servers([TurnServer(urls, "9:me", "secret")], URL)
    assert servers == [{"urls": list(urls), "username": "9:me", "credential": "secret"}]


def test_what_is_no_turn_server_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = "turn:a.example", ("http://a.example", "turn:a\x1b[2J", "stun:a.example")
    servers = usable_servers([TurnServer((*bad, good), "9:me", "x"), TurnServer(bad, "", "")], URL)
    assert [server["urls"] for server in servers] == [[good]]
    assert len(caplog.messages) == 6
    assert "\x1b" not in caplog.text


def test_an_error_without_words_still_says_something() -> None:
    assert failure_sentence(TimeoutError()) == "no answer within 15 s"
