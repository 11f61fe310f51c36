"""X.509 authorities and certificates of the tests, made on the fly."""

import datetime as dt
import ipaddress
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

DAY = dt.timedelta(days=1)


class Issued(NamedTuple):
    """PEM texts of a certificate and its key."""

    certificate: str
    key: str

    @property
    def both(self) -> str:
        """Both in one text, as one file may hold them."""
        return self.certificate + self.key


def key_pem(key: Key, password: bytes | None = None) -> str:
    """PEM of a private key (PKCS #8), encrypted if there is a password."""
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


class Authority:
    """A certificate authority: a root, or one below another."""

    def __init__(self, name: str, parent: "Authority | None" = None) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        issuer = parent or self
        self.certificate = issuer._sign(self.name, self._key, (-DAY, DAY), ca=True)

    def issue(
        self,
        *names: str,
        valid: tuple[dt.timedelta, dt.timedelta] = (-DAY, DAY),
        key: Key | None = None,
    ) -> Issued:
        """A certificate for names and addresses, valid between two moments counted from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        return Issued(self._sign(subject, key, valid, names=names), key_pem(key))

    def _sign(
        self,
        subject: x509.Name,
        key: Key,
        valid: tuple[dt.timedelta, dt.timedelta],
        *,
        names: tuple[str, ...] = (),
        ca: bool = False,
    ) -> str:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder(
                self.name, subject, key.public_key(), x509.random_serial_number()
            )
            .not_valid_before(now + valid[0])
            .not_valid_after(now + valid[1])
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
