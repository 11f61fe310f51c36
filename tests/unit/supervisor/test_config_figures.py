"""What the metrics say of the configuration."""

from dataclasses import dataclass, field

import pytest

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.supervisor.config_figures import (
    HASH_BYTES,
    ConfigFigures,
    config_hash,
    credential_expiry,
)


@dataclass(frozen=True)
class Server:
    username: str | None
    credential: str = field(default="", repr=False)


def test_the_hash_tells_configurations_apart_and_leaves_passwords_out() -> None:
    assert config_hash(Server("a")) == config_hash(Server("a"))
    assert config_hash(Server("a")) != config_hash(Server("b"))
    assert config_hash(Server("a", "secret")) == config_hash(Server("a", "other"))
    assert 0 <= config_hash(Server("a")) < 1 << 8 * HASH_BYTES <= 1 << 53


@pytest.mark.parametrize(
    ("names", "expiry"),
    [
        ([], None),
        (["user", None, "user:1700000000", ":", "17e8:x"], None),
        (["1700000000"], None),  # no user: it is a plain name of digits
        (["1700000000:laptop"], 1_700_000_000),
        (["1800000000:a", "1700000000:b", "c"], 1_700_000_000),
        (["9" * 5000 + ":a"], None),
        (["\u0661\u0662:a"], None),  # digits of another script
    ],
)
def test_when_the_first_credential_expires(names: list[str | None], expiry: int | None) -> None:
    assert credential_expiry(map(Server, names)) == expiry


def test_reloads() -> None:
    metrics = Metrics()
    figures = ConfigFigures(metrics)
    figures.started(7, 100.0, [Server("1700000000:a")])
    assert metrics.config_reload_ok.value == 1
    assert metrics.config_hash.value == 7
    assert metrics.config_loaded_timestamp_seconds.value == 100
    assert metrics.ice_credential_expires_seconds.labels("turn").value == 1_700_000_000
    figures.failed()
    assert metrics.config_reload_ok.value == 0
    assert metrics.config_hash.value == 7
    figures.reloaded(8, 200.0, [])
    assert metrics.config_reload_ok.value == 1
    assert metrics.config_hash.value == 8
    assert metrics.config_loaded_timestamp_seconds.value == 200
    assert metrics.config_reloads_total.labels("success").value == 1
    assert metrics.config_reloads_total.labels("failure").value == 1
    assert list(metrics.ice_credential_expires_seconds.samples()) == []
