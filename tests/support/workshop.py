"""What the tests want of the packages and what takes long, made beside the tests that need none of it."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.installed import SUITES
from support.machines import tool

PREVIOUS = "0.0.9"
"""A version before any that a checkout builds."""

Packages = dict[str, Path]
"""The package of each release."""


class Workshop:
    """Makes one thing after another in a thread; whoever wants one waits for its future.

    `given` are packages that are there already, for working on the tests. With `quality`, it also does
    what only the tests of the packages themselves want: to build again, and to ask Debian's tools.
    """

    def __init__(self, output: Path, given: Packages | None, *, quality: bool) -> None:
        self._output = output
        self._pool = ThreadPoolExecutor(1, "workshop")
        self.packages = self._pool.submit(self._build, given)
        self.previous = self._pool.submit(self._repack)
        if quality:
            self.linted = self._pool.submit(self._lint)
            self.rebuilt = self._pool.submit(self._rebuild)
            self.piuparts = self._pool.submit(self._piuparts)

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        self._pool.shutdown(cancel_futures=True)

    def _build(self, given: Packages | None) -> Packages:
        """Build from this checkout; roots for all that follows are made too."""
        if given is not None:
            return given
        # Where roots are not in the cache, most of the time goes into waiting for downloads.
        roots = [*(("root", suite, "run") for suite in SUITES), ("root", "trixie", "lint")]
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda command: tool(*command), roots)
            built = build_packages(self._output / "built")
            list(made)
        return built

    def _repack(self) -> Packages:
        """Pack them anew under an earlier version, without compression: building takes a minute."""
        folder = self._output / "previous"
        folder.mkdir()
        return {
            suite: repack(package, folder / suite)
            for suite, package in self.packages.result().items()
        }

    def _lint(self) -> list[str]:
        """What lintian says of them."""
        return tool("lint-deb", *self.packages.result().values())

    def _rebuild(self) -> Packages:
        """Build them a second time."""
        self.packages.result()
        return build_packages(self._output / "rebuilt")

    def _piuparts(self) -> list[list[str]]:
        """What piuparts says of each, with an upgrade from the previous version."""
        packages, previous = self.packages.result(), self.previous.result()
        with ThreadPoolExecutor() as pool:
            return list(
                pool.map(lambda s: tool("piuparts-deb", s, packages[s], previous[s]), SUITES)
            )


def given_packages(folder: Path) -> Packages:
    """The packages that `make deb` has put into a folder."""
    numbers = dict(zip(SUITES, ("12", "13"), strict=True))
    return {s: next(folder.absolute().glob(f"*~deb{numbers[s]}u1_amd64.deb")) for s in SUITES}


def build_packages(output: Path) -> dict[str, Path]:
    """Build for all releases at the same time: each build uses one core most of its time."""
    with ThreadPoolExecutor() as pool:
        built = pool.map(lambda suite: Path(tool("build-deb", suite, output)[-1]), SUITES)
        return dict(zip(SUITES, built, strict=True))


def repack(package: Path, folder: Path) -> Path:
    """A copy of a package with the version :data:`PREVIOUS`, which the program in it says too."""
    run("dpkg-deb", "--raw-extract", package, folder)
    control = folder / "DEBIAN" / "control"
    text, count = re.subn(r"(?m)^(Version: )[^-]+", rf"\g<1>{PREVIOUS}", control.read_text())
    assert count == 1
    control.write_text(text)
    (module,) = folder.glob("usr/lib/socks-tunnel/lib/*/site-packages/socks_tunnel/__init__.py")
    text, count = re.subn(r'(?m)^(__version__ = )".*"', rf'\g<1>"{PREVIOUS}"', module.read_text())
    assert count == 1
    module.write_text(text)
    result = folder.parent / f"previous-{folder.name}.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", folder, result)
    shutil.rmtree(folder)
    return result


def run(*command: str | Path) -> None:
    """Run a command of this machine."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
