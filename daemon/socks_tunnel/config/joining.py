"""`[join.jwt]` of an endpoint: hosts that join with a token of the company's identity provider."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, StringConstraints, ValidationInfo, model_validator

from socks_tunnel.config.basics import (
    PeerName,
    Positive,
    Seconds,
    Table,
    public_key,
    text_of,
)
from socks_tunnel.config.settings import LIFETIME_MAX
from socks_tunnel.config.urls import checked_url
from socks_tunnel.protocol.addresses import parse_ip

GROUP_MAX: Final = 32
"""Endpoints of one group."""

TAGS_MAX: Final = 1024
"""Entries of `tags`."""

_NOT_PRIVATE: Final = (
    "is plain http to another host: whoever is on the way could put in keys of his own; use https"
)


def _jwks(value: Any, info: ValidationInfo) -> str | Path:
    """Returns a URL, or the absolute path of a file. Raises :class:`ValueError`."""
    if isinstance(value, Path):
        return value
    text = text_of(value)
    if not text:
        raise ValueError("is empty: where are the issuer's keys?")
    if "://" not in text:
        directory: Path = (info.context or {}).get("directory", Path("/"))
        return directory / text
    checked_url(text, {"http", "https"}, "is neither https://HOST/… nor the path of a file")
    parts = urlsplit(text)
    if parts.scheme == "http":
        host = parts.hostname or ""
        address = parse_ip("127.0.0.1" if host == "localhost" else host)
        if address is None or not address.is_loopback:
            raise ValueError(_NOT_PRIVATE)
    return text


def _optional_path(value: Any, info: ValidationInfo) -> Path | None:
    if value is None or value == "" or isinstance(value, Path):
        return value or None
    directory: Path = (info.context or {}).get("directory", Path("/"))
    return directory / text_of(value)


_Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class JoinJwt(Table):
    """`[join.jwt]`: which tokens are accepted, and what hosts get for them."""

    issuer: _Text
    """The exact value of `iss`."""
    audience: _Text
    """The value that `aud` must be or contain."""
    jwks: Annotated[str | Path, PlainValidator(_jwks)]
    """Where the issuer's public keys are: `https://…`, or a file."""
    tls_ca: Annotated[Path | None, PlainValidator(_optional_path)] = None
    """PEM file of CA certificates for the server. None: those of the system."""
    tag_claim: str = ""
    """The claim with the roles of the user, such as `groups` or `realm_access.roles`."""
    tags: Mapping[_Text, str] = Field(default={}, max_length=TAGS_MAX)
    """The tag for each role that may join. The first that a token has counts."""
    lifetime: Annotated[int, Field(ge=0, le=LIFETIME_MAX, strict=True)] = 0
    """Seconds that a host may stay; 0: no limit."""
    max_age: Positive = 3600
    """Seconds after its issue for which a token can be used to join."""
    leeway: Seconds = 30
    """Seconds by which the provider's clock may differ from the endpoint's."""
    one_time: bool = True
    """Whether one token is good for one host only."""

    @model_validator(mode="after")
    def _roles_lead_to_tags(self) -> "JoinJwt":
        if self.tag_claim and not self.tags:
            raise ValueError(
                "tag_claim without tags: no role leads to a tag, and nobody could join"
            )
        if self.tags and not self.tag_claim:
            raise ValueError("tags without tag_claim: which claim has the roles?")
        return self


class GroupEndpoint(Table):
    """One of `join.group.endpoints`."""

    name: PeerName
    public_key: Annotated[str, PlainValidator(public_key)]


class Group(Table):
    """`[join.group]`: endpoints with one list of members. It is the same text at all of them."""

    name: PeerName
    owner: PeerName
    """Which of the endpoints owns the list: hosts join it, and are revoked there."""
    endpoints: tuple[GroupEndpoint, ...] = Field(min_length=2, max_length=GROUP_MAX)
    max_age: Annotated[int, Field(ge=0, le=LIFETIME_MAX, strict=True)] = 604_800
    """Seconds for which a copy admits members while its owner is silent; 0: for ever."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "Group":
        names = [each.name for each in self.endpoints]
        keys = [each.public_key for each in self.endpoints]
        for values, what in ((names, "name"), (keys, "public_key")):
            if len(set(values)) < len(values):
                raise ValueError(f"two of the endpoints have the same {what}")
        if self.owner not in names:
            raise ValueError(
                f"owner is {self.owner!r}, which is none of the endpoints: {', '.join(names)}"
            )
        return self


class Join(Table):
    """`[join]` of an endpoint."""

    group: Group | None = None
    jwt: JoinJwt | None = None
