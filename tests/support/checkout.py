"""The checkout that the tests belong to, whichever build of the packages they run on."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
