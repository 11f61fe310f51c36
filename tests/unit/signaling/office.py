"""An endpoint that hosts join, and all that it has written down."""

from typing import Any

from socks_tunnel.signaling import joining
from socks_tunnel.signaling.enrolments import Enrolments
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.joining import Joined, JoinRequest, JwtRequest, NotJoined, Token
from socks_tunnel.signaling.jwt_tokens import Accepted

ENDPOINT = PrivateIdentity.generate()
HOSTS = [PrivateIdentity.generate() for _ in range(4)]
NOW = 1_700_000_000.0


class Office:
    """An endpoint, and all that was written down."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.now = NOW
        self.enrolments = Enrolments(ENDPOINT, self.entries.append)

    def invite(self, tag: str = "", uses: int = 1, seconds: int = 100, lifetime: int = 0) -> Token:
        return self.enrolments.invite(tag, uses, int(self.now) + seconds, lifetime, self.now)

    def request(self, token: Token, host: PrivateIdentity, name: str) -> JoinRequest:
        sent, _ = joining.new_request(host, token, name, self.now)
        request = joining.open_request(sent, ENDPOINT.public, self.now)
        assert isinstance(request, JoinRequest)
        return request

    def join(
        self,
        token: Token,
        host: PrivateIdentity = HOSTS[0],
        name: str = "laptop",
        listed: dict[bytes, str] | None = None,
    ) -> Joined | NotJoined | None:
        return self.enrolments.join(self.request(token, host, name), listed or {}, self.now)

    def reason(self, *args: Any, **more: Any) -> str:
        decided = self.join(*args, **more)
        assert isinstance(decided, NotJoined)
        return decided.reason

    def renew(self, name: str, key: bytes, listed: Any, now: float) -> Joined | NotJoined | None:
        old = self.enrolments.members[name].key
        return self.enrolments.renew(old, key, listed, now)

    def written_anew(self) -> Enrolments:
        """Returns what a restart would know after the file was written anew."""
        fresh = Enrolments(ENDPOINT, lambda _: None)
        for entry in self.enrolments.entries():
            fresh.replay(entry)
        return fresh

    def again(self) -> Enrolments:
        """Returns what a restart would know."""
        fresh = Enrolments(ENDPOINT, lambda _: None)
        for entry in self.entries:
            fresh.replay(entry)
        fresh.expire(self.now)
        return fresh


def jwt_request(host: PrivateIdentity, name: str = "laptop") -> JwtRequest:
    return JwtRequest(host.public, ENDPOINT.public, bytes(16), int(NOW) + 60, name, b"")


def accepted(name: bytes = b"token", tag: str = "staff", seconds: int = 330) -> Accepted:
    return Accepted("alice", tag, name.ljust(16, b"."), int(NOW) + seconds)


def join_by_jwt(
    office: Office,
    token: Accepted,
    host: PrivateIdentity = HOSTS[0],
    *,
    name: str = "laptop",
    lifetime: int = 0,
    one_time: bool = True,
    listed: dict[bytes, str] | None = None,
) -> Joined | NotJoined:
    return office.enrolments.join_by_jwt(
        jwt_request(host, name),
        token,
        listed or {},
        office.now,
        lifetime=lifetime,
        one_time=one_time,
    )
