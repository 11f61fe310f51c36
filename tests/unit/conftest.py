"""Unit tests use no socket, no process, no sleep and no clock."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import purity

HERE = Path(__file__).parent
IMPURE = {
    HERE.parents[1] / line
    for line in (HERE / "impure.txt").read_text().splitlines()
    if not line.startswith("#")
}


@pytest.fixture(autouse=True)
def pure(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuses all of that, except to the files that impure.txt lists."""
    if request.path in IMPURE:
        yield
        return
    seen: list[str] = []

    def report(what: str) -> None:
        seen.append(what)
        purity.refuse(what)

    with purity.watched(report):
        yield
    # The code under test may have caught it.
    assert not seen, f"this unit test {seen[0]}: such a test belongs to tests/integration"
