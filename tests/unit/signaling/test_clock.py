"""The time of envelopes: this host's, or that of a service that is trusted."""

from socks_tunnel.signaling.clock import SignalingClock


def test_without_trust_what_a_service_says_changes_nothing() -> None:
    clock = SignalingClock(trusts_service=False, own=lambda: 1000.0)
    clock.service_said(600)
    assert clock.now() == clock.at_start() == 1000


def test_with_trust_the_last_word_of_the_service_counts() -> None:
    moment = 1000.0
    clock = SignalingClock(trusts_service=True, own=lambda: moment)
    assert clock.now() == 1000
    assert clock.at_start() is None, "nobody has said yet what time it is"
    clock.service_said(600)
    moment += 5
    assert clock.now() == 1605
    clock.service_said(-600)
    assert clock.now() == 405
