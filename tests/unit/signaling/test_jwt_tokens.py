"""Judging tokens of an identity provider: real keys, and each way in which a token can be wrong."""

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from socks_tunnel.ops import labels
from socks_tunnel.signaling import jwt_tokens as module
from socks_tunnel.signaling.joining import JWT_MAX
from socks_tunnel.signaling.jwt_tokens import (
    ALGORITHMS,
    Accepted,
    Header,
    JwtRefused,
    KeySet,
    Wanted,
    header_of,
    judge,
    thumbprint,
)
from support.identity_provider import Provider, SigningKey

NOW = 1_700_000_000.0
PROVIDER = Provider(*ALGORITHMS, clock=lambda: NOW)
HOST = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
WANTED = Wanted(
    issuer=PROVIDER.issuer,
    audience=PROVIDER.audience,
    leeway=30,
    max_age=3600,
    tag_claim="realm_access.roles",
    tags={"vpn-admin": "admins", "vpn-staff": "staff", "offline_access": "guests"},
)


def accept(
    token: str, wanted: Wanted = WANTED, now: float = NOW, provider: Provider = PROVIDER
) -> Accepted:
    header = header_of(token)
    key = KeySet(provider.jwks()).find(header)
    if key is None:
        raise JwtRefused("unknown-key")
    return judge(token, header, key, wanted, HOST, now)


def refusal(token: str, wanted: Wanted = WANTED, now: float = NOW) -> str:
    with pytest.raises(JwtRefused) as caught:
        accept(token, wanted, now)
    assert str(caught.value).startswith(module.REFUSALS[caught.value.code])
    return caught.value.code


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_each_algorithm_with_its_key(algorithm: str) -> None:
    accepted = accept(PROVIDER.token(algorithm))
    assert (accepted.subject, accepted.tag) == ("f3d1c9f4-0000-4000-8000-alice", "staff")
    assert accepted.until == NOW + 300 + 30


def test_metrics_have_a_label_for_each_refusal() -> None:
    assert {f"jwt-{code}" for code in module.REFUSALS} == {
        each for each in labels.JOIN_RESULTS if each.startswith("jwt-")
    } - {"jwt-off", "jwt-keys"}


# --- the signature ----------------------------------------------------------------------------


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_none_is_no_algorithm() -> None:
    for name in ("none", "None", "NONE", "", None, 7, ["RS256"]):
        assert refusal(unsigned({"alg": name, "kid": "RS256-1"}, PROVIDER.claims())) == "algorithm"
    assert refusal(unsigned({"kid": "RS256-1"}, PROVIDER.claims())) == "algorithm"


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512", "RS384", "RS512", "ES384"])
def test_other_algorithms_are_refused_by_name(algorithm: str) -> None:
    token = unsigned({"alg": algorithm, "kid": "RS256-1"}, PROVIDER.claims(), b"signature")
    assert refusal(token) == "algorithm"


def test_a_public_key_is_no_secret_of_an_hmac() -> None:
    """The classic confusion: HS256 with the text of the issuer's public RSA key as its secret."""
    public = PROVIDER.keys["RS256"].private.public_key()
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    ):
        bare = unsigned({"alg": "HS256", "kid": "RS256-1", "typ": "JWT"}, PROVIDER.claims())
        signed = bare.rpartition(".")[0]
        signature = hmac.digest(secret, signed.encode(), hashlib.sha256)
        tail = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
        assert refusal(f"{signed}.{tail}") == "algorithm"


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_a_key_is_for_its_own_algorithm(algorithm: str) -> None:
    for other in set(ALGORITHMS) - {algorithm}:
        key = PROVIDER.keys[other]
        assert KeySet(PROVIDER.jwks()).find(Header(algorithm, key.kid)) is None


def test_a_stranger_with_the_name_of_a_key() -> None:
    stranger = SigningKey("ES256", "ES256-1")
    token = jwt.encode(PROVIDER.claims(), stranger.private, "ES256", {"kid": "ES256-1"})
    assert refusal(token) == "signature"
    assert refusal(PROVIDER.token("ES256", headers={"kid": "ES256-2"})) == "unknown-key"


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    token = PROVIDER.token("EdDSA")
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("Ab-_.9"))
    changed = token[:at] + letter + token[at + 1 :]
    try:
        accept(changed)
    except JwtRefused:
        return
    # Only the bits of the last letter that hold nothing may differ.
    padded = [
        [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split(".")]
        for text in (token, changed)
    ]
    assert padded[0] == padded[1]


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda b: b.decode("latin-1"))))
def test_any_text_is_judged(text: str) -> None:
    for token in (text, f"{text}.{text}.{text}", f"eyJhbGciOiJSUzI1NiJ9.{text}.{text}"):
        assert refusal(token) in {"malformed", "algorithm", "unknown-key", "signature"}


