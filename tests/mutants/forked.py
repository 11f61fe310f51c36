"""A plugin of pytest: the tests are collected once, and each mutant is tried in a fork of that process.

mutmut's sources contain each function in its original and in its mutated forms, and look into the environment
at each call to choose one. So a child sets MUTANT_UNDER_TEST and runs tests until one fails. It runs the
tests of the files that import the module: fewer tests can only make more survivors, never hide one.

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
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PREFIX = "socks_tunnel.protocol."
SOURCES = Path("src/socks_tunnel/protocol")
TRIED = Path("../tried.jsonl")

# The tests of a module may take this many times the processor time that they take without a mutant, and this much more.
SLOWER_MAX = 4
SLOWER_SECONDS = 10
# A test that waits for ever takes no processor time.
WAIT_SECONDS_MAX = 600


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutant", action="append", default=[], help="a pattern of mutants to try")
    parser.addoption("--children", type=int, default=os.cpu_count(), help="how many at a time")


def names_of(module: Path) -> list[str]:
    """Returns the names of the mutants of a module, without PREFIX."""
    found: dict[str, object] = json.loads(module.read_text())["exit_code_by_key"]
    return [name.removeprefix(PREFIX) for name in found]


def latest() -> dict[str, dict[str, str]]:
    """Returns the last result of each mutant that was ever tried in this tree."""
    lines = TRIED.read_text().splitlines() if TRIED.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


class ModuleTests:
    """The tests that may notice mutants of one module; the module's own come first, long ones last."""

    def __init__(self, module: str, items: Iterable[pytest.Item]) -> None:
        imports = re.compile(rf"^(from|import) .*\b{module}\b", re.MULTILINE)
        files = {item.path: item.path.read_text() for item in items}
        chosen = {path for path, text in files.items() if imports.search(text)} or set(files)
        own = f"test_{module}"
        self.items = sorted(
            (item for item in items if item.path in chosen),
            key=lambda item: ("property" in item.path.parts, not item.path.stem.startswith(own)),
        )
        # The sources that mutmut read, not those that it wrote.
        self._source = (Path("..") / SOURCES / f"{module}.py").read_text()
        self._texts = {str(path): files[path] for path in sorted(chosen)}
        self.seconds = SLOWER_SECONDS

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

    def measure(self, tests: ModuleTests) -> None:
        """Runs the tests without a mutant, and allows the mutants a multiple of the time that they take."""
        pid = os.fork()
        if pid == 0:
            self._run("", tests)
        _, status, usage = os.wait4(pid, 0)
        if status:
            pytest.exit("tests fail without any mutant: run them by `make test` first", 1)
        tests.seconds = int(SLOWER_SECONDS + SLOWER_MAX * (usage.ru_utime + usage.ru_stime))

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
        while self._running:
            self.wait()

    def _run(self, name: str, tests: ModuleTests) -> None:
        """Runs the tests in a child, which ends here."""
        os.environ["MUTANT_UNDER_TEST"] = name and PREFIX + name
        if name:
            resource.setrlimit(resource.RLIMIT_CPU, (tests.seconds, tests.seconds + 1))
            signal.alarm(WAIT_SECONDS_MAX)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = 2
        try:
            noticed_by = self._first_failure(tests.items)
            if name:
                record(name, "noticed" if noticed_by else "survived", tests, noticed_by)
            status = int(bool(noticed_by))
        finally:
            os._exit(status)

    def _first_failure(self, items: list[pytest.Item]) -> str:
        """Returns the file of the first test that fails, or nothing."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._session.testsfailed:
                return str(item.path)
        return ""


def record(name: str, result: str, tests: ModuleTests, noticed_by: str) -> None:
    """Appends a line to the results: one write, as several processes append at a time."""
    line = {"name": name, "result": result, "by": noticed_by, "digest": tests.rests_on(noticed_by)}
    with TRIED.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    patterns = session.config.getoption("--mutant") or ["*"]
    trial = Trial(session, session.config.getoption("--children"))
    before = latest()
    for meta in sorted(SOURCES.glob("*.py.meta")):
        names = [name for name in names_of(meta) if any(fnmatchcase(name, p) for p in patterns)]
        tests = ModuleTests(meta.name.removesuffix(".py.meta"), session.items)
        left = []
        for name in names:
            result = before.get(name)
            if result is None or result["digest"] != tests.rests_on(result["by"]):
                left.append(name)
        if left:
            trial.measure(tests)
            print(f"{meta.name.removesuffix('.py.meta')}: {len(left)} of {len(names)} to try")
        for name in left:
            trial.attempt(name, tests)
    trial.finish()
    return True
