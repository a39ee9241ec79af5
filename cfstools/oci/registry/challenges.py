"""Challenges of ``WWW-Authenticate`` (RFC 9110, 11.6.1) and the answers of token servers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cfstools import strictjson
from cfstools.errors import FormatError, OciError
from cfstools.strictjson import JsonLimits

MAX_CHALLENGES = 16
MAX_TOKEN_ANSWER = 1 << 20
LEAST_LIFETIME = 60
_MAX_LIFETIME = 86_400

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Possessive: a header may be hostile, and nothing in it is to be looked at twice.
_SCHEME = re.compile(rf"[\s,]*+({_WORD})(?=\s|,|$)\s*+")
_PARAMETER = re.compile(rf'[\s,]*+({_WORD})\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s",]++))', re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_LIMITS = JsonLimits(size=MAX_TOKEN_ANSWER, depth=8)


class Challenge(NamedTuple):
    """One way to authenticate: the scheme and the names of its parameters in small letters."""

    scheme: str
    parameters: Mapping[str, str]


class Token(NamedTuple):
    """An access token and its lifetime in seconds."""

    value: str
    lifetime: float

    def __repr__(self) -> str:
        return "Token(…)"


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges of the header's lines, at most 16; malformed parts are skipped."""
    found: list[Challenge] = []
    for line in headers:
        at = 0
        while len(found) < MAX_CHALLENGES and (scheme := _SCHEME.match(line, at)):
            at = scheme.end()
            if blob := _TOKEN68.match(line, at):
                at = blob.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(line, at):
                at = parameter.end()
                name, quoted, plain = parameter.groups()
                parameters.setdefault(name.lower(), plain if quoted is None else _ESCAPE.sub(r"\1", quoted))
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


def choose(challenges: Sequence[Challenge], *, has_password: bool) -> Challenge | None:
    """The challenge to answer: Bearer before Basic, which needs a password."""
    bearer = next((one for one in challenges if one.scheme == "bearer" and one.parameters.get("realm")), None)
    if bearer is not None:
        return bearer
    return next((one for one in challenges if one.scheme == "basic" and has_password), None)


def parse_token(data: bytes) -> Token:
    """Parse the answer of a token server. Raises :class:`OciError`, which quotes nothing of it."""
    try:
        value = strictjson.parse_json(data, _LIMITS)
    except FormatError:
        raise OciError("the token server did not answer with JSON") from None
    members = value if isinstance(value, dict) else {}
    token = members.get("token") or members.get("access_token")
    if not isinstance(token, str) or not _VISIBLE.fullmatch(token):
        raise OciError("the token server gave no token")
    stated = members.get("expires_in")
    seconds = stated if isinstance(stated, int | float) and not isinstance(stated, bool) else LEAST_LIFETIME
    return Token(token, min(max(seconds, LEAST_LIFETIME), _MAX_LIFETIME))
