"""Reads a configuration file, and what it names, and finds every mistake in them at once."""

import glob
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from socks_tunnel.config.errors import ConfigError, Problem, unknown_key
from socks_tunnel.config.models import (
    NOT_YET,
    Config,
    ConfigFile,
    Identity,
    Peer,
    PolicyRules,
    Signaling,
    Socks,
    listener_text,
)
from socks_tunnel.config.policies import RULE_KEYS, read_policy_file
from socks_tunnel.config.positions import KeyPath, key_lines
from socks_tunnel.config.users import parse_users
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.ice_urls import ICE_URLS_MAX, parse_ice_url
from socks_tunnel.protocol.policies import parse_policy
from socks_tunnel.protocol.policy import PolicyError, RuleProblem
from socks_tunnel.protocol.settings import (
    LimitSettings,
    LogSettings,
    PeerSettings,
    RuleSettings,
    SocksSettings,
    TargetSettings,
    WorkerSettings,
)
from socks_tunnel.signaling.tls import TlsFileError, check_authorities, read_server_certificate

CREDENTIAL: Final = "identity"
"""Name of the systemd credential that stands in for `private_key_file`."""

NO_CREDENTIAL: Final = b"absent"
"""What the unit sets the credential to if there is no key file to load it from."""

_INCLUDABLE: Final = ("peers", "policies", "policy")
"""What an included file may hold."""

_SECRETS: Final = ("credential", "proxy")
"""Keys whose values are never shown."""

_TLS_CERTIFICATE: Final = ("signaling", "tls_certificate")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_TOML_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def load(path: Path) -> Config:
    """Read and check the configuration at `path`, and the files that it names.

    Raises :class:`ConfigError` with every mistake that can be found.
    """
    path = path.absolute()
    raw, lines = _parse_toml(path, _read_text(path))
    return _Loader(path, raw, lines).load()


def worker_settings(config: Config) -> WorkerSettings:
    """Returns what a worker needs of the configuration, with what the files that it names hold."""

    def rules(table: PolicyRules) -> RuleSettings:
        return RuleSettings(**{key: getattr(table, key) for key in RULE_KEYS})

    return WorkerSettings(
        role=config.role,
        udp_filtering=config.udp_filtering,
        socks=SocksSettings(
            connect_timeout=config.socks.connect_timeout,
            idle_tcp=config.socks.idle_tcp,
            idle_udp=config.socks.idle_udp,
        ),
        targets=TargetSettings(**config.targets.model_dump()),
        limits=LimitSettings(**config.limits.model_dump()),
        log=LogSettings(level=config.log.level),
        peers=tuple(PeerSettings(name=peer.name, policy=peer.policy) for peer in config.peers),
        policy=None if config.policy is None else rules(config.policy),
        policies={name: rules(table) for name, table in config.policies.items()},
        users=config.users,
    )


def dump(config: Config) -> dict[str, Any]:
    """Returns :func:`worker_settings` in the form that an IPC frame carries."""
    return worker_settings(config).to_map()


def _read_text(path: Path) -> str:
    """Read a file. Raises :class:`ConfigError`."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError([Problem(path, None, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem(path, None, "", "is not UTF-8 text")]) from None


def _parse_toml(path: Path, text: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Give the values and their lines. Raises :class:`ConfigError`."""
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        line = None
        place = _TOML_PLACE.search(message)
        if place:
            message = message[: place.start()]
            line = int(place[1]) if place[1] else text.count("\n") + 1
        raise ConfigError([Problem(path, line, "", f"is not valid TOML: {message}")]) from None
    except RecursionError:
        raise ConfigError([Problem(path, None, "", "is nested too deeply")]) from None


