"""Commands for scripts: `wait`, `exec`, `nc`."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click

from socks_tunnel.cli.asking import (
    CONFIGURATIONS,
    complete_instance,
    control_socket_if_any,
    of_instance,
)
from socks_tunnel.cli.frame import (
    EXIT_CONFIG,
    FILE_PATH,
    Failure,
    Misconfigured,
    Seconds,
    Unavailable,
)
from socks_tunnel.client import instances
from socks_tunnel.client.instances import InstanceError
from socks_tunnel.client.proxy import (
    NoProxyError,
    Proxy,
    parse_proxy,
    proxy_environment,
    proxy_of,
)
from socks_tunnel.ops.files import read_whole
from socks_tunnel.protocol.addresses import HostPort, canonical_host

LINK_TIMEOUT: Final = 60.0
"""Seconds to wait for a link, if no option says otherwise."""

_timeout_option = click.option(
    "--timeout",
    type=Seconds(),
    default=LINK_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds to wait for a link.",
)


@click.command()
@of_instance
@_timeout_option
def wait(instance: str | None, socket_path: Path | None, timeout: float) -> None:
    """Wait until an instance runs and has a link.

    Exits with 0 then, and with 69 and the reason if that takes too long.
    """
    try:
        instances.wait_for_link(lambda: control_socket_if_any(instance, socket_path), timeout)
    except InstanceError as error:
        raise Unavailable(str(error)) from None


# --- nc -----------------------------------------------------------------------------------------


@click.command()
@of_instance
@click.option(
    "--proxy",
    "proxy_text",
    metavar="ADDR:PORT",
    help="Use this SOCKS5 proxy (ADDR:PORT or unix:PATH) and ask no instance.",
)
@click.option("--udp", is_flag=True, help="Send datagrams, one for each read of standard input.")
@click.option(
    "--idle",
    type=Seconds(min_open=True),
    default=3.0,
    show_default=True,
    metavar="S",
    help="With --udp: end after so many seconds without an answer, once standard input has ended.",
)
@click.option(
    "--timeout",
    type=Seconds(min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait until the connection is open.",
)
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
def nc(
    instance: str | None,
    socket_path: Path | None,
    proxy_text: str | None,
    idle: float,
    timeout: float,
    host: str,
    port: int,
    *,
    udp: bool,
) -> None:
    """Connect standard input and output to HOST PORT through the tunnel.

    For ssh: ProxyCommand socks-tunnel nc %h %p
    """
    from socks_tunnel.client.opening import OpeningError, open_association, open_stream
    from socks_tunnel.client.relaying import RelayError, relay_datagrams, relay_stream

    try:
        destination = HostPort(canonical_host(host), port)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST") from None
    proxy = _proxy(instance, socket_path, proxy_text)
    # Like every filter, it ends on Ctrl-C without a message.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if udp:
            control, relay = open_association(proxy, timeout)
            relay_datagrams(control, relay, destination, idle)
        else:
            relay_stream(*open_stream(proxy, destination, timeout))
    except OpeningError as error:
        _complain(str(error), error.exit_code)
    except RelayError as error:
        _complain(f"{destination}: {error}", Failure.exit_code)
    # A thread may still wait for standard input, and standard output may be closed.
    os._exit(0)


def _complain(sentence: str, exit_code: int) -> NoReturn:
    click.echo(f"socks-tunnel: {sentence}", err=True)
    os._exit(exit_code)


def _proxy(instance: str | None, socket_path: Path | None, text: str | None) -> Proxy:
    if text is not None:
        if instance is not None or socket_path is not None:
            raise click.UsageError("--proxy and --instance or --socket exclude each other")
        try:
            return parse_proxy(text, os.environ)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--proxy") from None
    path = control_socket_if_any(instance, socket_path)
    if path is None:
        raise Unavailable("no instance runs on this host; name a proxy with --proxy ADDR:PORT")
    try:
        return proxy_of(instances.summary(path), os.environ)
    except PermissionError:
        raise Unavailable(
            f"you may not ask the instance on {path}; name its proxy with --proxy ADDR:PORT"
        ) from None
    except OSError as error:
        raise Unavailable(f"no instance answers on {path}: {error.strerror or error}") from None
    except (InstanceError, NoProxyError) as error:
        raise Failure(str(error)) from None


# --- exec ---------------------------------------------------------------------------------------


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.option(
    "--instance", metavar="NAME", help="The instance to use.", shell_complete=complete_instance
)
@click.option(
    "--config",
    "config_file",
    type=FILE_PATH,
    metavar="FILE",
    help="Configuration of the gateway that is started if no instance runs.",
)
@_timeout_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(
    instance: str | None, config_file: Path | None, timeout: float, command: Sequence[str]
) -> None:
    """Run COMMAND with the proxy variables set, so that it goes through the tunnel.

    The running instance is used. If none runs, one is started for the time of the command. Exits
    with the status of the command, or 128 and the number of the signal that has ended it.
    """
    from socks_tunnel.client.command import CommandError, check

    if instance is not None and config_file is not None:
        raise click.UsageError("--instance and --config exclude each other")
    try:
        # Checked first, because the wait for a link may take a minute.
        check(command[0], os.environ)
    except CommandError as error:
        click.echo(f"socks-tunnel exec: {error}", err=True)
        sys.exit(error.exit_code)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    name = config_file.stem if config_file is not None else instance
    running = control_socket_if_any(name, None)
    if running is not None and _answers(running):
        found = _wait(lambda: running, timeout)
        sys.exit(_run(command, found))
    if instance is not None:
        raise Unavailable(f"the instance {instance} does not run")
    sys.exit(_with_own_instance(config_file or only_configuration(), timeout, command))


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the command on a signal that comes before there is a child to receive it."""
    del frame
    from socks_tunnel.client.command import SIGNAL_BASE

    raise SystemExit(SIGNAL_BASE + number)


