"""The command `socks-tunnel`.

Exit codes: 0 done, 1 a negative answer, 2 usage, 69 a peer or service cannot be reached or no
process can be started, 70 a bug, 73 cannot create, 78 configuration (the numbers of sysexits.h).
"""

import contextlib
import errno
import os
import sys
import traceback
from typing import Final, NoReturn

import click

from socks_tunnel.cli.frame import EXIT_BUG, EXIT_CANNOT_CREATE, EXIT_USAGE, LazyGroup

COMMANDS: Final = {
    name: f"{__name__}.{where}"
    for name, where in {
        "check-config": "preparing:check_config",
        "connections": "instance:connections",
        "demo": "running:demo",
        "diagnose": "diagnosing:diagnose",
        "drain": "instance:drain",
        "exec": "scripting:execute",
        "invite": "joining:invite",
        "join": "joining:join",
        "keygen": "preparing:keygen",
        "kill": "instance:kill",
        "nc": "scripting:nc",
        "pair": "preparing:pair",
        "passwd": "preparing:passwd",
        "peers": "joining:peers",
        "policy": "policy:policy",
        "pubkey": "preparing:pubkey",
        "reload": "instance:reload",
        "rendezvous": "running:rendezvous",
        "route": "route:route",
        "run": "running:run",
        "setup": "setting_up:setup",
        "status": "instance:status",
        "top": "instance:top",
        "upgrade": "upgrading:upgrade",
        "wait": "scripting:wait",
        "version": "versions:version",
    }.items()
}
"""The commands: each value names the module of this package, and the function in it."""


def main() -> NoReturn:
    """Runs the command line of this process and exits."""
    _open_standard_streams()
    try:
        cli.main(prog_name="socks-tunnel")
    except OSError as error:
        if _directory_is_gone():
            click.echo(
                "socks-tunnel: the directory in which it was started is not there any more;"
                " change to another one",
                err=True,
            )
            sys.exit(EXIT_USAGE)
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            _report_bug()
        with contextlib.suppress(OSError):  # standard error may be what is full
            click.echo(f"socks-tunnel: the output cannot be written: {error.strerror}", err=True)
        sys.exit(EXIT_CANNOT_CREATE)
    except Exception:  # noqa: BLE001 - the last resort: it reports the exception and ends the process
        _report_bug()


def _directory_is_gone() -> bool:
    """Whether the working directory has been removed, so that no relative path leads anywhere."""
    try:
        os.getcwd()  # noqa: PTH109 - pathlib's Path.cwd() calls it
    except FileNotFoundError:
        return True
    return False


def _report_bug() -> NoReturn:
    traceback.print_exc()
    click.echo("socks-tunnel: this is a bug; please report it with the lines above", err=True)
    sys.exit(EXIT_BUG)


def _open_standard_streams() -> None:
    """Opens those of the descriptors 0 to 2 that were closed when the process started.

    Otherwise the next file or socket that is opened gets such a number, and printed text goes into
    it. libuv ends the process with SIGABRT if it is asked to close one of these numbers. Python has
    None in the place of such a stream, to which nothing can be written.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays
            setattr(sys, name, stream)


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
def cli() -> None:
    """Reach a corporate network through SOCKS5 on loopback, over a WebRTC data channel."""
