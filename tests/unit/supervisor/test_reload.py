"""Which settings a reload takes over, and which wait for a restart."""

from typing import Any

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.settings import Config
from socks_tunnel.supervisor.reload import merge
from support.configs import checked

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def config(**changes: Any) -> Config:
    fields: dict[str, Any] = {
        "role": "gateway",
        "source": "/etc/socks-tunnel/office.toml",
        "identity": {"private_key_file": "/etc/socks-tunnel/office.key"},
        "peers": [{"name": "office", "public_key": KEY, "url": "http://10.0.0.1:1/"}],
    }
    return checked({**fields, **changes})


def test_nothing_changed_is_nothing_to_do() -> None:
    merged, waiting = merge(config(), config())
    assert merged == config()
    assert waiting == []


@pytest.mark.parametrize(
    "changes",
    [
        {"peers": [{"name": "branch", "public_key": KEY, "url": "http://10.0.0.2:1/"}]},
        {"policy": {"allowed_hosts": ["10.0.0.0/8"], "allowed_ports": [22]}},
        {"log": {"level": "debug"}},
        {"drain_timeout": 5},
        {"users": {"alice": "hash"}},
        {"limits": {"flows_per_worker": 7}},
        {"ice": {"addresses": ["10.0.0.0/8"]}},
        {
            "peers": [
                {
                    "name": "office",
                    "public_key": KEY,
                    "url": "https://10.0.0.1/",
                    "tls_ca": "/ca.pem",
                }
            ]
        },
        {"socks": {"connect_timeout": 5, "idle_tcp": 60, "idle_udp": 30}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_these_settings_are_taken_over(changes: dict[str, Any]) -> None:
    merged, waiting = merge(config(), config(**changes))
    assert merged == config(**changes)
    assert waiting == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"workers": {"count": 3}}, ["workers"]),
        ({"metrics": {"listen": "127.0.0.1:1"}}, ["metrics"]),
        ({"identity": {"private_key_file": "/other.key"}}, ["identity"]),
        ({"socks": {"listen": ["127.0.0.1:1"]}}, ["socks.listen"]),
        ({"log": {"format": "json"}}, ["log.format"]),
        (
            {"socks": {"listen": ["127.0.0.1:1"]}, "workers": {"count": 3}},
            ["socks.listen", "workers"],
        ),
    ],
)
def test_these_settings_wait_for_a_restart(changes: dict[str, Any], keys: list[str]) -> None:
    merged, waiting = merge(config(), config(**changes))
    assert merged == config()
    assert waiting == keys


def test_what_can_change_does_beside_what_cannot() -> None:
    new = config(
        socks={"listen": ["127.0.0.1:1"], "connect_timeout": 5},
        log={"format": "json", "level": "debug"},
    )
    merged, waiting = merge(config(), new)
    assert merged.socks.listen == config().socks.listen
    assert merged.socks.connect_timeout == 5
    assert (merged.log.level, merged.log.format) == ("debug", "auto")
    assert waiting == ["log.format", "socks.listen"]


PLAIN = {"listen": "127.0.0.1:1"}
HTTPS = {**PLAIN, "tls_certificate": "/tls.pem", "tls_key": "/tls.key"}


@pytest.mark.parametrize(
    ("running", "read", "goes_on_with", "keys"),
    [
        (HTTPS, HTTPS, HTTPS, []),
        (HTTPS, {**PLAIN, "tls_certificate": "/new"}, {**PLAIN, "tls_certificate": "/new"}, []),
        (
            HTTPS,
            {**HTTPS, "listen": "127.0.0.1:2", "tls_key": "/new"},
            {**HTTPS, "tls_key": "/new"},
            ["signaling.listen"],
        ),
        (PLAIN, HTTPS, PLAIN, ["signaling.tls_certificate", "signaling.tls_key"]),
        (HTTPS, PLAIN, HTTPS, ["signaling.tls_certificate", "signaling.tls_key"]),
    ],
    ids=["same", "another certificate", "another listener", "switched on", "switched off"],
)
def test_certificates_are_taken_over_where_there_is_one(
    running: dict[str, Any], read: dict[str, Any], goes_on_with: dict[str, Any], keys: list[str]
) -> None:
    def endpoint(signaling: dict[str, Any]) -> Config:
        return config(role="endpoint", peers=[], signaling=signaling)

    merged, waiting = merge(endpoint(running), endpoint(read))
    assert merged == endpoint(goes_on_with)
    assert waiting == keys


def test_another_role_is_no_reload() -> None:
    endpoint = config(role="endpoint", signaling={"listen": "127.0.0.1:1"})
    with pytest.raises(ConfigError, match=r"office.toml: role: is 'endpoint' now"):
        merge(config(), endpoint)
