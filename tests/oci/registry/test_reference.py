from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import UsageError
from cfstools.oci.registry.reference import api_host, credential_key, normal_host, parse_image_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "host", "repository", "wanted"),
    [
        ("docker://reg.example/app", "reg.example", "app", "latest"),
        ("docker://reg.example/team/app:2", "reg.example", "team/app", "2"),
        ("docker://localhost/app", "localhost", "app", "latest"),
        ("docker://localhost:5000/app:a_B.c-d", "localhost:5000", "app", "a_B.c-d"),
        ("docker://127.0.0.1:5000/app", "127.0.0.1:5000", "app", "latest"),
        ("docker://[::1]:5000/a/b:1", "[::1]:5000", "a/b", "1"),
        (f"docker://reg.example/app@{DIGEST}", "reg.example", "app", DIGEST),
        (f"docker://reg.example/app:2@{DIGEST}", "reg.example", "app", DIGEST),
        ("docker://debian", "docker.io", "library/debian", "latest"),
        ("docker://debian:12", "docker.io", "library/debian", "12"),
        ("docker://team/app", "docker.io", "team/app", "latest"),
        ("docker://index.docker.io/debian", "docker.io", "library/debian", "latest"),
        ("docker://docker.io/team/app", "docker.io", "team/app", "latest"),
        ("reg.example/a__b/c---d/e.f_g", "reg.example", "a__b/c---d/e.f_g", "latest"),
    ],
)
def test_what_a_reference_names(text: str, host: str, repository: str, wanted: str) -> None:
    found = parse_image_reference(text)
    assert (found.host, found.repository, found.wanted) == (host, repository, wanted)
    assert parse_image_reference(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "docker://",
        "docker:///app",
        "docker://reg.example/",
        "docker://reg.example/App",
        "docker://reg.example/a//b",
        "docker://reg.example/a..b",
        "docker://reg.example/a___b",
        "docker://reg.example/-a",
        "docker://reg.example/a/../b",
        "docker://reg.example/app:",
        "docker://reg.example/app:.tag",
        "docker://reg.example/app:" + "t" * 129,
        "docker://reg.example/app@",
        "docker://reg.example/app@sha256:12",
        "docker://reg.example/app@md5:" + "0" * 32,
        "docker://reg.example/app@blake3:" + "0" * 64,
        "docker://user:secret@reg.example/app",
        "docker://reg.example:0/app",
        "docker://reg.example:65536/app",
        "docker://reg..example/app",
        "docker://-reg.example/app",
        "docker://reg.example/" + "a" * 244,
        "docker://reg.example/app:2?x=1",
        "docker://reg.example/app\n",
        "docker://rég.example/app",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_image_reference(text)
    assert "\n" not in str(caught.value)


def test_the_longest_name() -> None:
    assert parse_image_reference("docker://reg.example/" + "a" * 243).repository == "a" * 243


def test_docker_hub_has_other_names_for_its_api_and_its_credentials() -> None:
    assert api_host("docker.io") == "registry-1.docker.io"
    assert api_host("reg.example:5000") == "reg.example:5000"
    assert credential_key("docker.io") == "https://index.docker.io/v1/"
    assert credential_key("reg.example") == "reg.example"


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("https://reg.example:5000/v2/", "reg.example:5000"),
        ("reg.example/a/b", "reg.example"),
        ("http://reg.example", "reg.example"),
    ],
)
def test_the_host_that_a_key_names(key: str, host: str) -> None:
    assert normal_host(key) == host


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_refused_and_what_is_one_can_be_written_again(text: str) -> None:
    try:
        found = parse_image_reference(text)
    except UsageError:
        return
    assert parse_image_reference(str(found)) == found
