"""Credit: who may transmit how much on a link, and how the limit follows the rate of the link."""

import random

from socks_tunnel.supervisor.credit import (
    CHUNK_MAX,
    CHUNK_MIN,
    LIMIT_MAX,
    LIMIT_MIN,
    LIMIT_START,
    REVIEW_EVERY,
    SOJOURN_HIGH,
    LinkCredit,
    Share,
)


def shares(credit: LinkCredit, count: int) -> list[Share]:
    made = [Share() for _ in range(count)]
    for share in made:
        assert credit.first_grant(share) == LIMIT_START
    return made


class Link:
    """A link of a rate in bytes per second, with workers that always have something to send."""

    def __init__(self, rate: float, workers: int, *, greedy: int | None = None) -> None:
        self.credit = LinkCredit()
        self.shares = shares(self.credit, workers)
        self.rate = rate
        self.now = 0.0
        self.queue = 0
        self.sent = [0] * workers
        self.waited = 0.0
        self.greedy = workers if greedy is None else greedy

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            for number, share in enumerate(self.shares[: self.greedy]):
                while share.held > 0:
                    size = self.credit.chunk + 7
                    self.credit.sent(share, size, self.now)
                    self.sent[number] += size
                    self.queue += size
            step = 0.002
            self.now += step
            drained = min(self.queue, int(self.rate * step) or 1)
            self.queue -= drained
            self.waited = self.queue / self.rate
            self.credit.drained(drained, self.now)
            if not self.credit.due(self.now):
                continue
            for share, amount in self.credit.grants(self.shares):
                assert amount != 0
                assert share.held <= max(self.credit.limit, LIMIT_START)


def test_on_a_slow_link_little_waits_and_messages_are_short() -> None:
    link = Link(125_000, 2)  # 1 Mbit/s
    link.run(10)
    assert link.credit.limit < 16_384
    assert link.credit.chunk < 2_100
    assert link.waited < 0.15, "a keystroke waits behind this much"
    assert sum(link.sent) > 0.9 * 125_000 * 10, "and the link is never idle"


def test_a_slow_link_never_holds_much_from_its_first_byte_on() -> None:
    link = Link(125_000, 1)  # 1 Mbit/s
    waits = []
    for _ in range(300):
        link.run(0.01)
        waits.append(link.waited)
    assert max(waits) < 0.4, "a keystroke at the start of a download waits behind this much"


def test_on_a_fast_link_the_limit_grows() -> None:
    link = Link(125_000_000, 1)  # 1 Gbit/s
    link.run(2)
    assert link.credit.limit > LIMIT_START
    assert link.credit.chunk == CHUNK_MAX
    assert sum(link.sent) > 0.8 * 125_000_000 * 2


def test_a_worker_that_is_alone_has_the_whole_link() -> None:
    link = Link(1_250_000, 8, greedy=1)  # 10 Mbit/s
    link.run(5)
    assert link.sent[0] > 0.9 * 1_250_000 * 5


def test_busy_workers_share_evenly() -> None:
    link = Link(1_250_000, 4)
    link.run(10)
    assert max(link.sent) < 1.2 * min(link.sent)


def test_an_idle_worker_can_begin_at_once() -> None:
    link = Link(1_250_000, 4, greedy=3)
    link.run(5)
    assert link.shares[3].held > 0


def test_a_debt_of_control_messages_is_forgiven_once_they_have_left() -> None:
    # Nothing else would ever leave the link, so this is the last occasion to give credit: a
    # download that waits for it would wait for ever.
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    size = 20 * LIMIT_START
    credit.sent(share, size, 0.0)
    assert share.held == LIMIT_START - size
    credit.drained(size, 0.001)
    assert credit.grants([share]) == [(share, credit.limit - LIMIT_START + size)]
    assert share.held == credit.limit


def test_a_debt_beside_others_is_no_reason_to_starve() -> None:
    credit = LinkCredit()
    debtor, busy = shares(credit, 2)
    credit.sent(busy, 3_000, 0.0)
    credit.sent(debtor, 20 * LIMIT_START, 0.0)
    credit.sent(busy, 3_000, 0.0)
    credit.drained(20 * LIMIT_START + 3_000, 0.001)
    credit.grants([debtor, busy])
    assert debtor.held == credit.limit


