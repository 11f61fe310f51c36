"""Identities: keys in files and in configurations, signatures."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from socks_tunnel.signaling.identity import (
    PrivateIdentity,
    parse_public_key,
    public_key_text,
    verify,
)

# RFC 8032 section 7.1, TEST 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signs_as_rfc_8032_prints() -> None:
    identity = PrivateIdentity(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert identity.public == PUBLIC
    assert identity.sign(b"\x72") == SIGNATURE
    assert verify(PUBLIC, SIGNATURE, b"\x72")


@pytest.mark.parametrize(
    ("public", "signature", "data"),
    [
        (PUBLIC, SIGNATURE, b"\x73"),
        (PUBLIC, SIGNATURE[:-1] + b"\x01", b"\x72"),
        (PUBLIC, SIGNATURE[:-1], b"\x72"),
        (PUBLIC, b"", b"\x72"),
        (bytes(32), SIGNATURE, b"\x72"),
        (PUBLIC[:-1], SIGNATURE, b"\x72"),
    ],
)
def test_any_change_fails_verification(public: bytes, signature: bytes, data: bytes) -> None:
    assert not verify(public, signature, data)


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    identity = PrivateIdentity.generate()
    path = tmp_path / "key.pem"
    path.write_bytes(identity.to_pem())
    assert PrivateIdentity.load(path).public == identity.public


def test_repr_shows_the_public_key_only() -> None:
    identity = PrivateIdentity(Ed25519PrivateKey.from_private_bytes(SECRET))
    assert identity.public_text in repr(identity)
    assert base64.b64encode(SECRET).decode() not in repr(identity)
    assert SECRET.hex() not in repr(identity)


def test_an_unusable_private_key_is_a_sentence() -> None:
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    other = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for pem, sentence in (
        (b"", "no private key in PEM form"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        (encrypted, "encrypted"),
        (other, "an Ed25519 key is needed"),
    ):
        with pytest.raises(ValueError, match=sentence):
            PrivateIdentity.from_pem(pem)


def test_public_keys_are_base64_of_32_bytes() -> None:
    text = "PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="
    assert public_key_text(PUBLIC) == text
    assert parse_public_key(text) == PUBLIC
    assert parse_public_key(f" {text}\n") == PUBLIC


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "0 bytes"),
        ("AAAA", "3 bytes"),
        ("PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw", "not base64"),
        ("PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw=", "not base64"),
        ("ÄÖÜ", "not base64"),
        (base64.b64encode(bytes(33)).decode(), "33 bytes"),
    ],
)
def test_an_unusable_public_key_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_public_key(text)
