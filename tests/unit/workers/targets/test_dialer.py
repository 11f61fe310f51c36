"""The order of attempts, and what a client is told when all have failed."""

from __future__ import annotations

import errno
import ipaddress

import pytest

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.targets.dialer import PortsUsedUpError, failure, interleave


def ips(*texts: str) -> list[IPAddress]:
    return [ipaddress.ip_address(text) for text in texts]


def test_families_alternate_beginning_with_the_first() -> None:
    mixed = ips("2001:db8::1", "2001:db8::2", "192.0.2.1", "2001:db8::3", "192.0.2.2")
    assert interleave(mixed) == ips(
        "2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"
    )
    assert interleave([]) == []


@pytest.mark.parametrize(
    ("errors", "reply"),
    [
        ([errno.ENETUNREACH, errno.ECONNREFUSED], Reply.CONNECTION_REFUSED),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH], Reply.HOST_UNREACHABLE),
        ([errno.ENETUNREACH, errno.ENETUNREACH], Reply.NETWORK_UNREACHABLE),
        ([errno.EADDRNOTAVAIL], Reply.NETWORK_UNREACHABLE),
        ([errno.EHOSTUNREACH, errno.ETIMEDOUT], Reply.TTL_EXPIRED),
        ([errno.EPERM, errno.ENETUNREACH], Reply.NOT_ALLOWED),
        ([errno.EMFILE, errno.ECONNREFUSED], Reply.GENERAL_FAILURE),
        ([errno.ECONNREFUSED, errno.ENOBUFS], Reply.GENERAL_FAILURE),
        ([errno.ENFILE], Reply.GENERAL_FAILURE),
    ],
)
def test_the_most_telling_error_becomes_the_reply(errors: list[int], reply: Reply) -> None:
    error = failure([OSError(number, f"error {number}") for number in errors])
    assert error.reply is reply
    assert error.shortage is (reply is Reply.GENERAL_FAILURE)


def test_no_port_left_is_a_want_of_this_host() -> None:
    error = failure(
        [ConnectionRefusedError(111, "no"), PortsUsedUpError(errno.EADDRNOTAVAIL, "no port")]
    )
    assert error.reply is Reply.GENERAL_FAILURE
    assert error.shortage
