"""``build`` and ``inspect`` of images in real registries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs
from tests.oci import making
from tests.oci.registry.conftest import (
    PASSWORD,
    USER,
    Served,
    auth_file,
    need,
    push,
    some_layers,
    two_platforms,
    write_layout,
)
from tests.requirements import NEEDS_GO, go_tool
from tests.servers.link import Link


def digest_of(*words: str | Path) -> str:
    return mkcfs("build", *words, "--print-digest-only").stdout.decode().strip()


def objects_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def access(served: Served, tmp_path: Path) -> list[str]:
    """All that is needed to read from a registry."""
    if not served.has_password:
        return served.options
    return [*served.options, "--authfile", str(auth_file(tmp_path / "auth.json", served.host))]


@pytest.mark.parametrize("compression", ["", "+gzip", "+zstd"])
def test_an_image_is_the_one_that_a_copy_of_it_would_make(
    each_registry: Served, compression: str, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path / "layout", making.image(some_layers(), compression))
    name = f"same/{compression.strip('+') or 'plain'}"
    reference = push(layout, each_registry, f"{name}:1")
    copied, pulled, remembered = tmp_path / "copied", tmp_path / "pulled", tmp_path / "remembered"
    mkcfs("build", f"oci:{layout}", tmp_path / "copied.cfs", "--store", copied)
    words = access(each_registry, tmp_path)
    build: tuple[str | Path, ...] = ("build", reference, tmp_path / "pulled.cfs", "--json", *words)
    mkcfs(*build, "--store", remembered)
    # What a later layer removes stays there until garbage is collected, if the layer is to be remembered.
    assert objects_of(remembered).items() > objects_of(copied).items()
    assert (tmp_path / "pulled.cfs").read_bytes() == (tmp_path / "copied.cfs").read_bytes()
    report = json.loads(mkcfs(*build, "--store", pulled, "--no-cache").stdout)
    assert objects_of(pulled) == objects_of(copied)
    assert (tmp_path / "pulled.cfs").read_bytes() == (tmp_path / "copied.cfs").read_bytes()
    assert report["source"]["names"] == [f"{each_registry.host}/{name}:1"]
    assert [layer["members"] for layer in report["source"]["layers"]] == [8, 3, 4]
    # by digest, and without the tag
    manifest = report["source"]["manifest"]
    by_digest = reference.rpartition(":")[0] + f"@{manifest}"
    assert digest_of(by_digest, *words) == report["digest"]


def test_the_platform_is_chosen_from_an_index(each_registry: Served, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", two_platforms())
    reference = push(layout, each_registry, "platforms:both", "--all")
    words = access(each_registry, tmp_path)
    for platform in ("linux/amd64", "linux/arm64"):
        expected = digest_of(f"oci:{layout}", "--platform", platform)
        assert digest_of(reference, "--platform", platform, *words) == expected
    refused = mkcfs("build", reference, "--print-digest-only", *words, check=False)
    assert refused.code == 1
    assert b"2 images match" in refused.stderr
    missing = mkcfs("build", reference, "--print-digest-only", "--platform", "linux/riscv64", *words, check=False)
    assert missing.code == 1
    described = mkcfs("inspect", reference, "--platform", "linux/arm64", "--json", *words)
    assert json.loads(described.stdout)["platform"] == "linux/arm64"


def test_inspect_reads_no_layer(plain_registry: Served, layout: Path, tmp_path: Path) -> None:
    reference = push(layout, plain_registry, "inspected:1")
    expected = json.loads(mkcfs("inspect", f"oci:{layout}", "--json").stdout)
    found = json.loads(mkcfs("inspect", reference, "--json").stdout)
    assert found["kind"] == "docker"
    assert found["manifest"] == expected["manifest"]
    assert found["layers"] == expected["layers"]
    text = mkcfs("inspect", reference).stdout.decode()
    assert expected["config"] in text


def test_a_side_of_diff_may_be_in_a_registry(password_registry: Served, layout: Path, tmp_path: Path) -> None:
    reference = push(layout, password_registry, "diff:1")
    words = access(password_registry, tmp_path)
    assert mkcfs("diff", reference, f"oci:{layout}", *words).stdout.startswith(b"changes:   none\n")
    digest = digest_of(f"oci:{layout}")
    assert mkcfs("diff", reference, "--expect", digest, *words).code == 0
    refused = mkcfs("diff", f"oci:{layout}", f"oci:{layout}", *words, check=False)
    assert (refused.code, b"is only for an image in a registry" in refused.stderr) == (2, True)


def test_nothing_is_kept_outside_the_store(plain_registry: Served, layout: Path, tmp_path: Path) -> None:
    reference = push(layout, plain_registry, "outside:1")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    trace = tmp_path / "trace"
    need("strace")
    command = ["strace", "-f", "-e", "trace=openat,mkdirat,mkdir,creat", "-o", str(trace)]
    words = ["build", reference, str(scratch / "image.cfs"), "--store", str(scratch / "store"), "--sync", "none"]
    # No bytecode either, which the first who imports a module leaves beside it.
    environment = {**os.environ, "TMPDIR": str(scratch / "no such directory"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, sys.executable, "-m", "cfstools.cli", *words], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(scratch)) == ["image.cfs", "store"]
    written = [
        line for line in trace.read_text(errors="replace").splitlines() if "O_CREAT" in line or "O_TMPFILE" in line
    ]
    assert written
    outside = [
        line
        for line in written
        if str(scratch) not in line and "AT_FDCWD" in line and "ENOENT" not in line and ".coverage" not in line
    ]
    assert outside == []


def test_a_link_that_cuts_every_connection(plain_registry: Served, tmp_path: Path) -> None:
    """In front of a real registry, after 300 KB of answers each."""
    layers = [making.tar(making.member("usr"), making.member(f"usr/{at}", os.urandom(1 << 20))) for at in range(3)]
    layout = write_layout(tmp_path / "layout", making.image(layers, "+gzip"))
    reference = push(layout, plain_registry, "cut/app:1")
    with Link(int(plain_registry.host.partition(":")[2]), allowed=300_000) as link:
        far = reference.replace(plain_registry.host, f"127.0.0.1:{link.port}")
        assert digest_of(far, "--plain-http") == digest_of(f"oci:{layout}")
    assert link.cut >= 3 * len(layers)


def test_the_errors_of_a_registry(plain_registry: Served, token_registry: Served, layout: Path) -> None:
    reference = push(layout, plain_registry, "errors:1")
    base = reference.rpartition(":")[0]
    absent = mkcfs("inspect", f"{base}:2", check=False)
    assert (absent.code, absent.stdout) == (1, b"")
    assert absent.stderr.startswith(f"mkcfs: {base}:2: no such image (MANIFEST_UNKNOWN: manifest unknown)".encode())
    other = mkcfs("inspect", f"{base}@sha256:{'0' * 64}", check=False)
    assert other.code == 1
    assert b"no such image" in other.stderr
    denied = mkcfs("inspect", f"docker://{token_registry.host}/private:1", *token_registry.options, check=False)
    assert denied.code == 1
    assert b": access denied (" in denied.stderr
    assert f"hint: log in with: skopeo login {token_registry.host}\n".encode() in denied.stderr
    untrusted = mkcfs("inspect", f"docker://{token_registry.host}/private:1", check=False)
    assert untrusted.code == 1
    assert b"certificate verify failed" in untrusted.stderr
    gone = mkcfs("inspect", "docker://127.0.0.1:9/a", check=False)
    assert gone.code == 1
    assert b"cannot connect" in gone.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["docker://reg.example/A"], b"is not a repository"),
        (["docker://reg.example/a", "--layer", "x.tar"], b"further layers go over layer tars"),
        (["oci:there", "--plain-http"], b"--plain-http is only for an image in a registry"),
        (["oci:there", "--authfile", "x"], b"--authfile is only for"),
    ],
)
def test_what_is_no_use_together(words: list[str], text: bytes) -> None:
    done = mkcfs("build", *words, "--print-digest-only", check=False)
    assert done.code == 2
    assert text in done.stderr


# Credentials


def is_let_in(reference: str, served: Served, *words: str | Path) -> bool:
    done = mkcfs("inspect", reference, *served.options, *words, check=False)
    assert PASSWORD.encode() not in done.stdout + done.stderr
    if done.code:
        assert done.code == 1
        assert b"access denied" in done.stderr
    return done.code == 0


@pytest.fixture(params=["password_registry", "token_registry"])
def guarded(request: pytest.FixtureRequest, layout: Path) -> tuple[Served, str]:
    """A registry that wants a password, and an image in it."""
    served: Served = request.getfixturevalue(request.param)
    reference = push(layout, served, "guarded/app:1")
    if served.tokens is not None:
        served.tokens.requests.clear()
    return served, reference


def test_a_password_for_the_host_or_for_the_repository(guarded: tuple[Served, str], tmp_path: Path) -> None:
    served, reference = guarded
    assert not is_let_in(reference, served)
    for key in ("", "/guarded", "/guarded/app"):
        path = auth_file(tmp_path / "auth.json", served.host + key)
        assert is_let_in(reference, served, "--authfile", path)
    assert is_let_in(reference, served, "--authfile", auth_file(tmp_path / "a", f"https://{served.host}/v2/"))
    assert not is_let_in(reference, served, "--authfile", auth_file(tmp_path / "a", f"{served.host}/guarded/other"))
    assert not is_let_in(reference, served, "--authfile", auth_file(tmp_path / "a", served.host, password="wrong"))


def test_where_credentials_are_found(
    guarded: tuple[Served, str], tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, reference = guarded
    places = [own_home / "run/containers/auth.json", own_home / ".config/containers/auth.json"]
    for place in [*places, own_home / ".docker/config.json"]:
        place.parent.mkdir(parents=True, exist_ok=True)
        auth_file(place, served.host)
        assert is_let_in(reference, served), place
        place.unlink()
    monkeypatch.setenv("DOCKER_CONFIG", str(own_home / "other"))
    (own_home / "other").mkdir()
    auth_file(own_home / "other" / "config.json", served.host)
    assert is_let_in(reference, served)
    # The file that is named is the only one.
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth_file(tmp_path / "empty", "else.example")))
    assert not is_let_in(reference, served)
    assert is_let_in(reference, served, "--authfile", own_home / "other" / "config.json")
    done = mkcfs("inspect", reference, *served.options, "--authfile", tmp_path / "absent", check=False)
    assert done.code == 1
    assert b"absent" in done.stderr


def test_files_that_other_tools_write(guarded: tuple[Served, str], tmp_path: Path) -> None:
    served, reference = guarded
    need("skopeo", "buildah")
    assert served.authority is not None
    for tool in ("skopeo", "buildah"):
        path = tmp_path / f"{tool}.json"
        login = [tool, "login", "--authfile", str(path), "--cert-dir", str(served.authority.parent)]
        done = subprocess.run(
            [*login, "-u", USER, "--password-stdin", served.host],
            input=PASSWORD.encode(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert is_let_in(reference, served, "--authfile", path)


@NEEDS_GO
def test_files_that_crane_writes(guarded: tuple[Served, str], own_home: Path) -> None:
    served, reference = guarded
    login = [str(go_tool("crane")), "auth", "login", served.host, "-u", USER, "--password-stdin"]
    subprocess.run(login, input=PASSWORD.encode(), check=True, capture_output=True)
    assert (own_home / ".docker" / "config.json").exists()
    assert is_let_in(reference, served)


def install_helper(directory: Path, name: str, user: str, secret: str) -> None:
    directory.mkdir(exist_ok=True)
    program = directory / f"docker-credential-{name}"
    answer = json.dumps({"ServerURL": "x", "Username": user, "Secret": secret})
    program.write_text(f"#!/bin/sh\ncat >'{directory}/asked'\necho '{answer}'\n", encoding="utf-8")
    program.chmod(0o755)


def test_credential_helpers(guarded: tuple[Served, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, reference = guarded
    programs = tmp_path / "programs"
    install_helper(programs, "right", USER, PASSWORD)
    install_helper(programs, "wrong", USER, "wrong")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for words, let_in in (
        ({"credHelpers": {served.host: "right"}, "credsStore": "wrong"}, True),
        ({"credsStore": "right"}, True),
        ({"credHelpers": {"else.example": "right"}}, False),
        ({"credsStore": "wrong"}, False),
    ):
        path = tmp_path / "auth.json"
        path.write_text(json.dumps(words), encoding="utf-8")
        assert is_let_in(reference, served, "--authfile", path) is let_in
    assert (programs / "asked").read_text() == served.host
    path.write_text('{"credsStore": "absent"}', encoding="utf-8")
    done = mkcfs("inspect", reference, *served.options, "--authfile", path, check=False)
    assert done.code == 1
    assert b"docker-credential-absent is not installed" in done.stderr


def test_identity_tokens(token_registry: Served, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = push(layout, token_registry, "identity:1")
    tokens = token_registry.tokens
    assert tokens is not None
    tokens.identities["identity s3cret"] = USER
    tokens.requests.clear()
    programs = tmp_path / "programs"
    install_helper(programs, "identity", "<token>", "identity s3cret")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    path = tmp_path / "auth.json"
    path.write_text('{"credsStore": "identity"}', encoding="utf-8")
    assert is_let_in(reference, token_registry, "--authfile", path)
    (request,) = tokens.requests
    assert request.method == "POST"
    assert "Content-Length" in request.headers
    assert request.form["client_id"] == "mkcfs"
    path.write_text(json.dumps({"auths": {token_registry.host: {"identitytoken": "other"}}}), encoding="utf-8")
    assert not is_let_in(reference, token_registry, "--authfile", path)


def test_one_token_for_all_connections(token_registry: Served, tmp_path: Path) -> None:
    layers = [making.tar(making.member("usr"), making.member(f"usr/{at}", os.urandom(3000))) for at in range(8)]
    layout = write_layout(tmp_path / "layout", making.image(layers, "+gzip"))
    reference = push(layout, token_registry, "public/app:1")
    tokens = token_registry.tokens
    assert tokens is not None
    tokens.public = ("public/app",)
    tokens.requests.clear()
    assert digest_of(reference, *token_registry.options) == digest_of(f"oci:{layout}")
    (request,) = tokens.requests
    assert (request.user, request.scopes) == (None, ("repository:public/app:pull",))


# Certificates and mirrors


def test_certificates_of_a_registry(password_registry: Served, layout: Path, tmp_path: Path, own_home: Path) -> None:
    served = password_registry
    reference = push(layout, served, "certificates:1")
    assert served.authority is not None
    words = ["--authfile", str(auth_file(tmp_path / "auth.json", served.host))]
    assert mkcfs("inspect", reference, *words, "--cert-dir", served.authority.parent).code == 0
    own = own_home / ".config/containers/certs.d" / served.host
    own.mkdir(parents=True)
    (own / "any.crt").write_bytes(served.authority.read_bytes())
    assert mkcfs("inspect", reference, *words).code == 0
    (own / "me.cert").write_bytes(b"")
    half = mkcfs("inspect", reference, *words, check=False)
    assert half.code == 1
    assert b"me.cert is there without me.key" in half.stderr


@NEEDS_GO
def test_mirrors_are_read_first(
    plain_registry: Served,
    referrers_registry: Served,
    layout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push(layout, plain_registry, "mirrored/app:1")
    push(layout, referrers_registry, "copy/app:1")
    configuration = tmp_path / "registries.conf"
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(configuration))
    expected = digest_of(f"oci:{layout}")

    def configure(*mirrors: str, location: str = plain_registry.host) -> None:
        text = f'[[registry]]\nprefix = "reg.example/mirrored"\nlocation = "{location}/mirrored"\ninsecure = true\n'
        text += "".join(f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n' for mirror in mirrors)
        configuration.write_text(text, encoding="utf-8")

    configure(f"{referrers_registry.host}/copy", location="127.0.0.1:9")
    assert digest_of("docker://reg.example/mirrored/app:1") == expected
    configure("127.0.0.1:9/down", f"{referrers_registry.host}/none")
    done = mkcfs("build", "docker://reg.example/mirrored/app:1", "--print-digest-only")
    assert done.stdout.decode().strip() == expected
    assert b"docker://127.0.0.1:9/down/app is skipped: " in done.stderr
    assert f"docker://{referrers_registry.host}/none/app is skipped: ".encode() in done.stderr
    configuration.write_text('[[registry]]\nprefix = "reg.example"\nblocked = true\n', encoding="utf-8")
    blocked = mkcfs("inspect", "docker://reg.example/mirrored/app:1", check=False)
    assert blocked.code == 1
    assert b"registries.conf blocks 'reg.example'" in blocked.stderr
