"""The OCI image: what is in it, and that it serves as a sidecar without rights and on a read-only root."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.corporate import need
from support.hosts import DOMAIN, ENDPOINT_INSIDE_ADDRESS, why_no_namespaces
from support.processes import wait_until
from support.tunnels import Site, Tunnel

# An image is built by the first test that wants it.
pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).parents[2]

PATIENCE = 120.0
"""Seconds for what a machine that does much else may take long for."""

elf_of = runpy.run_path(str(ROOT / "packaging/tools/elf.py"))["read"]
"""Reads an ELF file: a tool of packaging, which is in no package."""


@dataclass(frozen=True)
class Image:
    """An image, unpacked."""

    root: Path
    config: dict[str, Any]
    layers: list[bytes]
    manifest: dict[str, Any]


@contextlib.contextmanager
def built(target: str) -> Iterator[Image]:
    """Builds an image as people do, and unpacks it as a runtime does."""
    done = subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    path = ROOT / done.stdout.splitlines()[-1].split()[1].rstrip(":")
    blobs: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                blobs[member.name] = stream.read()

    def blob(descriptor: dict[str, Any]) -> bytes:
        data = blobs[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(data) == descriptor["size"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == descriptor["digest"]
        return data

    assert json.loads(blobs["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [entry] = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert entry["platform"] == {"architecture": config["architecture"], "os": "linux"}
    layers = [gzip.decompress(blob(layer)) for layer in manifest["layers"]]
    with tempfile.TemporaryDirectory(prefix="socks-tunnel-image-") as name:
        root = Path(name)
        root.chmod(0o755)  # for the user in the container
        for layer in layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
                # Python 3.11.2 has no argument for that; where there is one, this is its default.
                archive.extraction_filter = lambda member, _path: member
                archive.extractall(root)
        yield Image(root, config, layers, manifest)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image for this machine."""
    with built("image") as found:
        yield found


class Sidecar:
    """A container of the image, in the network of a host: no rights, no writable root."""

    def __init__(self, image: Image, tunnel: Tunnel, config: Path) -> None:
        settings = image.config["config"]
        uid, gid = settings["User"].split(":")
        self.runtime = tunnel.directory / "sidecar-run"
        self.runtime.mkdir(mode=0o700)
        os.chown(self.runtime, int(uid), int(gid))
        folder = tunnel.directory / "sidecar-etc"
        folder.mkdir(mode=0o755)
        for source in (config, config.with_name("gateway.key")):
            copy = folder / source.name
            shutil.copy2(source, copy)
            os.chown(copy, int(uid), int(gid))
        self.command = settings["Entrypoint"]
        self.health = settings["Healthcheck"]["Test"]
        self._prefix = [
            *(need("bwrap"), "--ro-bind", str(image.root), "/"),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
            *("--bind", str(self.runtime), "/run/socks-tunnel"),
            *("--ro-bind", str(folder), "/etc/socks-tunnel"),
            *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"),
            *("--new-session", "--cap-drop", "ALL", "--clearenv"),
        ]
        for setting in settings["Env"]:
            self._prefix += ["--setenv", *setting.split("=", 1)]
        self._user = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        self.arguments = [*self.command, *settings["Cmd"]]
        self._host = tunnel.site.gateway

    def asked(self) -> int:
        """Returns the exit status of its health check."""
        command = self.run(*self.health[1:])
        return subprocess.run(
            command, stdout=subprocess.DEVNULL, check=False, timeout=PATIENCE
        ).returncode

    def run(self, *command: str) -> list[str]:
        """The command line for a command in it."""
        return self._host.command(*self._user, *self._prefix, *command)


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    """A tunnel whose gateway is not started, on hosts that are namespaces."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = Site()
    try:
        site.directory.chmod(0o755)
        tunnel = site.tunnel()
        yield tunnel
        tunnel.stop()
    finally:
        site.close()


def test_what_is_in_it(image: Image) -> None:
    config = image.config["config"]
    assert config["User"] == "65532:65532"
    assert image.config["os"] == "linux"
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in image.layers]
    assert image.config["rootfs"]["diff_ids"] == digests
    names = {str(path.relative_to(image.root)) for path in image.root.rglob("*") if path.is_file()}
    assert not {name for name in names if Path(name).name in {"sh", "bash", "busybox", "pip"}}
    assert not {name for name in names if "/av/" in name or name.endswith((".key", ".toml"))}
    for layer in image.layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            assert {member.mtime for member in archive} == {0}
            assert not [member.name for member in archive if member.mode & 0o6000]


def of_one_architecture(image: Image, architecture: str) -> int:
    """How many programs and libraries there are; each finds all that it needs within the image."""
    assert image.config["architecture"] == architecture
    files = [path for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    count = 0
    for path in files:
        content = elf_of(path)
        if content is None:
            continue
        count += 1
        assert content.architecture == architecture, path
        loaders = {name for name in names if name.startswith("ld-linux")}
        missing = set(content.needed) - names - loaders
        assert not missing, f"{path} needs {missing}"
        if content.interpreter is not None and path.parent.name == "bin":
            assert (image.root / content.interpreter.lstrip("/")).is_file()
    return count


def test_each_library_that_is_needed_is_in_it(image: Image) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    assert of_one_architecture(image, machine) > 50


def test_the_one_for_arm64_has_nothing_of_this_machine() -> None:
    """It is built from wheels and packages of that architecture; nothing of it is run here."""
    if f"py3{sys.version_info.minor}" not in {"py311", "py313"}:
        pytest.skip("no Debian has this Python")
    with built("image-arm64") as image:
        assert of_one_architecture(image, "arm64") > 50
        assert image.config["config"]["User"] == "65532:65532"
        python = image.config["config"]["Entrypoint"][0]
        assert os.access(image.root / python.lstrip("/"), os.X_OK)
        packages = image.root / "usr/lib/socks-tunnel/lib" / Path(python).name / "site-packages"
        for name in ("socks_tunnel", "socks_tunnel_workers", "sdnotify", "uvloop", "cryptography"):
            assert (packages / name / "__init__.py").is_file()
            assert list((packages / name / "__pycache__").glob("__init__.*.pyc"))


def test_as_a_sidecar(image: Image, tunnel: Tunnel) -> None:
    tunnel.start_endpoint()
    sidecar = Sidecar(image, tunnel, tunnel.write("gateway"))
    log = tunnel.directory / "sidecar.log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(sidecar.run(*sidecar.arguments), stderr=stream) as container,
    ):
        try:
            wait_until(
                lambda: "link office is up" in log.read_text() or container.poll() is not None,
                "a link of the sidecar",
                timeout=PATIENCE,
            )
            assert container.poll() is None, log.read_text()
            url = f"http://v4.{DOMAIN}:{tunnel.site.ports['http']}/whoami"
            proxy = f"127.0.0.1:{tunnel.socks_port}"
            curl = (need("curl"), "-sS", "--socks5-hostname", proxy, url)
            done = tunnel.site.gateway.run(*curl, timeout=PATIENCE)
            assert f'"address": "{ENDPOINT_INSIDE_ADDRESS}"' in done.stdout
            assert sidecar.health[0] == "CMD"
            wait_until(lambda: sidecar.asked() == 0, "its health", timeout=PATIENCE)
        finally:
            container.terminate()
            container.wait(PATIENCE)
    assert "Traceback" not in log.read_text()
    # Once it is gone, so is its health; the processes in it are killed when bwrap has ended.
    wait_until(lambda: sidecar.asked() == 69, "the end of its health", timeout=PATIENCE)
