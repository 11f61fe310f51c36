"""Reads a configuration file, and what it names, and finds every mistake in them at once."""

import glob
import os
import stat
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from socks_tunnel.config import checks, settings
from socks_tunnel.config.checks import Findings
from socks_tunnel.config.documents import read_text, read_toml
from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.models import (
    Config,
    ConfigFile,
    Identity,
    Peer,
    PolicyRules,
    Socks,
)
from socks_tunnel.config.plain import plain
from socks_tunnel.config.policies import RULE_KEYS, read_policy_file
from socks_tunnel.config.positions import KeyPath
from socks_tunnel.config.users import parse_users
from socks_tunnel.config.wording import key_text, sentence
from socks_tunnel.ops.files import open_regular, read_whole
from socks_tunnel.protocol.policies import parse_policy
from socks_tunnel.protocol.policy import PolicyError
from socks_tunnel.protocol.routes import Route as ParsedRoute
from socks_tunnel.protocol.rules import RuleError, RuleProblem

CREDENTIAL: Final = "identity"
"""Name of the systemd credential that stands in for `private_key_file`."""

NO_CREDENTIAL: Final = b"absent"
"""The value that the unit gives the credential if there is no key file."""

_INCLUDABLE: Final = ("peers", "policies", "policy")
"""What an included file may hold."""


def load(path: Path) -> settings.Config:
    """Reads and checks the configuration at `path`, and the files that it names.

    Raises :class:`ConfigError` with every mistake that can be found.
    """
    path = path.absolute()
    raw, lines = read_toml(path)
    return plain(_Loader(path, raw, lines).load())


