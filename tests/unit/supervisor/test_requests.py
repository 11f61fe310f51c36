"""Requests on the control socket: what they may ask for."""

from typing import Any

import pytest

from socks_tunnel.supervisor.control import ControlError
from socks_tunnel.supervisor.requests import DRAIN_MAX, drain_timeout, flow_name, selection


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, 20.0),
        ({"timeout": 0}, 0.0),
        ({"timeout": 1.5}, 1.5),
        ({"timeout": DRAIN_MAX}, 86_400.0),
    ],
)
def test_a_drain_takes_what_is_asked_or_configured(
    request_: dict[str, Any], expected: float
) -> None:
    assert drain_timeout(request_, 20) == expected


@pytest.mark.parametrize("timeout", ["5", True, -1, DRAIN_MAX + 1, None, float("nan"), [1]])
def test_another_timeout_is_refused_in_words(timeout: object) -> None:
    with pytest.raises(ControlError, match="a number of seconds from 0 to 86400"):
        drain_timeout({"timeout": timeout}, 20)


def test_a_flow_is_named_by_peer_and_number() -> None:
    assert flow_name({"flow": "office/17"}) == ("office", 17)
    assert flow_name({"flow": "a.b-c/4294967295"}) == ("a.b-c", 4294967295)


@pytest.mark.parametrize(
    "flow",
    ["17", "/17", "office/", "office/x", "office/-1", "office/\u0663", None, 17, f"a/{10**10}"],
)
def test_another_name_of_a_flow_is_refused_in_words(flow: object) -> None:
    with pytest.raises(ControlError, match="as in office/17, not "):
        flow_name({"flow": flow})


def test_flows_are_all_or_the_first_by_something() -> None:
    assert selection({}) == {}
    assert selection({"limit": 0}) == {"limit": 0, "by": "rate"}
    assert selection({"limit": 5, "by": "age"}) == {"limit": 5, "by": "age"}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"limit": -1}, "a number of flows, not -1"),
        ({"limit": True}, "a number of flows"),
        ({"limit": "5"}, "a number of flows"),
        ({"limit": 5, "by": "size"}, "not by size"),
    ],
)
def test_another_selection_is_refused_in_words(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(ControlError, match=words):
        selection(request_)
