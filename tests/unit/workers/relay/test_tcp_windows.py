"""Windows of a TCP flow: when the worker lets them grow."""

import pytest

from socks_tunnel.protocol.messages import Data, WindowUpdate
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
