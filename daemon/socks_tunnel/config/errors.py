"""The error that names file, line, key and reason, for every mistake at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` counts from 1 and is None where there is none to name.

    `key` is written as in `peers[1].url`, items counted from 0; it is empty for a mistake of the
    file as a whole. `message` is a sentence without a final stop that goes after the key.
    """

    file: Path
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (place, self.key, self.message)))


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every mistake; `str()` a line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.file, p.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Returns the complaint about an unknown key, with the most similar of the `known` ones."""
    nearest = get_close_matches(key, known, n=1, cutoff=0.0)
    return f'unknown key; the nearest known key is "{nearest[0]}"'
