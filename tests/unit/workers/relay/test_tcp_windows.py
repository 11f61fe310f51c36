"""Windows of a TCP flow: when the worker lets them grow."""

import pytest

from socks_tunnel.protocol.messages import Data, WindowUpdate
from socks_tunnel_workers.relay.tcp import QUIET_SECONDS, WINDOW_WHEN_SHORT
from unit.workers.relay.test_tcp import Site


@pytest.mark.parametrize(("stopped", "grows"), [(0.1, True), (0.0, False)])
def test_a_window_that_held_its_sender_up_grows(stopped: float, *, grows: bool) -> None:
    """Its update was on its way for longer than PINGs are, because of queues that others fill."""
    site = Site().open()
    site.session.round_trip, loop = 0.04, site.gateway.loop
    window = site.session.receive_window

    def come(half: int) -> None:
        for _ in range(half // 16_384):
            loop.now += 0.01
            site.answer(Data(site.conn_id, bytes(16_384)))

    come(window // 2)
    for _ in range(4):
        come(window // 2)  # up to the LIMIT of before
        loop.now += stopped
    limit = max(update.limit for update in site.sent() if isinstance(update, WindowUpdate))
    assert (limit - site.flow.core.receive.consumed > window) is grows


@pytest.mark.parametrize(
    ("used", "quiet", "shrinks"),
    [(0.51, QUIET_SECONDS + 1, True), (0.5, QUIET_SECONDS + 1, False), (0.99, 9.0, False)],
)
def test_windows_of_quiet_flows_shrink_first(used: float, quiet: float, *, shrinks: bool) -> None:
    """The others keep theirs as long as there is memory."""
    site = Site().open()
    memory, window = site.session.memory, site.session.receive_window
    held = memory.charge(int(memory.limit * used))
    site.advance(quiet)
    assert (site.flow.receive_window == WINDOW_WHEN_SHORT) is shrinks
    assert shrinks or site.flow.receive_window == window
    held.end()
