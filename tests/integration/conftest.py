"""What integration tests share."""

import pytest

from integration.link_pair import Site


@pytest.fixture(params=["plain", "fast"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test on unmodified aiortc and on the fast path."""
    monkeypatch.setattr(Site, "kind", request.param)
    return str(request.param)
