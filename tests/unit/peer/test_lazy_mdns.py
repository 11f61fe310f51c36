"""dnspython is loaded when a name ends in .local, and not before."""

import asyncio
import importlib
import sys
from typing import Any

import pytest

from socks_tunnel.peer import lazy_mdns


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delitem(sys.modules, lazy_mdns.NAME, raising=False)
    lazy_mdns.install()
    return sys.modules[lazy_mdns.NAME]


@pytest.mark.parametrize("host", ["192.0.2.1", "fe80::1", "host.example", "local"])
def test_other_hosts_need_no_mdns(stand_in: Any, host: str) -> None:
    assert not stand_in.is_mdns_hostname(host)
    assert sys.modules[lazy_mdns.NAME] is stand_in


def test_a_name_of_a_browser_loads_it(stand_in: Any) -> None:
    assert stand_in.is_mdns_hostname("5f3c1c9e-0b1c-4f5e-8f7e-3f6c2b1a0d9e.local")
    assert not stand_in.is_mdns_hostname("two.labels.local")
    there = sys.modules[lazy_mdns.NAME]
    assert there is not stand_in
    assert stand_in.create_mdns_protocol is there.create_mdns_protocol
    assert asyncio.iscoroutinefunction(stand_in.create_mdns_protocol)


def test_what_aioice_does_not_use_is_the_module_s_own(stand_in: Any) -> None:
    assert stand_in.MDNS_PORT == importlib.import_module(lazy_mdns.NAME).MDNS_PORT
    with pytest.raises(AttributeError):
        _ = stand_in.nonsense


def test_one_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    there = object()
    monkeypatch.setitem(sys.modules, lazy_mdns.NAME, there)
    lazy_mdns.install()
    assert sys.modules[lazy_mdns.NAME] is there