def _answers(path: Path) -> bool:
    """Returns whether a process answers on a control socket. A killed instance leaves its file."""
    try:
        instances.summary(path)
    except OSError as error:
        return not instances.is_gone(error)
    except InstanceError as error:
        raise Failure(str(error)) from None
    return True


def _wait(find: Any, timeout: float) -> dict[str, Any]:
    try:
        return instances.wait_for_link(find, timeout)
    except InstanceError as error:
        raise Unavailable(str(error)) from None


def _with_own_instance(config: Path, timeout: float, command: Sequence[str]) -> int:
    from socks_tunnel.client.own import OwnInstance

    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(OwnInstance(config))
        except InstanceError as error:
            raise Unavailable(str(error)) from None

        def find() -> Path | None:
            if (status := own.ended()) is not None:
                raise InstanceError(f"the instance exited with status {status}")
            return own.socket()

        try:
            found = instances.wait_for_link(find, timeout)
        except InstanceError as error:
            kind = Misconfigured if own.ended() == EXIT_CONFIG else Unavailable
            raise kind(f"{error}\n{own.log_tail()}".rstrip()) from None
        return _run(command, found)


def _run(command: Sequence[str], found: dict[str, Any]) -> int:
    from socks_tunnel.client.command import CommandError, Forwarding

    try:
        environment = proxy_environment(proxy_of(found, os.environ), os.environ)
    except NoProxyError as error:
        raise Failure(str(error)) from None
    forwarding = Forwarding()
    try:
        return forwarding.run(command, environment)
    except CommandError as error:
        click.echo(f"socks-tunnel exec: {error}", err=True)
        return error.exit_code
    finally:
        forwarding.release()


def only_configuration() -> Path:
    """Returns the configuration of the user's only gateway or else of the host's only one."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    for directory in (Path(home) / "socks-tunnel", CONFIGURATIONS):
        try:
            files = sorted(directory.glob("*.toml"))
        except PermissionError:
            continue  # with sudo, HOME may be another user's
        found = [path for path in files if _is_gateway(path)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(map(str, found))
            raise click.UsageError(f"no instance runs; name one with --config: {names}")
    raise click.UsageError("no instance runs; name a gateway's configuration with --config FILE")


def _is_gateway(path: Path) -> bool:
    import tomllib

    try:
        return tomllib.loads(read_whole(path).decode("utf-8")).get("role") == "gateway"
    except (OSError, ValueError):
        return False
