"""A web server with what package managers fetch: a git repository, a wheel, an npm and a Debian package.

    python web_root.py DIRECTORY PORT [CERTIFICATE_AND_KEY]

serves DIRECTORY, over HTTPS if there is a certificate. Everything in it is made by :func:`fill`.
"""

import base64
import functools
import hashlib
import http.server
import io
import json
import ssl
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO

NAME = "tinyparcel"
VERSION = "1.0"


def fill(root: Path, url: str) -> None:
    """Make everything below `root`, which is served at `url`."""
    root.mkdir()
    _git(root / "repo.git")
    _wheel(root / "simple" / NAME)
    _npm(root / "npm", url)
    _debian(root / "debian")
    (root / "version").write_text(json.dumps({"major": "1", "minor": "2"}))


def _git(path: Path) -> None:
    work = path.with_suffix(".work")
    run = functools.partial(subprocess.run, check=True, capture_output=True)
    run(["git", "init", "-q", "-b", "main", work])
    (work / "file").write_text("from git\n")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.com")
    run(["git", "-C", work, "add", "file"])
    run(["git", "-C", work, *identity, "commit", "-q", "-m", "one"])
    run(["git", "clone", "-q", "--bare", work, path])
    run(["git", "-C", path, "update-server-info"])


def _wheel(directory: Path) -> None:
    directory.mkdir(parents=True)
    name = f"{NAME}-{VERSION}-py3-none-any.whl"
    info = f"{NAME}-{VERSION}.dist-info"
    files = {
        f"{NAME}.py": "TEXT = 'from pip'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(directory / name, "w") as wheel:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(file, text)
    (directory / "index.html").write_text(f'<a href="{name}">{name}</a>')


def _npm(root: Path, url: str) -> None:
    directory = root / NAME
    directory.mkdir(parents=True)
    buffer = io.BytesIO()
    manifest = {"name": NAME, "version": "1.0.0", "main": "index.js"}
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for file, text in (
            ("package.json", json.dumps(manifest)),
            ("index.js", "module.exports = 'from npm'\n"),
        ):
            data = text.encode()
            member = tarfile.TarInfo(f"package/{file}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    tarball = buffer.getvalue()
    (directory / "parcel.tgz").write_bytes(tarball)
    dist = {
        "tarball": f"{url}npm/{NAME}/parcel.tgz",
        "integrity": "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode(),
    }
    document = {
        "name": NAME,
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": manifest | {"dist": dist}},
    }
    (directory / "index.html").write_text(json.dumps(document))


def _debian(directory: Path) -> None:
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {NAME}\nVersion: {VERSION}\nArchitecture: all\nMaintainer: T <t@example.com>\n"
        "Description: small\n"
    )
    package = directory / f"{NAME}.deb"
    subprocess.run(["dpkg-deb", "-b", tree, package], check=True, capture_output=True)
    data = package.read_bytes()
    control = (tree / "DEBIAN" / "control").read_text()
    (directory / "Packages").write_text(
        f"{control}Filename: ./{package.name}\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, quietly; an npm document lies in the index of its directory."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        if self.path.rstrip("/") == f"/npm/{NAME}":
            self.path = f"/npm/{NAME}/"
        return super().send_head()


def main() -> None:
    directory, port, *certificate = sys.argv[1:]
    handler = functools.partial(Handler, directory=directory)
    server = http.server.ThreadingHTTPServer(("0.0.0.0", int(port)), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[0])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
