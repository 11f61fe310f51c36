"""The two transports and controllers that a link can have, in every pair, through the whole tunnel."""

import functools
import itertools

import pytest

from support.processes import wait_until
from support.targets import body_hash
from support.tunnels import MakeTunnel, Tunnel
from system.test_flows import download

FAST = {"transport": {"fast_path": "auto"}}
PLAIN = {"transport": {"fast_path": "off"}}
LOSSY = {"transport": {"congestion": "bbr"}}
SIZE = 4 << 20


def says(tunnel: Tunnel, role: str, expected: int) -> bool:
    """Whether the metric has this value; it is written twice a second."""
    return "fast_path" in tunnel.metrics(role)[1] and tunnel.metric("fast_path", role) == expected


@pytest.mark.parametrize(
    ("gateway", "endpoint"),
    [*itertools.product((FAST, PLAIN), repeat=2), (LOSSY, LOSSY)],
    ids=["fast-fast", "fast-plain", "plain-fast", "plain-plain", "lossy-lossy"],
)
def test_bytes_cross_any_pair(
    make_tunnel: MakeTunnel, gateway: dict[str, object], endpoint: dict[str, object]
) -> None:
    tunnel = make_tunnel(gateway, endpoint, foreground=True)
    assert download(tunnel, SIZE, timeout=90) == body_hash(SIZE)
    for role, settings in (("gateway", gateway), ("endpoint", endpoint)):
        expected = 0 if settings is PLAIN else 1
        wait_until(
            functools.partial(says, tunnel, role, expected), f"fast_path {expected} of the {role}"
        )
