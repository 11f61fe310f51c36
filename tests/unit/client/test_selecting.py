"""Which flows are shown, and in which order."""

from typing import Any

import pytest

from socks_tunnel.client.selecting import FilterError, flow_name, matching, ordered, orders


def row(number: int, **fields: Any) -> dict[str, Any]:
    usual = {
        "peer": "office",
        "conn_id": number,
        "client": f"127.0.0.1:{number}",
        "destination": "www.example.com:443",
        "command": "connect",
        "kind": "tcp",
        "state": "open",
        "seconds": 1.0,
        "up": 0,
        "down": 0,
        "worker": 0,
    }
    return usual | fields


ROWS = [
    row(1, seconds=5.0, up=10, down=0, destination="b.example.com:443"),
    row(2, seconds=9.0, up=1, down=100, destination="A.example.com:80", peer="branch"),
    row(3, seconds=7.0, up=5, down=5, kind="udp", destination=""),
]


@pytest.mark.parametrize(
    ("by", "numbers"),
    [
        (None, [1, 2, 3]),
        ("age", [2, 3, 1]),
        ("-age", [1, 3, 2]),
        ("up", [1, 3, 2]),
        ("total", [2, 1, 3]),  # equal ones stay as they were
        ("-total", [1, 3, 2]),
        ("peer", [2, 1, 3]),
        ("-peer", [1, 3, 2]),
    ],
)
def test_order(by: str | None, numbers: list[int]) -> None:
    assert [found["conn_id"] for found in ordered(ROWS, by)] == numbers


def test_every_order_is_there() -> None:
    for by in orders():
        assert len(ordered(ROWS, by)) == 3


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ([], [1, 2, 3]),
        (["peer=branch"], [2]),
        (["peer!=branch"], [1, 3]),
        (["destination=*.example.com:443"], [1]),
        (["destination=a.EXAMPLE.com:*"], [2]),
        (["kind=tcp", "peer=office"], [1]),
        (["flow=office/3"], [3]),
        (["worker=0"], [1, 2, 3]),
        (["Example"], [1, 2]),
        (["branch"], [2]),
        (["127.0.0.1:3"], [3]),
        (["nothing"], []),
    ],
)
def test_filters(filters: list[str], numbers: list[int]) -> None:
    assert [found["conn_id"] for found in matching(ROWS, filters)] == numbers


def test_an_unknown_field_is_refused_in_words() -> None:
    with pytest.raises(FilterError, match="flow, worker, not by 'size'"):
        matching(ROWS, ["size=5"])


def test_the_name_of_a_flow() -> None:
    assert flow_name(ROWS[1]) == "branch/2"
