"""Checks tokens of an identity provider (JWT, RFC 7519), with which hosts join. Sans-IO.

PyJWT checks the signature, the issuer and the audience. The times are compared here, with the `now`
of the caller. RFC 8725 (JWT best current practices) requires:

* section 3.1: the algorithm is one of :data:`ALGORITHMS`, all of them asymmetric, and fits the type
  of the key, so a public key can never be taken for the secret of an HMAC. `none` is not accepted.
* section 3.8, 3.9: issuer and audience are required, and compared.
* section 3.11: a token whose `typ` says that it is for something else is refused.

A token may be bound to a key by `cnf` (RFC 7800, RFC 9449 section 6.1). Then only the host with
that key can use it.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from jwt.algorithms import get_default_algorithms

from socks_tunnel.protocol import bounded
from socks_tunnel.signaling.joining import JWT_MAX, TEXT_MAX

ALGORITHMS: Final[Mapping[str, tuple[str, str]]] = {
    "RS256": ("RSA", ""),
    "PS256": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Accepted algorithms, each with the type and the curve of its keys (RFC 7518, 8037)."""

RSA_BITS_MIN: Final = 2048
"""Shortest RSA key in bits (RFC 7518 section 3.3)."""

JWKS_MAX: Final = 256 * 1024
"""Longest set of keys in bytes."""

KEYS_MAX: Final = 64
"""Number of keys of one set that are examined."""

KID_MAX: Final = 256
"""Longest id of a key in characters."""

_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""Accepted values of `typ`, if it is present (RFC 7519 section 5.1, RFC 9068 section 2.1)."""

REFUSALS: Final[Mapping[str, str]] = {
    "malformed": "it is no JWT",
    "algorithm": "its algorithm is not accepted",
    "unknown-key": "no key of the issuer has signed it",
    "signature": "its signature is wrong",
    "issuer": "it is from another issuer",
    "audience": "it is for another audience",
    "claims": "it lacks a claim",
    "expired": "it has expired",
    "not-yet": "it is not valid yet",
    "too-old": "it was issued too long ago",
    "bound": "it is bound to another key",
    "no-tag": "its roles lead to no tag",
}
"""Why a token is refused, by the value of the metric's label."""


class JwtRefused(Exception):  # noqa: N818 - it is a verdict on a token, not a fault of ours
    """The token is refused. `code` is one of :data:`REFUSALS`; the text is a clause."""

    def __init__(self, code: str, more: str = "") -> None:
        assert code in REFUSALS, code
        super().__init__(f"{REFUSALS[code]}{more}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Wanted:
    """The requirements for a token. `leeway` and `max_age` are seconds.

    `tag_claim` names the claim with the roles. `tags` has the tag of each role that has one, and
    the first match counts. Without a `tag_claim`, everybody with a token gets the empty tag.
    """

    issuer: str
    audience: str
    leeway: float
    max_age: float
    tag_claim: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a token, which describes its signature. None of this is proved."""

    algorithm: str
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The content of an accepted token. `id` names it as long as it could be presented again."""

    subject: str
    tag: str
    id: bytes
    until: int


class KeySet:
    """The public keys of an issuer (JWKS, RFC 7517)."""

    def __init__(self, document: bytes) -> None:
        """Raises :class:`ValueError` if the document is not a set of keys."""
        try:
            fields = bounded.json_map(document, size=JWKS_MAX)
        except bounded.Malformed as error:
            raise ValueError(str(error)) from None
        keys = fields.get("keys")
        if not isinstance(keys, list):
            raise ValueError("it has no list of keys")  # noqa: TRY004 - its content is wrong
        self._keys: list[Mapping[str, Any]] = [
            key for key in keys[:KEYS_MAX] if isinstance(key, dict)
        ]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, header: Header) -> Any | None:
        """Returns the key that a token names; None if no key fits.

        A token without a key id is accepted only if exactly one key fits its algorithm.
        """
        fitting = [key for key in self._keys if _fits(key, header.algorithm)]
        if header.key_id is not None:
            fitting = [key for key in fitting if key.get("kid") == header.key_id]
        if len(fitting) != 1:
            return None
        return _public_key(fitting[0], header.algorithm)


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = ALGORITHMS[algorithm]
    return (
        key.get("kty") == kind
        and (not curve or key.get("crv") == curve)
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and "d" not in key  # a private key that was published is known to anybody
    )


def _public_key(key: Mapping[str, Any], algorithm: str) -> Any | None:
    try:
        made: Any = get_default_algorithms()[algorithm].from_jwk(dict(key))
    except (jwt.PyJWTError, ValueError, TypeError):  # a set of keys may contain anything
        return None
    if ALGORITHMS[algorithm][0] == "RSA" and made.key_size < RSA_BITS_MIN:
        return None
    return made


