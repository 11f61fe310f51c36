"""An identity provider: real keys, tokens that it signs, and a web server with its JWKS."""

import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

MAKERS: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class SigningKey:
    """One key of the provider, for one algorithm."""

    def __init__(self, algorithm: str, kid: str, private: Any = None) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private = private or MAKERS[algorithm]()

    def public(self) -> dict[str, Any]:
        """The key as a JWKS has it."""
        made = get_default_algorithms()[self.algorithm].to_jwk(
            self.private.public_key(), as_dict=True
        )
        return {**made, "kid": self.kid, "use": "sig", "alg": self.algorithm}


class Provider:
    """Signs tokens like those of Keycloak."""

    issuer = "https://sso.example.com/realms/corp"
    audience = "socks-tunnel"

    def __init__(self, *algorithms: str, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.keys = {each: SigningKey(each, f"{each}-1") for each in algorithms or ("RS256",)}

    def jwks(self) -> bytes:
        return json.dumps({"keys": [key.public() for key in self.keys.values()]}).encode()

    def claims(self, **more: Any) -> dict[str, Any]:
        """What a token says; None takes a claim away."""
        now = int(self.clock())
        claims = {
            "iss": self.issuer,
            "aud": ["account", self.audience],
            "sub": "f3d1c9f4-0000-4000-8000-alice",
            "iat": now,
            "exp": now + 300,
            "jti": secrets.token_hex(16),
            "typ": "Bearer",
            "azp": "laptops",
            "realm_access": {"roles": ["offline_access", "vpn-staff"]},
            "groups": ["/engineering", "/engineering/network"],
            "preferred_username": "alice",
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, algorithm: str = "", *, headers: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        key = self.keys[algorithm or next(iter(self.keys))]
        named = {"kid": key.kid, **(headers or {})}
        return jwt.encode(self.claims(**claims), key.private, key.algorithm, named)

    def rotate(self, algorithm: str) -> None:
        """Replaces a key; the new one has another id."""
        old = self.keys[algorithm]
        number = int(old.kid.rpartition("-")[2]) + 1
        self.keys[algorithm] = SigningKey(algorithm, f"{algorithm}-{number}")


class JwksServer:
    """Serves documents on loopback; `answer` gives status and body, and may take its time."""

    def __init__(self, answer: Callable[[], tuple[int, bytes]], pem: Path | None = None) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                status, body = answer()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away, or that did not like the certificate

        self._server = Server(("127.0.0.1", 0), Handler)
        self._tls = pem is not None
        if pem is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}/certs"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
