"""Writes a support bundle: everything that helps to find a fault, in one file, without secrets.

Two measures keep secrets out. Only values without secrets are packed. Then each text is searched
for the secrets that the configuration has, in case a library has written one to a log.
"""

import base64
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from socks_tunnel.config.settings import Config
from socks_tunnel.ops.audit import LOGGER_NAME
from socks_tunnel.ops.files import read_whole, write_new

HIDDEN: Final = "[secret]"

SECRET_MIN: Final = 4
"""Characters of the shortest secret that is searched for. Shorter ones occur in any text."""

LOG_LINES: Final = 5000
"""Lines of the journal that are packed."""

COMMAND_TIMEOUT: Final = 10.0
"""Seconds for a command that describes the host."""

_COMMANDS: Final = (
    ("ip", "-brief", "address"),
    ("ip", "route"),
    ("ip", "-6", "route"),
    ("ss", "-ltunH"),
)

_FILES: Final = (
    "/etc/os-release",
    "/etc/resolv.conf",
    "/proc/sys/net/core/rmem_max",
    "/proc/sys/net/core/wmem_max",
    "/proc/meminfo",
)


def secrets_of(config: Config) -> list[str]:
    """Returns all secrets of a configuration and of the files that it names, the longest first."""
    found: set[str | None] = {server.credential for server in config.ice.servers}
    for proxy in (config.ice.proxy, *(peer.proxy for peer in config.peers)):
        found |= _of_url(proxy)
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy"):
            found |= _of_url(value)
    found |= set(config.users.values())
    found |= _of_key(config.identity.private_key_file)
    if (signaling := config.signaling) is not None:
        # The certificate's file may also have the key. It does no harm to hide the certificate.
        for file in (signaling.tls_key, signaling.tls_certificate):
            found |= _of_key(file)
    return sorted((s for s in found if s and len(s) >= SECRET_MIN), key=len, reverse=True)


def _of_key(file: Path | None) -> set[str | None]:
    """Returns the lines of a PEM file if it has a private key, else none."""
    text = "" if file is None else _read(file)
    return {s for s in text.splitlines() if "-----" not in s} if "PRIVATE KEY" in text else set()


def _of_url(text: str | None) -> set[str | None]:
    """Returns all forms in which the password of a URL may occur in a text.

    If a password is not escaped (`http://user:a/b@host`), urllib does not see it as part of the
    login, and a library may name its first piece as the port. So everything before the last @
    counts as the login. Without a password, the user name counts as a token.
    """
    before, at, _ = (text or "").rpartition("@")
    if not at:
        return set()
    login = before.partition("://")[2] or before
    user, _, password = login.partition(":")
    secret = password or user
    pieces = {secret, *re.split(r"[/?#\\\[\]@]", secret)}
    header = base64.b64encode(unquote(login).encode()).decode("ascii")
    return {*pieces, *map(unquote, pieces), header}


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Returns a text without the secrets."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
        text = text.replace(json.dumps(secret)[1:-1], HIDDEN)
    return text


def shown(config: Config) -> dict[str, Any]:
    """Returns a configuration as plain values, without its secrets."""
    fields = asdict(config)
    fields["users"] = f"{len(config.users)} users"
    for server in fields["ice"]["servers"]:
        server["credential"] = None if server["credential"] is None else HIDDEN
    for table in (fields["ice"], *fields["peers"]):
        table["proxy"] = None if table["proxy"] is None else _without_login(table["proxy"])
    return fields


def _without_login(url: str) -> str:
    return f"{url.partition('://')[0]}://{HIDDEN}@{url.rpartition('@')[2]}" if "@" in url else url


def texts(
    config: Config, report: str, answers: Mapping[str, Any], logs: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each file of a bundle, not scrubbed yet."""
    yield "diagnose.txt", report
    yield "config.json", json.dumps(shown(config), indent=2, default=str)
    for name, answer in answers.items():
        yield f"{name}.json", json.dumps(answer, indent=2)
    for name, text in logs.items():
        lines = (line for line in text.splitlines() if LOGGER_NAME not in line)
        yield f"{name}.log", "\n".join(lines)
    yield "host.txt", _host()


def _host() -> str:
    parts = [f"{platform.platform()}\nPython {platform.python_version()}"]
    packages = sorted(f"{d.metadata['Name']} {d.version}" for d in distributions())
    parts.append("\n".join(packages))
    parts += [f"== {name}\n{_read(Path(name))}" for name in _FILES]
    parts += [f"== {' '.join(command)}\n{_output(command)}" for command in _COMMANDS]
    return "\n\n".join(parts)


def journal(instance: str) -> str:
    """Returns the end of the journal of an instance's unit; "" if there is no journal."""
    unit = f"socks-tunnel@{instance}.service"
    command = ("journalctl", f"--unit={unit}", f"--lines={LOG_LINES}", "--no-pager", "--quiet")
    return _output((*command, "--output=short-iso"))


def _output(command: tuple[str, ...]) -> str:
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - one of the commands above
            (program, *command[1:]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return (done.stdout + done.stderr).decode(errors="replace")


def _read(path: Path) -> str:
    try:
        return read_whole(path).decode(errors="replace")
    except OSError:
        return ""


def write(path: Path, config: Config, files: Iterable[tuple[str, str]]) -> None:
    """Writes a bundle that only its owner can read.

    Raises :class:`OSError` if the file exists or cannot be written. No partial file is left.
    """
    secrets = secrets_of(config)
    now = int(time.time())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files:
            data = scrub(text, secrets).encode(errors="backslashreplace")
            entry = tarfile.TarInfo(f"socks-tunnel-{config.instance}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), now, 0o600
            archive.addfile(entry, io.BytesIO(data))
    write_new(path, packed.getvalue())
