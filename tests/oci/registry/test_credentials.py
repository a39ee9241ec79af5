from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import CfsError, FormatError, InputError, LimitExceeded, OciError
from cfstools.oci.registry import remote
from cfstools.oci.registry.credentials import (
    MAX_AUTH_FILE,
    NOT_FOUND,
    AuthFile,
    Credential,
    HelperAnswer,
    find_credential,
    parse_auth_file,
)
from tests.processes import children


def entry(user: str, password: str = "s3cret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def auth_file(**members: Any) -> AuthFile:
    return parse_auth_file(json.dumps(members).encode(), "auth.json")


class Helpers:
    """Helpers that know what they are told, and note what they are asked."""

    def __init__(self, **known: dict[str, tuple[str, str]]) -> None:
        self.known = known
        self.asked: list[tuple[str, str]] = []

    def __call__(self, name: str, server: str) -> HelperAnswer:
        self.asked.append((name, server))
        found = self.known.get(name, {}).get(server)
        if found is None:
            return HelperAnswer(1, NOT_FOUND.encode() + b"\n")
        body = {"ServerURL": server, "Username": found[0], "Secret": found[1]}
        return HelperAnswer(0, json.dumps(body).encode())


def user_of(*files: AuthFile, host: str = "reg.example", repository: str = "team/app", ask: Any = None) -> str | None:
    found = find_credential(files, host, repository, ask or Helpers())
    return None if found is None else found.user


def test_the_longest_key_decides() -> None:
    auths = {
        "reg.example": entry("host"),
        "reg.example/team": entry("team"),
        "reg.example/team/app": entry("app"),
        "reg.example/team/ap": entry("wrong"),
    }
    file = auth_file(auths=auths)
    assert user_of(file) == "app"
    assert user_of(file, repository="team/other") == "team"
    assert user_of(file, repository="teams") == "host"
    assert user_of(file, host="other.example") is None


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://reg.example", "reg.example"),
        ("https://reg.example/v1/", "reg.example"),
        ("https://reg.example:5000/v2/", "reg.example:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
    ],
)
def test_keys_in_other_spellings(key: str, host: str) -> None:
    assert user_of(auth_file(auths={key: entry("me")}), host=host) == "me"


def test_a_key_for_another_path_of_the_host_is_not_taken() -> None:
    file = auth_file(auths={"reg.example/other": entry("wrong"), "https://reg.example/else/": entry("wrong")})
    assert user_of(file) is None


def test_helpers_before_entries_before_the_common_helper() -> None:
    ask = Helpers(one={"reg.example": ("one", "s")}, common={"reg.example": ("common", "s"), "else": ("common", "s")})
    entries = {"auths": {"reg.example": entry("entry")}, "credsStore": "common"}
    assert user_of(auth_file(credHelpers={"reg.example": "one"}, **entries), ask=ask) == "one"
    assert user_of(auth_file(**entries), ask=ask) == "entry"
    assert user_of(auth_file(auths={"reg.example": {}}, credsStore="common"), ask=ask) == "common"
    assert ask.asked == [("one", "reg.example"), ("common", "reg.example")]


def test_a_helper_that_knows_nothing_lets_the_next_be_asked() -> None:
    ask = Helpers(second={"https://index.docker.io/v1/": ("me", "s")})
    first = auth_file(credHelpers={"docker.io": "first"}, auths={"docker.io": {}})
    second = auth_file(credHelpers={"https://index.docker.io/v1/": "second"})
    assert user_of(first, second, host="docker.io", ask=ask) == "me"
    assert ask.asked == [("first", "https://index.docker.io/v1/"), ("second", "https://index.docker.io/v1/")]


def test_files_in_order() -> None:
    first, second = auth_file(auths={"reg.example": entry("first")}), auth_file(auths={"reg.example": entry("second")})
    assert user_of(first, second) == "first"
    assert user_of(auth_file(), second) == "second"


def test_identity_tokens() -> None:
    there = {**entry("00000000-0000-0000-0000-000000000000", ""), "identitytoken": "identity"}
    found = find_credential([auth_file(auths={"reg.example": there})], "reg.example", "app", Helpers())
    assert found is not None
    assert found.identity_token == "identity"
    ask = Helpers(h={"reg.example": ("<token>", "identity")})
    found = find_credential([auth_file(credsStore="h")], "reg.example", "app", ask)
    assert found == Credential("", "", "identity")


