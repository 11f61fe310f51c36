"""An apt repository, made and used by the very files and commands that docs/fleet.md shows."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.hosts import Host
from support.machines import TOOLS
from support.processes import wait_until

NAME = "packages.example.com"
"""The repository's host, as the page has it."""

_PAGE = TOOLS.parents[1] / "docs" / "fleet.md"


def _blocks(language: str) -> list[str]:
    """The page's blocks in a language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", _PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for of, text in found if of == language]


def shown_file(path: str) -> str:
    """The file that the page shows under a comment with its path."""
    (text,) = [b for b in _blocks("") if b.startswith(f"# {path}\n")]
    return text.partition("\n")[2]


def shown_commands(containing: str, **words: str) -> str:
    """The commands of the page's one block that has such a line, with words replaced, as a script."""
    (text,) = [b for b in _blocks("console") if containing in b]
    for word, replacement in words.items():
        text = text.replace(word, replacement)
    return "set -e\n" + re.sub(r"^[#$] ", "", text, flags=re.MULTILINE)


def source(suite: str, folder: str = "debian") -> str:
    """The page's apt source for a release, of a repository in some folder of the server's."""
    text = shown_file("/etc/apt/sources.list.d/socks-tunnel.sources")
    return text.replace("trixie", suite).replace(
        f"https://{NAME}/debian", f"http://{NAME}/{folder}"
    )


def version_of(package: Path) -> str:
    """The version that a package file says it has."""
    shown = subprocess.run(
        ["dpkg-deb", "--field", package, "Version"], capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


class Repository:
    """A repository on a web server of a host. In `directory` are its key, socks-tunnel.gpg, and a link
    to packaging/, as in a checkout."""

    def __init__(self, directory: Path, host: Host) -> None:
        self.directory = directory
        self._web = directory / "www"
        self._base = self._web / "debian"
        self._environment = os.environ | {
            "GNUPGHOME": str(directory / "gnupg"),
            "REPREPRO_BASE_DIR": str(self._base),
        }
        (directory / "gnupg").mkdir(0o700)
        (directory / "packaging").symlink_to(TOOLS.parent)
        (self._base / "conf").mkdir(parents=True)
        (self._base / "conf" / "distributions").write_text(shown_file("conf/distributions"))
        self.run(shown_commands("--quick-generate-key"))
        self.run(shown_commands("reprepro export"))
        self.key = directory / "socks-tunnel.gpg"
        self._log = (directory / "http.log").open("wb")
        self._server = host.start(
            *(sys.executable, "-m", "http.server", "80", "--directory", self._web),
            stdout=self._log,
            stderr=self._log,
        )
        try:
            wait_until(lambda: host.call(_answers), "the web server")
        except BaseException:
            self.close()
            raise

    def run(self, script: str) -> None:
        """Run a shell script in :attr:`directory`, as the page's commands are meant to be."""
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}"

    def publish(self, packages: Mapping[str, Path]) -> None:
        """Publish a version, for all releases."""
        dist = self.directory / "dist"
        shutil.rmtree(dist, ignore_errors=True)
        dist.mkdir()
        for package in packages.values():
            shutil.copyfile(package, dist / f"socks-tunnel_{version_of(package)}_amd64.deb")
        self.run(shown_commands("includedeb"))

    def forge_signature(self, folder: str) -> None:
        """Another folder of the server: the same repository, signed by a stranger."""
        copy = self._web / folder
        shutil.copytree(self._base / "dists", copy / "dists")
        (copy / "pool").symlink_to(self._base / "pool")
        self.run(
            "set -e\n"
            "gpg --batch --passphrase '' --quick-generate-key stranger@example.com ed25519 sign never\n"
            f"for folder in '{copy}'/dists/*; do\n"
            "  rm $folder/Release.gpg $folder/InRelease\n"
            "  gpg --local-user stranger@example.com --output $folder/InRelease"
            " --clearsign $folder/Release\ndone"
        )

    def change_packages(self, folder: str) -> None:
        """Another folder of the server: the same, with one byte of each package changed."""
        copy = self._web / folder
        copy.mkdir()
        (copy / "dists").symlink_to(self._base / "dists")
        shutil.copytree(self._base / "pool", copy / "pool")
        for package in copy.rglob("*.deb"):
            content = bytearray(package.read_bytes())
            content[len(content) // 2] ^= 1
            package.write_bytes(content)

    def close(self) -> None:
        """End what was started."""
        self._server.terminate()
        self._server.wait()
        self._log.close()
        self.run("gpgconf --kill all")


def _answers() -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", 80), 5):
        return True
    return False
