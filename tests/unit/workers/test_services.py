"""The small services of a worker: counters, notices, accounts, quotas, settings."""

import random

import pytest
from prometheus_client import CollectorRegistry

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.settings import RuleSettings, WorkerSettings
from socks_tunnel_workers.services import (
    NOTICE_SECONDS,
    NOTICES_MAX,
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


def test_a_notice_is_logged_once_in_a_while_and_its_repetitions_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    notices = Notices(lambda: now)

    def logged() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return said

    for _ in range(18):
        notices.warn("full", "full: %d", 1)
        notices.warn("memory", "memory: %d", 2)
    notices.flush()
    assert logged() == ["full: 1", "memory: 2"]
    now += NOTICE_SECONDS
    notices.warn("full", "full: %d", 1)
    assert logged() == ["17 more like this within 10 s: full: 1", "full: 1"]
    notices.flush()
    assert logged() == ["17 more like this within 10 s: memory: 2"]
    now += NOTICE_SECONDS
    notices.flush()
    assert logged() == []  # there was no repetition, and nothing is left


def test_a_repetition_hides_no_first_occurrence(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    notices = Notices(lambda: now)
    for number in range(3):
        for _ in range(2):
            notices.warn("resource", "cannot connect to %d", number)
    assert [r.getMessage() for r in caplog.records] == [f"cannot connect to {n}" for n in range(3)]


def test_strangers_cannot_fill_the_log_with_notices(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    notices = Notices(lambda: now)
    for number in range(NOTICES_MAX + 5):
        notices.warn("resource", "cannot connect to %d", number)
    assert len(caplog.records) == NOTICES_MAX
    now = NOTICE_SECONDS
    notices.flush()
    assert caplog.records[-1].getMessage() == (
        "5 more warnings of this kind, but about something else, within 10 s: cannot connect to 0"
    )


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
