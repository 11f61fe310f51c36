"""Unit tests use no socket, no process, no sleep and no clock."""

from collections.abc import Iterator

import pytest

from support import purity


@pytest.fixture(autouse=True)
def pure() -> Iterator[None]:
    """Refuses all of that."""
    seen: list[str] = []

    def report(what: str) -> None:
        seen.append(what)
        purity.refuse(what)

    with purity.watched(report):
        yield
    # The code under test may have caught it.
    assert not seen, f"this unit test {seen[0]}: such a test belongs to tests/integration"
