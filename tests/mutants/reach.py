"""Which functions of socks_tunnel.protocol each test enters, and how much processor time it takes.

A test that does not enter a function cannot notice a mutant of it: until it enters, nothing is different. What was found
is kept for each file of tests, with a digest of that file and of the modules that are named in it, so that only
what has changed is measured again.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from mutants.changes import ORIGINAL, PREFIX

REACHED = Path("../reached.jsonl")


@dataclass(frozen=True, slots=True)
class Reached:
    """What one test enters, as mutmut calls it, without PREFIX; and its seconds of processor time."""

    functions: frozenset[str]
    seconds: float


Reaches = dict[str, Reached]
"""By the node id of the test."""

Run = Callable[[pytest.Item], bool]
"""Runs a test, and returns whether it failed."""


class FailsAnyhow(Exception):
    """A test fails without any mutant."""


def reach_of(items: Iterable[pytest.Item], sources: Mapping[str, str], run: Run) -> Reaches:
    """Returns what each of these tests reaches. `sources` has the text of each module by its name."""
    by_file: dict[Path, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.path, []).append(item)
    kept = _kept()
    found: Reaches = {}
    for path, mine in sorted(by_file.items()):
        digest = digest_of(path.read_text(), sources)
        if digest not in kept:
            _measure_apart(mine, digest, run)
            kept = _kept()
        for name, (functions, seconds) in kept[digest].items():
            found[name] = Reached(frozenset(functions), seconds)
    return found


def digest_of(text: str, sources: Mapping[str, str]) -> str:
    """Returns the digest of a file of tests and of the modules that it names."""
    words = set(re.findall(r"\w+", text))
    named = "".join(source for module, source in sorted(sources.items()) if module in words)
    return hashlib.sha256((text + named).encode()).hexdigest()


def _kept() -> Mapping[str, Mapping[str, tuple[list[str], float]]]:
    lines = REACHED.read_text().splitlines() if REACHED.exists() else []
    return {line["digest"]: line["tests"] for line in map(json.loads, lines)}


def _measure_apart(items: Iterable[pytest.Item], digest: str, run: Run) -> None:
    """Runs the tests in a child, which adds a line to REACHED, and waits for it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            silence()
            line = {"digest": digest, "tests": measure(items, run)}
            with REACHED.open("a") as file:
                file.write(json.dumps(line) + "\n")
            status = 0
        except FailsAnyhow as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        pytest.exit("without any mutant, all tests have to pass: run `make test` first", 1)


def silence() -> None:
    """Throws away what this process prints from here on, but for errors."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)


def measure(items: Iterable[pytest.Item], run: Run) -> dict[str, tuple[list[str], float]]:
    """Runs the tests; returns for each the functions that it enters, and its seconds."""
    tests = {}
    for item in items:
        before = time.process_time()
        with entries() as functions:
            failed = run(item)
        if failed:
            raise FailsAnyhow(f"{item.nodeid} fails without any mutant")
        tests[item.nodeid] = sorted(functions), round(time.process_time() - before, 3)
    return tests


@contextmanager
def entries() -> Iterator[set[str]]:
    """Yields the functions that are entered meanwhile. Each is called in the form that mutmut left as it was."""
    found: set[str] = set()

    def called(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_name
        if event == "call" and name.endswith(ORIGINAL):
            module = str(frame.f_globals["__name__"]).removeprefix(PREFIX)
            found.add(f"{module}.{name.removesuffix(ORIGINAL)}")

    sys.setprofile(called)
    try:
        yield found
    finally:
        sys.setprofile(None)
