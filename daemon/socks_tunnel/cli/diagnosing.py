"""The command `diagnose`."""

import asyncio
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

import socks_tunnel
from socks_tunnel.cli.asking import control_socket_if_any, of_instance
from socks_tunnel.cli.frame import EXIT_CONFIG, FILE_PATH, CannotCreate, Failure, Seconds
from socks_tunnel.cli.scripting import only_configuration
from socks_tunnel.config import loader
from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.findings import Finding, Level

TRIAL_TIMEOUT: Final = 40.0
"""Seconds for a link: longer than the 30 s after which an attempt is given up and says why."""

_MARKS: Final[dict[Level, str]] = {
    "ok": "ok",
    "note": "note",
    "warning": "WARNING",
    "problem": "PROBLEM",
}


@click.command()
@of_instance
@click.option(
    "--config", "config_file", type=FILE_PATH, metavar="FILE", help="A configuration to look at."
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=TRIAL_TIMEOUT,
    show_default=True,
    metavar="S",
    help="Seconds for which a gateway that does not run is started, for a try; 0: it is not.",
)
@click.option(
    "--bundle",
    type=FILE_PATH,
    metavar="FILE",
    help="Write an archive of it all, without secrets.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def diagnose(
    ctx: click.Context,
    instance: str | None,
    socket_path: Path | None,
    config_file: Path | None,
    timeout: float,
    bundle: Path | None,
    *,
    as_json: bool,
) -> None:
    """Say what is wrong, and what to do.

    A running instance is asked. A gateway that does not run is started for a moment, on other
    ports, to see whether it gets a link. Exits with 1 if there is a problem.
    """
    name = config_file.stem if config_file is not None else instance
    path = control_socket_if_any(name, socket_path)
    running, findings = _ask(path)
    try:
        file = config_file or (Path(running["config"]) if running else only_configuration())
    except click.UsageError:
        if not any(found.level == "problem" for found in findings):
            raise
        _print(findings, as_json=as_json)  # this user may not ask the instance that is meant
        ctx.exit(Failure.exit_code)
    try:
        config = loader.load(file)
    except ConfigError as error:
        findings += [Finding("problem", "configuration", f"{p}.") for p in error.problems]
        _print(findings, as_json=as_json)
        ctx.exit(EXIT_CONFIG)
    directory = path.parent if running and path is not None else Path(tempfile.gettempdir())
    findings += _examine(config, file, running, directory, timeout)
    _print(findings, as_json=as_json)
    if bundle is not None:
        _pack(bundle, config, findings, running)
    ctx.exit(Failure.exit_code if any(f.level == "problem" for f in findings) else 0)


def _ask(path: Path | None) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Returns what the running instance answers, if there is one, and the findings from asking."""
    if path is None:
        return None, [Finding("note", "instance", "none runs on this host.")]
    from socks_tunnel.client.instances import is_gone
    from socks_tunnel.diagnosis import instance

    try:
        return instance.ask(path), []
    except OSError as error:
        if is_gone(error):
            return None, [Finding("note", "instance", f"none answers on {path}.")]
        sentence = f"it cannot be asked on {path}: {error.strerror or error}."
        advice = "Ask as root, or as a member of the daemon's group."
        return None, [Finding("problem", "instance", sentence, advice)]


def _examine(
    config: Config,
    file: Path,
    running: Mapping[str, Any] | None,
    directory: Path,
    timeout: float,
) -> Iterator[Finding]:
    from socks_tunnel.diagnosis import instance, network
    from socks_tunnel.ops.process import raise_descriptor_limit
    from socks_tunnel.supervisor.main import host_findings

    peers = network.peers_by_way(config.peers)
    yield Finding("ok", "version", f"socks-tunnel {socks_tunnel.__version__}.")
    yield Finding("ok", "configuration", f"{file}: a {config.role}, with the peers {peers}.")
    if proxies := network.environment_proxies():
        yield Finding("note", "proxy", f"the environment has {', '.join(proxies)}.")
    limit = raise_descriptor_limit() if running is None else int(running["descriptors"])
    yield from host_findings(config, directory, limit)
    yield from asyncio.run(_collected(network.check(config)))
    if running is not None:
        yield from instance.of_running(running)
        return
    yield from instance.ports(config)
    if config.role == "gateway" and timeout:
        yield from instance.trial(file, timeout, lambda text: click.echo(f"({text})", err=True))


async def _collected(findings: Any) -> list[Finding]:
    return [finding async for finding in findings]


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{_MARKS[finding.level]:<8} {finding.about}: {finding.sentence}"
        if finding.advice:
            yield f"         -> {finding.advice}"
    problems = sum(finding.level == "problem" for finding in findings)
    yield f"{problems} problems" if problems != 1 else "1 problem"


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"level": f.level, "about": f.about, "sentence": f.sentence, "advice": f.advice}
            for f in findings
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for line in _lines(findings):
        click.echo(line)


def _pack(
    path: Path, config: Config, findings: Sequence[Finding], running: Mapping[str, Any] | None
) -> None:
    from socks_tunnel.diagnosis import bundle

    report = "\n".join(_lines(findings))
    answers = {} if running is None else {"instance": running}
    logs = {"journal": bundle.journal(config.instance)}
    try:
        bundle.write(path, config, bundle.texts(config, report, answers, logs))
    except OSError as error:
        raise CannotCreate(f"{path}: {error.strerror or error}") from None
    click.echo(f"wrote {path}", err=True)
