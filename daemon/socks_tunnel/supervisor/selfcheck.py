"""`python -m socks_tunnel.supervisor.selfcheck FILE SERVED…`: checks a start.

The running program asks the installed one before it is replaced. The check imports everything that
a supervisor and a worker need, reads the configuration, and binds all listeners for a moment,
except those that the running program serves (SERVED). It writes and dials nothing. It prints a line
of JSON with its version and the versions of the hand-over that it reads. The exit status is 0, or
78 for a configuration that cannot be used, 73 for a listener that cannot be bound, and 70 for
anything else.
"""

import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

import socks_tunnel
from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.reading import read
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.arguments import CHECK
from socks_tunnel.ops.process import leave
from socks_tunnel.peer.select import fast_path_active
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.handover import READABLE
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.tls import TlsFileError, read_server_certificate
from socks_tunnel.supervisor import main as supervisor
from socks_tunnel.supervisor.children import EXPORTER_COMMAND, WORKER_COMMAND
from socks_tunnel.supervisor.handover import answer, served_as
from socks_tunnel.supervisor.listeners import ListenError, bind, has_no_ipv6
from socks_tunnel.supervisor.problems import EXIT_BUG, EXIT_CANNOT_CREATE, EXIT_CONFIG

WORKER_TIMEOUT: Final = 30.0
"""Seconds that a child has to import all its parts."""


def check_listeners(config: Config, served: Collection[str]) -> None:
    """Binds all configured addresses for a moment, except those in `served`.

    Unix sockets are not tried, because their files could be seen. Raises :class:`ListenError`.
    """
    signaling = config.signaling
    wanted: list[tuple[str, HostPort | Path | None, socket.SocketKind]] = [
        ("metrics.listen", config.metrics.listen, socket.SOCK_STREAM),
        ("signaling.listen", None if signaling is None else signaling.listen, socket.SOCK_STREAM),
    ]
    if config.role == "gateway":
        wanted += [("socks.listen", address, socket.SOCK_STREAM) for address in config.socks.listen]
        kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
        wanted += [("forwards", each.address, kinds[each.protocol]) for each in config.forwards]
    for setting, address, kind in wanted:
        if not isinstance(address, HostPort) or served_as(address, kind) in served:
            continue
        try:
            bind(setting, address, kind).close()
        except ListenError as error:
            if not has_no_ipv6(address, error):  # the start leaves such an address out as well
                raise


def check_keys(config: Config) -> None:
    """Reads the private key, and the TLS certificate for offers if there is one.

    Raises :class:`OSError` and :class:`ValueError` for a file that cannot be used.
    """
    path, signaling = config.identity.private_key_file, config.signaling
    assert path is not None, "the loader finds one"
    PrivateIdentity.load(path)
    if signaling is not None and signaling.tls_certificate is not None:
        try:
            read_server_certificate(signaling.tls_certificate, signaling.tls_key)
        except TlsFileError as error:
            raise ValueError(f"signaling.{error.key}: {error}") from None


def main() -> int:
    """Checks, and returns the exit status."""
    assert callable(supervisor.run), "it was imported, with all that it needs"
    try:
        config = read(Path(sys.argv[1]))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    fast_path_active(config.transport.fast_path)
    try:
        check_keys(config)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{config.source}: {error}\n")
        return EXIT_CONFIG
    try:
        check_listeners(config, sys.argv[2:])
    except ListenError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CANNOT_CREATE
    for command in (WORKER_COMMAND, EXPORTER_COMMAND):
        child = subprocess.run(  # noqa: S603 - our own programs
            [*command, CHECK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WORKER_TIMEOUT,
            check=False,
        )
        if child.returncode != 0:
            sys.stderr.write(child.stderr.decode(errors="replace"))
            return EXIT_BUG
    sys.stdout.write(answer(socks_tunnel.__version__, sorted(READABLE)) + "\n")
    return 0


if __name__ == "__main__":
    leave(main())