@pytest.mark.parametrize(
    "headers",
    [
        {"crit": ["b64"], "b64": False},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": 3},
        {"kid": "k" * 300},
    ],
)
def test_headers_that_ask_for_something_else(headers: dict[str, Any]) -> None:
    bare = unsigned({"alg": "RS256", "kid": "RS256-1", **headers}, PROVIDER.claims(), b"x")
    assert refusal(bare) == "malformed"
    assert refusal(unsigned({"alg": "RS256", "kid": 7}, {}, b"x")) == "malformed"


def test_a_long_token_is_not_looked_at() -> None:
    assert refusal("a." * 2 + "x" * JWT_MAX) == "malformed"


# --- keys --------------------------------------------------------------------------------------


def test_a_token_without_the_name_of_its_key() -> None:
    one = Provider("ES256", clock=lambda: NOW)
    key = one.keys["ES256"]
    token = jwt.encode(one.claims(), key.private, "ES256")
    assert accept(token, provider=one).tag == "staff"
    two = json.loads(one.jwks())["keys"] + [SigningKey("ES256", "b").public()]
    assert KeySet(json.dumps({"keys": two}).encode()).find(header_of(token)) is None


def test_keys_that_are_not_used() -> None:
    def found(algorithm: str, **change: Any) -> Any:
        public = {**PROVIDER.keys[algorithm].public(), **change}
        return KeySet(json.dumps({"keys": [public]}).encode()).find(
            Header(algorithm, public["kid"])
        )

    assert found("RS256") is not None
    assert found("RS256", use="enc") is None
    assert found("RS256", alg="RS512") is None
    assert found("RS256", n="!") is None
    assert found("RS256", n=None) is None
    assert found("RS256", kty="oct", k="c2VjcmV0") is None
    assert found("RS256", d="AQAB") is None, "a private key that was published"
    assert found("ES256", crv="P-384") is None
    assert found("ES256", x=PROVIDER.keys["ES256"].public()["y"]) is None, "not on the curve"
    assert found("EdDSA", crv="Ed448") is None
    short = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key()))
    assert found("RS256", n=short["n"]) is None


def test_an_ed448_key_is_none_for_eddsa() -> None:
    private = ed448.Ed448PrivateKey.generate()
    raw = base64.urlsafe_b64encode(private.public_key().public_bytes_raw()).rstrip(b"=").decode()
    key = {"kty": "OKP", "crv": "Ed448", "x": raw, "kid": "k"}
    assert KeySet(json.dumps({"keys": [key]}).encode()).find(Header("EdDSA", "k")) is None


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys": {}}', b"\xff", b"[" * 100_000, bytes(300_000)]
)
def test_what_is_no_set_of_keys(document: bytes) -> None:
    with pytest.raises(ValueError):
        KeySet(document)


def test_only_so_many_keys_are_looked_at() -> None:
    last = SigningKey("ES256", "last").public()
    keys = [SigningKey("ES256", "x", ec.generate_private_key(ec.SECP256R1())).public()]
    document = json.dumps({"keys": [7, *keys * (module.KEYS_MAX - 1), last]}).encode()
    assert KeySet(document).find(Header("ES256", "last")) is None
    document = json.dumps({"keys": [last, *keys]}).encode()
    assert KeySet(document).find(Header("ES256", "last")) is not None


# --- claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iss": "https://sso.example.com/realms/other"}, "issuer"),
        ({"iss": Provider.issuer + "/"}, "issuer"),
        ({"iss": None}, "claims"),
        ({"aud": "account"}, "audience"),
        ({"aud": ["account"]}, "audience"),
        ({"aud": []}, "claims"),
        ({"aud": None}, "claims"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "claims"),
        ({"exp": None}, "claims"),
        ({"iat": None}, "claims"),
        ({"exp": "soon"}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": -1}, "claims"),
        ({"exp": 1 << 60}, "claims"),
        ({"exp": 10**400}, "claims"),  # no float holds it
        ({"iat": [1]}, "claims"),
        ({"nbf": "now"}, "claims"),
        ({"exp": NOW - 31}, "expired"),
        ({"nbf": NOW + 31}, "not-yet"),
        ({"iat": NOW + 31}, "not-yet"),
        ({"iat": NOW - 3631}, "too-old"),
        ({"realm_access": None}, "no-tag"),
        ({"realm_access": {"roles": ["else"]}}, "no-tag"),
        ({"realm_access": {"roles": {"vpn-staff": 1}}}, "no-tag"),
        ({"realm_access": ["vpn-staff"]}, "no-tag"),
        ({"realm_access": {"roles": [["vpn-staff"]]}}, "no-tag"),
    ],
)
def test_claims_that_are_refused(claims: dict[str, Any], code: str) -> None:
    # PyJWT does not sign a wrong `iss` or `sub`, so the token is signed as bytes.
    key = PROVIDER.keys["EdDSA"]
    payload = json.dumps(PROVIDER.claims(**claims)).encode()
    token = jwt.api_jws.encode(payload, key.private, "EdDSA", {"kid": key.kid})
    assert refusal(token) == code


