"""Fixtures of the packaging tests: further packages, and booted hosts that have them installed."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installed import Scene, build_packages

PREVIOUS = "0.0.9"
"""A version before any that this checkout builds."""


@pytest.fixture(scope="session")
def rebuilt_packages(
    packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same, built a second time."""
    return build_packages(tmp_path_factory.mktemp("rebuilt"))


@pytest.fixture(scope="session")
def previous_packages(
    packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same under an earlier version number, as what a host has that is to be upgraded.

    They are packed anew, without compression, because building takes a minute.
    """
    output = tmp_path_factory.mktemp("previous")
    return {suite: repack(package, output / suite) for suite, package in packages.items()}


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


@pytest.fixture(
    scope="session",
    params=[("bookworm", "trixie"), ("trixie", "bookworm")],
    ids=["gateway-deb12-endpoint-deb13", "gateway-deb13-endpoint-deb12"],
)
def scene(request: pytest.FixtureRequest, previous_packages: dict[str, Path]) -> Iterator[Scene]:
    """Two hosts that run the previous version; the tests of test_service.py use them in their order."""
    scene = Scene(*request.param)
    try:
        scene.prepare(previous_packages)
        for host in scene.both:
            host.systemctl("start")
        scene.wait_works()
        yield scene
    finally:
        scene.close()
