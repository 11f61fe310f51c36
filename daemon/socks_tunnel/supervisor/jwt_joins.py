"""Judges tokens of an identity provider (JWT) by which hosts join an endpoint.

PyJWT is imported only by endpoints that accept such tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from socks_tunnel.config.settings import Config, JoinJwt
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import TEXT_MAX, JwtRequest

if TYPE_CHECKING:
    from socks_tunnel.signaling.jwks import Jwks
    from socks_tunnel.signaling.jwt_tokens import Accepted


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a token is not accepted: the label of the metric, and a sentence for both sides."""

    code: str
    sentence: str


class JwtJoins:
    """Judges tokens by the configuration of one endpoint."""

    def __init__(self, identity: PrivateIdentity) -> None:
        self._identity = identity
        self._way: tuple[JoinJwt, str | None] | None = None
        self._jwks: Jwks | None = None
        self.address = ""
        """The address to which hosts send tokens; empty if tokens are not accepted."""

    @property
    def settings(self) -> JoinJwt | None:
        """The settings of `[join.jwt]`; None if tokens are not accepted."""
        return None if self._way is None else self._way[0]

    def apply(self, config: Config) -> None:
        """Takes a configuration. The known keys are kept if their source has not changed."""
        jwt = config.join.jwt
        if jwt is None:
            self._way, self._jwks, self.address = None, None, ""
            return
        from socks_tunnel.signaling.joining_jwt import JoinAddress  # noqa: PLC0415 - as above
        from socks_tunnel.signaling.jwks import Jwks  # noqa: PLC0415 - as above

        old, self._way = self._way, (jwt, config.ice.proxy)
        if old is None or _source(*old) != _source(*self._way):
            self._jwks = Jwks(jwt.jwks, ca=jwt.tls_ca, proxy=config.ice.proxy)
        self.address = str(JoinAddress.of(self._identity))

    async def judge(self, request: JwtRequest, now: float) -> "Accepted | Refusal":
        """Returns the claims of an accepted token, or why it is not accepted.

        Raises :class:`~socks_tunnel.signaling.joining.JoinRejected` if the request was not made for
        this endpoint. Such a sender has proved nothing, and gets no answer.
        """
        from socks_tunnel.signaling.joining_jwt import unseal  # noqa: PLC0415 - as above

        token = unseal(request, self._identity)
        settings, jwks = self.settings, self._jwks
        if settings is None or jwks is None:
            return Refusal("jwt-off", "this endpoint accepts no JWT; it has no [join.jwt]")
        from socks_tunnel.signaling import jwt_tokens  # noqa: PLC0415 - as above
        from socks_tunnel.signaling.jwks import KeysUnavailable  # noqa: PLC0415 - as above

        wanted = jwt_tokens.Wanted(
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=settings.leeway,
            max_age=settings.max_age,
            tag_claim=settings.tag_claim,
            tags=settings.tags,
        )
        try:
            header = jwt_tokens.header_of(token)
            key = await jwks.find(header)
            return jwt_tokens.judge(token, header, key, wanted, request.sender, now)
        except jwt_tokens.JwtRefused as refused:
            sentence = f"the JWT is not accepted: {refused}"
            return Refusal(f"jwt-{refused.code}", clip(sentence, TEXT_MAX))
        except KeysUnavailable as error:
            return Refusal("jwt-keys", clip(str(error), TEXT_MAX))


def _source(jwt: JoinJwt, proxy: str | None) -> tuple[object, ...]:
    return jwt.jwks, jwt.tls_ca, proxy
