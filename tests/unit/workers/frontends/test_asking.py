"""What clients are told in words, where they can be told more than a number."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)
from socks_tunnel_workers.frontends.asking import COMMANDS, sentence_of

REQUESTS: list[tuple[Request, str]] = [
    (ConnectRequest(HostPort("a.b", 80)), "a.b:80"),
    (BindRequest(HostPort("::1", 80)), "[::1]:80"),
    (ResolveRequest("a.b"), "a.b"),
    (UdpAssociateRequest(None), "the endpoint"),
]


@pytest.mark.parametrize("reason", [*CloseReason, 0x7F])
@pytest.mark.parametrize(("request_", "what"), REQUESTS)
def test_every_reason_has_one_line(request_: Request, what: str, reason: int) -> None:
    sentence = sentence_of(request_, reason)
    assert sentence
    assert "\n" not in sentence
    if reason in {1, 2, 3, 4, 5, 6}:
        assert what in sentence


def test_every_request_has_a_word() -> None:
    assert [COMMANDS[type(request)] for request, _ in REQUESTS] == [
        "connect",
        "bind",
        "resolve",
        "udp-associate",
    ]
