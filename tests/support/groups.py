"""Which tests have to run one after another in one process, when several processes share a run.

Those that share what takes long to make, such as a booted host or a server, or that rely on the order
in which a file has them. All others may run anywhere: what they share, such as a tunnel, is then made
once in each process.
"""

from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]


def group_of(item: pytest.Item) -> str | None:
    """Returns the name of the group that a test belongs to; None if it may run anywhere."""
    path = item.path.relative_to(_TESTS)
    if path.parts[0] == "packaging":
        # Each pair of hosts has its own.
        scene = _parameter(item, "scene")
        return f"scene-{scene}" if scene else path.stem
    if path.parts[0] in {"integration", "system"} and _shares_what_its_module_has(item):
        return path.stem
    return None


def _parameter(item: pytest.Item, fixture: str) -> str | None:
    callspec = getattr(item, "callspec", None)
    value = callspec.params.get(fixture) if callspec else None
    return "-".join(value) if value else None


def _shares_what_its_module_has(item: pytest.Item) -> bool:
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009 - not typed
    return any(definitions[-1].scope == "module" for definitions in fixtures.values())
