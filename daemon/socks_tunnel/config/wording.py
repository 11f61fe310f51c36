"""Words for mistakes in a configuration, which stand after the key."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from socks_tunnel.config.errors import unknown_key
from socks_tunnel.config.models import ConfigFile
from socks_tunnel.config.positions import KeyPath

_SECRETS: Final = ("credential", "proxy")
"""Keys whose values are never shown."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def a(noun: str) -> str:
    """Returns the noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def upwards(at: KeyPath) -> Iterator[KeyPath]:
    """Yields the path and those above it, nearest first."""
    for length in range(len(at), 0, -1):
        yield at[:length]


def key_text(at: KeyPath) -> str:
    """Returns a path of keys as it is written: `peers[0].url`."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(part)
            text += f".{name}" if text else name
    return text


def sentence(details: ErrorDetails) -> str:
    """Returns a mistake that pydantic found, in words that stand after the key."""
    context = details.get("ctx", {})
    not_this = f", not {_shown(details['input'])}"
    if details["loc"][-1] in _SECRETS:
        not_this = ""
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(details["loc"])
        case "missing":
            return "is missing"
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return f"must be {context['expected']}{not_this}"
        case "int_type":
            return f"must be a whole number{not_this}"
        case "float_type" | "finite_number":
            return f"must be a number{not_this}"
        case "bool_type":
            return f"must be true or false{not_this}"
        case "string_type":
            return f"must be text{not_this}"
        case "string_pattern_mismatch":
            return (
                "must be 1 to 64 letters, digits, dots, hyphens and underscores, and start with a "
                f"letter or digit{not_this}"
            )
        case "tuple_type" if isinstance(details["input"], dict) and _is_array(details["loc"]):
            return f"must be a list of tables: each begins with [[{key_text(details['loc'])}]]"
        case "tuple_type":
            return f"must be a list{not_this}"
        case "model_type" | "dict_type":
            return f"must be a table{not_this}"
        case "greater_than_equal":
            return f"must be at least {_plain(context['ge'])}{not_this}"
        case "greater_than":
            return f"must be more than {_plain(context['gt'])}{not_this}"
        case "less_than_equal":
            return f"must be at most {_plain(context['le'])}{not_this}"
        case _:
            return f"{details['msg']}{not_this}"


def _shown(value: Any) -> str:
    # The content of a table or list is not shown, because it may be a password.
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def _plain(number: float) -> str:
    return str(int(number) if number == int(number) else number)


def _unknown_key(at: KeyPath) -> str:
    key = str(at[-1])
    if len(at) > 1 and key in ConfigFile.model_fields:
        # TOML has no way back to the top level: a setting below a table header is in that table.
        return "is not a key of this table; it must stand above the first [table]"
    return unknown_key(key, _model_at(at[:-1]).model_fields)


def _is_array(at: KeyPath) -> bool:
    """Returns whether the setting at `at` is an array of tables that is written at the top."""
    return len(at) == 1 and _model_at(at) is not ConfigFile


def _model_at(at: KeyPath) -> type[BaseModel]:
    """Returns the class of the table at `at`."""
    model: type[BaseModel] = ConfigFile
    for part in at:
        # Numbers of items, and names in a table of tables, lead to no other class.
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