def test_a_password_may_hold_colons_and_any_letter() -> None:
    found = find_credential([auth_file(auths={"reg.example": entry("me", "a:b:ç")})], "reg.example", "app", Helpers())
    assert found == Credential("me", "a:b:ç")
    assert found.basic == "Basic " + base64.b64encode("me:a:b:ç".encode()).decode()


@pytest.mark.parametrize(
    "wrong",
    [
        {"auth": "not base64 s3cret"},
        {"auth": base64.b64encode(b"s3cret").decode()},
        {"auth": base64.b64encode(b"me:\xff s3cret").decode()},
        {"auth": 5},
        {"identitytoken": ["s3cret"]},
        "s3cret",
    ],
)
def test_a_damaged_entry_is_named_and_not_shown(wrong: object) -> None:
    file = auth_file(auths={"reg.example": wrong, "else.example": entry("me")})
    with pytest.raises(OciError) as caught:
        user_of(file)
    assert "s3cret" not in str(caught.value)
    assert "auth.json" in str(caught.value)
    assert user_of(file, host="else.example") == "me"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"s3cret",
        b"[]",
        b'{"auths": []}',
        b'{"auths": {"a": {}, "a": {}}}',
        b'{"credHelpers": {"a": 5}}',
        b'{"credsStore": {}}',
        b'{"auths": {"s3cret": }',
        b"\xff",
        b"{}" + b" " * MAX_AUTH_FILE,
    ],
)
def test_a_damaged_file_is_named_and_not_shown(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_auth_file(data, "auth.json")
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).startswith("auth.json: ")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "a;b", "x\n"])
def test_names_that_are_no_helpers_are_not_run(name: str) -> None:
    ask = Helpers()
    file = auth_file(credsStore=name)
    if name:
        with pytest.raises(OciError):
            user_of(file, ask=ask)
    else:
        assert user_of(file, ask=ask) is None
    assert ask.asked == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (HelperAnswer(1, b"s3cret"), "credential helper docker-credential-x failed with code 1"),
        (HelperAnswer(0, b"s3cret"), "credential helper docker-credential-x failed"),
        (HelperAnswer(0, b'{"Username": "s3cret"}'), "credential helper docker-credential-x failed"),
        (HelperAnswer(0, b'{"Username": 5, "Secret": "s3cret"}'), "credential helper docker-credential-x failed"),
    ],
)
def test_a_failing_helper_is_named_and_what_it_says_is_not_shown(answer: HelperAnswer, text: str) -> None:
    with pytest.raises(CfsError) as caught:
        user_of(auth_file(credsStore="x"), ask=lambda _name, _server: answer)
    assert str(caught.value) == text


def test_a_credential_does_not_show_itself() -> None:
    assert "s3cret" not in repr(Credential("me", "s3cret", "s3cret"))
    assert hash(Credential("a", "b")) == hash(Credential("a", "b"))


def install(directory: Path, name: str, script: str) -> None:
    program = directory / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)


def test_helpers_are_asked_over_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    install(tmp_path, "echo", 'test "$1" = get && cat && echo no >&2')
    assert remote.ask_helper("echo", "reg.example") == HelperAnswer(0, b"reg.example")
    install(tmp_path, "none", f'cat >/dev/null; echo "{NOT_FOUND}"; exit 1')
    assert user_of(auth_file(credsStore="none"), ask=remote.ask_helper) is None
    with pytest.raises(InputError, match="docker-credential-absent is not installed"):
        remote.ask_helper("absent", "reg.example")
    (tmp_path / "docker-credential-odd").write_bytes(b"no program")
    (tmp_path / "docker-credential-odd").chmod(0o755)
    with pytest.raises(InputError, match="cannot run the credential helper docker-credential-odd"):
        remote.ask_helper("odd", "reg.example")


def test_a_helper_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(remote, "HELPER_TIMEOUT", 0.2)
    install(tmp_path, "slow", "exec sleep 3600")
    before = children()
    with pytest.raises(InputError, match="did not answer"):
        remote.ask_helper("slow", "reg.example")
    assert children() == before


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: json.dumps({"auths": {text: text}}).encode()))
def test_any_bytes_are_an_auth_file_or_refused(data: bytes) -> None:
    try:
        file = parse_auth_file(data, "auth.json")
        find_credential([file], "reg.example", "app", Helpers())
    except (FormatError, LimitExceeded):
        pass
