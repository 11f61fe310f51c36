"""The base class of the tables of a configuration, and values that several tables have.

Each function takes the text from a file, or a value that was made of such a text before. All raise
ValueError, because pydantic reports that.
"""

import base64
import binascii
from typing import Annotated, Any, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
)

from socks_tunnel.protocol.addresses import HostPort, parse_host_port
from socks_tunnel.protocol.rules import Rules


class Table(BaseModel):
    """A table of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def text_of(value: Any) -> str:
    """Returns the value if it is text. Raises :class:`ValueError` otherwise."""
    if isinstance(value, dict | list):
        raise ValueError(f"must be text, not a {'table' if isinstance(value, dict) else 'list'}")  # noqa: TRY004
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}")  # noqa: TRY004
    return value


def public_key(value: Any) -> str:
    """Returns a public key in canonical form. Raises :class:`ValueError`."""
    text = text_of(value).strip()
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not a public key: it is not base64") from None
    if len(raw) != 32:
        raise ValueError(f"is not a public key: {len(raw)} bytes, where an Ed25519 key has 32")
    return base64.b64encode(raw).decode("ascii")


def destination(value: Any) -> HostPort:
    """Returns a host and port. Raises :class:`ValueError`."""
    return value if isinstance(value, HostPort) else parse_host_port(text_of(value))


def policy_rules(value: Any) -> Rules:
    """Returns rules as they are written; :mod:`socks_tunnel.protocol.rules` parses them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of rules, or one text with a rule in each line")  # noqa: TRY004
    return tuple(value)


Seconds: TypeAlias = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Positive: TypeAlias = Annotated[int, Field(ge=1, strict=True)]
Destination: TypeAlias = Annotated[
    HostPort, PlainValidator(destination), PlainSerializer(str, when_used="unless-none")
]
PolicyRuleList: TypeAlias = Annotated[Rules, PlainValidator(policy_rules)]
PeerName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
]
"""Names of peers stand in logs and on command lines, so they have no spaces or odd characters."""
