"""Every input that fuzzing kept or found is a test of what it was found with."""

from pathlib import Path

import pytest

from fuzz.run import CORPUS
from fuzz.targets import TARGETS, pieces

INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus_breaks_nothing(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_a_corpus() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)


def test_how_the_first_byte_cuts_the_rest() -> None:
    assert pieces(b"\x02abcde") == [b"ab", b"cd", b"e"]
    assert pieces(b"\0abcde") == [b"abcde"]
    assert pieces(b"") == []
