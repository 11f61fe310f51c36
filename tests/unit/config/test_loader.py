"""Loading: every mistake with its place and reason, and what a good file gives.

`bad/NAME.toml` are configurations with mistakes, and `bad/NAME.expected` is exactly what is said of
them. The files that they name are made by the fixture `directory`.
"""

import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.for_workers import dump, worker_settings
from socks_tunnel.config.loader import NO_CREDENTIAL, load
from socks_tunnel.config.settings import Config
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.settings import WorkerSettings
from support.certificates import Authority, key_pem

BAD = Path(__file__).parent / "bad"
KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="
HASH = "$scrypt$ln=4,r=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

FILES = {
    "host.key": "the loader does not look inside",
    "shared.key": "",
    "users": f"# name:hash\n\nalice:{HASH}\nbob:{HASH}\n",
    "empty-users": "# nobody yet\n",
    "bad-users": f"alice:{HASH}\nbob\ncarol:secret\nalice:{HASH}\n:{HASH}\n",
    "good.json": '{"allowed_hosts": "0.0.0.0\\n::", "allowed_ports": "53\\n80"}',
    "unknown-key.json": '{"allowed_host": ["0.0.0.0"], "allowed_ports": 80}',
    "bad-rules.json": '{"allowed_hosts": ["0.0.0.0", "*"], "allowed_ports": "80\\nhttp"}',
    "syntax.json": '{\n  "allowed_hosts" "0.0.0.0"\n}\n',
    "shape.json": '["0.0.0.0"]',
}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture(scope="session")
def tls_files() -> dict[str, str]:
    """Certificates and keys by file name."""
    authority = Authority("Test Root")
    issued = authority.issue("office.example.com")
    short = authority.issue("office.example.com", key=rsa.generate_private_key(65_537, 1024))
    ec_key, rsa_key = (
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65_537, 2048),
    )
    return {
        "tls.pem": issued.certificate,
        "tls.key": issued.key,
        "tls-both.pem": issued.both,
        "tls-broken.pem": issued.certificate.replace("\nMII", "\nAAA", 1),
        "tls-broken.key": issued.key.replace("\nMI", "\nAA", 1),
        "tls-other.key": key_pem(ec_key),
        "tls-rsa.key": key_pem(rsa_key),
        "tls-encrypted.key": key_pem(ec_key, b"hunter2"),
        "tls-shared.key": issued.key,
        "tls-shared.pem": issued.both,
        "tls-short.pem": short.both,
        "ca.pem": authority.certificate,
    }


@pytest.fixture
def directory(tmp_path: Path, tls_files: dict[str, str]) -> Path:
    for name, text in (FILES | tls_files).items():
        (tmp_path / name).write_text(text)
    for name in tls_files:
        (tmp_path / name).chmod(0o644 if "shared" in name or name == "tls.pem" else 0o640)
    (tmp_path / "host.key").chmod(0o600)
    (tmp_path / "shared.key").chmod(0o640)
    (tmp_path / "directory.key").mkdir()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    return tmp_path


def load_text(directory: Path, text: str) -> Config:
    file = directory / "office.toml"
    file.write_text(text)
    return load(file)


def mistakes(directory: Path, file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file)
    return str(caught.value).replace(f"{directory}/", "") + "\n"


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(file.stem for file in BAD.glob("*.toml")))
def test_every_mistake_is_named(name: str, directory: Path) -> None:
    shutil.copy(BAD / f"{name}.toml", directory)

    said = mistakes(directory, directory / f"{name}.toml")

    assert said == (BAD / f"{name}.expected").read_text()


def test_what_may_be_a_password_is_never_repeated() -> None:
    for file in BAD.glob("*.expected"):
        assert "hunter2" not in file.read_text()
        assert "31337" not in file.read_text()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("role = 'gateway'\n[socks\nlisten = []\n", 2),
        ("role = 'gateway'\nrole = 'gateway'\n", 2),
        ("role = 'gateway'\n\npeers = [", 3),
        ("role = 'gateway'\nx = '''", 2),
    ],
)
def test_invalid_toml_is_named_with_its_line(directory: Path, text: str, line: int) -> None:
    (directory / "office.toml").write_text(text)
    said = mistakes(directory, directory / "office.toml")
    assert said.startswith(f"office.toml:{line}: is not valid TOML: ")
    assert "(at " not in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("role = gateway\n", "a value is missing or invalid; text needs quotes"),
        ("drain_timeout = 1\ndrain_timeout = 2\n", "a key is there twice"),
        ("[ice]\n[ice]\n", "the table [ice] is there twice; its settings belong into one"),
        ("[a.b]\n[a.b]\n", "the table [a.b] is there twice; its settings belong into one"),
    ],
)
def test_complaints_of_the_toml_parser_are_explained(
    directory: Path, text: str, complaint: str
) -> None:
    (directory / "office.toml").write_text(text)
    said = mistakes(directory, directory / "office.toml")
    assert said.endswith(f": is not valid TOML: {complaint}\n")


