"""The command lines of the supervisor's children: options of the form `--name=value`.

A program writes them and another one reads them; no person does. argparse would take each of three
children 1.3 MiB for its parser.
"""

import sys
from collections.abc import Sequence
from typing import Final

CHECK: Final = "--check"
"""The option with which a child ends, with status 0, once it has imported all that it needs."""


def options(arguments: Sequence[str], required: Sequence[str], **others: str) -> dict[str, str]:
    """Returns the values of `--name=value` by their names, in which `_` stands for `-`.

    `others` are those that may be left out, with their values then. An unknown or a missing one
    ends the program with status 2, and a sentence about it. :data:`CHECK` alone ends it with 0.
    """
    if arguments == [CHECK]:
        raise SystemExit(0)
    values = dict(others)
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not argument.startswith("--") or not equals or name not in {*required, *others}:
            _end(f"{argument!r} is none of its options")
        values[name] = value
    for name in required:
        if name not in values:
            _end(f"--{name.replace('_', '-')} is missing")
    return values


def _end(sentence: str) -> None:
    sys.stderr.write(f"this program is started by socks-tunnel only: {sentence}\n")
    raise SystemExit(2)