def test_idle_workers_lose_credit_that_a_slow_link_cannot_carry() -> None:
    link = Link(125_000, 8, greedy=1)  # 1 Mbit/s
    link.run(5)
    idle = link.shares[1:]
    assert link.credit.limit < 16_384
    assert max(share.held for share in idle) <= 1.5 * link.credit.limit
    # One of them begins a download: a keystroke behind it waits for what the limit allows.
    link.greedy = 2
    link.run(0.05)
    assert link.waited < 0.3


def test_small_messages_are_no_occasion_to_share_credit_until_a_worker_has_used_half_of_it() -> (
    None
):
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    assert credit.due(0.0), "nobody was told the round trip yet"
    assert credit.grants([share]) == []
    used = 0
    while used + 100 < LIMIT_START // 2:
        credit.sent(share, 100, 0.0)
        credit.drained(100, 0.0)
        assert not credit.due(0.0)
        used += 100
    credit.sent(share, 100, 0.0)
    credit.drained(100, 0.0)
    assert credit.due(0.0)
    assert credit.grants([share]) == [(share, used + 100)]
    assert not credit.due(0.0)


def test_credit_is_shared_again_after_a_while_although_nobody_lacks_any() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    credit.sent(share, 100, 5.0)
    credit.drained(100, 5.0)
    assert credit.grants([share]) == []
    assert not credit.due(5.0 + 0.9 * REVIEW_EVERY)
    assert credit.due(5.0 + 1.1 * REVIEW_EVERY)


def test_a_limit_that_has_moved_is_an_occasion_to_share_credit() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    credit.sent(share, 1_000, 0.0)
    before = SOJOURN_HIGH - REVIEW_EVERY / 10
    credit.drained(0, before)
    assert credit.grants([share]) == []
    assert not credit.due(before)
    after = SOJOURN_HIGH + REVIEW_EVERY / 10
    credit.drained(1_000, after)
    assert credit.limit < LIMIT_START
    assert credit.due(after)


def test_a_busy_worker_that_got_too_little_has_another_occasion_at_once() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    credit.sent(share, LIMIT_START, 0.0)
    credit.drained(0, 0.0)
    assert credit.grants([share]) == [], "all of the limit waits in the link"
    assert share.held == 0
    assert credit.due(0.0)


def test_what_the_supervisor_sends_itself_leaves_no_worker_short() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    assert credit.grants([share]) == []
    credit.sent(None, 10 * LIMIT_START, 0.0)
    credit.drained(10 * LIMIT_START, 0.0)
    assert not credit.due(0.0)


def test_limits_stay_within_their_bounds() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    now = 0.0
    for _ in range(200):
        credit.sent(share, 1_000, now)
        now += 4 * SOJOURN_HIGH
        credit.drained(1_000, now)
    assert credit.limit == LIMIT_MIN
    assert credit.chunk == CHUNK_MIN
    for _ in range(2_000):
        share.held = 0
        credit.sent(share, 1_000, now)
        credit.drained(1_000, now)
        now += 0.1
    assert credit.limit == LIMIT_MAX
    assert credit.chunk == CHUNK_MAX


def test_only_whole_entries_count_and_rests_are_carried() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    credit.sent(share, 100, 0.0)
    credit.sent(share, 50, 0.0)
    for _ in range(149):
        credit.drained(1, 0.0)
    assert credit.outstanding == share.outstanding == 50
    credit.drained(1, 0.0)
    assert credit.outstanding == share.outstanding == 0


def test_the_supervisor_s_own_messages_are_nobody_s_credit() -> None:
    credit = LinkCredit()
    (share,) = shares(credit, 1)
    credit.sent(None, 1_000, 0.0)
    assert (share.held, share.outstanding) == (LIMIT_START, 0)
    assert credit.outstanding == 1_000
    credit.drained(1_000, 0.0)
    assert credit.outstanding == 0


def test_random_traffic_keeps_the_books_straight() -> None:
    rng = random.Random(4711)
    credit = LinkCredit()
    made = shares(credit, 3)
    waiting = 0
    now = 0.0
    for _ in range(20_000):
        now += rng.random() * 0.01
        share = rng.choice(made)
        if share.held > 0 and rng.random() < 0.6:
            size = rng.randrange(1, 5_000)
            credit.sent(share, size, now)
            waiting += size
        elif waiting:
            count = rng.randrange(1, waiting + 1)
            waiting -= count
            credit.drained(count, now)
        for share, amount in credit.grants(made):
            assert amount > 0 or share.held >= credit.limit
        assert sum(share.outstanding for share in made) == credit.outstanding >= waiting
    credit.drained(waiting, now)
    assert credit.outstanding == 0
    assert all(share.used > 0 or share.held > 0 for share in made) or credit.grants(made)
