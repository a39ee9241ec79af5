"""A token server as registries send their clients to: by GET with a password, by POST with an identity token."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.servers.authority import TokenKey

SERVICE = "test registry"
ISSUER = "test tokens"


class TokenRequest(NamedTuple):
    """One request for a token, as it came."""

    method: str
    user: str | None
    scopes: tuple[str, ...]
    headers: Mapping[str, str]
    form: Mapping[str, str]


class TokenServer:
    """What the server knows: *users* and their passwords, *identities* by identity token, and what anyone may pull.

    ``lifetime`` is that of the tokens given out, in seconds; ``requests`` are those that came.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.key = TokenKey(directory)
        self.realm = f"{url}/token"
        self.users: dict[str, str] = {}
        self.identities: dict[str, str] = {}
        self.public: tuple[str, ...] = ()
        self.lifetime = 300
        self.stated_lifetime: int | None = None
        self.requests: list[TokenRequest] = []

    def answer(self, request: TokenRequest, password: str | None) -> tuple[int, dict[str, Any]]:
        """Status and body for a request."""
        self.requests.append(request)
        user = request.user
        if request.method == "POST":
            user = self.identities.get(request.form.get("refresh_token", ""))
            if user is None:
                return 401, {"error": "invalid_grant"}
        elif password is not None and (user is None or self.users.get(user) != password):
            return 401, {"details": "incorrect username or password"}
        access = []
        for scope in request.scopes:
            kind, name, actions = scope.rsplit(":", 2)[0].partition(":")[0], scope.split(":", 1)[1], scope
            name, _, actions = name.rpartition(":")
            may = actions.split(",") if user is not None else ["pull"] if name in self.public else []
            access.append({"type": kind, "name": name, "actions": [one for one in actions.split(",") if one in may]})
        token = self._token(user or "", access)
        stated = self.lifetime if self.stated_lifetime is None else self.stated_lifetime
        name = "access_token" if request.method == "POST" else "token"
        return 200, {name: token, "expires_in": stated}

    def _token(self, subject: str, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self.key.der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "aud": SERVICE,
            "exp": now + self.lifetime,
            "nbf": now - 5,
            "iat": now - 5,
            "jti": f"{time.time_ns()}",
            "access": access,
        }
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self.key.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _base64url(signature)).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._respond("GET", tuple(query.get("scope", ())), {})

    def do_POST(self) -> None:
        form = {name: values[0] for name, values in parse_qs(self._body().decode()).items()}
        self._respond("POST", tuple(form.get("scope", "").split()), form)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _respond(self, method: str, scopes: tuple[str, ...], form: Mapping[str, str]) -> None:
        user = password = None
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            user, _, password = base64.b64decode(value).decode().partition(":")
        request = TokenRequest(method, user, scopes, dict(self.headers), form)
        status, body = self.server.tokens.answer(request, password)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # all that a client opens at once
    tokens: TokenServer


@contextmanager
def token_server(directory: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[TokenServer]:
    """A token server on loopback, with TLS if there is a *certificate* and its key."""
    server = _Server(("127.0.0.1", 0), _Handler)
    scheme = "http"
    if certificate is not None:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.tokens = TokenServer(directory, f"{scheme}://localhost:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.tokens
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
