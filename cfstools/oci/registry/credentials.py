"""Credentials for registries as containers' tools and docker keep them: auth files, and helpers they name.

The first hit is used, file by file in the order given; inside a file: ``credHelpers``, then ``auths`` from the longest
key to the shortest, then ``auths`` whose key is another spelling of the host, then ``credsStore``. No error quotes what
a file holds or a helper prints.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cfstools import strictjson
from cfstools.errors import FormatError, OciError
from cfstools.oci.registry.reference import credential_key, normal_host
from cfstools.strictjson import JsonLimits, NotJson
from cfstools.text import quoted

MAX_AUTH_FILE = 1 << 20
_LIMITS = JsonLimits(size=MAX_AUTH_FILE, depth=16)
_HELPER_LIMITS = JsonLimits(size=1 << 20, depth=4)
_HELPER = re.compile(r"[A-Za-z0-9._-]+")
_IDENTITY_USER = "<token>"
NOT_FOUND = "credentials not found in native keychain"


class Credential:
    """A user and a password, or an identity token to exchange for access tokens; ``repr`` shows none of them."""

    __slots__ = ("identity_token", "password", "user")

    def __init__(self, user: str, password: str, identity_token: str | None = None) -> None:
        self.user = user
        self.password = password
        self.identity_token = identity_token

    def __repr__(self) -> str:
        return "Credential(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credential) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str, str | None]:
        return self.user, self.password, self.identity_token

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header of scheme Basic."""
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


class HelperAnswer(NamedTuple):
    """A helper's exit code and standard output."""

    code: int
    output: bytes


AskHelper = Callable[[str, str], HelperAnswer]
"""Runs ``docker-credential-NAME get`` for a server."""


class AuthFile(NamedTuple):
    """An auth file: entries by key as written, helpers by host, and the helper for all the others."""

    name: str
    auths: Mapping[str, object]
    helpers: Mapping[str, str]
    store: str | None


def parse_auth_file(data: bytes, name: str) -> AuthFile:
    """Parse an auth file of containers' tools or docker. Raises :class:`FormatError` naming the file.

    Entries are decoded when they are used, so a damaged one does not affect the others.
    """
    try:
        value = strictjson.parse_json(data, _LIMITS)
    except NotJson:
        raise OciError("the auth file is not JSON", subject=name) from None  # the text of the error may quote it
    except FormatError as error:
        error.subject = name
        raise
    members = _object(value, "", name)
    helpers = _object(members.get("credHelpers"), "credHelpers", name)
    store = members.get("credsStore")
    for helper in (*helpers.values(), store):
        if helper is not None and not isinstance(helper, str):
            raise OciError("the name of a credential helper is not a string", subject=name)
    return AuthFile(
        name=name,
        auths=_object(members.get("auths"), "auths", name),
        helpers={host: helper for host, helper in helpers.items() if isinstance(helper, str) and helper},
        store=store if isinstance(store, str) and store else None,
    )


def find_credential(files: Sequence[AuthFile], host: str, repository: str, ask: AskHelper) -> Credential | None:
    """The credential for a repository, or ``None``. Raises :class:`OciError` for a damaged entry or helper."""
    for file in files:
        found = _in_file(file, host, repository, ask)
        if found is not None:
            return found
    return None


def _in_file(file: AuthFile, host: str, repository: str, ask: AskHelper) -> Credential | None:
    helper = file.helpers.get(host) or next(
        (name for key, name in file.helpers.items() if normal_host(key) == normal_host(host)), None
    )
    found = None if helper is None else _asked(helper, host, ask)
    for key in () if found is not None else _keys(file, host, repository):
        found = _entry(file, key)
        if found is not None:
            break
    if found is None and file.store is not None and file.store != helper:
        found = _asked(file.store, host, ask)
    return found


def _keys(file: AuthFile, host: str, repository: str) -> Iterator[str]:
    """The keys of ``auths`` that match a repository, best first."""
    path = f"{host}/{repository}"
    while path:
        if path in file.auths:
            yield path
        path = path.rpartition("/")[0]
    for key in file.auths:
        # A key with a path is for that path only, except the paths of docker's API: /v1 and /v2.
        beyond = key.partition("://")[2] or key
        if beyond.partition("/")[2].strip("/") in {"", "v1", "v2"} and normal_host(key) == normal_host(host):
            yield key


def _entry(file: AuthFile, key: str) -> Credential | None:
    """The credential of an entry; ``None`` for an empty one."""
    fields = _object(file.auths[key], f"auths[{quoted(key)}]", file.name)
    token = fields.get("identitytoken") or None
    auth = fields.get("auth") or ""
    if not isinstance(auth, str) or not isinstance(token, str | None):
        raise OciError("an entry that is not text", where=f"auths[{quoted(key)}]", subject=file.name)
    user, password = "", ""
    if auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise OciError("auth is not base64 of USER:PASSWORD", where=f"auths[{quoted(key)}]", subject=file.name)
        password = password.rstrip("\0")
    if token is not None:
        return Credential(user, password, token)
    return Credential(user, password) if user or password else None


def _asked(helper: str, host: str, ask: AskHelper) -> Credential | None:
    """Ask a helper for a host's credential."""
    if not _HELPER.fullmatch(helper) or helper in {".", ".."}:
        raise OciError(f"{quoted(helper)} cannot be the name of a credential helper")
    code, output = ask(helper, credential_key(host))
    failed = OciError(f"credential helper docker-credential-{helper} failed" + (f" with code {code}" if code else ""))
    if code:
        if NOT_FOUND.encode() in output:
            return None
        raise failed
    try:
        value = strictjson.parse_json(output, _HELPER_LIMITS)
    except FormatError:
        raise failed from None
    fields = value if isinstance(value, dict) else {}
    user, secret = fields.get("Username"), fields.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        raise failed
    if user == _IDENTITY_USER:
        return Credential("", "", secret) if secret else None
    return Credential(user, secret) if user or secret else None


def _object(value: object, where: str, name: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise OciError("not a JSON object", where=where or None, subject=name)
    return value
