"""The command `version`."""

import platform
from importlib.metadata import version as installed_version

import click

import socks_tunnel


@click.command()
def version() -> None:
    """Print versions, and which accelerations are active."""
    from cryptography.hazmat.backends.openssl.backend import backend

    from socks_tunnel.ops.accelerations import accelerations
    from socks_tunnel.peer.select import fast_path_state

    click.echo(f"socks-tunnel {socks_tunnel.__version__}")
    click.echo(f"Python       {platform.python_version()} ({platform.python_implementation()})")
    for package in ("aiortc", "aioice", "uvloop", "pycares", "cryptography"):
        click.echo(f"{package:<12} {installed_version(package)}")
    # The library that cryptography brings, which is the one that does DTLS.
    click.echo(f"OpenSSL      {backend.openssl_version_text().removeprefix('OpenSSL ')}")
    click.echo("accelerations:")
    for what, active in accelerations():
        click.echo(f"  {what:<38} {'active' if active else 'NOT active: slower'}")
    click.echo(f"fast path:     {fast_path_state()}; transport.fast_path can switch it off")
