"""What a host lacks, and what is said of it."""

from pathlib import Path

import pytest

from socks_tunnel.ops.findings import Finding
from socks_tunnel.ops.host_checks import (
    SOCKET_BUFFER,
    SPACE_MIN,
    clock,
    descriptors,
    policy,
    socket_buffers,
    space,
)
from socks_tunnel.protocol.policies import build_policies
from socks_tunnel.protocol.settings import PeerSettings, RuleSettings, WorkerSettings


@pytest.mark.parametrize(
    ("limit", "chosen", "level"), [(100, True, "ok"), (99, True, "warning"), (99, False, "note")]
)
def test_descriptors(limit: int, chosen: bool, level: str) -> None:
    [found] = descriptors(limit, 100, 50, chosen=chosen)
    assert found.level == level
    assert bool(found.advice) == (level != "ok")


def test_buffers_of_sockets(tmp_path: Path) -> None:
    (tmp_path / "rmem_max").write_text("212992\n")
    (tmp_path / "wmem_max").write_text(f"{SOCKET_BUFFER}\n")
    small, large = socket_buffers(tmp_path)
    assert (small.level, large.level) == ("note", "ok")
    assert small.advice.startswith("sysctl -w net.core.rmem_max=4194304")
    assert [f.sentence for f in socket_buffers(tmp_path / "none")] == [
        "it cannot be seen from here."
    ] * 2


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [(0, "ok", "keeps it"), (5, "note", "no time service"), (None, "note", "cannot be seen")],
)
def test_the_clock(state: int | None, level: str, words: str) -> None:
    [found] = clock(lambda: state)
    assert found.level == level
    assert words in found.sentence


def test_the_kernel_is_asked_for_the_clock() -> None:
    [found] = clock()
    assert found.level in {"ok", "note"}


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [good] = space([("state", tmp_path)])
    assert good.level == "ok"
    [bad] = space([("state", tmp_path / "none")])
    assert (bad.level, bad.about) == ("problem", "disk")
    assert "(state): No such file or directory" in bad.sentence
    monkeypatch.setattr("socks_tunnel.ops.host_checks.SPACE_MIN", 1 << 62)
    [low] = space([("state", tmp_path)])
    assert low.level == "warning"
    assert SPACE_MIN < 1 << 62


def judge(hosts: tuple[str, ...], ports: tuple[str, ...], **peers: RuleSettings) -> Finding:
    settings = WorkerSettings(
        role="endpoint",
        peers=(PeerSettings("a"), *(PeerSettings(name, name) for name in peers)),
        policy=RuleSettings(allowed_hosts=hosts, allowed_ports=ports),
        policies=peers,
    )
    [found] = policy("endpoint", build_policies(settings), ["a", *peers])
    return found


def test_a_policy_that_denies_everything() -> None:
    assert judge(("0.0.0.0",), ("*",)).level == "ok"
    for hosts, ports in ((("0.0.0.0",), ()), ((), ("*",)), ((), ())):
        assert judge(hosts, ports).sentence.startswith("it denies every peer everything")
    found = judge(("*.corp",), ("80",), b=RuleSettings())
    assert found.sentence.startswith("it denies b everything")


def test_a_finding_as_a_sentence() -> None:
    assert str(Finding("note", "clock", "it stands.", "Wind it.")) == "clock: it stands. Wind it."
    assert str(Finding("ok", "clock", "it goes.")) == "clock: it goes."
