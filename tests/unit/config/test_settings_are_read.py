"""Each setting that can be written has a reader, or is refused: none is documented and does nothing."""

import ast
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from socks_tunnel.config.models import ConfigFile
from support.checkout import ROOT

# What reads a setting only to check it, or to hand it on, does not count as its reader.
CARRIERS = {
    "daemon/socks_tunnel/config/models.py",
    "daemon/socks_tunnel/config/settings.py",
    "daemon/socks_tunnel/config/for_workers.py",
    "daemon/socks_tunnel/config/checks.py",
    "daemon/socks_tunnel/supervisor/reload.py",
    "daemon/socks_tunnel/protocol/settings.py",
}

HANDED_ON = {"ice.servers.urls"}
"""Settings that aiortc gets as a whole: supervisor/links.py dumps the servers."""

UNREAD: set[str] = set()
"""Settings whose reader is not there yet. The set can only become smaller."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def settings(model: type[BaseModel] = ConfigFile, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        tables = list(models_in(field.annotation))
        if not tables:
            yield f"{prefix}{name}"
        for table in tables:
            yield from settings(table, f"{prefix}{name}.")


def attributes() -> dict[str, set[str]]:
    """Each attribute that is read, and the files that do."""
    found: dict[str, set[str]] = {}
    for package in ("daemon/socks_tunnel", "workers/socks_tunnel_workers"):
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if name in CARRIERS:
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.setdefault(node.attr, set()).add(name)
    return found


READ = attributes()
LOADER = "daemon/socks_tunnel/config/loader.py"
USED_BY_THE_LOADER = {
    "include",
    "policy_file",
    "policy.policy_file",
    "policies.policy_file",
    "socks.users_file",
    *(
        f"{t}.{k}_{w}"
        for t in ("policy", "policies")
        for k in ("allowed", "denied")
        for w in ("hosts", "ports")
    ),
}
"""Settings whose effect is what the loader reads or makes of them."""


@pytest.mark.parametrize("setting", sorted(set(settings()) - HANDED_ON))
def test_it_has_a_reader(setting: str) -> None:
    name = setting.rpartition(".")[2]
    loader = {LOADER} if setting in USED_BY_THE_LOADER else set()
    readers = (READ.get(name, set()) - {LOADER}) | loader
    if setting in UNREAD:
        assert not readers, f"well done: {setting} is read now; take it out of UNREAD"
    else:
        assert readers, f"nobody reads {setting}"


def test_the_sets_name_settings_that_there_are() -> None:
    assert set(settings()) >= HANDED_ON | UNREAD | USED_BY_THE_LOADER
