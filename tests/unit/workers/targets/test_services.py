"""The policy and the settings are those of the moment."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import Verdict
from socks_tunnel.protocol.settings import TargetSettings
from support.target_services import Settings, policies, services

HERE = HostPort("192.0.2.1", 80)


def test_a_reload_is_in_force_at_once() -> None:
    made = services("192.0.2.1")
    settings = cast("Settings", made.settings)
    assert made.policy("laptop").check(HERE).verdict is Verdict.ALLOWED
    assert made.config == TargetSettings()
    settings.policies = policies("198.51.100.0/24")
    settings.config = replace(settings.config, targets=TargetSettings(keepalive=7))
    assert made.policy("laptop").check(HERE).verdict is Verdict.DENIED
    assert made.config.keepalive == 7


def test_a_peer_that_is_not_configured_any_more_is_allowed_nothing() -> None:
    assert services("0.0.0.0").policy("stranger").check(HERE).verdict is Verdict.DENIED
