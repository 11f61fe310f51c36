"""The fields of audit records are an interface."""

import logging
from typing import Any

import pytest

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort


@pytest.fixture
def fields(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, audit.LOGGER_NAME)

    def of_the_record() -> tuple[str, dict[str, object]]:
        [record] = caplog.records
        assert (record.name, record.levelno) == (audit.LOGGER_NAME, logging.INFO)
        return record.getMessage(), record.__dict__["fields"]

    return of_the_record


def test_a_decision(fields: Any) -> None:
    audit.decision(
        peer="laptop-17",
        conn_id=7,
        command="connect",
        destination=HostPort("www.example.com", 443),
        verdict="allowed",
        rule="allowed_hosts: *.example.com",
    )
    assert fields() == (
        "policy decision",
        {
            "peer": "laptop-17",
            "flow": 7,
            "command": "connect",
            "destination": "www.example.com:443",
            "verdict": "allowed",
            "rule": "allowed_hosts: *.example.com",
        },
    )


def test_the_end_of_a_flow(fields: Any) -> None:
    audit.flow_end(
        peer="laptop-17",
        conn_id=7,
        command="connect",
        destination=HostPort("2001:db8::1", 443),
        up=100,
        down=2000,
        seconds=1.23456,
        reason="orderly",
    )
    assert fields() == (
        "flow ended",
        {
            "peer": "laptop-17",
            "flow": 7,
            "command": "connect",
            "destination": "[2001:db8::1]:443",
            "up": 100,
            "down": 2000,
            "seconds": 1.235,
            "reason": "orderly",
        },
    )


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_association_has_no_destination(fields: Any, nothing: str | None) -> None:
    audit.flow_end(
        peer="p",
        conn_id=7,
        command="udp-associate",
        destination=nothing,
        up=0,
        down=0,
        seconds=0,
        reason="idle",
    )
    assert "destination" not in fields()[1]


def test_a_flow_that_an_operator_ends(fields: Any) -> None:
    audit.killed(
        peer="p", conn_id=7, command="connect", destination="192.0.2.1:22", uid=1000, pid=4242
    )
    assert fields() == (
        "flow killed",
        {
            "peer": "p",
            "flow": 7,
            "command": "connect",
            "destination": "192.0.2.1:22",
            "uid": 1000,
            "killer": 4242,
        },
    )
