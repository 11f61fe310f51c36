"""Password hashes, users files, and the checker that remembers right logins."""

import base64
import hashlib
from unittest.mock import patch

import pytest

from socks_tunnel.config import users
from socks_tunnel.config.users import (
    PasswordChecker,
    hash_password,
    parse_users,
    verify_password,
)


def cheap_hash(password: str) -> str:
    """Returns a hash with parameters that cost nothing, made without the code that is tested."""
    key = hashlib.scrypt(password.encode(), salt=b"0123456789abcdef", n=2, r=1, p=1, dklen=32)
    salt, text = (base64.b64encode(b).decode().rstrip("=") for b in (b"0123456789abcdef", key))
    return f"$scrypt$ln=1,r=1,p=1${salt}${text}"


def test_a_hash_verifies_its_password_only() -> None:
    password_hash = hash_password("correct horse")
    assert password_hash.startswith("$scrypt$ln=15,r=8,p=1$")
    assert verify_password("correct horse", password_hash)
    assert not verify_password("correct horse ", password_hash)
    assert not verify_password("", password_hash)


def test_two_hashes_of_one_password_differ() -> None:
    assert hash_password("x") != hash_password("x")


def test_a_hash_from_elsewhere() -> None:
    # RFC 7914 section 12, the second vector cut to the salt and key that the form holds.
    key = hashlib.scrypt(b"pleaseletmein", salt=b"SodiumChloride", n=16384, r=8, p=1, dklen=64)
    assert key.hex().startswith("7023bdcb3afd7348461c06cd81fd38eb")
    text = base64.b64encode(key).decode().rstrip("=")
    salt = base64.b64encode(b"SodiumChloride").decode().rstrip("=")
    assert verify_password("pleaseletmein", f"$scrypt$ln=14,r=8,p=1${salt}${text}")


@pytest.mark.parametrize("password", ["", "x" * 256, "ü" * 128])
def test_passwords_that_socks_cannot_carry(password: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        hash_password(password)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "form"),
        ("secret", "form"),
        ("$6$salt$hash", "form"),
        ("$scrypt$ln=19,r=8,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "too much"),
        ("$scrypt$ln=0,r=8,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "too much"),
        ("$scrypt$ln=15,r=17,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "too much"),
        ("$scrypt$ln=15,r=8,p=9$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "too much"),
        ("$scrypt$ln=15,r=8,p=1$AAAA$AAAA", "cut short"),
        ("$scrypt$ln=15,r=8,p=1$A$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "base64"),
    ],
)
def test_what_is_no_hash(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        verify_password("x", text)
    _, [(line, reason)] = parse_users(f"alice:{text}")
    assert line == 1
    assert complaint in reason


def test_a_users_file() -> None:
    one, two = cheap_hash("one"), cheap_hash("two")
    text = f"# comment\n\n  \nalice:{one}\r\nbob smith:  {two}  \n"
    assert parse_users(text) == ({"alice": one, "bob smith": two}, [])


def test_mistakes_do_not_repeat_the_line() -> None:
    _, problems = parse_users("alice:hunter2\nhunter2\n")
    assert [line for line, _ in problems] == [1, 2]
    assert "hunter2" not in str(problems)


def test_the_checker_knows_right_from_wrong() -> None:
    checker = PasswordChecker({"alice": cheap_hash("one")})
    assert not checker.remembers("alice", "one")
    assert checker.check("alice", "one")
    assert checker.remembers("alice", "one")
    for name, password in [("alice", "two"), ("bob", "one"), ("alic", "eone"), ("", "")]:
        assert not checker.check(name, password)
        assert not checker.remembers(name, password)


def test_an_unknown_name_costs_as_much_as_a_wrong_password() -> None:
    checker = PasswordChecker({"alice": hash_password("one")})
    with patch.object(users, "_derive", wraps=users._derive) as derive:
        checker.check("nobody", "one")
        checker.check("alice", "two")
    first, second = (call.args[1] for call in derive.call_args_list)
    assert first[:3] == second[:3]


def test_a_password_for_nobody_is_never_right() -> None:
    # The stand-in for unknown names is a hash of something; that must not let anyone in.
    checker = PasswordChecker({})
    with patch.object(users, "verify_password", return_value=True):
        assert not checker.check("nobody", "anything")
    assert not checker.remembers("nobody", "anything")


def test_what_is_remembered_is_bounded() -> None:
    checker = PasswordChecker({})
    checker._users = {str(n): "hash" for n in range(PasswordChecker.REMEMBERED + 1)}
    with patch.object(users, "verify_password", return_value=True):
        assert all(checker.check(name, "x") for name in checker._users)
    assert len(checker._right) == PasswordChecker.REMEMBERED
    assert not checker.remembers("0", "x")
    assert checker.remembers("1", "x")
