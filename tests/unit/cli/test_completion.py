"""Names that the shell completes: nothing that is half written may break the command line."""

from pathlib import Path

import click
import pytest

from socks_tunnel.cli import asking


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[[peers]]\nname = "office"\n[[peers]]\nname = "lab"', ["lab", "office"]),
        ('[[peers]]\nurl = "http://a/"\n[[peers]]\nname = 5', []),
        ('[[peers]]\nname = ["a"]', []),
        ('peers = "office"', []),
        ("peers = [1]", []),
        ("[[peers", []),
        ("", []),
        (None, []),
    ],
)
def test_peers_of_a_file_that_is_being_written(
    text: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_answer_for_completion", lambda *_: {})
    path = tmp_path / "gateway.toml"
    if text is not None:
        path.write_text(text)
    context = click.Context(click.Command("x"))
    context.params = {"config_file": path}
    found = asking.complete_peer(context, click.Argument(["peer"]), "")
    assert [item.value for item in found] == names
