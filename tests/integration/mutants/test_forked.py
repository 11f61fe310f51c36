"""Mutants are tried: by the tests that reach them, in children that may loop, wait or fill memory.

The sources are written here as mutmut writes them, so that mutmut is not needed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]

# As mutmut's sources: each function calls one of its forms, by the variable of the environment.
MODULE = """\
import os


def chosen(function):
    under_test = os.environ["MUTANT_UNDER_TEST"].rpartition(".")[2]
    return globals().get(under_test if under_test.startswith(function + "__") else "", globals()[f"{function}__mutmut_orig"])


def double(number):
    return chosen("x_double")(number)


def x_double__mutmut_orig(number):
    return number + number


def x_double__mutmut_1(number):
    return number - number


def x_double__mutmut_2(number):
    return 0 + number + number


def x_double__mutmut_3(number):
    while True:
        pass


def x_double__mutmut_4(number):
    taken = []
    while True:
        taken.append(bytes(1 << 20))


def x_double__mutmut_5(number):
    os._exit(7)


def unused(number):
    return chosen("x_unused")(number)


def x_unused__mutmut_orig(number):
    return number


def x_unused__mutmut_1(number):
    return None
"""

TEST = """\
from socks_tunnel.protocol import toy


def test_double():
    assert toy.double(2) == 4


def test_something_else():
    assert True
"""

NAMES = [f"toy.x_double__mutmut_{number}" for number in range(1, 6)] + ["toy.x_unused__mutmut_1"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The tree that tests/mutants/run assembles, with one module and one file of tests."""
    for root in (tmp_path, tmp_path / "mutants"):
        package = root / "src/socks_tunnel/protocol"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "toy.py").write_text(MODULE)
    keys = {f"socks_tunnel.protocol.{name}": None for name in NAMES}
    (package / "toy.py.meta").write_text(json.dumps({"exit_code_by_key": keys}))
    (tmp_path / "mutants/pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (tmp_path / "mutants/test_toy.py").write_text(TEST)
    return tmp_path


def tries(tree: Path, *patterns: str) -> subprocess.CompletedProcess[str]:
    """Runs a trial in the tree."""
    environment = {**os.environ, "MUTANT_UNDER_TEST": "", "PYTHONPATH": f"src:{TESTS}"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "mutants.forked", "-p", "no:xdist"]
    command += ["--assert=plain", "--tb=no", "--children=2", *(f"--mutant={p}" for p in patterns)]
    return subprocess.run(
        [*command, "test_toy.py"],
        cwd=tree / "mutants",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def results(tree: Path) -> dict[str, str]:
    """Returns what became of each mutant, by its number."""
    lines = map(json.loads, (tree / "tried.jsonl").read_text().splitlines())
    return {line["name"].removeprefix("toy.x_"): line["result"] for line in lines}


def left(output: Iterable[str]) -> str:
    """Returns what a trial says of the module."""
    (line,) = (line for line in output if line.startswith("toy: "))
    return line


def test_what_becomes_of_each_kind(tree: Path) -> None:
    done = tries(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tree) == {
        "double__mutmut_1": "noticed",
        "double__mutmut_2": "survived",
        "double__mutmut_3": "ended",  # by the bound of processor time
        "double__mutmut_4": "noticed",  # by a MemoryError
        "double__mutmut_5": "ended",
        "unused__mutmut_1": "survived",
    }


def test_what_has_not_changed_is_not_tried_again(tree: Path) -> None:
    assert left(tries(tree, "*double__mutmut_[12]").stdout.splitlines()) == "toy: 2 of 2 to try"
    assert left(tries(tree, "*double__mutmut_[125]").stdout.splitlines()) == "toy: 1 of 3 to try"
    (tree / "mutants/test_toy.py").write_text(TEST + "\n# other tests\n")
    assert left(tries(tree, "*double__mutmut_[12]").stdout.splitlines()) == "toy: 2 of 2 to try"


def test_tests_that_fail_without_a_mutant_try_nothing(tree: Path) -> None:
    (tree / "mutants/test_toy.py").write_text(TEST.replace("== 4", "== 5"))
    done = tries(tree)
    assert done.returncode == 1
    assert "test_toy.py::test_double fails without any mutant" in done.stdout + done.stderr
    assert not (tree / "tried.jsonl").exists()
