"""What is wrong with the results of a trial, and how the shares of modules are counted."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from mutants.changes import SOURCES, Change
from mutants.forked import TRIED
from mutants.judge import is_poor, main, report, shares, wholly_tried

NAMES = [f"toy.x_small__mutmut_{number}" for number in range(1, 21)]
OTHER = "toy.x_other__mutmut_1"
CHANGE = Change("toy.small", ("a = 1",), ("a = 2",))


def judged(
    results: Mapping[str, str],
    *,
    patterns: tuple[str, ...] = ("*",),
    listed: tuple[Change, ...] = (),
) -> list[str]:
    """Returns what is wrong; each survivor makes the same change."""
    changes = {name: CHANGE for name, result in results.items() if result == "survived"}
    return report([*NAMES, OTHER], list(patterns), results, list(listed), changes)


def all_noticed(**changed: str) -> dict[str, str]:
    """Returns results: noticed, but for those that are named by their numbers."""
    results = dict.fromkeys([*NAMES, OTHER], "noticed")
    return results | {f"toy.x_small__mutmut_{key[1:]}": value for key, value in changed.items()}


def test_all_noticed_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert judged(all_noticed(_3="ended")) == []
    assert capsys.readouterr().out == "toy: 21 mutants, 0 survivors, 100.0 % noticed\n"


def test_a_survivor_needs_a_reason() -> None:
    (sentence,) = judged(all_noticed(_3="survived"))
    assert sentence.splitlines() == [
        "not noticed, and not listed: toy.x_small__mutmut_3",
        "toy.small",
        "- a = 1",
        "+ a = 2",
    ]
    assert judged(all_noticed(_3="survived"), listed=(CHANGE,)) == []


def test_a_survivor_that_is_listed_counts_against_the_share() -> None:
    three = all_noticed(_1="survived", _2="survived", _3="survived")
    assert judged(three, listed=(CHANGE,) * 3) == ["toy: less than 90 % were noticed"]


def test_a_reason_for_what_is_noticed_is_wrong() -> None:
    assert judged(all_noticed(), listed=(CHANGE,)) == [f"listed, and noticed or gone:\n{CHANGE}"]


def test_a_reason_for_a_function_that_is_gone_is_wrong() -> None:
    gone = Change("gone.small", (), ("a",))
    assert judged(all_noticed(), listed=(gone,)) == [f"listed, and noticed or gone:\n{gone}"]


def test_of_a_function_that_was_not_wholly_asked_for_no_reason_is_wrong() -> None:
    assert judged(all_noticed(), patterns=("toy.x_small__mutmut_1",), listed=(CHANGE,)) == []
    assert judged(all_noticed(), patterns=("toy.x_other*",), listed=(CHANGE,)) == []


def test_what_was_not_tried_is_wrong() -> None:
    results = all_noticed()
    del results[OTHER]
    assert judged(results) == ["1 mutants were not tried"]
    assert judged(results, patterns=("toy.x_small*",)) == []
    assert judged({}) == ["nothing was tried", "21 mutants were not tried"]


def test_shares_are_those_of_modules() -> None:
    names = ["a.x_f__mutmut_1", "a.x_f__mutmut_2", "b.x_f__mutmut_1"]
    assert shares(names, ["a.x_f__mutmut_2"]) == {"a": (2, 1), "b": (1, 0)}


@pytest.mark.parametrize(
    ("tried", "left", "poor"), [(19, 19, False), (20, 2, False), (20, 3, True), (1000, 101, True)]
)
def test_nine_of_ten_are_enough_and_few_have_no_share(tried: int, left: int, poor: bool) -> None:
    assert is_poor(tried, left) is poor


def test_a_function_is_judged_if_all_its_mutants_were_tried() -> None:
    there = ["a.x_f__mutmut_1", "a.x_f__mutmut_2", "a.x_g__mutmut_1"]
    assert wholly_tried(there, ["a.x_f__mutmut_1", "a.x_g__mutmut_1"]) == {"a.g"}


@pytest.mark.parametrize(("reason", "status"), [("= nobody reads it\n", 0), ("", 1)])
def test_a_list_decides(
    reason: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mutants" / SOURCES).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mutants")
    forms = ("x_small__mutmut_orig", "x_small__mutmut_1")
    (SOURCES / "toy.py").write_text("def x_small__mutmut_orig():\n    a = 1\n    a = 2\n")
    spans = {"version": 1, "spans": {forms[0]: (1, 2), forms[1]: (3, 3)}}
    (SOURCES / "toy.py.spans").write_text(json.dumps(spans))
    key = f"socks_tunnel.protocol.toy.{forms[1]}"
    (SOURCES / "toy.py.meta").write_text(json.dumps({"exit_code_by_key": {key: None}}))
    line = {"name": f"toy.{forms[1]}", "result": "survived", "by": "", "digest": ""}
    TRIED.write_text(json.dumps(line) + "\n")
    listed = tmp_path / "survivors.txt"
    listed.write_text(f"toy.small\n- def ():\n- a = 1\n+ a = 2\n{reason}" if reason else "")
    assert main(str(listed), ["*"]) == status
    assert ("not listed: toy.x_small__mutmut_1" in capsys.readouterr().out) is bool(status)
