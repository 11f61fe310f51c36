"""Completion in real shells: what they offer is what the program takes."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from socks_tunnel.cli import asking, cli, completion
from socks_tunnel.config import paths
from support.completions import SHELLS, Shell
from support.processes import SOCKS_TUNNEL
from support.terminal import Terminal

Start = Callable[[str], Shell]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a shell on a host with two configurations, and another instance that runs."""
    configurations, runtime = tmp_path / "etc", tmp_path / "run"
    monkeypatch.setattr(asking, "CONFIGURATIONS", configurations)
    monkeypatch.setattr(paths, "SYSTEM_DIRECTORY", runtime)
    configurations.mkdir()
    for name in ("office.toml", "lab.toml", "office.key"):
        (configurations / name).touch()
    mine = tmp_path / "tmp" / f"socks-tunnel-{os.getuid()}"
    for directory in (runtime / "lobby", tmp_path / "xdg/socks-tunnel/home", mine / "spare"):
        directory.mkdir(parents=True)
        (directory / paths.CONTROL_SOCKET).touch()
    (runtime / "stopped").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes").touch()

    def starter(name: str) -> Shell:
        script = tmp_path / name
        script.write_text(completion.script(name, cli))
        return Shell(
            name,
            script,
            home,
            XDG_RUNTIME_DIR=str(tmp_path / "xdg"),
            TMPDIR=str(tmp_path / "tmp"),
            PATH=f"{Path(SOCKS_TUNNEL).parent}:{os.environ['PATH']}",
        )

    return starter


def commands(
    command: click.Command = cli,
    path: tuple[str, ...] = (),
    parent: click.Context | None = None,
) -> Iterator[tuple[click.Command, click.Context, str]]:
    """Yields each command, with the words that lead to it."""
    context = click.Context(command, parent, **command.context_settings)
    yield command, context, "".join(f"{word} " for word in path)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*path, name), context)


def options(command: click.Command, context: click.Context) -> set[str]:
    shown = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    return {
        name for p in shown if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)
    }


@pytest.mark.parametrize("name", ["bash", "fish"])
def test_each_command_and_option_is_offered(start: Start, name: str) -> None:
    lines, expected = [], []
    for command, context, line in commands():
        lines.append(f"{line}-")
        expected.append(options(command, context))
        if isinstance(command, click.Group):
            lines.append(line)
            expected.append(set(command.list_commands(context)))
    assert len(lines) > 30
    assert dict(zip(lines, start(name).offers(*lines), strict=True)) == dict(
        zip(lines, expected, strict=True)
    )


INSTANCES = {"office", "lab", "lobby", "home", "spare"}
"""`lobby`, `home` and `spare` run; nothing of `stopped` is left but a directory."""

OFFERS = [
    ("sta", {"status"}),
    ("peers --instance lab re", {"revoke"}),
    ("policy ", {"diff", "test"}),
    ("status --js", {"--json"}),
    ("connections --sort pe", {"peer"}),
    ("status --instance ", INSTANCES),
    ("status --instance o", {"office"}),
    ("nc --udp --instance l", {"lab", "lobby"}),
    ("nc ", set()),
    ("peers revoke ", set()),
]


@pytest.mark.parametrize("name", SHELLS)
def test_what_is_offered(start: Start, name: str) -> None:
    lines = [line for line, _ in OFFERS]
    assert dict(zip(lines, start(name).offers(*lines), strict=True)) == dict(OFFERS)


@pytest.mark.parametrize("name", SHELLS)
def test_behind_two_dashes_is_no_option(start: Start, name: str) -> None:
    (offered,) = start(name).offers("passwd -- --")
    assert not {word for word in offered if word.startswith("--")}


@pytest.mark.parametrize("name", SHELLS)
def test_an_option_that_has_been_given(start: Start, name: str) -> None:
    """bash and zsh offer it no second time, unless it may be given several times."""
    once, twice = start(name).offers("drain --no-wait --wa", "setup --port 22 --po")
    # fish offers it again, but never the opposite.
    assert once <= {"--wait"}
    if name != "fish":
        assert not once
    assert twice == {"--port"}


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_values_behind_an_equals_sign(start: Start, name: str) -> None:
    # fish takes a word that begins with - for an option, unless it stands behind such a sign.
    instances, orders = start(name).offers("status --instance=o", "connections --sort=-pe")
    assert {word.removeprefix("--instance=") for word in instances} == {"office"}
    assert {word.removeprefix("--sort=") for word in orders} == {"-peer"}


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_a_value_that_looks_like_an_option(start: Start, name: str) -> None:
    assert start(name).offers("connections --sort -pe") == [{"-peer"}]


@pytest.mark.parametrize("name", SHELLS)
def test_files(start: Start, name: str) -> None:
    lines = ("keygen no", "policy diff notes no", "run --config no", "join --jwt no")
    expected = {"compopt -o default"} if name == "bash" else {"notes"}
    assert start(name).offers(*lines) == [expected] * len(lines)


@pytest.mark.parametrize("name", SHELLS)
def test_peers_come_from_the_configuration(start: Start, name: str, tmp_path: Path) -> None:
    """Only such names are asked of the program itself."""
    (tmp_path / "home/gateway.toml").write_text('[[peers]]\nname = "hq"\n[[peers]]\nname = "lab"')
    lines = ("policy test --config gateway.toml --peer ", "policy test --config none --peer ")
    assert start(name).offers(*lines) == [{"hq", "lab"}, set()]


@pytest.mark.parametrize("name", SHELLS)
def test_another_command_behind_exec(start: Start, name: str, tmp_path: Path) -> None:
    lines = ("exec --timeout 3 cat no", "exec -- cat no")
    expected = {"command cat no"} if name == "bash" else {"notes"}
    assert start(name).offers(*lines) == [expected] * 2


@pytest.mark.parametrize("name", SHELLS)
def test_a_name_is_never_run(start: Start, name: str, tmp_path: Path) -> None:
    for text in ("x $(touch pwned)", "x;touch pwned", "x`touch pwned`"):
        (tmp_path / "etc" / f"{text}.toml").touch()
    (offered,) = start(name).offers("status --instance x")
    assert len(offered) == 3
    assert not (tmp_path / "home/pwned").exists()


def test_bash_in_a_terminal(start: Start, tmp_path: Path) -> None:
    """readline cuts `--instance=o` into three words, and the whole is still completed."""
    start("bash")
    environment = {"TERM": "dumb", "TMPDIR": str(tmp_path / "tmp")}
    with Terminal(["bash", "--norc", "--noprofile", "-i"], environment=environment) as terminal:
        terminal.type(f"PS1='$ '; cd {tmp_path / 'home'}; . ../bash\r")
        terminal.type('socks-tunnel() { echo "<$*>"; }\r')
        terminal.type("socks-tunnel upg\t\r")
        terminal.shows("^<upgrade>")
        terminal.type("socks-tunnel status --instance=of\t\r")
        terminal.shows("^<status --instance=office>")
        terminal.type("socks-tunnel keygen no\t\r")
        terminal.shows("^<keygen notes>")
