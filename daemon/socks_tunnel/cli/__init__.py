"""The command `socks-tunnel`.

Exit codes: 0 done, 1 a negative answer, 2 usage, 69 a peer or service cannot be reached, 70 a bug,
73 cannot create, 78 configuration (the numbers of sysexits.h).
"""

import sys
import traceback
from typing import Final, NoReturn

import click

from socks_tunnel.cli.frame import EXIT_BUG, LazyGroup

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
"""Each command, and the module of this package and the function in it that it is."""


def main() -> NoReturn:
    """Runs the command line of this process and exits."""
    try:
        cli.main(prog_name="socks-tunnel")
    except Exception:  # noqa: BLE001 - the last resort, which reports it and ends the process
        traceback.print_exc()
        click.echo("socks-tunnel: this is a bug; please report it with the lines above", err=True)
        sys.exit(EXIT_BUG)


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
def cli() -> None:
    """Reach a corporate network through SOCKS5 on loopback, over a WebRTC data channel."""
