"""A finding of a check: a sentence about what is wrong, and one about what to do."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["ok", "note", "warning", "problem"]
"""`note`: worth knowing. `warning`: works, but not well. `problem`: why something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `about` names what was looked at, in a word or two."""

    level: Level
    about: str
    sentence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.sentence}" + (f" {self.advice}" if self.advice else "")
