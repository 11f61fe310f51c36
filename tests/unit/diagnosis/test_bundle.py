"""Secrets are found in every form that a text may have them in."""

import json

import pytest

from socks_tunnel.diagnosis.bundle import HIDDEN, _of_url, _without_login, scrub


def test_a_text_without_its_secrets() -> None:
    secret = 'a "quoted" one'
    text = f"{secret} and {json.dumps({'x': secret})}"
    assert scrub(text, [secret]) == f'{HIDDEN} and {{"x": "{HIDDEN}"}}'


def test_a_longer_secret_goes_first() -> None:
    assert scrub("passwordlong password", ["passwordlong", "password"]) == f"{HIDDEN} {HIDDEN}"


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("http://u:p%40ss@h:1", {"p%40ss", "p@ss", "dTpwQHNz"}),
        ("u:secret@h:1", {"secret", "dTpzZWNyZXQ="}),
        ("http://u:secret/rest@h:1", {"secret/rest", "secret", "rest", "dTpzZWNyZXQvcmVzdA=="}),
        ("http://u:[secret]@h", {"[secret]", "", "secret", "dTpbc2VjcmV0XQ=="}),
        ("http://u:one@two@h", {"one@two", "one", "two", "dTpvbmVAdHdv"}),
        ("http://token@h:1", {"token", "dG9rZW4="}),
        ("http://h:1", set()),
        ("none", set()),
        (None, set()),
    ],
)
def test_the_password_in_a_url(url: str | None, secrets: set[str]) -> None:
    assert _of_url(url) == secrets


def test_a_url_without_its_login() -> None:
    assert _without_login("http://u:p@h:3128") == "http://[secret]@h:3128"
    assert _without_login("http://h:3128") == "http://h:3128"
    assert _without_login("none") == "none"
