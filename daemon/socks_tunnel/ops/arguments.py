"""The command lines of the supervisor's children: options of the form `--name=value`.

One program writes these options and another reads them; no person types them. argparse would cost
each of the three children 1.3 MiB.
"""

import sys
from collections.abc import Sequence
from typing import Final

CHECK: Final = "--check"
"""With this option a child imports all that it needs, and then ends with status 0."""


def options(arguments: Sequence[str], required: Sequence[str], **others: str) -> dict[str, str]:
    """Returns the values of `--name=value` by their names, in which `_` stands for `-`.

    `others` are the options that may be left out, with their default values. An unknown or a
    missing option ends the program with status 2 and a sentence. :data:`CHECK` alone ends it with
    0.
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
