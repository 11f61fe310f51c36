"""The list of survivors: how it is read, and what it is compared with."""

from pathlib import Path

import pytest

from mutants.changes import Change
from mutants.survivors import Unreadable, compare, parse

ONE = Change("toy.small", ("a = 1",), ("a = 2",))
OTHER = Change("toy.small", ("b = 1", "c = 1"), ())
THIRD = Change("toy.Box.fill", (), ("d = 1",))

LIST = """\
# A comment.
toy.small
- a = 1
+ a = 2
- b = 1
- c = 1
+
= neither is read

toy.Box.fill
-
+ d = 1
= it is
= said twice
"""


def test_a_reason_is_for_all_changes_before_it() -> None:
    assert parse(LIST.replace("= said twice\n", "")) == [ONE, OTHER, THIRD]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("toy.small\n- a\n+ b\n", "no reason is given"),
        ("toy.small\n- a\n+ b\ntoy.other\n- a\n+ b\n= yes\n", "no reason is given"),
        ("toy.small\n- a\n+ b\n= \n", "a reason stands after the changes"),
        ("toy.small\n= yes\n", "a reason stands after the changes"),
        ("toy.small\n- a\n= yes\n", "lines with - and lines with +"),
        ("toy.small\n+ a\n= yes\n", "lines with - and lines with +"),
        (LIST, "a reason stands after the changes"),
    ],
)
def test_what_is_out_of_place_is_refused(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        parse(text)


def test_a_change_is_read_as_it_is_written() -> None:
    written = "\n".join(f"{change}\n= why" for change in (ONE, OTHER, THIRD))
    assert parse(written) == [ONE, OTHER, THIRD]


def test_what_survives_and_is_listed_is_excused() -> None:
    assert compare([ONE], {"toy.x_small__mutmut_7": ONE}, {"toy.small"}) == ([], [])


def test_one_line_excuses_one_of_two_that_make_the_same_change() -> None:
    survivors = {"toy.x_small__mutmut_1": ONE, "toy.x_small__mutmut_2": ONE}
    assert compare([ONE], survivors, {"toy.small"}) == (["toy.x_small__mutmut_2"], [])
    assert compare([ONE, ONE], survivors, {"toy.small"}) == ([], [])


def test_what_is_listed_and_has_not_survived_is_stale() -> None:
    assert compare([ONE, OTHER], {"toy.x_small__mutmut_1": ONE}, {"toy.small"}) == ([], [OTHER])


def test_what_was_not_tried_is_not_called_stale() -> None:
    assert compare([THIRD], {}, {"toy.small"}) == ([], [])


def test_the_list_of_this_project_can_be_read() -> None:
    file = Path(__file__).parents[2] / "mutants" / "survivors.txt"
    assert len(parse(file.read_text())) > 100
