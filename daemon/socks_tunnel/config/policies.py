"""Reads a policy in the original's JSON form."""

import json
from pathlib import Path
from typing import Any, Final

from socks_tunnel.config.documents import read_text, unreadable
from socks_tunnel.config.errors import ConfigError, Problem, unknown_key
from socks_tunnel.config.models import PolicyRules

RULE_KEYS: Final = ("allowed_hosts", "allowed_ports", "denied_hosts", "denied_ports")


def read_policy_file(path: Path) -> PolicyRules:
    """Reads a policy in the original's JSON form.

    It is an object with `allowed_hosts` and `allowed_ports`, each a list, or one text with a rule
    in each line; `denied_hosts` and `denied_ports` may be there too. The rules themselves are not
    parsed yet. Raises :class:`ConfigError`.
    """
    fields = _read_json_object(path)
    problems = []
    for key, value in fields.items():
        if key not in RULE_KEYS:
            problems.append(Problem(path, None, key, unknown_key(key, RULE_KEYS)))
        elif not isinstance(value, str | list):
            message = "must be a list of rules, or one text with a rule in each line"
            problems.append(Problem(path, None, key, message))
    if problems:
        raise ConfigError(problems)
    return PolicyRules.model_validate({**fields, "policy_file": str(path.absolute())})


def _read_json_object(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"is not valid JSON: {error.msg} in column {error.colno}"
        raise ConfigError([Problem(path, error.lineno, "", message)]) from None
    except (RecursionError, ValueError) as error:
        raise ConfigError([unreadable(path, text, error)]) from None
    if not isinstance(fields, dict):
        raise ConfigError([Problem(path, None, "", "must hold a JSON object")])
    return fields
