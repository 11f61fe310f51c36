"""The configuration of the rendezvous service: the example, and every mistake with its place."""

import re
from pathlib import Path

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.rendezvous import (
    RendezvousConfig,
    RendezvousFile,
    load_rendezvous,
    read_turn_secret,
)
from socks_tunnel.protocol.addresses import HostPort
from support.certificates import Authority

EXAMPLE = Path(__file__).parents[3] / "etc" / "socks-tunnel" / "rendezvous.toml"
KEY, OTHER = "A" * 42 + "E=", "A" * 42 + "I="
KEYS = f'[[keys]]\nname = "office"\npublic_key = "{KEY}"\n'


def example(directory: Path, *, with_comments: bool) -> RendezvousConfig:
    text = EXAMPLE.read_text().replace("PUT A PUBLIC KEY HERE", KEY)
    if with_comments:
        text = re.sub(r"^#(\w+ = .*)$", r"\1", text, flags=re.MULTILINE)
    path = directory / "rendezvous.toml"
    path.write_text(text)
    return load_rendezvous(path)


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    minimal = example(tmp_path, with_comments=False)
    assert example(tmp_path, with_comments=True) == minimal
    assert minimal.listen == HostPort("0.0.0.0", 8443)
    assert [key.public_key for key in minimal.keys] == [KEY]
    text = EXAMPLE.read_text()
    shown = set(re.findall(r"^#?(?:     )?\[*(\w+)", text, flags=re.MULTILINE))
    assert set(RendezvousFile.model_fields) <= shown


def test_the_example_says_what_to_put_in(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(EXAMPLE.read_text())
    with pytest.raises(ConfigError, match="public_key: is not a public key"):
        load_rendezvous(path)


def test_a_good_one_with_tls(tmp_path: Path) -> None:
    (tmp_path / "tls.pem").touch(0o600)
    (tmp_path / "tls.pem").write_text(Authority("Test Root").issue("a.example").both)
    path = tmp_path / "x.toml"
    path.write_text(
        'listen = "[::]:443"\ntls_certificate = "tls.pem"\nnames = ["A.Example"]\n' + KEYS
    )
    config = load_rendezvous(path)
    assert config.tls_certificate == tmp_path / "tls.pem"
    assert config.names == ("a.example",)
    assert config.source == path


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("", ["listen: is missing"]),
        ('role = "gateway"', ["is a configuration of a gateway or an endpoint: socks-tunnel run"]),
        ('listen = "0.0.0.0:1', [": is not valid TOML"]),
        ('listen = "here:1"\n' + KEYS, ["1: listen: 'here' is a name"]),
        ('listen = "0.0.0.0:1"', ["keys: is missing: nobody could connect"]),
        (
            'listen = "0.0.0.0:1"\nclient = 1',
            ['2: client: unknown key; the nearest known key is "clients"'],
        ),
        (
            'listen = "0.0.0.0:1"\n[[keys]]\nnome = "a"',
            [
                "keys[0].name: is missing",
                "keys[0].public_key: is missing",
                '3: keys[0].nome: unknown key; the nearest known key is "name"',
            ],
        ),
        (
            'listen = "0.0.0.0:1"\nclients = "enrolled"\n[relay]\nenabled = true\n',
            [
                'keys: is missing: nobody could connect while clients = "enrolled"',
                "4: relay.enabled: needs [[keys]]: one of the two hosts",
            ],
        ),
        (
            f'listen = "0.0.0.0:1"\nredis_url = "http://me:hush@x"\n{KEYS}',
            ["2: redis_url: must be redis://"],
        ),
        (
            f'listen = "0.0.0.0:1"\n{KEYS}[turn]\n',
            ["turn.servers: is missing", "turn.secret_file: is missing"],
        ),
        (
            f"""listen = "0.0.0.0:1"
{KEYS}[turn]
secret_file = "x"
servers = [
{{ urls = ["turn:a.example"], username = "me" }},
{{ urls = "stun:b.example" }},
{{ urls = [] }},
{{ urls = "http://a.example" }},
]""",
            [
                "servers[0].username: unknown key; the nearest known key is",
                "servers[1].urls[0]: is no TURN server: name STUN servers in [ice]",
                "servers[2].urls: must not be empty",
                "servers[3].urls[0]: ",
            ],
        ),
        (
            f'listen = "0.0.0.0:1"\n{KEYS}[[keys]]\nname = "office"\npublic_key = "{KEY}"',
            [
                "6: keys[1].name: is the same as that of keys[0]",
                "7: keys[1].public_key: is the same as that of keys[0]",
            ],
        ),
        (
            'listen = "0.0.0.0:1"\ntls_key = "x"\n' + KEYS,
            ["tls_certificate: is missing: tls_key alone"],
        ),
        (
            'listen = "unix:x"\ntls_certificate = "x"\n' + KEYS,
            ["2: tls_certificate: has no meaning on a Unix socket"],
        ),
        (
            'listen = "0.0.0.0:1"\ntls_certificate = "absent"\n' + KEYS,
            ["2: tls_certificate: ", "cannot be read"],
        ),
    ],
)
def test_mistakes(text: str, complaints: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_rendezvous(path)
    for complaint in complaints:
        assert complaint in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_rendezvous(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_rendezvous(tmp_path / "latin.toml")


def test_turn_servers_and_the_secret_that_is_shared_with_them(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    text = (
        f'listen = "0.0.0.0:1"\n{KEYS}[turn]\nsecret_file = "turn.secret"\n'
        'servers = [{ urls = ["turn:a.example", "turns:a.example:443"] }]'
    )
    path.write_text(text)
    secret = tmp_path / "turn.secret"
    secret.write_text("short\n")
    with pytest.raises(ConfigError, match=r"turn\.secret_file: .*fewer than 16 bytes") as caught:
        load_rendezvous(path)
    assert "short" not in str(caught.value)
    secret.write_text("a secret that is long enough\n")
    turn = load_rendezvous(path).turn
    assert turn is not None
    assert [server.urls for server in turn.servers] == [("turn:a.example", "turns:a.example:443")]
    assert read_turn_secret(secret) == b"a secret that is long enough"
