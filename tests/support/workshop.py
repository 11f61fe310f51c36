"""What the tests want of the packages and what takes long, made beside the tests that need none of it."""

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from socks_tunnel.ops.compiled import MODULES
from support.installed import SUITES
from support.machines import tool

PREVIOUS = "0.0.9"
"""A version before any that a checkout builds."""

PURE_BEFORE = "bookworm"
"""The release whose earlier version is pure Python."""

Packages = dict[str, Path]
"""The package of each release."""


T = TypeVar("T", Packages, list[str], list[list[str]])


class Workshop:
    """Makes one thing after another in a thread; whoever wants one waits for its future.

    Several processes of one test run share `output`: each thing is made by the process that comes to
    it first, and the others take the result. `given` are packages that are there already, for working
    on the tests. With `quality`, it also does what only the tests of the packages themselves want: to
    build again, and to ask Debian's tools.
    """

    def __init__(self, output: Path, given: Packages | None, *, quality: bool) -> None:
        self._output = output
        self._given = given
        self._pool = ThreadPoolExecutor(1, "workshop")
        self.packages = self._begin("packages", self._build, _with_paths)
        self.previous = self._begin("previous", self._repack, _with_paths)
        if quality:
            self.linted = self._begin("linted", self._lint, lambda value: value)
            self.rebuilt = self._begin("rebuilt", self._rebuild, _with_paths)
            self.piuparts = self._begin("piuparts", self._piuparts, lambda value: value)

    def close(self) -> None:
        """Begins nothing more, and waits for what has begun."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, name: str, make: Callable[[], T], decode: Callable[[Any], T]) -> Future[T]:
        return self._pool.submit(self._once, name, make, decode)

    def _once(self, name: str, make: Callable[[], T], decode: Callable[[Any], T]) -> T:
        """What `make` returned in the first process that came here, or the failure that it met."""
        result = self._output / f"{name}.json"
        with (self._output / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                try:
                    made: dict[str, Any] = {"value": make()}
                except Exception as error:
                    result.write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
                    raise
                result.write_text(json.dumps(made, default=str))
        found = json.loads(result.read_text())
        if "error" in found:
            raise AssertionError(f"{name}, made by another process of this run: {found['error']}")
        return decode(found["value"])

    def _build(self) -> Packages:
        """Builds from this checkout; makes the roots for all that follows too."""
        if self._given is not None:
            return self._given
        # Where roots are not in the cache, most of the time goes into waiting for downloads.
        roots = [*(("root", suite, "run") for suite in SUITES), ("root", "trixie", "lint")]
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda command: tool(*command), roots)
            built = build_packages(self._output / "built")
            list(made)
        return built

    def _repack(self) -> Packages:
        """Packs them anew under an earlier version, without compression: building takes a minute.

        That of one release has no compiled data path, so that hosts change between both kinds.
        """
        folder = self._output / "previous"
        folder.mkdir()
        return {
            suite: repack(package, folder / suite, compiled=suite != PURE_BEFORE)
            for suite, package in self.packages.result().items()
        }

    def _lint(self) -> list[str]:
        """What lintian says of them."""
        return tool("lint-deb", *self.packages.result().values())

    def _rebuild(self) -> Packages:
        """Builds them a second time."""
        self.packages.result()
        return build_packages(self._output / "rebuilt")

    def _piuparts(self) -> list[list[str]]:
        """What piuparts says of each, with an upgrade from the previous version."""
        packages, previous = self.packages.result(), self.previous.result()
        with ThreadPoolExecutor() as pool:
            return list(
                pool.map(lambda s: tool("piuparts-deb", s, packages[s], previous[s]), SUITES)
            )


def _with_paths(value: dict[str, str]) -> Packages:
    return {suite: Path(path) for suite, path in value.items()}


def given_packages(folder: Path) -> Packages:
    """Returns the packages that `make deb` has put into a folder."""
    numbers = dict(zip(SUITES, ("12", "13"), strict=True))
    return {s: next(folder.absolute().glob(f"*~deb{numbers[s]}u1_amd64.deb")) for s in SUITES}


def build_packages(output: Path) -> dict[str, Path]:
    """Builds for all releases at the same time: each build uses one core most of its time."""
    with ThreadPoolExecutor() as pool:
        built = pool.map(lambda suite: Path(tool("build-deb", suite, output)[-1]), SUITES)
        return dict(zip(SUITES, built, strict=True))


def repack(
    package: Path,
    folder: Path,
    *,
    compiled: bool = True,
    version: str = PREVIOUS,
    changes: Mapping[str, tuple[str, str]] | None = None,
) -> Path:
    """Returns a copy of a package with another version, which the program in it says too.

    If not `compiled`, it is without the extension modules of the data path. `changes` has, by files of
    the package, a text that becomes another one in it.
    """
    run("dpkg-deb", "--raw-extract", package, folder)
    control = folder / "DEBIAN" / "control"
    text, count = re.subn(r"(?m)^(Version: )[^-]+", rf"\g<1>{version}", control.read_text())
    assert count == 1
    control.write_text(text)
    (module,) = folder.glob("usr/lib/socks-tunnel/lib/*/site-packages/socks_tunnel/__init__.py")
    text, count = re.subn(r'(?m)^(__version__ = )".*"', rf'\g<1>"{version}"', module.read_text())
    assert count == 1
    module.write_text(text)
    for name, (before, after) in (changes or {}).items():
        (path,) = folder.glob(name)
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
    if not compiled:
        extensions = [
            *module.parent.rglob("*.so"),
            *(module.parents[1] / "socks_tunnel_workers").rglob("*.so"),
            *module.parents[1].glob("socks_tunnel__mypyc.*.so"),
        ]
        assert len(extensions) == len(MODULES) + 1
        for path in extensions:
            path.unlink()
    kind = "previous" if version == PREVIOUS else version
    result = folder.parent / f"{kind}-{folder.name}.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", folder, result)
    shutil.rmtree(folder)
    return result


def run(*command: str | Path) -> None:
    """Runs a command of this machine."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
