"""What a worker gets of the configuration: the map of an IPC frame, and maps of other versions."""

from typing import Any

import msgpack
import pytest

from socks_tunnel.protocol.settings import (
    AuditSettings,
    LimitSettings,
    LogSettings,
    PeerSettings,
    RouteSettings,
    RuleSettings,
    SocksSettings,
    TargetSettings,
    WorkerSettings,
)

# Each value differs from its default.
SETTINGS = WorkerSettings(
    role="gateway",
    udp_filtering="endpoint-independent",
    socks=SocksSettings(10, 600, 60, ("socks5", "http"), "192.0.2.1", "40000-40100"),
    targets=TargetSettings(5, 15, 30, ("corp.example", "example")),
    limits=LimitSettings(1_000, 1_048_576, 8),
    log=LogSettings("debug"),
    audit=AuditSettings("/var/log/audit.json"),
    peers=(PeerSettings("office", "web"), PeerSettings("home")),
    routes=(
        RouteSettings(
            "corp", ("*.corp",), (443, "80-82"), ("office", "home"), "nearest", 3, 30, ("a", 80), 9
        ),
        RouteSettings("rest"),
    ),
    policy=RuleSettings(("0.0.0.0",), ("*",), ("192.0.2.7",), (25,)),
    policies={"web": RuleSettings("*.example", "80\n443", "x.example", "8080")},
    users={"ada": "$scrypt$…"},
)


def sent(settings: WorkerSettings, **changes: Any) -> Any:
    """The map as it comes out of an IPC frame."""
    return msgpack.unpackb(msgpack.packb(settings.to_map() | changes))


@pytest.mark.parametrize("settings", [SETTINGS, WorkerSettings("endpoint")])
def test_a_worker_gets_what_was_sent(settings: WorkerSettings) -> None:
    assert WorkerSettings.from_map(sent(settings)) == settings


def test_password_hashes_are_not_in_the_representation() -> None:
    assert "scrypt" not in repr(SETTINGS)


@pytest.mark.parametrize("change", [{"role": "proxy"}, {"surprise": 1}])
def test_other_keys_and_roles_are_of_another_version(change: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^the settings are of another version: other keys, or another role$"
    ):
        WorkerSettings.from_map(sent(SETTINGS, **change))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"log": {"level": "info", "file": ""}}, "LogSettings has ['level']"),
        ({"audit": {}}, "AuditSettings has ['file']"),
        ({"policy": {}}, "RuleSettings has ['allowed_hosts', 'allowed_ports', "),
        ({"policies": {"web": {}}}, "RuleSettings has ['allowed_hosts', 'allowed_ports', "),
        ({"socks": None}, ""),
        ({"routes": [{}]}, "RouteSettings has "),
        ({"peers": [("office",)]}, ""),
        ({"policies": []}, ""),
    ],
)
def test_a_table_of_another_version_is_refused_and_named(
    change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError) as caught:
        WorkerSettings.from_map(sent(SETTINGS, **change))
    assert str(caught.value).startswith(f"the settings are of another version: {complaint}")
    assert caught.value.__suppress_context__, "one sentence for the log, without a second traceback"