class _Loader:
    """One pass over one file. Collects problems instead of stopping at the first."""

    def __init__(self, path: Path, raw: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self._path = path
        self._raw = raw
        self._lines = lines
        self._problems: list[Problem] = []
        self._context = {"directory": path.parent}
        self._broken: set[KeyPath] = set()  # tables and settings that were complained of
        self._files: dict[KeyPath, Path] = {}  # where what was included stands

    def load(self) -> Config:
        self._include()
        file = self._validate()
        if file is None:
            raise ConfigError(self._problems)
        peers = self._usable_peers(file)
        self._check_role(file, peers)
        self._check_peers_differ(peers)
        self._check_not_yet(file, peers)
        if file.role == "endpoint":
            self._check_policy_names(peers)
        users = self._read_users(file)
        self._check_listeners(file)
        self._check_tls(file, peers)
        self._check_ice(file)
        identity = self._find_identity(file)
        policy, policies = self._read_policies(file)
        if self._problems:
            raise ConfigError(self._problems)
        fields = {name: getattr(file, name) for name in ConfigFile.model_fields}
        fields |= {"identity": identity, "policy": policy, "policies": policies, "users": users}
        if file.role == "endpoint":
            fields["socks"] = Socks(listen=())
        return Config.model_validate({**fields, "source": self._path})

    def _add(self, at: KeyPath, message: str, *, file: Path | None = None) -> None:
        """Note a mistake in the value at `at`, or in the file that is named there."""
        line = None
        if file is None:
            place = next((p for p in _upwards(at) if p in self._lines), None)
            if place is not None:
                line = self._lines[place]
                file = self._files.get(place)
        self._problems.append(Problem(file or self._path, line, _key_text(at), message))

    # --- included files -----------------------------------------------------------------------

    def _include(self) -> None:
        """Add what the files hold that `include` names, in the order of the patterns and names.

        Peers and policies are added to those there are, rules of `[policy]` to its lists. No file
        need match: a drop-in directory may be empty.
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
                    raw, lines = _parse_toml(file, _read_text(file))
                except ConfigError as error:
                    self._problems += error.problems
                    continue
                self._add_file(file, raw, lines)

    def _add_file(self, file: Path, raw: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        def complain(at: KeyPath, message: str) -> None:
            self._problems.append(Problem(file, lines.get(at), _key_text(at), message))

        def adopt(at: KeyPath, whole: KeyPath) -> None:
            """Note where what stands at `at` in the file is from, now that it is at `whole`."""
            for path, line in lines.items():
                if path[: len(at)] == at:
                    moved = whole + path[len(at) :]
                    self._lines[moved] = line
                    self._files[moved] = file

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
                        self._lines[key, name, len(ours)] = lines.get(place, 1)
                        self._files[key, name, len(ours)] = file
                        ours.append(rule)

    # --- values by themselves -----------------------------------------------------------------

    def _validate(self) -> ConfigFile | None:
        """Give the tables, with defaults in place of settings that have mistakes.

        So that a mistake in one place does not hide those that only several places together make.
        None if the role itself is not known.
        """
        try:
            return ConfigFile.model_validate(self._raw, context=self._context)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                at = details["loc"]
                self._add(at, _sentence(details))
                # A setting in a table is left out alone, an array of tables as a whole.
                self._broken.add(at[:2] if len(at) > 1 and isinstance(at[1], str) else at[:1])
        usable = {
            key: {k: v for k, v in value.items() if (key, k) not in self._broken}
            if isinstance(value, dict)
            else value
            for key, value in self._raw.items()
            if (key,) not in self._broken
        }
        if "role" not in usable:
            return None
        return ConfigFile.model_validate(usable, context=self._context)

    def _is_broken(self, *at: str) -> bool:
        """Tell whether the setting at `at`, or its table, was complained of."""
        return any(path in self._broken for path in _upwards(at))

    def _usable_peers(self, file: ConfigFile) -> list[tuple[int, Peer]]:
        """Give the peers that have no mistake of their own, with their numbers in the file."""
        if not self._is_broken("peers"):
            return list(enumerate(file.peers))
        peers = []
        raw_peers = self._raw["peers"]
        for index, raw_peer in enumerate(raw_peers if isinstance(raw_peers, list) else []):
            try:
                peers.append((index, Peer.model_validate(raw_peer, context=self._context)))
            except ValidationError:
                continue  # reported by _validate
        return peers

    # --- values together ----------------------------------------------------------------------

    def _check_role(self, file: ConfigFile, peers: list[tuple[int, Peer]]) -> None:
        senseless = f"has no meaning in the configuration of {_a(file.role)}"
        is_gateway = file.role == "gateway"
        gateways = ("socks", "forwards")
        endpoints = ("signaling", "udp_filtering", "policies", "targets")
        for key in endpoints if is_gateway else gateways:
            if key in self._raw:
                self._add((key,), senseless)
        foreign = ("policy",) if is_gateway else ("url", "rendezvous", "tls_ca", "proxy")
        for index, peer in peers:
            for key in foreign:
                if getattr(peer, key) is not None:
                    self._add(("peers", index, key), senseless)
            if is_gateway and peer.url is None and peer.rendezvous is None:
                self._add(("peers", index, "url"), "is missing: where does the endpoint listen?")
        if not file.peers and not self._is_broken("peers"):
            what = "the endpoint that it leads to" if is_gateway else "a gateway that may connect"
            self._add(("peers",), f"is missing: {_a(file.role)} needs {what}")
        if not is_gateway and not self._is_broken("signaling", "listen"):
            signaling = file.signaling or Signaling()
            if signaling.listen is None and signaling.rendezvous is None:
                self._add(("signaling", "listen"), "is missing: where do gateways send offers to?")

    def _check_peers_differ(self, peers: list[tuple[int, Peer]]) -> None:
        for key in ("name", "public_key"):
            seen: dict[str, int] = {}
            for index, peer in peers:
                first = seen.setdefault(getattr(peer, key), index)
                if first != index:
                    self._add(("peers", index, key), f"is the same as that of peers[{first}]")

    def _check_not_yet(self, file: ConfigFile, peers: list[tuple[int, Peer]]) -> None:
        for index, peer in peers:
            if peer.rendezvous is not None:
                self._add(("peers", index, "rendezvous"), NOT_YET)
        if file.signaling is not None and file.signaling.rendezvous is not None:
            self._add(("signaling", "rendezvous"), NOT_YET)

    def _check_policy_names(self, peers: list[tuple[int, Peer]]) -> None:
        tables = self._raw.get("policies", {})
        known = list(tables) if isinstance(tables, dict) else []
        for index, peer in peers:
            if peer.policy is None or peer.policy in known:
                continue
            listing = ", ".join(map(json.dumps, known)) or "none"
            self._add(
                ("peers", index, "policy"),
                f"there is no [policies.{peer.policy}]; those that there are: {listing}",
            )

    def _check_listeners(self, file: ConfigFile) -> None:
        if file.role == "gateway" and not file.socks.listen and not file.forwards:
            self._add(("socks", "listen"), "is empty: clients could not reach the gateway")
        for index, listener in enumerate(file.socks.listen):
            # Who may use a Unix socket is decided by its mode, and nobody comes from elsewhere.
            if isinstance(listener, Path) or _address(listener).is_loopback:
                continue
            at: KeyPath = ("socks", "listen", index)
            if not file.socks.allow_remote_clients:
                self._add(
                    at,
                    f"{listener} is no loopback address: remote clients must be allowed with "
                    "allow_remote_clients, and named in users_file",
                )
            elif file.socks.users_file is None:
                self._add(at, f"{listener} is no loopback address: users_file is needed")
        for index, forward in enumerate(file.forwards):
            if not _address(forward.address).is_loopback and not file.socks.allow_remote_clients:
                self._add(
                    ("forwards", index, "listen"),
                    f"{forward.address} is no loopback address: remote clients must be allowed "
                    "with allow_remote_clients in [socks]; a forward asks nobody for a password",
                )
        self._check_taken(self._listeners(file))
        self._check_taken(self._udp_listeners(file))

    def _check_taken(self, listeners: Iterator[tuple[KeyPath, HostPort | Path]]) -> None:
        seen: list[tuple[KeyPath, HostPort | Path]] = []
        for at, listener in listeners:
            for other_at, other in seen:
                if _collide(listener, other):
                    self._add(at, f"{listener_text(listener)} is taken by {_key_text(other_at)}")
                    break
            seen.append((at, listener))

    def _listeners(self, file: ConfigFile) -> Iterator[tuple[KeyPath, HostPort | Path]]:
        if file.role == "gateway" and not self._is_broken("socks", "listen"):
            for index, listener in enumerate(file.socks.listen):
                yield ("socks", "listen", index), listener
        for index, forward in enumerate(file.forwards):
            if forward.protocol == "tcp":
                yield ("forwards", index, "listen"), forward.address
        if file.signaling is not None and isinstance(file.signaling.listen, HostPort):
            yield ("signaling", "listen"), file.signaling.listen
        if file.metrics.listen is not None and not self._is_broken("metrics", "listen"):
            yield ("metrics", "listen"), file.metrics.listen

    def _udp_listeners(self, file: ConfigFile) -> Iterator[tuple[KeyPath, HostPort]]:
        for index, forward in enumerate(file.forwards):
            if forward.protocol == "udp":
                yield ("forwards", index, "listen"), forward.address

    # --- files ---------------------------------------------------------------------------------

    def _check_tls(self, file: ConfigFile, peers: list[tuple[int, Peer]]) -> None:
        """See that the files for TLS can be used; who uses them reads them again."""
        for index, peer in peers:
            if file.role == "endpoint" or peer.tls_ca is None:
                continue  # of an endpoint's peer, _check_role has said it
            at: KeyPath = ("peers", index, "tls_ca")
            if peer.url is not None and not peer.url.startswith("https:"):
                self._add(at, "has no meaning for a url that is not https://")
            elif complaint := check_authorities(peer.tls_ca):
                self._add(at, complaint)
        signaling = file.signaling
        if file.role == "gateway" or signaling is None:
            return
        certificate = signaling.tls_certificate
        if certificate is None:
            if signaling.tls_key is not None and not self._is_broken(*_TLS_CERTIFICATE):
                self._add(_TLS_CERTIFICATE, "is missing: tls_key alone makes no listener HTTPS")
        elif isinstance(signaling.listen, Path):
            self._add(_TLS_CERTIFICATE, "has no meaning on a Unix socket: that is on no network")
        elif not self._is_broken("signaling", "tls_key"):
            try:
                read_server_certificate(certificate, signaling.tls_key)
            except TlsFileError as error:
                self._add(("signaling", error.key), str(error))

    def _check_ice(self, file: ConfigFile) -> None:
        """Refuses what cannot work together in `[ice]`."""
        if self._is_broken("ice", "servers"):
            return
        urls = [parse_ice_url(url) for server in file.ice.servers for url in server.urls]
        if len(urls) > ICE_URLS_MAX:
            self._add(("ice", "servers"), f"has {len(urls)} URLs; at most {ICE_URLS_MAX} are asked")
        if file.ice.policy == "relay" and not any(url.scheme != "stun" for url in urls):
            self._add(("ice", "policy"), '"relay" needs a turn: or turns: server in ice.servers')
        if file.ice.tls_ca is not None:
            if not any(url.scheme == "turns" for url in urls):
                self._add(("ice", "tls_ca"), "has no meaning without a turns: server")
            elif complaint := check_authorities(file.ice.tls_ca):
                self._add(("ice", "tls_ca"), complaint)

    def _read_users(self, file: ConfigFile) -> dict[str, str]:
        path = file.socks.users_file
        if path is None or file.role != "gateway":
            return {}
        try:
            users, problems = parse_users(_read_text(path))
        except ConfigError as error:
            self._problems += error.problems
            return {}
        self._problems += [Problem(path, line, "", message) for line, message in problems]
        if not users and not problems:
            # Taken for "no password needed", an empty file would let everybody in.
            self._add(("socks", "users_file"), "names a file with no user: nobody could log in")
        return users

    def _find_identity(self, file: ConfigFile) -> Identity:
        """Find the private key and see that it can be read, and by nobody else."""
        at = ("identity", "private_key_file")
        path = file.identity.private_key_file
        credential = _credential()
        # The packaged unit loads the key that is named like the configuration, which then may
        # belong to root alone.
        is_credential = credential is not None and path in {None, self._path.with_suffix(".key")}
        if is_credential:
            path = credential
        if path is None:
            if self._is_broken("identity", "private_key_file"):
                return file.identity
            path = self._path.with_suffix(".key")
            if not path.exists():
                self._add(
                    at,
                    f"is missing, and there is neither a file {path.name} nor a systemd credential "
                    f"{CREDENTIAL!r} in its place",
                )
                return file.identity
        try:
            with path.open("rb") as key_file:
                mode = os.fstat(key_file.fileno()).st_mode
        except OSError as error:
            self._add(at, f"{path} cannot be read: {error.strerror}")
            return file.identity
        if not stat.S_ISREG(mode):
            self._add(at, f"{path} is not a file")
        # systemd guards its credentials by other means, and their mode shows the ACL's mask.
        elif mode & 0o077 and not is_credential:
            self._add(
                at,
                f"{path} has mode {stat.S_IMODE(mode):04o}: others may use the key; "
                f"`chmod 600` makes it private",
            )
        return Identity(private_key_file=path)

    def _read_policies(self, file: ConfigFile) -> tuple[PolicyRules | None, dict[str, PolicyRules]]:
        """Read policy files and see that all rules can be parsed."""
        policy = file.policy
        at: KeyPath = ("policy",)
        if file.policy_file is not None:
            at = ()
            if policy is not None:
                self._add(("policy_file",), "and [policy] exclude each other")
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
                    self._add((*at, key), "and policy_file exclude each other")
            try:
                rules = read_policy_file(source)
            except ConfigError as error:
                self._problems += error.problems
                return rules
        try:
            parse_policy(rules)
        except PolicyError as error:
            for problem in error.problems:
                self._add_rule_problem(() if source else at, problem, source)
        return rules

    def _add_rule_problem(self, at: KeyPath, problem: RuleProblem, file: Path | None) -> None:
        message = f"{problem.text!r}: {problem.reason}"
        kind, _, number = problem.position.partition(" ")
        if kind == "item":
            self._add((*at, problem.field, int(number) - 1), message, file=file)
        else:
            self._add((*at, problem.field), f"{problem.position}: {message}", file=file)


def _rule_list(rules: Any) -> list[Any]:
    """Give rules as a list, also those that are the lines of one text; a copy."""
    if isinstance(rules, str):
        return [line for line in rules.splitlines() if line.strip()]
    return list(rules) if isinstance(rules, list) else [rules]


def _credential() -> Path | None:
    """Give the path of the systemd credential with the key; None if there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is None:
        return None
    path = Path(directory) / CREDENTIAL
    try:
        return None if path.read_bytes() == NO_CREDENTIAL else path
    except OSError:
        return path  # the caller reports why it cannot be read


# --- wording ----------------------------------------------------------------------------------


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _upwards(at: KeyPath) -> Iterator[KeyPath]:
    """Give the path and those above it, nearest first."""
    for length in range(len(at), 0, -1):
        yield at[:length]


def _key_text(at: KeyPath) -> str:
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(part)
            text += f".{name}" if text else name
    return text


def _sentence(details: ErrorDetails) -> str:
    """Put a finding of pydantic's into words that fit after the key."""
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
    # What is inside a table or list is not shown: it may be a password that stands in it.
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
        # TOML has no way back to the top level: a setting written below a table is in the table.
        return "is not a key of this table; it must stand above the first [table]"
    return unknown_key(key, _model_at(at[:-1]).model_fields)


def _model_at(at: KeyPath) -> type[BaseModel]:
    """Give the class of the table at `at`."""
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


# --- addresses --------------------------------------------------------------------------------


def _address(listener: HostPort) -> IPAddress:
    address = parse_ip(listener.host)
    assert address is not None, "the models take no names as listeners"
    return getattr(address, "ipv4_mapped", None) or address


def _collide(one: HostPort | Path, other: HostPort | Path) -> bool:
    """Tell whether only one of two listeners could be bound. Port 0 is any free port."""
    if isinstance(one, Path) or isinstance(other, Path):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    a, b = _address(one), _address(other)
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))
