"""`make bench` measures, and starts, only the contenders that `--who` names."""

import argparse
import contextlib
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bench import run


class FakeWorker:
    """Answers at once. `asked` collects the scripts that were started and what they were asked."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, host: Any, script: str, *arguments: str) -> None:
        del host, arguments
        self.script = script

    def hear(self) -> dict[str, Any]:
        return {"port": 1} if self.script == "echo.py" else {"mbps": 1.0}

    def tell(self, **command: Any) -> None:
        self.asked.append((self.script, command["do"]))

    def ask(self, **command: Any) -> dict[str, Any]:
        self.tell(**command)
        return {"p99_ms": 1.0, "lost": 0, "alive": 10}

    def quit(self) -> None:
        pass


class Rival:
    """Another tunnel, of which is noted whether it was started."""

    commands: ClassVar[frozenset[str]] = frozenset({"paced"})
    name = "hysteria2"
    started: ClassVar[list[str]] = []

    def __init__(self, *arguments: Any) -> None:
        pass

    def start(self) -> None:
        self.started.append(self.name)

    def stop(self) -> None:
        pass

    def load(self) -> FakeWorker:
        return FakeWorker(None, "rival")


class Pair:
    """A bare channel."""

    def __init__(self, hosts: Any) -> None:
        del hosts
        self.dialler = FakeWorker(None, "raw")

    def memory(self) -> int:
        return 1024

    def quit(self) -> None:
        pass


HOSTS = SimpleNamespace(gateway=None, endpoint=None, target=None)
SITE: Any = SimpleNamespace(hosts=HOSTS, ports={})
SIDE = SimpleNamespace(memory=lambda: 2048)
TUNNEL: Any = SimpleNamespace(
    socks_port=1, gateway=SIDE, endpoint=SIDE, metric=lambda name, role: 0.0
)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Worker", FakeWorker)
    monkeypatch.setattr(run, "RawPair", Pair)
    monkeypatch.setattr(run, "Hysteria", Rival)
    monkeypatch.setattr(run, "Keeper", type("Other", (Rival,), {"name": "Keeper"}))
    monkeypatch.setattr(run, "libdatachannel_python", lambda: None)
    monkeypatch.setattr(FakeWorker, "asked", [])
    monkeypatch.setattr(Rival, "started", [])


def bench(*who: str) -> run.Bench:
    return run.Bench(argparse.Namespace(who=who, rounds=1, seconds=1.0, only="", idle_flows=10))


def test_only_chosen_rivals_are_started_or_missed() -> None:
    chosen = bench("tunnel", "Keeper")
    with contextlib.ExitStack() as held:
        assert [rival.name for rival in chosen.start_rivals(SITE, held)] == ["Keeper"]
    assert Rival.started == ["Keeper"]
    assert chosen.missing == []


def test_without_a_choice_all_are() -> None:
    everybody = bench()
    with contextlib.ExitStack() as held:
        everybody.start_rivals(SITE, held)
    assert Rival.started == ["Keeper", "hysteria2"]
    assert [line.split(":")[0] for line in everybody.missing] == ["without libdatachannel"]


@pytest.mark.parametrize(
    ("who", "scripts"),
    [
        ((), {"load.py", "rival"}),
        (("tunnel",), {"load.py"}),
        (("hysteria2",), {"rival"}),
        (("raw",), set()),
    ],
)
def test_calls_are_those_of_the_chosen(who: tuple[str, ...], scripts: set[str]) -> None:
    chosen = bench(*who)
    rival: Any = Rival()
    chosen.calls(SITE, TUNNEL, [rival])
    assert {script for script, _ in FakeWorker.asked} == scripts
    names = {"load.py": "tunnel", "rival": "hysteria2"}
    assert [set(row.values) for row in chosen.rows] == 2 * [{names[s] for s in scripts}] * bool(
        scripts
    )
    assert all(bool(row.bars) == ("tunnel" in row.values) for row in chosen.rows)


@pytest.mark.parametrize("who", [(), ("tunnel",), ("raw",), ("hysteria2",)])
def test_idle_flows_are_those_of_the_chosen(who: tuple[str, ...]) -> None:
    chosen = bench(*who)
    chosen.idle(SITE, TUNNEL)
    expected = {"raw", "tunnel"}.intersection(who or ("raw", "tunnel"))
    assert {who for row in chosen.rows for who in row.values} == expected


def test_a_figure_that_no_chosen_one_can_take_has_no_row() -> None:
    nobody = bench("Keeper")
    nobody.options.only = "UDP echo"
    nobody.measure(SITE, TUNNEL, [])
    assert nobody.rows == []
