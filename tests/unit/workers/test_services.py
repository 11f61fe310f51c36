"""The small services of a worker: counters, notices, accounts, quotas, settings."""

import random

import pytest
from prometheus_client import CollectorRegistry

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.settings import RuleSettings, WorkerSettings
from socks_tunnel_workers.services import (
    NOTICE_SECONDS,
    Account,
    Charge,
    Counters,
    Notices,
    Quota,
    QuotaSlot,
    Settings,
)


def test_counters_are_exported_once_and_by_direction() -> None:
    registry = CollectorRegistry(auto_describe=True)
    metrics, counters = Metrics(registry), Counters()
    counters.sent["tcp"] += 7
    counters.received["udp"] += 3
    counters.active["tcp"] += 1
    counters.count("flows_total", "tcp")
    counters.count("flows_total", "tcp", by=2)
    counters.drop("expired", 4)
    assert counters.pending("flows_total", "tcp") == 3
    for _ in range(2):
        counters.export(metrics, gateway=True)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"socks_tunnel_{name}", labels)

    assert value("bytes_total", direction="up", kind="tcp") == 7
    assert value("bytes_total", direction="down", kind="udp") == 3
    assert value("flows_total", kind="tcp") == 3
    assert value("udp_dropped_total", reason="expired") == 4
    assert value("flows_active", kind="tcp") == 1
    assert counters.pending("flows_total", "tcp") == 0
    assert counters.totals(gateway=False)["down", "tcp"] == 7


def test_a_notice_of_a_kind_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    notices = Notices(lambda: now)
    for _ in range(3):
        notices.warn("full", "full: %d", 1)
        notices.warn("memory", "memory: %d", 2)
    now += NOTICE_SECONDS
    notices.warn("full", "full: %d", 3)
    assert [record.getMessage() for record in caplog.records] == ["full: 1", "memory: 2", "full: 3"]


def test_an_account_balances_over_random_lives() -> None:
    rng = random.Random(4711)
    account = Account(1_000)
    live: list[Charge] = []
    for _ in range(5_000):
        if not live or rng.random() < 0.4:
            live.append(account.charge(rng.randrange(100)))
        elif rng.random() < 0.6:
            rng.choice(live).set(rng.randrange(500))
        else:
            ended = live.pop(rng.randrange(len(live)))
            ended.end()
            ended.end()
        assert account.used == sum(charge.used for charge in live)
        assert account.over is (account.used > 1_000)
        assert account.full is (account.used >= 1_000)
    for charge in live:
        charge.end()
    assert account.used == 0


def test_a_quota_is_each_client_s_own_and_given_back_once() -> None:
    quota = Quota(2)
    slots = [quota.take("a"), quota.take("a"), quota.take("a"), quota.take("b")]
    assert [slot is None for slot in slots] == [False, False, True, False]
    assert quota.clients == {"a": 2, "b": 1}
    first = slots[0]
    assert isinstance(first, QuotaSlot)
    first.end()
    first.end()
    assert quota.held("a") == 1
    assert quota.take("a") is not None


def test_settings_follow_a_reload() -> None:
    settings = Settings(WorkerSettings(role="endpoint"))
    before = settings.policies.for_peer("office")
    assert settings.passwords is None
    rules = RuleSettings(allowed_hosts=("10.0.0.0/8",), allowed_ports=("*",))
    settings.apply(WorkerSettings(role="endpoint", policy=rules, users={"a": "hash"}))
    assert settings.policies.default is not before
    assert settings.passwords is not None
