"""Long answers in pieces: the same JSON, and no piece takes long."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.supervisor import control
from socks_tunnel.supervisor.control import pieces

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), values))
def test_the_pieces_are_the_line(answer: dict[str, Any]) -> None:
    line = b"".join(pieces(answer))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == answer


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"links": rows, "pid": 1}])
def test_many_rows_are_cut(wrap: Any) -> None:
    rows = [{"id": number, "target": "www.example.com:443"} for number in range(20_000)]
    found = list(pieces({"ok": True, "result": wrap(rows)}))
    assert json.loads(b"".join(found))["result"] == wrap(rows)
    assert max(map(len, found)) < control.PIECE + 200
    assert len(found) > 20
