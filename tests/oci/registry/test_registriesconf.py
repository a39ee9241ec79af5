from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import FormatError, LimitExceeded, OciError
from cfstools.oci.registry.reference import parse_image_reference
from cfstools.oci.registry.registriesconf import MAX_CONF, endpoints, parse_registries, writing_endpoint

DIGEST = "@sha256:" + "0" * 64
MIRRORED = """
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "reg.example/team"
location = "inner.example/kept"
insecure = true
[[registry.mirror]]
location = "m1.example/copy"
[[registry.mirror]]
location = "m2.example:5000"
insecure = true
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m3.example"
pull-from-mirror = "tag-only"
[[registry]]
location = "reg.example"
[[registry]]
location = "reg.example/team/secret"
blocked = true
[[registry]]
prefix = "*.corp.example"
location = "proxy.example/all"
"""


def places(reference: str, *texts: str) -> list[str]:
    entries = parse_registries((f"{at}.conf", text.encode()) for at, text in enumerate(texts))
    found = endpoints(entries, parse_image_reference(reference))
    assert all(one.is_mirror for one in found[:-1])
    assert writing_endpoint(entries, parse_image_reference(reference)) == found[-1]
    return [f"{one.host}/{one.repository}" + ("!" if one.insecure else "") for one in found]


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("other.example/app", ["other.example/app"]),
        ("reg.example/app:1", ["reg.example/app"]),
        ("reg.example/teams/app", ["reg.example/teams/app"]),
        ("reg.example/team/app:1", ["m1.example/copy/app", "m3.example/app", "inner.example/kept/app!"]),
        ("reg.example/team/app" + DIGEST, ["m1.example/copy/app", "m2.example:5000/app!", "inner.example/kept/app!"]),
        ("a.corp.example/app", ["proxy.example/all/app"]),
        ("a.b.corp.example:5000/x/app", ["proxy.example/all/x/app"]),
        ("corp.example/app", ["corp.example/app"]),
        ("evilcorp.example/app", ["evilcorp.example/app"]),
    ],
)
def test_where_images_are_read(reference: str, found: list[str]) -> None:
    assert places(reference, MIRRORED) == found


def test_a_blocked_prefix() -> None:
    with pytest.raises(OciError, match=r"registries\.conf blocks 'reg\.example/team/secret'"):
        places("reg.example/team/secret/x", MIRRORED)


def test_a_mirror_that_leads_to_no_repository() -> None:
    with pytest.raises(OciError, match=r"leads to 'm3\.example', which is no repository"):
        places("reg.example/team", MIRRORED)


def test_later_files_replace_earlier_tables() -> None:
    again = '[[registry]]\nprefix = "reg.example/team"\nlocation = "last.example"\n'
    assert places("reg.example/team/app", MIRRORED, again) == ["last.example/app"]


def test_mirrors_for_digests_only() -> None:
    text = (
        '[[registry]]\nlocation="reg.example"\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation="m.example"\n'
    )
    assert places("reg.example/app", text) == ["reg.example/app"]
    assert places("reg.example/app" + DIGEST, text) == ["m.example/app", "reg.example/app"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = ", "not TOML"),
        ("registry = 5", "not an array of tables"),
        ("registry = [5]", "not a table"),
        ("[[registry]]\ninsecure = true", "neither prefix nor location"),
        ("[[registry]]\nlocation = 5", "location is not a string"),
        ('[[registry]]\nlocation = "a.example"\nblocked = "yes"', "blocked is neither true nor false"),
        ('[[registry]]\nprefix = "a.*.example"\nlocation = "b.example"', "is no prefix"),
        ('[[registry]]\nlocation = "a.example"\nmirror = 5', "mirror is not an array"),
        ('[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\ninsecure = true', "without location"),
        (
            '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "no"',
            "is none of all, digest-only, tag-only",
        ),
    ],
)
def test_files_that_are_wrong_are_named(text: str, what: str) -> None:
    with pytest.raises(OciError, match=what) as caught:
        parse_registries([("r.conf", text.encode())])
    assert str(caught.value).startswith("r.conf: ")


def test_a_file_that_is_too_large() -> None:
    with pytest.raises(LimitExceeded):
        parse_registries([("r.conf", b"#" * (MAX_CONF + 1))])


@given(st.binary(max_size=100))
def test_any_bytes_are_a_configuration_or_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_registries([("r.conf", data)])
