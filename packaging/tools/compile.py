"""Compiles the data path: compile.py OUTPUT

Writes copies of both packages to the directory OUTPUT, with extension modules beside the sources
that socks_tunnel.ops.compiled lists. They are for the Python that runs this; it needs mypyc (which
comes with mypy), setuptools and a C compiler.
"""

import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daemon/socks_tunnel", "workers/socks_tunnel_workers")

SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup

setup(
    name="socks-tunnel-compiled",
    ext_modules=mypycify(sys.argv.pop().split(), group_name="socks_tunnel", debug_level="0"),
)
"""
"""The name of the group becomes that of the one library with all the code, socks_tunnel__mypyc,
beside the packages. The extension modules beside the sources only refer to it."""


def build(work: Path) -> Iterator[Path]:
    """Compiles in an empty directory; yields the path of each extension module, relative to it."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            work / Path(package).name,
            ignore=shutil.ignore_patterns("__pycache__", "*.so"),
        )
    listed = runpy.run_path(str(ROOT / "daemon/socks_tunnel/ops/compiled.py"))["MODULES"]
    files = [f"{name.replace('.', '/')}.py" for name in listed]
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--explicit-package-bases"]
    # The directory is not below the working tree, because mypy would find its packages too.
    result = subprocess.run(
        [
            *(sys.executable, "-c", SETUP, "--quiet", "build_ext", "--inplace"),
            " ".join([*options, *files]),
        ],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{result.stdout}\nthe data path was not compiled")
    shutil.rmtree(work / "build")
    for path in sorted(work.rglob(f"*{EXTENSION_SUFFIXES[0]}")):
        yield path.relative_to(work)


def main(output: Path) -> None:
    """Compiles, and writes both packages with their extension modules to `output`."""
    with tempfile.TemporaryDirectory() as name:
        count = sum(1 for _ in build(Path(name)))
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(name, output)
    print(f"{count} extension modules in {output}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
