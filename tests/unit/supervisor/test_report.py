"""The status line, which systemctl shows."""

from typing import Any

import pytest

from socks_tunnel.supervisor.report import status_line


def link(peer: str, state: str = "up", rtt_ms: float | None = None) -> dict[str, Any]:
    return {"peer": peer, "state": state, "rtt_ms": rtt_ms}


class Links:
    """As many peers as rows; up are those that say so."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.peers = rows

    def up(self) -> list[dict[str, Any]]:
        return [row for row in self.peers if row["state"] == "up"]

    def status(self) -> list[dict[str, Any]]:
        return self.peers


@pytest.mark.parametrize(
    ("links", "flows", "workers", "line"),
    [
        (
            [link("office", "up", 12.34)],
            37,
            2,
            "gateway: link office up (rtt 12 ms), 37 flows, 2 workers",
        ),
        (
            [link("office", "up", 0.42)],
            1,
            1,
            "gateway: link office up (rtt 0.4 ms), 1 flow, 1 worker",
        ),
        (
            [link("office"), link("backup", "connecting")],
            0,
            2,
            "gateway: link office up, link backup connecting, 0 flows, 2 workers",
        ),
        (
            [link(str(i), "up" if i < 3 else "down") for i in range(5)],
            0,
            2,
            "gateway: 3 of 5 links up, 0 flows, 2 workers",
        ),
    ],
)
def test_status_line(links: list[dict[str, Any]], flows: int, workers: int, line: str) -> None:
    assert status_line("gateway", Links(links), flows, workers) == line
