"""The last warnings and errors."""

import logging
from collections.abc import Iterator

import pytest

from socks_tunnel.ops import recent
from socks_tunnel.ops.recent import RecentProblems


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, RecentProblems]]:
    problems = RecentProblems()
    logger = logging.getLogger("test-recent")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(problems)
    yield logger, problems
    logger.removeHandler(problems)


def test_the_newest_comes_first_and_information_is_left_out(
    logger: tuple[logging.Logger, RecentProblems],
) -> None:
    log, problems = logger
    log.info("nothing")
    log.warning("cannot reach %s", "office")
    log.error("worker %d ended", 3)
    assert [(row["level"], row["message"]) for row in problems.rows()] == [
        ("error", "worker 3 ended"),
        ("warning", "cannot reach office"),
    ]


def test_so_many_are_remembered_and_so_much_of_each(
    logger: tuple[logging.Logger, RecentProblems],
) -> None:
    log, problems = logger
    for number in range(recent.REMEMBERED + 5):
        log.warning("%d %s", number, "x" * 10_000)
    rows = problems.rows()
    assert len(rows) == recent.REMEMBERED
    assert str(rows[0]["message"]).startswith(f"{recent.REMEMBERED + 4} x")
    assert all(len(str(row["message"])) <= recent.SENTENCE_MAX + 20 for row in rows)


def test_a_bad_logging_call_is_left_to_the_log(
    logger: tuple[logging.Logger, RecentProblems],
) -> None:
    log, problems = logger
    problems.emit(logging.LogRecord("x", logging.ERROR, "", 1, "%d", ("no number",), None))
    assert problems.rows() == []
    del log
