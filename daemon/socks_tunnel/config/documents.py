"""Reads text and TOML files, with mistakes as :class:`ConfigError` that names file and line."""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.positions import KeyPath, key_lines
from socks_tunnel.ops.files import read_whole

_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")

_LONG_NUMBER: Final = re.compile(r"[0-9][0-9_]{4300,}")

_TWICE: Final = re.compile(r"Cannot declare \((.+)\) twice")

_EXPLAINED: Final = {
    "Invalid value": "a value is missing or invalid; text needs quotes",
    "Cannot overwrite a value": "a key is there twice",
}
"""Sentences of the library's parser that do not help, and what they mean."""


def read_text(path: Path) -> str:
    """Reads a file. Raises :class:`ConfigError`."""
    try:
        return read_whole(path).decode("utf-8")
    except OSError as error:
        raise ConfigError([Problem(path, None, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(path, None, "", "is not UTF-8 text")]) from None


def read_toml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Returns the values of a TOML file, and their lines. Raises :class:`ConfigError`."""
    text = read_text(path)
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        line = None
        place = _PLACE.search(message)
        if place:
            message = message[: place.start()]
            line = int(place[1]) if place[1] else text.count("\n") + 1
        message = f"is not valid TOML: {_explained(message)}"
        raise ConfigError([Problem(path, line, "", message)]) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError([unreadable(path, text, error)]) from None


def toml_value(value: str | Sequence[str | int]) -> str:
    """Returns a text, or a list of texts and numbers, as TOML has it.

    Raises :class:`ValueError` for a text that is not UTF-8, as the name of a file may be: a TOML
    file cannot have it.
    """
    # JSON's notation is TOML's, apart from DEL, and from the pairs of surrogates in its escapes.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} is not UTF-8 text, which a configuration has to be") from None
    return text


def unreadable(path: Path, text: str, error: RecursionError | ValueError) -> Problem:
    """Returns the problem of a file whose `text` is beyond what a parser can take.

    Python reads no integer of more than 4,300 digits, whose reading would take too long.
    """
    if isinstance(error, RecursionError):
        return Problem(path, None, "", "is nested too deeply")
    number = _LONG_NUMBER.search(text)
    if number is None:
        return Problem(path, None, "", f"cannot be read: {error}")
    line = text.count("\n", 0, number.start()) + 1
    return Problem(path, line, "", "has a number with too many digits")


def _explained(message: str) -> str:
    if twice := _TWICE.fullmatch(message):
        name = ".".join(part.strip(" '\"") for part in twice[1].split(",") if part)
        return f"the table [{name}] is there twice; its settings belong into one"
    return _EXPLAINED.get(message, message)
