"""The source of functions and classes, as :func:`inspect.getsource` returns it, at a low price.

The inspect module parses a whole file for each class and tokenizes it for each function, and keeps
the lines of all files. A process that looks once at its start would have 4 MiB of that for life.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

Lines = Callable[[str], list[str]]
"""Returns the lines of a file, with their ends."""


def lines_of(file: str) -> list[str]:
    """Returns the lines of a file, with their ends. Raises :class:`OSError`."""
    return Path(file).read_text(encoding="utf-8").splitlines(keepends=True)


def source_of(found: object, lines: Lines = lines_of) -> str:
    """Returns the source of a function, or of a class that is defined in a module directly.

    Decorators are part of it, and so are comments in the body. Raises :class:`OSError` if there is
    no source, and :class:`TypeError` for anything else.
    """
    if isinstance(found, type):
        file = getattr(sys.modules.get(found.__module__), "__file__", None)
        if file is None:
            raise OSError(f"{found} has no file")
        text = lines(file)
        return _block(text, _class_line(text, found.__qualname__))
    found = inspect.unwrap(found)  # type: ignore[arg-type] # what is not callable ends below
    if not isinstance(found, FunctionType):
        raise TypeError(f"{found!r} is neither a function nor a class")
    code = found.__code__
    text = lines(code.co_filename)
    if code.co_firstlineno > len(text):
        raise OSError(f"{code.co_filename} is another file than the one that runs")
    return _block(text, code.co_firstlineno - 1)


def _class_line(text: list[str], name: str) -> int:
    pattern = re.compile(rf"class {re.escape(name)}\b")
    line = next((at for at, line in enumerate(text) if pattern.match(line)), None)
    if line is None:
        raise OSError(f"class {name} is not in its file")
    while line and text[line - 1].startswith("@"):
        line -= 1
    return line


_HEAD = re.compile(r"\s*(?:async def|def|class)\b")


def _block(text: list[str], first: int) -> str:
    """Returns the lines from `first`, a decorator or the head, to the last one that is indented."""
    head = first
    while head < len(text) and not _HEAD.match(text[head]):
        head += 1
    if head == len(text):
        raise OSError("there is no definition where it should be")
    indent = _indent(text[head])
    end = head + 1
    for at in range(head + 1, len(text)):
        line = text[at].strip()
        if not line:
            continue
        # A bracket is the end of a signature that takes several lines.
        if _indent(text[at]) <= indent and not (end == at and line.startswith(")")):
            break
        end = at + 1
    return "".join(text[first:end])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
