"""A plugin of pytest: the tests are collected once, and each mutant is tried in a fork of that process.

mutmut's sources contain each function in its original and in its mutated forms, and look into the environment
at each call to choose one. So a child sets MUTANT_UNDER_TEST and runs tests until one fails. It runs the
tests that enter the mutated function (reach.py), of the files that import its module: fewer tests can only make more
survivors, never hide one.

The results are lines of JSON in the file TRIED, each with a digest of what it rests on: the module, and the file
of the test that noticed or, if none did, all files that were run. A mutant for which these are unchanged is
not tried again. Neither a change of tests/support nor one of another module counts; remove build/mutants then.
"""

import hashlib
import json
import os
import re
import resource
import signal
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import hypothesis
import pytest

from mutants.changes import PREFIX, SOURCES, entered, module_of, names_of
from mutants.reach import Reached, Reaches, reach_of, silence

TRIED = Path("../tried.jsonl")

# A test may take this many times the processor time that it takes without a mutant, and this much more.
SLOWER_MAX = 3
SLOWER_SECONDS = 2
# A test that waits for ever takes no processor time.
WAIT_SECONDS_MAX = 180
# Memory that a mutant may take beyond that of the process that it is forked from: a loop may fill a list.
MEMORY_MAX = 512 * 1024 * 1024

# Which example a mutant fails on is of no interest, so none is made smaller.
hypothesis.settings.register_profile(
    "mutants",
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    report_multiple_bugs=False,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutant", action="append", default=[], help="a pattern of mutants to try")
    parser.addoption("--children", type=int, default=os.cpu_count(), help="how many at a time")


def latest() -> dict[str, dict[str, str]]:
    """Returns the last result of each mutant that was ever tried in this tree."""
    lines = TRIED.read_text().splitlines() if TRIED.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


class ModuleTests:
    """The tests that may notice mutants of one module; those of its own files come first, long ones last."""

    def __init__(self, module: str, items: Iterable[pytest.Item]) -> None:
        imports = re.compile(rf"^(from|import) .*\b{module}\b", re.MULTILINE)
        files = {item.path: item.path.read_text() for item in items}
        chosen = {path for path, text in files.items() if imports.search(text)} or set(files)
        self._own = f"test_{module}"
        self.items = [item for item in items if item.path in chosen]
        self._reached: list[tuple[pytest.Item, Reached]] = []
        # The sources that mutmut read, not those that it wrote.
        self._source = (Path("..") / SOURCES / f"{module}.py").read_text()
        self._texts = {str(path): files[path] for path in sorted(chosen)}

    def arrange(self, reaches: Reaches) -> None:
        """Takes what the tests reach, and puts them in their order."""
        self._reached = sorted(
            ((item, reaches[item.nodeid]) for item in self.items),
            key=lambda pair: (
                "property" in pair[0].path.parts,
                not pair[0].path.stem.startswith(self._own),
                pair[1].seconds,
            ),
        )

    def of(self, name: str) -> list[tuple[pytest.Item, float]]:
        """Returns the tests that enter the function of a mutant, each with its seconds."""
        function = entered(name)
        return [(item, r.seconds) for item, r in self._reached if function in r.functions]

    def rests_on(self, noticed_by: str) -> str:
        """Returns the digest of the module and of the file that noticed, or else of all files."""
        text = self._texts.get(noticed_by) or "".join(self._texts.values())
        return hashlib.sha256((self._source + text).encode()).hexdigest()


class Trial:
    """Tries mutants, each in its own child; `children` at a time."""

    def __init__(self, session: pytest.Session, children: int) -> None:
        self._session = session
        self._children = children
        self._running: dict[int, tuple[str, ModuleTests]] = {}

    def attempt(self, name: str, tests: ModuleTests) -> None:
        """Starts the trial of a mutant, when one of those that run has ended."""
        while len(self._running) >= self._children:
            self.wait()
        pid = os.fork()
        if pid == 0:
            self._run(name, tests)
        self._running[pid] = name, tests

    def wait(self) -> None:
        """Waits for the end of one trial. What a signal or an exit ended is noticed as well."""
        pid, status = os.wait()
        name, tests = self._running.pop(pid)
        if os.waitstatus_to_exitcode(status) not in {0, 1}:
            record(name, "ended", tests, "")

    def finish(self) -> None:
        """Waits for the end of all."""
        while self._running:
            self.wait()

    def failed(self, item: pytest.Item) -> bool:
        """Runs one test; returns whether one has failed in this process."""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return bool(self._session.testsfailed)

    def _run(self, name: str, tests: ModuleTests) -> None:
        """Runs the tests in a child, which ends here."""
        os.environ["MUTANT_UNDER_TEST"] = PREFIX + name
        status = 2
        try:
            limit_memory()
            silence()
            noticed_by = self._first_failure(tests.of(name))
            record(name, "noticed" if noticed_by else "survived", tests, noticed_by)
            status = int(bool(noticed_by))
        finally:
            os._exit(status)

    def _first_failure(self, tests: Iterable[tuple[pytest.Item, float]]) -> str:
        """Returns the file of the first test that fails, or nothing. A test that takes too long ends the process."""
        for item, seconds in tests:
            signal.setitimer(signal.ITIMER_PROF, SLOWER_SECONDS + SLOWER_MAX * seconds)
            signal.alarm(WAIT_SECONDS_MAX)
            if self.failed(item):
                return str(item.path)
        return ""


def limit_memory() -> None:
    """Bounds the memory of this process by what it has now and MEMORY_MAX."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def record(name: str, result: str, tests: ModuleTests, noticed_by: str) -> None:
    """Appends a line to the results: one write, as several processes append at a time."""
    line = {"name": name, "result": result, "by": noticed_by, "digest": tests.rests_on(noticed_by)}
    with TRIED.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def to_try(
    names: Iterable[str], tests: ModuleTests, before: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Returns the mutants of which no result is there, or none that still holds."""
    return [
        name
        for name in names
        if name not in before or before[name]["digest"] != tests.rests_on(before[name]["by"])
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Tries the mutants that are wanted, instead of running the tests."""
    patterns = session.config.getoption("--mutant") or ["*"]
    trial = Trial(session, session.config.getoption("--children"))
    sources = {path.stem: path.read_text() for path in (Path("..") / SOURCES).glob("*.py")}
    before = latest()
    for meta in sorted(SOURCES.glob("*.py.meta")):
        names = [name for name in names_of(meta) if any(fnmatchcase(name, p) for p in patterns)]
        if not names:
            continue
        tests = ModuleTests(module_of(names[0]), session.items)
        left = to_try(names, tests, before)
        print(f"{module_of(names[0])}: {len(left)} of {len(names)} to try", flush=True)
        if left:
            trial.finish()
            tests.arrange(reach_of(tests.items, sources, trial.failed))
        for name in left:
            trial.attempt(name, tests)
    trial.finish()
    return True