def test_a_file_that_cannot_be_read(directory: Path) -> None:
    assert mistakes(directory, directory / "none.toml") == (
        "none.toml: cannot be read: No such file or directory\n"
    )
    assert mistakes(directory, directory / "binary.json") == "binary.json: is not UTF-8 text\n"


def test_a_deeply_nested_file_is_refused(directory: Path) -> None:
    (directory / "deep.toml").write_text("x = " + "[" * 100_000)
    assert mistakes(directory, directory / "deep.toml").startswith("deep.toml: is nested too deep")
    (directory / "deep.json").write_text("[" * 100_000)
    (directory / "office.toml").write_text(f"{ENDPOINT}[policy]\npolicy_file = 'deep.json'\n")
    assert mistakes(directory, directory / "office.toml").startswith("deep.json: ")


def test_problems_are_sorted_and_have_their_parts(directory: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(directory, f"{GATEWAY}[log]\nlevl = 'x'\n[ice]\naddresses = ['', '*']\n")
    assert [(p.line, p.key) for p in caught.value.problems] == [
        (10, "log.levl"),
        (12, "ice.addresses[0]"),
        (12, "ice.addresses[1]"),
    ]
    assert {p.file for p in caught.value.problems} == {directory / "office.toml"}


# --- good configurations ----------------------------------------------------------------------

GATEWAY = f"""\
role = "gateway"
[identity]
private_key_file = "host.key"
[[peers]]
name = "office"
public_key = "{KEY}"
url = "http://10.77.0.2:8765/"

"""
ENDPOINT = f"""\
role = "endpoint"
[identity]
private_key_file = "host.key"
[signaling]
listen = "127.0.0.1:8765"
[[peers]]
name = "laptop-17"
public_key = "{KEY}"
"""
FULL_GATEWAY = f"""\
role = "gateway"
drain_timeout = 20
resume_timeout = 60.5

[identity]
private_key_file = "host.key"

[socks]
listen = ["127.0.0.1:1080", "[::1]:1080", "192.0.2.1:1080", "[::ffff:127.0.0.1]:1081", "unix:socks.sock"]
allow_remote_clients = true
users_file = "users"
connect_timeout = 30
idle_tcp = 0
idle_udp = 300

[[peers]]
name = "office"
public_key = " {KEY} "
url = "http://10.77.0.2:8765/"

[[peers]]
name = "local"
public_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI="
url = "unix:signal.sock"

[policy]
allowed_hosts = "0.0.0.0\\n::\\n*.internal.corp"
allowed_ports = "53\\n80\\n443\\n8000-8100"

[ice]
servers = [
    {{ urls = ["stun:stun.example.net:3478"] }},
    {{ urls = "turn:turn.example.net", username = "me", credential = "hunter2" }},
]
addresses = ["eth0", "10.0.0.1/8", "2001:DB8::1"]

[workers]
count = 3

[limits]
flows_per_worker = 10
memory_per_worker = 16777216
associations_per_client = 1

[metrics]
listen = ""

[log]
level = "debug"
format = "json"
"""
HTTPS_GATEWAY = GATEWAY.replace('url = "http:', 'tls_ca = "ca.pem"\nurl = "https:')
HTTPS_ENDPOINT = ENDPOINT.replace(
    '8765"', '8765"\ntls_certificate = "tls.pem"\ntls_key = "tls.key"'
)
FULL_ENDPOINT = f"""\
role = "endpoint"
udp_filtering = "endpoint-independent"
[identity]
private_key_file = "host.key"
[signaling]
listen = "unix:signal.sock"
[[peers]]
name = "laptop-17"
public_key = "{KEY}"
policy = "engineering"
[policy]
allowed_hosts = ["10.77.1.0/24", "www.example.com"]
allowed_ports = [53, 80, "8000-8100"]
denied_hosts = ["10.77.1.1"]
denied_ports = [25]
[policies.engineering]
policy_file = "good.json"
"""


def test_defaults(directory: Path) -> None:
    config = load_text(directory, GATEWAY)
    assert (config.role, config.instance, config.source) == (
        "gateway",
        "office",
        directory / "office.toml",
    )
    assert (config.drain_timeout, config.resume_timeout) == (20, 3600)
    assert config.udp_filtering == "address-dependent"
    assert config.identity.private_key_file == directory / "host.key"
    assert config.socks.listen == (HostPort("127.0.0.1", 1080), HostPort("::1", 1080))
    assert (config.socks.connect_timeout, config.socks.idle_tcp, config.socks.idle_udp) == (
        30,
        0,
        300,
    )
    assert (config.users, config.policy, config.policies) == ({}, None, {})
    assert (config.ice.servers, config.ice.addresses) == ((), ())
    assert config.workers.count == 0
    assert config.workers.effective_count in range(1, 9)
    assert config.limits.memory_per_worker == 256 * 1024 * 1024
    assert config.metrics.listen == HostPort("127.0.0.1", 9464)
    assert (config.log.level, config.log.format) == ("info", "auto")


OLD_KEY = f"{ENDPOINT}[socks]\nconnect_timeout = 7.5\n"


def test_the_old_name_of_an_endpoint_s_time_limit_is_read_with_a_warning(directory: Path) -> None:
    config = load_text(directory, OLD_KEY)
    assert config.targets.connect_timeout == 7.5
    assert config.warnings == (
        (
            f"{directory}/office.toml:10: socks.connect_timeout: is the old name of "
            "targets.connect_timeout; write it there"
        ),
    )
    config = load_text(directory, OLD_KEY + "[targets]\nkeepalive = 5\n")
    assert (config.targets.connect_timeout, config.targets.keepalive) == (7.5, 5)
    assert load_text(directory, GATEWAY + "[socks]\nconnect_timeout = 7.5\n").warnings == ()


@pytest.mark.parametrize(
    ("more", "mistakes"),
    [
        ("idle_tcp = 5\n", ["9: socks: has no meaning in the configuration of an endpoint"]),
        (
            "[targets]\nconnect_timeout = 8\n",
            [
                "9: socks: has no meaning in the configuration of an endpoint",
                (
                    "10: socks.connect_timeout: is the old name of targets.connect_timeout, which is "
                    "there too"
                ),
            ],
        ),
    ],
)
def test_nothing_else_of_socks_is_read_at_an_endpoint(
    directory: Path, more: str, mistakes: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(directory, OLD_KEY + more)
    assert str(caught.value).splitlines() == [
        f"{directory}/office.toml:{mistake}" for mistake in mistakes
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (OLD_KEY.replace("7.5", "0"), "10: targets.connect_timeout: must be more than 0, not 0"),
        ("targets = 7\n" + OLD_KEY, "1: targets: must be a table, not 7"),
        ("socks = 7\n" + ENDPOINT, "1: socks: must be a table, not 7"),
    ],
)
def test_mistakes_in_it_have_their_line(directory: Path, text: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(directory, text)
    assert f"{directory}/office.toml:{mistake}" in str(caught.value).splitlines()


def test_a_gateway_with_everything(directory: Path) -> None:
    config = load_text(directory, FULL_GATEWAY)
    assert config.resume_timeout == 60.5
    assert config.socks.listen[1:3] == (HostPort("::1", 1080), HostPort("192.0.2.1", 1080))
    assert config.socks.listen[4] == directory / "socks.sock"
    assert sorted(config.users) == ["alice", "bob"]
    assert config.peers[0].public_key == KEY
    assert config.peers[1].url == f"unix:{directory}/signal.sock"
    assert config.policy is not None
    assert config.policy.allowed_ports == "53\n80\n443\n8000-8100"
    assert config.ice.servers[1].urls == ("turn:turn.example.net",)
    assert config.ice.addresses == ("eth0", "10.0.0.0/8", "2001:db8::1")
    assert config.workers.effective_count == 3
    assert config.metrics.listen is None


def test_a_unix_socket_needs_neither_remote_clients_nor_users(directory: Path) -> None:
    longest = "/run/" + "x" * 102
    config = load_text(directory, f'{GATEWAY}[socks]\nlisten = ["unix:{longest}"]\n')
    assert config.socks.listen == (Path(longest),)
    assert (config.socks.allow_remote_clients, config.users) == (False, {})


def test_an_endpoint_has_no_socks_listener(directory: Path) -> None:
    config = load_text(directory, FULL_ENDPOINT)
    assert config.socks.listen == ()
    assert config.signaling is not None
    assert config.signaling.listen == directory / "signal.sock"


def test_https(directory: Path) -> None:
    signaling = load_text(directory, HTTPS_ENDPOINT).signaling
    assert signaling is not None
    assert signaling.tls_certificate == directory / "tls.pem"
    assert signaling.tls_key == directory / "tls.key"
    in_one_file = HTTPS_ENDPOINT.replace("tls.pem", "tls-both.pem").replace("tls_key", "#tls_key")
    assert load_text(directory, in_one_file).signaling is not None
    assert load_text(directory, HTTPS_GATEWAY).peers[0].tls_ca == directory / "ca.pem"


def test_a_policy_file_becomes_rules(directory: Path) -> None:
    policy = load_text(directory, FULL_ENDPOINT).policies["engineering"]
    assert (policy.allowed_hosts, policy.allowed_ports) == ("0.0.0.0\n::", "53\n80")

    top_level = load_text(directory, 'policy_file = "good.json"\n' + GATEWAY).policy
    assert top_level == policy


def test_paths_are_relative_to_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent)
    load_text(directory, GATEWAY)
    assert load(Path(directory.name) / "office.toml").source == directory / "office.toml"


def test_the_systemd_credential_stands_in_for_the_key(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GATEWAY.replace('private_key_file = "host.key"', "")
    credentials = directory / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    (directory / "office.toml").write_text(text)
    assert mistakes(directory, directory / "office.toml") == (
        "office.toml:2: identity.private_key_file: credentials/identity cannot be read: "
        "No such file or directory\n"
    )

    (credentials / "identity").write_text("key")
    (credentials / "identity").chmod(0o440)  # what systemd shows for one that has an ACL
    assert load_text(directory, text).identity.private_key_file == credentials / "identity"

    # The unit loads the key that is named like the configuration; another one is the file itself.
    named_alike = GATEWAY.replace("host.key", "office.key")
    assert load_text(directory, named_alike).identity.private_key_file == credentials / "identity"
    assert load_text(directory, GATEWAY).identity.private_key_file == directory / "host.key"

    (credentials / "identity").write_bytes(NO_CREDENTIAL)
    (directory / "office.toml").write_text(text)
    assert "nor a systemd credential" in mistakes(directory, directory / "office.toml")
    (directory / "office.key").write_text("key")
    (directory / "office.key").chmod(0o644)
    assert "office.key has mode 0644" in mistakes(directory, directory / "office.toml")
    (directory / "office.key").chmod(0o600)
    assert load_text(directory, text).identity.private_key_file == directory / "office.key"
    assert load_text(directory, named_alike).identity.private_key_file == directory / "office.key"


@pytest.mark.parametrize("text", [GATEWAY, ENDPOINT, FULL_GATEWAY, FULL_ENDPOINT, HTTPS_ENDPOINT])
def test_a_worker_gets_the_same_configuration(directory: Path, text: str) -> None:
    config = load_text(directory, text)
    packed = msgpack.packb(dump(config))
    shutil.rmtree(directory)  # a worker reads no files

    restored = WorkerSettings.from_map(msgpack.unpackb(packed))

    assert restored == worker_settings(config)
    for table in ("socks", "targets", "limits", "log"):
        for name in getattr(restored, table).__dataclass_fields__:
            ours, theirs = (getattr(getattr(c, table), name) for c in (restored, config))
            assert ours == theirs, f"{table}.{name}"
    assert restored.users == config.users
    assert [(p.name, p.policy) for p in restored.peers] == [
        (p.name, p.policy) for p in config.peers
    ]
    assert restored.policies.keys() == config.policies.keys()
    assert (restored.policy is None) == (config.policy is None)
    if config.policy is not None and restored.policy is not None:
        assert restored.policy.allowed_hosts == config.policy.allowed_hosts


def test_workers_get_no_credentials(directory: Path) -> None:
    config = load_text(directory, FULL_GATEWAY)
    assert b"hunter2" not in msgpack.packb(dump(config))


def test_nothing_secret_is_in_the_representation(directory: Path) -> None:
    shown = repr(load_text(directory, FULL_GATEWAY))
    assert "hunter2" not in shown
    assert HASH not in shown


def test_a_configuration_does_not_change(directory: Path) -> None:
    config = load_text(directory, GATEWAY)
    with pytest.raises(FrozenInstanceError):
        config.drain_timeout = 1  # type: ignore[misc]  # that it cannot be set is the test
