"""`socks-tunnel upgrade`: what it says, and what it waits for."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from socks_tunnel.cli import cli, upgrading
from socks_tunnel.supervisor import control_client

BEGUN = {"ok": True, "result": {"from": "1.0", "to": "1.1", "upgrades": 2, "flows": 5}}


def status(upgrades: int, state: str = "ready", **upgrade: Any) -> dict[str, Any]:
    found = {"from": "1.0", "to": "1.1", "flows": 5, "seconds": 1.5, "resumed_after": None}
    return {
        "ok": True,
        "result": {"state": state, "upgrades": upgrades, "upgrade": {**found, **upgrade}},
    }


class Instance:
    """Answers one question after another; an exception is raised."""

    def __init__(self, *answers: dict[str, Any] | OSError) -> None:
        self.answers = list(answers)
        self.now = 0.0
        self.asked: list[str] = []

    def request(self, path: Path, fields: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        assert path == Path("/control.sock")
        assert timeout > 0
        self.asked.append(fields["op"])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run(monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any] | OSError) -> Result:
    instance = Instance(*answers)
    monkeypatch.setattr(control_client, "request", instance.request)
    monkeypatch.setattr(upgrading, "time", instance)
    result = CliRunner().invoke(cli, ["upgrade", "--socket", "/control.sock"])
    assert instance.asked[0] == "upgrade"
    return result


def test_it_waits_for_the_next_program_and_for_its_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(
        monkeypatch,
        BEGUN,
        {"ok": False, "error": "the program is being replaced; ask again"},
        ConnectionResetError("gone"),
        status(2),
        status(3, "starting"),
        status(3),
        status(3, resumed_after=1.75),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "version 1.1 has taken the place of 1.0; 5 flows went on after 1.8 s\n"


def test_flows_may_wait_longer_where_the_peer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, BEGUN, status(3))
    assert result.exit_code == 0
    assert "within 1.5 s; 5 flows wait for a link" in result.stdout


def test_a_refusal_is_told_and_the_running_version_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run(monkeypatch, {"ok": False, "error": "version 1.0 keeps running: it cannot start"})
    assert (result.exit_code, result.stdout) == (1, "")
    assert "refused: version 1.0 keeps running" in result.stderr


@pytest.mark.parametrize("error", ["there is no request 'upgrade'", "the instance is starting"])
def test_what_cannot_be_replaced_is_to_be_restarted(
    monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    result = run(monkeypatch, {"ok": False, "error": error})
    assert result.exit_code == 69
    assert "restart it" in result.stderr


def test_a_new_program_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, BEGUN, ConnectionRefusedError("nobody"))
    assert result.exit_code == 69
    assert "version 1.1 does not answer" in result.stderr


def test_no_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, FileNotFoundError(2, "No such file or directory"))
    assert result.exit_code == 69
