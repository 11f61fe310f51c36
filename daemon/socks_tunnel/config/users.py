"""Users of the SOCKS5 listener (RFC 1929) and their password hashes.

The file has a line for each user, `name:hash`; blank lines and lines that start with `#` are
skipped. The hash is scrypt (RFC 7914) in the PHC string format::

    $scrypt$ln=15,r=8,p=1$SALT$KEY       SALT and KEY in base64 without padding
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

NAME_MAX: Final = 255
"""Longest user name and longest password, in bytes of UTF-8 (RFC 1929 section 2)."""

_LOG_N: Final = 15
_R: Final = 8
_P: Final = 1
_KEY_SIZE: Final = 32
# Bounds for a file's hashes: above these, one login would take seconds, or all memory.
_LOG_N_MAX: Final = 18
_R_MAX: Final = 16
_P_MAX: Final = 8

_HASH: Final = re.compile(r"\$scrypt\$ln=(\d+),r=(\d+),p=(\d+)\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")


class _Scrypt(NamedTuple):
    log_n: int
    r: int
    p: int
    salt: bytes
    key: bytes


def hash_password(password: str) -> str:
    """Returns the hash of `password` under a new random salt. Takes about 0.1 s and 32 MiB.

    Raises :class:`ValueError` for a password that SOCKS5 cannot carry: empty, or over 255 bytes.
    So it does for one that is not UTF-8 text.
    """
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise ValueError("a password is UTF-8 text") from None
    if not 1 <= size <= NAME_MAX:
        raise ValueError(f"a password has 1 to {NAME_MAX} bytes")
    salt = os.urandom(16)
    key = _derive(password, _Scrypt(_LOG_N, _R, _P, salt, bytes(_KEY_SIZE)))
    return f"$scrypt$ln={_LOG_N},r={_R},p={_P}${_encode(salt)}${_encode(key)}"


def verify_password(password: str, password_hash: str) -> bool:
    """Returns whether `password_hash` was made from `password`.

    It is as slow as :func:`hash_password`, so it must not run on an event loop. Raises
    :class:`ValueError` for a text that is no hash.
    """
    scrypt = _parse_hash(password_hash)
    return hmac.compare_digest(_derive(password, scrypt), scrypt.key)


def parse_users(text: str) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Returns the hashes by name, and (line, reason) for each line that cannot be used."""
    users: dict[str, str] = {}
    problems: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, password_hash = _parse_user(line)
        except ValueError as error:
            # The reason never contains the line itself, because somebody may have written a
            # password there.
            problems.append((number, str(error)))
            continue
        if name in users:
            problems.append((number, f'the user "{name}" is there twice'))
        users[name] = password_hash
    return users, problems


class PasswordChecker:
    """Checks the logins of a listener, and remembers a bounded number of right ones.

    A SOCKS5 client logs in anew for each connection, and scrypt is slow by design. What is
    remembered is a keyed hash that is of no use outside this process.
    """

    REMEMBERED: Final = 1024
    """Most logins that are remembered."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users
        self._secret = os.urandom(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        # An unknown name takes as long as a wrong password, so that the time does not reveal it.
        self._nobody = (
            f"$scrypt$ln={_LOG_N},r={_R},p={_P}${_encode(bytes(16))}${_encode(bytes(32))}"
        )

    def remembers(self, name: str, password: str) -> bool:
        """Returns at once whether this login was found to be right before."""
        return self._fingerprint(name, password) in self._right

    def check(self, name: str, password: str) -> bool:
        """Returns whether this login is right. Slow, and safe to call in a thread."""
        known = self._users.get(name)
        right = verify_password(password, known or self._nobody) and known is not None
        if right:
            self._right[self._fingerprint(name, password)] = None
            while len(self._right) > self.REMEMBERED:
                self._right.popitem(last=False)
        return right

    def _fingerprint(self, name: str, password: str) -> bytes:
        login = f"{len(name)}:{name}:{password}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(login, key=self._secret, digest_size=32).digest()


def _parse_user(line: str) -> tuple[str, str]:
    name, colon, password_hash = line.partition(":")
    if not colon:
        raise ValueError("this is not of the form `name:hash`")
    if not 1 <= len(name.encode()) <= NAME_MAX:
        raise ValueError(f"a user name has 1 to {NAME_MAX} bytes")
    _parse_hash(password_hash.strip())
    return name, password_hash.strip()


def _parse_hash(text: str) -> _Scrypt:
    match = _HASH.fullmatch(text)
    if match is None:
        raise ValueError("the password hash is not of the form $scrypt$ln=…,r=…,p=…$salt$key")
    log_n, r, p = (int(number) for number in match.group(1, 2, 3))
    if not (1 <= log_n <= _LOG_N_MAX and 1 <= r <= _R_MAX and 1 <= p <= _P_MAX):
        raise ValueError(
            f"the password hash asks for too much: ln is at most {_LOG_N_MAX}, "
            f"r {_R_MAX}, p {_P_MAX}"
        )
    try:
        salt, key = (_decode(part) for part in match.group(4, 5))
    except binascii.Error:
        raise ValueError("the password hash has a part that is no base64") from None
    if len(key) < 16:
        raise ValueError("the password hash is cut short")
    return _Scrypt(log_n, r, p, salt, key)


def _derive(password: str, scrypt: _Scrypt) -> bytes:
    n = 1 << scrypt.log_n
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"),
        salt=scrypt.salt,
        n=n,
        r=scrypt.r,
        p=scrypt.p,
        dklen=len(scrypt.key),
        # RFC 7914 needs 128·r·(N+p) bytes and a little; OpenSSL's own limit is just too low.
        maxmem=128 * scrypt.r * (n + scrypt.p + 2) + (1 << 20),
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
