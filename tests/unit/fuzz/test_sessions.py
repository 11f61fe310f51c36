"""Walks through two sessions: some in each run, and those that failed once."""

import pytest

from fuzz.sessions import FOUND, walk
from property.test_session import Flow
from socks_tunnel.protocol.errors import LocalProtocolError

WALKS = 300
"""Walks in each run of the tests; `make fuzz` takes 100,000."""


def test_walks_lose_nothing() -> None:
    for seed in (*range(WALKS), *FOUND):
        walk(seed)


def test_a_walk_notices_a_byte_that_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = Flow.on_resumed

    def sends_a_byte_again(self: Flow, received: int, limit: int, flags: int) -> None:
        resumed(self, max(received - 1, 0), limit, flags)

    monkeypatch.setattr(Flow, "on_resumed", sends_a_byte_again)
    steps: list[str] = []

    def walks() -> None:
        for seed in range(WALKS):
            steps.clear()
            walk(seed, steps.append)

    with pytest.raises((AssertionError, LocalProtocolError)):
        walks()
    assert any(step.startswith("deliver_resume(") for step in steps)
