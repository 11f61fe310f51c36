"""What a rendezvous service offers, and how the connection to it ended, in words."""

import errno
import os
import socket

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL as URL_

from socks_tunnel.protocol.rendezvous import TurnServer
from socks_tunnel.signaling.portal import PORTAL_WORDS
from socks_tunnel.signaling.rendezvous_words import WARNED_EACH, Offers, failure_sentence

URL = "wss://r.example/"


def test_servers_in_the_form_of_a_configuration() -> None:
    urls = ("turn:a.example", "turns:a.example:443")
    servers = Offers(URL).usable([TurnServer(urls, "9:me", "secret")], 0)
    assert servers == [{"urls": list(urls), "username": "9:me", "credential": "secret"}]


def test_what_is_no_turn_server_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = "turn:a.example", ("http://a.example", "turn:a\x1b[2J", "stun:a.example")
    offered = [TurnServer((*bad, good), "9:me", "x"), TurnServer(bad, "", "")]
    offers = Offers(URL)
    offers.usable([TurnServer((good,), "9:me", "x")], 0)
    for now, warnings in ((1.0, 6), (2.0, 6), (1.0 + WARNED_EACH, 12), (5.0, 18)):
        assert [server["urls"] for server in offers.usable(offered, now)] == [[good]]
        assert len(caplog.messages) == warnings
    assert "\x1b" not in caplog.text


def test_an_error_without_words_still_says_something() -> None:
    assert failure_sentence(TimeoutError()) == "no answer within 15 s"
    assert failure_sentence(aiohttp.ConnectionTimeoutError()) == (
        "it cannot be reached: no answer within 2.5 s"
    )


@pytest.mark.parametrize("status", [200, 302, 511])
def test_a_portal_that_answers_in_place_of_the_service(status: int) -> None:
    error = aiohttp.WSServerHandshakeError(info(), (), status=status)
    assert failure_sentence(error) == f"{PORTAL_WORDS} (HTTP status {status})"


def test_other_answers_of_a_server() -> None:
    gone = aiohttp.WSServerHandshakeError(info(), (), status=404)
    assert failure_sentence(gone) == "it answered with HTTP status 404"
    for status, words in ((407, "; it wants a user and a password"), (502, "")):
        error = aiohttp.ClientHttpProxyError(info(), (), status=status)
        assert failure_sentence(error) == f"the HTTP proxy answered with status {status}{words}"


def test_what_the_host_itself_lacks() -> None:
    key = ConnectionKey("r.example", 443, True, True, None, None, None)
    offline = OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    sentence = failure_sentence(aiohttp.ClientConnectorError(key, offline))
    assert sentence == "it cannot be reached: Network is unreachable"
    nameless = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    sentence = failure_sentence(aiohttp.ClientConnectorDNSError(key, nameless))
    assert sentence == "its name cannot be resolved: Temporary failure in name resolution"


def info() -> aiohttp.RequestInfo:
    url = URL_(URL)
    return aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
