"""Lines of keys: against documents with every form of TOML that could mislead the scanner."""

import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from socks_tunnel.config.positions import KeyPath, key_lines

TRICKY = dedent(
    '''\
    # [not.a.table]
    first = 1 # x = 2

    "quoted key" = "[not a table]" # "
    'literal.key' = 'C:\\not\\escapes\\'
    dotted . "a.b" . c = { x = 1, 'y' = [ { z = 2 }, 3 ] }
    basic = "a \\" quote # and \\\\"
    multi = """
    x = 1
    [still.text]
    \\""" and ""two"" quotes"""""
    literal = \'\'\'
    y = 2 \\\'\'\'
    after = 1979-05-27 07:32:00Z # a space in a value
    array = [
        "one", # ]
        [ 2,
          3 ],

        { four = "}" },
    ]
    empty = []
    none = {}

    [ table . "sub table" ]
    key = true

    [[list]]
    name = "a"
    [list.sub]
    deep = 1
    [[list.items]]
    n = 1
    [[list.items]]
    n = 2

    [[list]]
    name = "b"
      [list.sub]
      deep = 2
    '''
)

EXPECTED: dict[KeyPath, int] = {
    ("first",): 2,
    ("quoted key",): 4,
    ("literal.key",): 5,
    ("dotted",): 6,
    ("dotted", "a.b"): 6,
    ("dotted", "a.b", "c"): 6,
    ("dotted", "a.b", "c", "x"): 6,
    ("dotted", "a.b", "c", "y"): 6,
    ("dotted", "a.b", "c", "y", 0): 6,
    ("dotted", "a.b", "c", "y", 0, "z"): 6,
    ("dotted", "a.b", "c", "y", 1): 6,
    ("basic",): 7,
    ("multi",): 8,
    ("literal",): 12,
    ("after",): 14,
    ("array",): 15,
    ("array", 0): 16,
    ("array", 1): 17,
    ("array", 1, 0): 17,
    ("array", 1, 1): 18,
    ("array", 2): 20,
    ("array", 2, "four"): 20,
    ("empty",): 22,
    ("none",): 23,
    ("table",): 25,
    ("table", "sub table"): 25,
    ("table", "sub table", "key"): 26,
    ("list",): 28,
    ("list", 0): 28,
    ("list", 0, "name"): 29,
    ("list", 0, "sub"): 30,
    ("list", 0, "sub", "deep"): 31,
    ("list", 0, "items"): 32,
    ("list", 0, "items", 0): 32,
    ("list", 0, "items", 0, "n"): 33,
    ("list", 0, "items", 1): 34,
    ("list", 0, "items", 1, "n"): 35,
    ("list", 1): 37,
    ("list", 1, "name"): 38,
    ("list", 1, "sub"): 39,
    ("list", 1, "sub", "deep"): 40,
}


def paths_in(value: Any, at: KeyPath = ()) -> set[KeyPath]:
    """Returns the path of every key and item below a parsed value."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = {(*at, key) for key, _ in items}
    return found.union(*(paths_in(inner, (*at, key)) for key, inner in items))


def test_every_form() -> None:
    assert key_lines(TRICKY) == EXPECTED


def test_windows_line_ends() -> None:
    assert key_lines(TRICKY.replace("\n", "\r\n")) == EXPECTED


@pytest.mark.parametrize("text", ["", "\n", "# nothing", "x=1", "[a]", "x = 'no final newline'"])
def test_short_documents(text: str) -> None:
    assert set(key_lines(text)) == paths_in(tomllib.loads(text))


def documents() -> list[Path]:
    root = Path(__file__).parents[3]
    folders = (root, root / "etc/socks-tunnel", root / "tests/unit/config/bad")
    return [file for folder in folders for file in sorted(folder.glob("*.toml"))]


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.name))
def test_it_finds_what_the_parser_finds(file: Path) -> None:
    text = file.read_text()
    lines = key_lines(text)
    assert set(lines) == paths_in(tomllib.loads(text))
    # A key that is written bare is on the line that is named.
    for path, number in lines.items():
        if isinstance(path[-1], str) and '"' not in path[-1] and "\n" not in path[-1]:
            assert path[-1] in text.splitlines()[number - 1]
