"""The command lines of children."""

from __future__ import annotations

import pytest

from socks_tunnel.ops.arguments import CHECK, options


def test_options_have_values_or_those_that_hold_without_them() -> None:
    found = options(
        ["--ipc-fd=7", "--hosts=a=b,c", "--log-level="],
        ["ipc_fd"],
        hosts="",
        log_level="info",
        x="y",
    )
    assert found == {"ipc_fd": "7", "hosts": "a=b,c", "log_level": "", "x": "y"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ipc-fd=7", "--ipc-fds=8"], "'--ipc-fds=8' is none of its options"),
        (["--ipc-fd=7", "-x=1"], "'-x=1' is none of its options"),
        (["--ipc-fd", "7"], "'--ipc-fd' is none of its options"),
        (["7"], "'7' is none of its options"),
        ([], "--ipc-fd is missing"),
    ],
)
def test_what_cannot_be_read_ends_the_program(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        options(arguments, ["ipc_fd"], x="")
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_program_that_is_only_tried_ends_well() -> None:
    with pytest.raises(SystemExit) as end:
        options([CHECK], ["ipc_fd"])
    assert end.value.code == 0