class _Loader:
    """One pass over one file. Collects problems instead of stopping at the first."""

    def __init__(self, path: Path, raw: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self._found = Findings(path, raw, lines)
        self._path = path
        self._raw = raw
        self._context = {"directory": path.parent}
        self._warnings: list[str] = []

    def load(self) -> Config:
        self._include()
        self._move_old_keys()
        file = self._validate()
        if file is None:
            raise ConfigError(self._found.problems)
        peers = self._usable_peers(file)
        checks.check_role(self._found, file, peers)
        checks.check_peers_differ(self._found, peers)
        if file.role == "endpoint":
            checks.check_policy_names(self._found, peers)
            checks.check_joining(self._found, file)
        users = self._read_users(file)
        checks.check_listeners(self._found, file)
        checks.check_tls(self._found, file, peers)
        checks.check_ice(self._found, file)
        self._check_routes(file, peers)
        identity = self._find_identity(file)
        policy, policies = self._read_policies(file)
        if self._found.problems:
            raise ConfigError(self._found.problems)
        fields = {name: getattr(file, name) for name in ConfigFile.model_fields}
        fields |= {"identity": identity, "policy": policy, "policies": policies, "users": users}
        if file.role == "endpoint":
            fields["socks"] = Socks(listen=())
        fields |= {"source": self._path, "warnings": tuple(self._warnings)}
        return Config.model_validate(fields)

    # --- included files -----------------------------------------------------------------------

    def _include(self) -> None:
        """Adds the content of the included files, in the order of the patterns and names.

        Peers and policies are added to the existing ones, and rules of `[policy]` to its lists. A
        pattern may match no file, because a drop-in directory may be empty.
        """
        patterns = self._raw.get("include", [])
        if not isinstance(patterns, list):
            return  # reported by _validate
        for pattern in patterns:
            if not isinstance(pattern, str):
                continue  # as above
            # Path.glob would take no absolute pattern.
            for name in sorted(glob.glob(str(self._path.parent / pattern))):  # noqa: PTH207
                file = Path(name)
                try:
                    raw, lines = read_toml(file)
                except ConfigError as error:
                    self._found.problems += error.problems
                    continue
                self._add_file(file, raw, lines)

    def _add_file(self, file: Path, raw: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        def complain(at: KeyPath, message: str) -> None:
            self._found.problems.append(Problem(file, lines.get(at), key_text(at), message))

        def adopt(at: KeyPath, whole: KeyPath) -> None:
            """Notes where the value at `whole` comes from: `at` in the included file."""
            for path, line in lines.items():
                if path[: len(at)] == at:
                    moved = whole + path[len(at) :]
                    self._found.lines[moved] = line
                    self._found.files[moved] = file

        for key, value in raw.items():
            if key not in _INCLUDABLE:
                complain((key,), f"an included file may have {', '.join(_INCLUDABLE)} only")
                continue
            mine = self._raw.setdefault(key, [] if key == "peers" else {})
            if type(value) is not type(mine):
                complain((key,), f"must be {'a list' if key == 'peers' else 'a table'}")
            elif key == "peers":
                for index, peer in enumerate(value):
                    adopt((key, index), (key, len(mine)))
                    mine.append(peer)
            elif key == "policies":
                for name, rules in value.items():
                    if name in mine:
                        complain((key, name), "is there already, in another file")
                        continue
                    mine[name] = rules
                    adopt((key, name), (key, name))
            else:
                for name, rules in value.items():
                    if name not in RULE_KEYS:
                        complain(
                            (key, name), f"an included [policy] may have {', '.join(RULE_KEYS)}"
                        )
                        continue
                    ours = _rule_list(mine.get(name, []))
                    mine[name] = ours
                    for index, rule in enumerate(_rule_list(rules)):
                        place = (key, name, index) if (key, name, index) in lines else (key, name)
                        self._found.lines[key, name, len(ours)] = lines.get(place, 1)
                        self._found.files[key, name, len(ours)] = file
                        ours.append(rule)

    def _move_old_keys(self) -> None:
        """Accepts an endpoint's old `socks.connect_timeout` for that of `[targets]`, and warns."""
        old, new = ("socks", "connect_timeout"), ("targets", "connect_timeout")
        socks = self._raw.get("socks")
        if self._raw.get("role") != "endpoint" or not isinstance(socks, dict):
            return
        if "connect_timeout" not in socks:
            return
        targets = self._raw.setdefault("targets", {})
        if not isinstance(targets, dict):
            return  # reported by _validate
        message = "is the old name of targets.connect_timeout"
        if "connect_timeout" in targets:
            self._found.add(old, f"{message}, which is there too")
            return
        targets["connect_timeout"] = socks.pop("connect_timeout")
        line = self._found.lines.pop(old, None)
        if line is not None:
            self._found.lines[new] = line
        if not socks:
            del self._raw["socks"]
        warning = Problem(self._path, line, key_text(old), f"{message}; write it there")
        self._warnings.append(str(warning))

    # --- values by themselves -----------------------------------------------------------------

    def _validate(self) -> ConfigFile | None:
        """Returns the tables, with defaults in place of settings that have mistakes.

        With defaults, a mistake in one place does not hide the mistakes that depend on several
        places. Returns None if the role itself is not known.
        """
        try:
            return ConfigFile.model_validate(self._raw, context=self._context)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                at = details["loc"]
                self._found.add(at, sentence(details))
                # A setting in a table is left out alone, an array of tables as a whole.
                self._found.broken.add(at[:2] if len(at) > 1 and isinstance(at[1], str) else at[:1])
        usable = {
            key: {k: v for k, v in value.items() if (key, k) not in self._found.broken}
            if isinstance(value, dict)
            else value
            for key, value in self._raw.items()
            if (key,) not in self._found.broken
        }
        if "role" not in usable:
            return None
        return ConfigFile.model_validate(usable, context=self._context)

    def _usable_peers(self, file: ConfigFile) -> list[tuple[int, Peer]]:
        """Returns the peers that have no mistake of their own, with their numbers in the file."""
        if not self._found.is_broken("peers"):
            return list(enumerate(file.peers))
        peers = []
        raw_peers = self._raw["peers"]
        for index, raw_peer in enumerate(raw_peers if isinstance(raw_peers, list) else []):
            try:
                peers.append((index, Peer.model_validate(raw_peer, context=self._context)))
            except ValidationError:
                continue  # reported by _validate
        return peers

    # --- files ---------------------------------------------------------------------------------

    def _read_users(self, file: ConfigFile) -> dict[str, str]:
        path = file.socks.users_file
        if path is None or file.role != "gateway":
            return {}
        try:
            users, problems = parse_users(read_text(path))
        except ConfigError as error:
            self._found.problems += error.problems
            return {}
        self._found.problems += [Problem(path, line, "", message) for line, message in problems]
        if not users and not problems:
            # Taken for "no password needed", an empty file would let everybody in.
            self._found.add(
                ("socks", "users_file"), "names a file with no user: nobody could log in"
            )
        return users

    def _find_identity(self, file: ConfigFile) -> Identity:
        """Finds the private key, and checks that only this user can read it."""
        at = ("identity", "private_key_file")
        path = file.identity.private_key_file
        credential = _credential()
        # The packaged unit loads the key that is named like the configuration, so that the file
        # may belong to root alone.
        is_credential = credential is not None and path in {None, self._path.with_suffix(".key")}
        if is_credential:
            path = credential
        if path is None:
            if self._found.is_broken("identity", "private_key_file"):
                return file.identity
            path = self._path.with_suffix(".key")
            if not path.exists():
                self._found.add(
                    at,
                    f"is missing, and there is neither a file {path.name} nor a systemd credential "
                    f"{CREDENTIAL!r} in its place",
                )
                return file.identity
        try:
            with open_regular(path) as key_file:
                mode = os.fstat(key_file.fileno()).st_mode
        except OSError as error:
            self._found.add(at, f"{path} cannot be read: {error.strerror}")
            return file.identity
        # systemd protects its credentials in another way, and their mode shows the mask of an ACL.
        if mode & 0o077 and not is_credential:
            self._found.add(
                at,
                f"{path} has mode {stat.S_IMODE(mode):04o}: others may use the key; "
                f"`chmod 600` makes it private",
            )
        return Identity(private_key_file=path)

    def _read_policies(self, file: ConfigFile) -> tuple[PolicyRules | None, dict[str, PolicyRules]]:
        """Reads policy files and checks that all rules can be parsed."""
        policy = file.policy
        at: KeyPath = ("policy",)
        if file.policy_file is not None:
            at = ()
            if policy is not None:
                self._found.add(("policy_file",), "and [policy] exclude each other")
            policy = PolicyRules(policy_file=file.policy_file)
        if policy is not None:
            policy = self._read_policy(at, policy)
        policies = {
            name: self._read_policy(("policies", name), rules)
            for name, rules in file.policies.items()
        }
        return policy, policies

    def _read_policy(self, at: KeyPath, rules: PolicyRules) -> PolicyRules:
        source = rules.policy_file
        if source is not None:
            for key in RULE_KEYS:
                if getattr(rules, key):
                    self._found.add((*at, key), "and policy_file exclude each other")
            try:
                rules = read_policy_file(source)
            except ConfigError as error:
                self._found.problems += error.problems
                return rules
        try:
            parse_policy(rules)
        except PolicyError as error:
            for problem in error.problems:
                self._add_rule_problem(() if source else at, problem, source)
        return rules

    def _check_routes(self, file: ConfigFile, peers: list[tuple[int, Peer]]) -> None:
        """Checks that all rules of routes can be parsed, and that their peers are there."""
        known = {peer.name for _, peer in peers}
        names: dict[str, int] = {}
        for index, route in enumerate(file.routes):
            at: KeyPath = ("routes", index)
            if file.role == "gateway":
                checks.check_route(self._found, at, route, known)
            first = names.setdefault(route.name, index)
            if route.name and first != index:
                self._found.add((*at, "name"), f"is the same as that of routes[{first}]")
            try:
                ParsedRoute.parse(route)
            except RuleError as error:
                for problem in error.problems:
                    self._add_rule_problem(at, problem, None)

    def _add_rule_problem(self, at: KeyPath, problem: RuleProblem, file: Path | None) -> None:
        message = f"{problem.text!r}: {problem.reason}"
        kind, _, number = problem.position.partition(" ")
        if kind == "item":
            self._found.add((*at, problem.field, int(number) - 1), message, file=file)
        else:
            self._found.add((*at, problem.field), f"{problem.position}: {message}", file=file)


def _rule_list(rules: Any) -> list[Any]:
    """Returns a new list of rules. One text is split into its lines."""
    if isinstance(rules, str):
        return [line for line in rules.splitlines() if line.strip()]
    return list(rules) if isinstance(rules, list) else [rules]


def _credential() -> Path | None:
    """Returns the path of the systemd credential with the key; None if there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is None:
        return None
    path = Path(directory) / CREDENTIAL
    try:
        return None if read_whole(path) == NO_CREDENTIAL else path
    except OSError:
        return path  # the caller reports why it cannot be read