def header_of(token: str) -> Header:
    """Returns the header of a token. Raises :class:`JwtRefused`."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii() or len(token) > JWT_MAX:
        raise JwtRefused("malformed")
    try:
        raw = base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4))
        fields = bounded.json_map(raw, size=JWT_MAX)
    except (ValueError, bounded.Malformed):
        raise JwtRefused("malformed", ": its header cannot be read") from None
    algorithm = fields.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        listing = ", ".join(ALGORITHMS)
        raise JwtRefused("algorithm", f": {bounded.clip(algorithm)}, which is none of {listing}")
    # RFC 7515 section 4.1.11: critical extensions must be understood, and none is here.
    if "crit" in fields:
        raise JwtRefused("malformed", ": its header has critical extensions")
    kind = fields.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise JwtRefused("malformed", f" for joining: its type is {bounded.clip(kind)}")
    key_id = fields.get("kid")
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > KID_MAX):
        raise JwtRefused("malformed", ": its header has no usable kid")
    return Header(algorithm, key_id)


def judge(
    token: str, header: Header, key: Any, wanted: Wanted, host: bytes, now: float
) -> Accepted:
    """Returns the content of a token that the host with the key `host` may use.

    `header` is from :func:`header_of`, `key` from :meth:`KeySet.find`. Raises :class:`JwtRefused`.
    """
    claims = _signed_claims(token, header, key, wanted)
    until = _check_times(claims, wanted, now)
    _check_binding(claims, host)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise JwtRefused("claims", ": sub")
    return Accepted(
        subject=bounded.clip(subject, TEXT_MAX),
        tag=_tag(claims, wanted),
        id=_token_id(token, claims),
        until=until,
    )


def _signed_claims(token: str, header: Header, key: Any, wanted: Wanted) -> Mapping[str, Any]:
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[header.algorithm],
            audience=wanted.audience,
            issuer=wanted.issuer,
            options={
                "require": ["exp", "iat", "iss", "aud", "sub"],
                # `_check_times` compares the times with the caller's clock.
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except jwt.InvalidIssuerError:
        raise JwtRefused("issuer", f" than {wanted.issuer}") from None
    except jwt.InvalidAudienceError:
        raise JwtRefused("audience", f" than {wanted.audience}") from None
    except jwt.MissingRequiredClaimError as error:
        raise JwtRefused("claims", f": {error.claim}") from None
    except jwt.InvalidSignatureError:
        raise JwtRefused("signature") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise JwtRefused("malformed", f" that can be used ({type(error).__name__})") from None
    return claims


def _check_times(claims: Mapping[str, Any], wanted: Wanted, now: float) -> int:
    """Returns the Unix time after which the token would be refused for its age."""
    expires, issued = _moment(claims, "exp"), _moment(claims, "iat")
    begins = _moment(claims, "nbf") if "nbf" in claims else issued
    leeway = wanted.leeway
    if expires + leeway <= now:
        raise JwtRefused("expired", f", {now - expires:.0f} s ago by the endpoint's clock")
    if max(begins, issued) - leeway > now:
        ahead = max(begins, issued) - now
        raise JwtRefused("not-yet", f", but in {ahead:.0f} s by the endpoint's clock")
    if issued + wanted.max_age + leeway <= now:
        limit = f"{now - issued:.0f} s ago, and {wanted.max_age:.0f} s are allowed"
        raise JwtRefused("too-old", f": {limit}; get a fresh one")
    return math.ceil(min(expires, issued + wanted.max_age) + leeway)


def _moment(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # RFC 7519 section 2: a NumericDate may have a fraction. A bool is an int in Python only.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise JwtRefused("claims", f" that is a time: {name}")
    # NaN is in no range. An integer in JSON may be larger than any float.
    if not 0 <= value < 1 << 53:
        raise JwtRefused("claims", f" that is a time: {name}")
    return float(value)


def _check_binding(claims: Mapping[str, Any], host: bytes) -> None:
    if "cnf" not in claims:
        return
    confirmation = claims["cnf"]
    if not isinstance(confirmation, dict) or confirmation.get("jkt") != thumbprint(host):
        raise JwtRefused("bound", " than this host's")


def thumbprint(key: bytes) -> str:
    """Returns the thumbprint of an Ed25519 key, as `jkt` has it (RFC 7638, RFC 8037 appendix A.3).

    `key` is the raw public key.
    """
    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(key)}
    return _base64url(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _tag(claims: Mapping[str, Any], wanted: Wanted) -> str:
    """Returns the tag of the first entry of `tags` that the token has among its roles."""
    if not wanted.tag_claim:
        return ""
    roles = _claim(claims, wanted.tag_claim)
    held = [roles] if isinstance(roles, str) else roles if isinstance(roles, list) else []
    for role, tag in wanted.tags.items():
        if role in held:
            return tag
    raise JwtRefused("no-tag", f": {wanted.tag_claim} has none of {', '.join(wanted.tags)}")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Returns a claim by its name, or by a path with dots (`realm_access.roles` of Keycloak).

    The whole name is tried first, because some providers use URLs as names of claims.
    """
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _token_id(token: str, claims: Mapping[str, Any]) -> bytes:
    """Returns an id of the token: its `jti`, or else its signed part.

    The signature is not part of it: with ES256, a second valid one can be derived from it.
    """
    jti = claims.get("jti")
    signed = f"jti {jti}" if isinstance(jti, str) and jti else token.rpartition(".")[0]
    # JSON can contain surrogates, which UTF-8 cannot encode.
    return hashlib.sha256(signed.encode("utf-8", "surrogatepass")).digest()[:16]
