"""Finds the line of each key and each item in a TOML document.

The standard library's parser gives values without their positions. This scanner gives positions
without values. It only reads text that the parser has accepted, so it can skip whatever it does not
need, and reports no errors.
"""

import re
import tomllib
from bisect import bisect_right
from typing import Final, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
"""The path to a value: names of keys, and numbers of items, counted from 0."""

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_KEY_PART: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
# Longest opening first: a multi-line string may end in up to two quotes of its own.
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_BARE_VALUE: Final = re.compile(r"[^,\]}#\r\n]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Returns the line (from 1) of every table, key and array item of a valid TOML document.

    A table that is written in several places has the line of the first.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._position = 0
        self._newlines = [i for i, c in enumerate(text) if c == "\n"]
        self._last_item: dict[KeyPath, int] = {}  # the number of tables in each array of tables

    def document(self) -> None:
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text[self._position] == "[":
                table = self._header()
            else:
                self._assignment(table)

    def _header(self) -> KeyPath:
        """Reads `[a.b]` or `[[a.b]]`; returns the path of the table that it opens."""
        line = self._line()
        is_array = self._text.startswith("[[", self._position)
        self._position += 2 if is_array else 1
        self._skip(_SPACE)
        names = self._key()
        self._position += 2 if is_array else 1
        path: KeyPath = ()
        for name in names[:-1]:
            path = self._into_last_item((*path, name))
            self.lines.setdefault(path, line)
        path = (*path, names[-1])
        self.lines.setdefault(path, line)
        if is_array:
            self._last_item[path] = self._last_item.get(path, -1) + 1
        path = self._into_last_item(path)
        self.lines.setdefault(path, line)
        return path

    def _into_last_item(self, path: KeyPath) -> KeyPath:
        # "[fruits.physical]" after "[[fruits]]" belongs to the last item of `fruits`.
        return (*path, self._last_item[path]) if path in self._last_item else path

    def _assignment(self, table: KeyPath) -> None:
        """Reads `key = value`."""
        line = self._line()
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self._position += 1  # the "="
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        """Reads a dotted key and the spaces after it."""
        names = []
        while True:
            part = self._take(_KEY_PART)
            quoted = part[0] in "\"'"
            names.append(str(tomllib.loads(f"key = {part}")["key"]) if quoted else part)
            self._skip(_SPACE)
            if not self._text.startswith(".", self._position):
                return names
            self._position += 1
            self._skip(_SPACE)

    def _value(self, path: KeyPath) -> None:
        match self._text[self._position]:
            case "[":
                self._array(path)
            case "{":
                self._inline_table(path)
            case '"' | "'":
                self._take(_STRING)
            case _:
                self._take(_BARE_VALUE)

    def _array(self, path: KeyPath) -> None:
        self._position += 1
        index = 0
        while self._text[self._skip(_BLANK)] != "]":
            self.lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1
            if self._text[self._skip(_BLANK)] == ",":
                self._position += 1
        self._position += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._position += 1
        while self._text[self._skip(_BLANK)] != "}":
            self._assignment(path)
            if self._text[self._skip(_BLANK)] == ",":
                self._position += 1
        self._position += 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        """Skips what the pattern matches at the present place, and returns the new place."""
        match = pattern.match(self._text, self._position)
        self._position = match.end() if match else self._position
        return self._position

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._position)
        if match is None:
            raise ValueError(f"no valid TOML in line {self._line()}")
        self._position = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_right(self._newlines, self._position - 1) + 1
