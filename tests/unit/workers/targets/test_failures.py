"""Failures and what follows from them."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.targets.failures import Failure, ResolveError


@pytest.mark.parametrize(
    ("failure", "reply", "soft"),
    [
        (Failure.ABSENT, Reply.HOST_UNREACHABLE, False),
        (Failure.TIMEOUT, Reply.TTL_EXPIRED, True),
        (Failure.SERVER, Reply.HOST_UNREACHABLE, True),
        (Failure.RESOURCES, Reply.GENERAL_FAILURE, True),
        (Failure.TOO_MANY, Reply.GENERAL_FAILURE, True),
        (Failure.ABANDONED, Reply.GENERAL_FAILURE, True),
        (Failure.BUG, Reply.GENERAL_FAILURE, True),
    ],
)
def test_replies(failure: Failure, reply: Reply, soft: bool) -> None:
    error = ResolveError("a.test cannot be resolved", failure)
    assert (error.reply, error.soft) == (reply, soft)


def test_every_failure_has_its_reply() -> None:
    assert {ResolveError("x", failure).failure for failure in Failure} == set(Failure)