@pytest.mark.parametrize("payload", [b"", b"[]", b"7", b"\xff", b"[" * 10_000])
def test_payloads_that_are_no_claims(payload: bytes) -> None:
    key = PROVIDER.keys["EdDSA"]
    token = jwt.api_jws.encode(payload, key.private, "EdDSA", {"kid": key.kid})
    assert refusal(token) == "malformed"


def test_times_within_the_leeway() -> None:
    near: list[dict[str, Any]] = [
        {"exp": NOW - 29},
        {"nbf": NOW + 29},
        {"iat": NOW + 29},
        {"iat": NOW - 3629},
    ]
    for claims in near:
        assert accept(PROVIDER.token("EdDSA", **claims)).tag == "staff"
    exact = replace(WANTED, leeway=0)
    assert refusal(PROVIDER.token("EdDSA", exp=NOW), exact) == "expired"
    assert accept(PROVIDER.token("EdDSA", iat=NOW, nbf=NOW), exact).until == NOW + 300


def test_a_wrong_clock_is_told_with_the_difference() -> None:
    with pytest.raises(JwtRefused, match="expired, 400 s ago by the endpoint's clock"):
        accept(PROVIDER.token("EdDSA", iat=NOW, exp=NOW + 300), now=NOW + 700)
    with pytest.raises(JwtRefused, match="in 500 s by the endpoint's clock"):
        accept(PROVIDER.token("EdDSA", iat=NOW), now=NOW - 500)


def test_the_first_of_the_tags_counts() -> None:
    both = {"realm_access": {"roles": ["vpn-staff", "vpn-admin"]}}
    assert accept(PROVIDER.token("EdDSA", **both)).tag == "admins"


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("groups", ["/engineering"]),
        ("groups", "/engineering"),
        ("https://corp.example.com/roles", ["/engineering"]),
        ("resource_access.laptops.roles", None),
    ],
)
def test_roles_in_other_places(claim: str, value: Any) -> None:
    wanted = replace(WANTED, tag_claim=claim, tags={"/engineering": "engineering"})
    claims = (
        {claim: value} if value else {"resource_access": {"laptops": {"roles": ["/engineering"]}}}
    )
    assert accept(PROVIDER.token("EdDSA", **claims), wanted).tag == "engineering"


def test_without_roles_everybody_has_the_empty_tag() -> None:
    wanted = replace(WANTED, tag_claim="", tags={})
    assert accept(PROVIDER.token("EdDSA", realm_access=None), wanted).tag == ""


def test_a_token_that_is_bound_to_a_key() -> None:
    assert accept(PROVIDER.token("EdDSA", cnf={"jkt": thumbprint(HOST)})).tag == "staff"
    for confirmation in ({"jkt": thumbprint(bytes(32))}, {"x5t#S256": "abc"}, {}, "text", None):
        key = PROVIDER.keys["EdDSA"]
        payload = json.dumps({**PROVIDER.claims(), "cnf": confirmation}).encode()
        token = jwt.api_jws.encode(payload, key.private, "EdDSA", {"kid": key.kid})
        assert refusal(token) == "bound"


def test_the_thumbprint_of_rfc_8037() -> None:
    """RFC 8037 appendix A.3."""
    raw = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert thumbprint(raw) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


# --- what names a token -------------------------------------------------------------------------


def test_a_token_is_named_by_its_jti_or_by_what_is_signed() -> None:
    one, two = (accept(PROVIDER.token("ES256", jti="same", sub=s)) for s in ("a", "b"))
    assert one.id == two.id
    assert accept(PROVIDER.token("ES256", jti="other")).id != one.id
    claims: dict[str, Any] = {"jti": None, "iat": NOW}
    ids = {accept(PROVIDER.token("ES256", **claims)).id for _ in range(2)}
    assert len(ids) == 1, "ES256 has another signature each time"
    assert accept(PROVIDER.token("ES256", jti=None, iat=NOW - 1)).id not in ids


def test_a_jti_of_half_a_character_names_a_token_too() -> None:
    """JSON can name surrogates that no encoding of text has."""
    one, two = (accept(PROVIDER.token("EdDSA", jti=jti)).id for jti in ("\ud800", "\udfff"))
    assert one != two


def test_it_is_remembered_until_it_would_be_too_old() -> None:
    assert accept(PROVIDER.token("EdDSA", iat=NOW, exp=NOW + 86_400)).until == NOW + 3630
