"""From the policy tables of a configuration to policies that decide."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from socks_tunnel.config.errors import ConfigError, Problem, unknown_key
from socks_tunnel.config.models import Config, PolicyRules
from socks_tunnel.protocol.policy import Policy

RULE_KEYS: Final = ("allowed_hosts", "allowed_ports", "denied_hosts", "denied_ports")


class PolicySet:
    """The policies of one configuration."""

    def __init__(
        self,
        *,
        default: Policy | None,
        by_peer: Mapping[str, Policy],
        unknown_peer: Policy | None,
    ) -> None:
        self.default: Final = default
        """For peers that name no policy. None, on a gateway without one: all is allowed here."""
        self._by_peer = by_peer
        self._unknown_peer = unknown_peer

    def for_peer(self, name: str) -> Policy | None:
        """Give the policy for the flows of a peer; None: all is allowed.

        On an endpoint, a peer that the configuration does not name is allowed nothing.
        """
        return self._by_peer.get(name, self._unknown_peer)


def build_policies(config: Config) -> PolicySet:
    """Build all policies of a loaded configuration.

    An endpoint without a `[policy]` table allows nothing; a gateway without one leaves everything
    to the endpoint.
    """
    nothing = Policy.parse(allowed_hosts=(), allowed_ports=())
    if config.role == "gateway":
        default = parse_policy(config.policy) if config.policy else None
        return PolicySet(default=default, by_peer={}, unknown_peer=default)
    endpoint_default = parse_policy(config.policy) if config.policy else nothing
    named = {name: parse_policy(rules) for name, rules in config.policies.items()}
    by_peer = {
        peer.name: endpoint_default if peer.policy is None else named[peer.policy]
        for peer in config.peers
    }
    return PolicySet(default=endpoint_default, by_peer=by_peer, unknown_peer=nothing)


def parse_policy(rules: PolicyRules) -> Policy:
    """Parse the rules of one table.

    Raises :class:`socks_tunnel.protocol.policy.PolicyError` with every rule that cannot be parsed.
    """
    return Policy.parse(
        allowed_hosts=rules.allowed_hosts,
        allowed_ports=rules.allowed_ports,
        denied_hosts=rules.denied_hosts,
        denied_ports=rules.denied_ports,
    )


def read_policy_file(path: Path) -> PolicyRules:
    """Read a policy in the original's JSON form.

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
    try:
        fields = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([Problem(path, None, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(path, None, "", "is not UTF-8 text")]) from None
    except json.JSONDecodeError as error:
        message = f"is not valid JSON: {error.msg} in column {error.colno}"
        raise ConfigError([Problem(path, error.lineno, "", message)]) from None
    except RecursionError:
        raise ConfigError([Problem(path, None, "", "is nested too deeply")]) from None
    if not isinstance(fields, dict):
        raise ConfigError([Problem(path, None, "", "must hold a JSON object")])
    return fields
