"""Keys, signing and verifying as a user meets them: lines, exit codes, passphrases."""

from __future__ import annotations

import base64
import importlib
import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfstools.signing import make_trailer
from cfstools.strictjson import dump_canonical
from tests.mkcfs import COMMAND, mkcfs
from tests.reference import Completed

SECRET = "open sesame"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tree, its image and store, and three pairs of keys."""
    made = tmp_path_factory.mktemp("trust")
    (made / "rootfs/etc").mkdir(parents=True)
    (made / "rootfs/etc/hostname").write_text("host\n")
    (made / "rootfs/etc/large").write_bytes(b"x" * 5000)
    mkcfs("build", made / "rootfs", made / "image.cfs", "--store", made / "objects")
    for name, *options in (["a"], ["b", "--type", "ecdsa-p256"], ["c"]):
        mkcfs("keygen", made / name, "--no-passphrase", *options)
    return made


@pytest.fixture(scope="session")
def prepared_signature(prepared: Path) -> bytes:
    copy = prepared.with_name("signed")
    shutil.copytree(prepared, copy)
    mkcfs("sign", copy / "image.cfs", "--key", copy / "a.key")
    return (copy / "image.cfs.sig").read_bytes()


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that directory, made the current one."""
    monkeypatch.delenv("MKCFS_PASSPHRASE", raising=False)
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def signed(place: Path, prepared_signature: bytes) -> Path:
    """The same, with a signature by ``a.key``."""
    (place / "image.cfs.sig").write_bytes(prepared_signature)
    return place


def key_id(name: str) -> str:
    command = ["openssl", "pkey", "-pubin", "-in", f"{name}.pub", "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    return subprocess.run(["sha256sum"], input=der, check=True, capture_output=True).stdout.decode().split()[0]


def failed(*words: str) -> list[str]:
    """Verify with exit code 3 and nothing on standard error; returns the lines, checked to name the image."""
    done = mkcfs("verify", "image.cfs", *words, check=False)
    assert done.code == 3, done.stderr.decode()
    assert done.stderr == b""
    lines = done.stdout.decode().splitlines()
    assert all(line.startswith("image.cfs: ") for line in lines)
    assert lines[-1].startswith("image.cfs: FAILED: ")
    # JSON says the same with the same code.
    done = mkcfs("verify", "image.cfs", *words, "--json", check=False)
    assert done.code == 3
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert report["problem_count"] == len(report["problems"]) == len(lines) - 1
    return lines


def refused(*words: str | bytes | Path, code: int) -> str:
    done = mkcfs(*words, check=False)
    assert done.code == code, done.stderr.decode()
    assert done.stdout == b""
    said = done.stderr.decode()
    assert said.startswith("mkcfs: ")
    assert "Traceback" not in said
    return said


def envelope() -> dict[str, Any]:
    body = json.loads(Path("image.cfs.sig").read_bytes())
    assert isinstance(body, dict)
    return body


def write_envelope(body: dict[str, Any]) -> None:
    Path("image.cfs.sig").write_bytes(dump_canonical(body))


# What is right


def test_the_whole_way(place: Path) -> None:
    assert mkcfs("sign", "image.cfs", "--key", "a.key") == Completed(0, b"", b"")
    done = mkcfs("verify", "image.cfs", "--key", "a.pub", "--store", "objects", "--canonical")
    expected = f"signature verified by Ed25519 key {key_id('a')}, structure ok, canonical, 1 object intact"
    assert done.stdout.decode() == f"image.cfs: ok: {expected}\n"
    assert done.stderr == b""


def test_build_and_sign_in_one(place: Path) -> None:
    mkcfs("build", "rootfs", "new.cfs", "--store", "objects", "--sign-key", "a.key", "--sign-key", "b.key")
    done = mkcfs(
        "verify", "new.cfs", "--key", "a.pub", "--key", "b.pub", "--threshold", "2", "--shallow", "--store=objects"
    )
    assert b"Ed25519 key" in done.stdout
    assert b" and " in done.stdout
    assert b"ECDSA P-256 key" in done.stdout
    assert b"1 object present" in done.stdout
    said = mkcfs("-v", "build", "rootfs", "att.cfs", "--sign-key", "a.key", "--attach").stderr.decode()
    assert f"att.cfs: signed by {key_id('a')}" in said
    assert not Path("att.cfs.sig").exists()
    assert Path("att.cfs").read_bytes().startswith(Path("image.cfs").read_bytes())
    mkcfs("verify", "att.cfs", "--key", "a.pub")
    report = json.loads(mkcfs("build", "rootfs", "j.cfs", "--sign-key", "c.key", "--json").stdout)
    assert (report["signature"], report["key_ids"]) == ("j.cfs.sig", [key_id("c")])


def test_a_missing_signing_key_is_found_out_before_any_work(place: Path) -> None:
    assert "nowhere.key" in refused("build", "rootfs", "new.cfs", "--store=new", "--sign-key=nowhere.key", code=1)
    assert not Path("new.cfs").exists()
    assert not Path("new").exists()


def test_states_without_key_and_store(signed: Path) -> None:
    assert mkcfs("verify", "image.cfs").stdout == (
        b"image.cfs: ok: signature not checked, structure ok, objects not checked\n"
    )
    Path("image.cfs.sig").unlink()
    assert mkcfs("verify", "image.cfs").stdout == (
        b"image.cfs: ok: signature missing, structure ok, objects not checked\n"
    )


def test_inspect_shows_signatures(signed: Path) -> None:
    assert (
        f"signature: beside, not checked, claims to be by {key_id('a')}\n"
        in mkcfs("inspect", "image.cfs").stdout.decode()
    )
    mkcfs("sign", "image.cfs", "--key", "b.key", "--attach")
    assert (
        f"signature: attached, not checked, claims to be by {key_id('b')}\n"
        in mkcfs("inspect", "image.cfs").stdout.decode()
    )
    report = json.loads(mkcfs("inspect", "image.cfs", "--json").stdout)
    assert [one["place"] for one in report["signatures"]] == ["attached", "beside"]
    Path("image.cfs.sig").write_text('{"payload": 1}')
    assert "signature: beside, damaged: envelope: " in mkcfs("inspect", "image.cfs").stdout.decode()
    body = {
        "payload": "eA==",
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"keyid": "\x1b]0;x\x07", "sig": "eA=="}],
    }
    write_envelope(body)
    assert b"claims to be by \\x1b]0;x\\x07\n" in mkcfs("inspect", "image.cfs").stdout
    Path("image.cfs.sig").unlink()
    mkcfs("sign", "image.cfs", "--remove")
    assert "signature: none\n" in mkcfs("inspect", "image.cfs").stdout.decode()


def test_sign_says_what_it_did_when_asked(place: Path) -> None:
    said = mkcfs("-v", "sign", "image.cfs", "--key", "a.key").stderr.decode()
    assert said == f"image.cfs.sig: signed by Ed25519 key {key_id('a')}\n"
    before = os.stat("image.cfs.sig")
    said = mkcfs("-v", "sign", "image.cfs", "--key", "a.key").stderr.decode()
    assert said == f"image.cfs.sig: was already signed by Ed25519 key {key_id('a')}\n"
    assert os.stat("image.cfs.sig").st_mtime_ns == before.st_mtime_ns
    report = json.loads(mkcfs("sign", "image.cfs", "--key", "a.key", "--json").stdout)
    assert (report["changed"], report["place"], report["signature"]) == (False, "beside", "image.cfs.sig")
    assert json.loads(mkcfs("sign", "image.cfs", "--remove", "--json").stdout)["removed"] == ["image.cfs.sig"]
    assert mkcfs("-v", "sign", "image.cfs", "--remove").stderr == b"no signature to remove\n"


def test_the_kernels_signature_equals_that_of_openssl(place: Path) -> None:
    mkcfs("keygen", "kernel", "--no-passphrase", "--type", "rsa")
    request = ["openssl", "req", "-x509", "-new", "-key", "kernel.key", "-out", "kernel.crt", "-subj", "/CN=kernel"]
    subprocess.run(request, check=True, capture_output=True)
    mkcfs("sign", "image.cfs", "--kernel", "--key", "kernel.key", "--cert", "kernel.crt")
    digest = bytes.fromhex(mkcfs("digest", "--compact", "image.cfs").stdout.decode())
    command = ["openssl", "smime", "-sign", "-binary", "-noattr", "-nocerts", "-outform", "DER", "-md", "sha256"]
    theirs = subprocess.run(
        [*command, "-signer", "kernel.crt", "-inkey", "kernel.key"],
        input=b"FSVerity\1\0\40\0" + digest,
        check=True,
        capture_output=True,
    ).stdout
    assert Path("image.cfs.p7s").read_bytes() == theirs


# Digests


def test_expected_digests(place: Path) -> None:
    digest = mkcfs("digest", "--compact", "image.cfs").stdout.decode().strip()
    for words in (["--digest", digest], ["--digest", f"sha256:{digest.upper()}"]):
        assert b": ok: digest ok, signature missing, " in mkcfs("verify", "image.cfs", *words).stdout
    Path("digests").write_bytes(mkcfs("digest", "image.cfs", "a.pub").stdout)
    assert b"digest ok" in mkcfs("verify", "image.cfs", "--digest-file", "digests").stdout
    wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
    lines = failed("--digest", wrong, "--store", "objects")
    assert lines[0] == f"image.cfs: digest: the image has the fs-verity digest {digest}, not {wrong}"
    assert lines[1] == (
        "image.cfs: FAILED: 1 problem: digest mismatch, signature missing, structure not checked, objects not checked"
    )


# Every tampering, each with its line


def other_image_envelope(_place: Path) -> None:
    Path("rootfs/new").write_text("new")
    mkcfs("build", "rootfs", "other.cfs", "--sign-key", "a.key")
    shutil.copyfile("other.cfs.sig", "image.cfs.sig")


def no_signatures(_place: Path) -> None:
    write_envelope({**envelope(), "signatures": []})


def twice(_place: Path) -> None:
    body = envelope()
    write_envelope({**body, "signatures": body["signatures"] * 2})


def exchanged(_place: Path) -> None:
    mkcfs("sign", "image.cfs", "--key", "c.key")
    body = envelope()
    first, second = body["signatures"]
    first["sig"], second["sig"] = second["sig"], first["sig"]
    write_envelope(body)


def another_payload_type(_place: Path) -> None:
    write_envelope({**envelope(), "payloadType": "application/vnd.composefs"})


def another_payload(_place: Path) -> None:
    body = envelope()
    payload = base64.b64decode(body["payload"]).replace(b"image.cfs", b"trust.cfs")
    write_envelope({**body, "payload": base64.b64encode(payload).decode()})


def another_predicate(_place: Path) -> None:
    """The key has really signed this, but it is not a statement about an image."""
    from cfstools.signing import sign_envelope
    from cfstools.signing.keys import read_private_key

    payload = base64.b64decode(envelope()["payload"]).replace(b"urn:cfstools:composefs-image:v1", b"urn:other")
    Path("image.cfs.sig").write_bytes(sign_envelope(payload, [read_private_key(b"a.key")]))


def no_envelope(_place: Path) -> None:
    Path("image.cfs.sig").unlink()


def empty_envelope(_place: Path) -> None:
    Path("image.cfs.sig").write_bytes(b"")


def huge_envelope(_place: Path) -> None:
    Path("image.cfs.sig").write_bytes(b" " * (2 << 20))


def cut_envelope(_place: Path) -> None:
    Path("image.cfs.sig").write_bytes(Path("image.cfs.sig").read_bytes()[:-10])


def changed_image(_place: Path) -> None:
    data = bytearray(Path("image.cfs").read_bytes())
    data[5000] ^= 1
    Path("image.cfs").write_bytes(data)


def longer_image(_place: Path) -> None:
    with Path("image.cfs").open("ab") as file:
        file.write(b"x" * 4096)  # zeros would be padding


def cut_image(_place: Path) -> None:
    Path("image.cfs").write_bytes(Path("image.cfs").read_bytes()[:-100])


def cut_trailer(_place: Path) -> None:
    mkcfs("sign", "image.cfs", "--key", "a.key", "--attach")
    Path("image.cfs.sig").unlink()
    Path("image.cfs").write_bytes(Path("image.cfs").read_bytes()[:-20])


def stripped_trailer(_place: Path) -> None:
    mkcfs("sign", "image.cfs", "--key", "a.key", "--attach")
    Path("image.cfs.sig").unlink()
    Path("image.cfs").write_bytes(Path("image.cfs").read_bytes()[:-1024])


def foreign_trailer(place: Path) -> None:
    other_image_envelope(place)
    data = Path("image.cfs").read_bytes()
    Path("image.cfs").write_bytes(data + make_trailer(len(data), Path("image.cfs.sig").read_bytes()))
    Path("image.cfs.sig").unlink()


TAMPERINGS: list[tuple[Callable[[Path], None], str, str]] = [
    (other_image_envelope, "mismatch", "the signature holds, but it is for an image "),
    (no_signatures, "mismatch", "envelope: there is no signature in it"),
    (exchanged, "mismatch", "is not its signature of this statement"),
    (another_payload_type, "mismatch", "envelope: payloadType is 'application/vnd.composefs'"),
    (another_payload, "mismatch", "is not its signature of this statement"),
    (another_predicate, "mismatch", "statement: predicateType is 'urn:other'"),
    (no_envelope, "missing", "there is no signature"),
    (empty_envelope, "mismatch", "envelope: "),
    (huge_envelope, "mismatch", "envelope: "),
    (cut_envelope, "mismatch", "envelope: "),
    (changed_image, "mismatch", "the signature holds, but it is for an image with "),
    (longer_image, "mismatch", "the signature holds, but it is for an image of "),
    (cut_image, "mismatch", "no multiple of 4096, and no whole signature behind the image"),
    (cut_trailer, "mismatch", "no multiple of 4096, and no whole signature behind the image"),
    (stripped_trailer, "missing", "there is no signature"),
    (foreign_trailer, "mismatch", "the signature holds, but it is for an image "),
]


@pytest.mark.parametrize("tampering", TAMPERINGS, ids=[tampering[0].__name__ for tampering in TAMPERINGS])
def test_tampering(tampering: tuple[Callable[[Path], None], str, str], signed: Path) -> None:
    tamper, state, line = tampering
    tamper(signed)
    lines = failed("--key", "a.pub", "--store", "objects")
    assert lines[0].startswith("image.cfs: signature: ")
    assert line in lines[0]
    assert lines[-1].endswith(
        f"problem{'s' * (len(lines) > 2)}: signature {state}, structure not checked, objects not checked"
    )


def test_a_key_of_another_type(signed: Path) -> None:
    lines = failed("--key", "b.pub")
    assert (
        f"0 of 1 required signatures hold; made by unknown keys: {key_id('a')}; keys given: {key_id('b')}" in lines[0]
    )
    assert "signature unknown key" in lines[-1]


def test_a_signature_counts_once(signed: Path) -> None:
    mkcfs("verify", "image.cfs", "--key", "a.pub")
    twice(signed)
    lines = failed("--key", "a.pub", "--key", "c.pub", "--threshold", "2")
    assert "1 of 2 required signatures hold; duplicates, counted once" in lines[0]


def test_the_order_of_signatures_means_nothing(signed: Path) -> None:
    mkcfs("sign", "image.cfs", "--key", "b.key")
    body = envelope()
    write_envelope({**body, "signatures": body["signatures"][::-1]})
    mkcfs("verify", "image.cfs", "--key", "a.pub", "--key", "b.pub", "--threshold", "2")


def test_objects(signed: Path) -> None:
    (path,) = [path for path in Path("objects").glob("??/*") if path.is_file()]
    data = path.read_bytes()
    words = ["--key", "a.pub", "--store", "objects"]
    path.write_bytes(b"y" + data[1:])
    lines = failed(*words)
    assert re.fullmatch(
        rf"image\.cfs: damaged: /etc/large: object {path}: its fs-verity digest is [0-9a-f]{{64}}", lines[0]
    )
    states = f"signature verified by Ed25519 key {key_id('a')}, structure ok, 0 of 1 object intact"
    assert lines[1] == f"image.cfs: FAILED: 1 problem: {states}"
    path.write_bytes(data[1:])
    assert failed(*words)[0] == f"image.cfs: size: /etc/large: object {path}: it has 4999 bytes instead of 5000"
    path.unlink()
    relative = path.relative_to("objects")
    assert failed(*words)[0] == f"image.cfs: missing: /etc/large: object {relative}: it is in none of the stores"
    assert "0 of 1 object present" in failed(*words, "--shallow")[-1]


def test_structure_problems_are_all_listed(place: Path) -> None:
    data = bytearray(Path("image.cfs").read_bytes())
    for offset in (20, 1024 + 120):
        data[offset] ^= 1
    Path("image.cfs").write_bytes(data)
    lines = failed("--canonical")
    assert [line.split(": ")[1] for line in lines[:-1]] == ["structure", "structure", "canonical"]
    assert "3 problems: signature missing, structure wrong, not canonical, objects not checked" in lines[-1]


def test_warnings_are_no_problems(place: Path) -> None:
    entries = "".join(f"/f{number:02} 1 100644 3 0 0 0 0.0 - x -\n" for number in range(12))
    Path("tree.dump").write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n" + entries)
    mkcfs("build", "--from-file", "tree.dump", "image.cfs")
    done = mkcfs("verify", "image.cfs")
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 11
    assert all(line.startswith("mkcfs: warning: image.cfs: ") for line in lines)
    assert "link count 3" in lines[0]
    assert "and 2 more warnings" in lines[-1]
    assert mkcfs("-q", "verify", "image.cfs").stderr == b""


def test_more_problems_than_are_listed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cfstools.cli.app import run

    monkeypatch.setattr(importlib.import_module("cfstools.api.verify"), "MAX_PROBLEMS", 1)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    shutil.copytree("rootfs/etc", "rootfs/more")
    Path("rootfs/more/large").write_bytes(b"z" * 5000)
    mkcfs("build", "rootfs", "image.cfs")
    Path("empty").mkdir()
    assert run(["verify", "image.cfs", "--store", "empty"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "image.cfs: and 1 problem more"
    assert said[2].startswith("image.cfs: FAILED: 2 problems: ")


# Usage


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "image.cfs", "--threshold", "2"],
        ["verify", "image.cfs", "--threshold", "0", "--key", "a.pub"],
        ["verify", "image.cfs", "--key", "a.pub", "--threshold", "2"],
        ["verify", "image.cfs", "--key", "a.pub", "--key", "a.pub", "--threshold", "2"],
        ["verify", "image.cfs", "--digest", "xyz"],
        ["verify", "image.cfs", "--digest", "ab"],
        ["verify", "image.cfs", "--digest", "00" * 32, "--digest-file", "a.pub"],
        ["verify", "image.cfs", "--shallow"],
        ["sign", "image.cfs"],
        ["sign", "image.cfs", "--remove", "--key", "a.key"],
        ["sign", "image.cfs", "--key", "a.key", "--attach", "--signature", "x"],
        ["sign", "image.cfs", "--key", "a.key", "--kernel"],
        ["sign", "image.cfs", "--key", "a.key", "--cert", "a.pub"],
        ["sign", "image.cfs", "--key", "a.key", "--passphrase-file", "a.pub", "--passphrase-fd", "0"],
        ["build", "rootfs", "x.cfs", "--attach"],
        ["build", "rootfs", "x.cfs", "--passphrase-fd", "0"],
        ["build", "rootfs", "-", "--sign-key", "a.key"],
        ["build", "rootfs", "--print-digest-only", "--sign-key", "a.key"],
        ["keygen", "new", "--type", "dsa"],
        ["keygen", "new", "--bits", "4096"],
        ["keygen", "new", "--type", "rsa", "--bits", "2048"],
        ["keygen", "new", "--no-passphrase", "--passphrase-file", "a.pub"],
        ["keygen", "new", "--passphrase-file", "/dev/null"],
        ["keygen", ""],
    ],
    ids=" ".join,
)
def test_usage_errors(words: list[str], place: Path) -> None:
    before = sorted(path.name for path in place.iterdir())
    done = mkcfs(*words, check=False)
    assert done.code == 2, done.stderr.decode()
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert sorted(path.name for path in place.iterdir()) == before


def test_keys_that_cannot_be_used(signed: Path) -> None:
    assert "a.key: there is no public key" in refused("verify", "image.cfs", "--key", "a.key", code=1)
    assert "a.pub: there is no private key" in refused("sign", "image.cfs", "--key", "a.pub", code=1)
    assert "image.cfs" in refused("sign", "image.cfs", "--key", "image.cfs", code=1)
    weak = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", "weak.key"]
    subprocess.run(weak, check=True, capture_output=True)
    assert "weak.key: the RSA key has 1024 bits" in refused("sign", "image.cfs", "--key", "weak.key", code=1)


def test_keys_from_openssl_and_from_pipes(place: Path) -> None:
    subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", "o.key"], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", "o.key", "-pubout", "-out", "o.pub"], check=True, capture_output=True)
    mkcfs("sign", "image.cfs", "--key", "/dev/stdin", stdin=Path("o.key").read_bytes())
    mkcfs("verify", "image.cfs", "--key", "/dev/stdin", stdin=Path("o.pub").read_bytes())


def test_a_signature_never_replaces_the_image(place: Path) -> None:
    before = Path("image.cfs").read_bytes()
    Path("link.cfs").symlink_to("image.cfs")
    for name in ("image.cfs", "./link.cfs"):
        said = refused("sign", "image.cfs", "--key", "a.key", "-o", name, code=2)
        assert f"mkcfs: {name}: is the image itself" in said
    assert Path("image.cfs").read_bytes() == before


# Making keys


def test_keygen_prints_the_key_and_never_overwrites(place: Path) -> None:
    done = mkcfs("keygen", "new", "--no-passphrase", "--type", "ecdsa-p384")
    assert done.stdout.decode() == f"new.pub: ECDSA P-384 key {key_id('new')}\n"
    assert stat.S_IMODE(os.stat("new.key").st_mode) == 0o600
    before = Path("new.key").read_bytes()
    said = refused("keygen", "new", "--no-passphrase", code=1)
    assert "new.key: will not be overwritten" in said
    assert "hint: " in said
    assert Path("new.key").read_bytes() == before
    report = json.loads(mkcfs("keygen", "rsa", "--type", "rsa", "--bits", "3072", "--no-passphrase", "--json").stdout)
    assert (report["algorithm"], report["encrypted"]) == ("RSA-3072", False)
    assert mkcfs("-v", "keygen", "plain", "--no-passphrase").stderr == b"plain.key: not encrypted\n"


def test_a_key_is_left_unencrypted_only_when_told_so(place: Path) -> None:
    said = refused("keygen", "new", code=2)
    assert "there is no terminal to ask" in said
    assert "--passphrase-file" in said
    assert "--no-passphrase" in said
    assert not Path("new.key").exists()


# Passphrases


def with_descriptor(*words: str, secret: str = SECRET) -> subprocess.CompletedProcess[bytes]:
    reading, writing = os.pipe()
    os.write(writing, secret.encode() + b"\nnot this line\n")
    os.close(writing)
    try:
        command = [*COMMAND, *words, "--passphrase-fd", str(reading)]
        return subprocess.run(command, pass_fds=[reading], capture_output=True, check=False)
    finally:
        os.close(reading)


def on_terminal(*words: str, answers: list[str]) -> tuple[int, str]:
    """Run on a terminal of its own, answer each prompt, return the exit code and all that was shown."""
    master, slave = pty.openpty()
    command = ["sh", "-c", 'tty=$0; exec "$@" <"$tty" >"$tty" 2>&1', os.ttyname(slave), *COMMAND, *words]
    process = subprocess.Popen(command, start_new_session=True)
    shown = b""
    pending = [answer.encode() + b"\n" for answer in answers]
    end = time.monotonic() + 60
    while process.poll() is None or select.select([master], [], [], 0)[0]:
        assert time.monotonic() < end, shown
        if not select.select([master], [], [], 0.05)[0]:
            continue
        shown += os.read(master, 4096)
        if pending and shown.endswith(b": "):
            os.write(master, pending.pop(0))
            shown += b"\n"
    os.close(slave)
    os.close(master)
    assert not pending, shown
    return process.returncode, shown.decode()


@pytest.fixture
def locked(place: Path) -> Path:
    """With a key that is encrypted."""
    Path("secret").write_text(f"{SECRET}\nnot this line\n")
    mkcfs("keygen", "locked", "--passphrase-file", "secret")
    assert b"ENCRYPTED PRIVATE KEY" in Path("locked.key").read_bytes()
    return place


def test_passphrase_from_a_file(locked: Path) -> None:
    mkcfs("sign", "image.cfs", "--key", "locked.key", "--passphrase-file", "secret")
    mkcfs("verify", "image.cfs", "--key", "locked.pub")
    mkcfs("build", "rootfs", "new.cfs", "--sign-key", "locked.key", "--passphrase-file", "secret")
    mkcfs("verify", "new.cfs", "--key", "locked.pub")
    Path("crlf").write_text(f"{SECRET}\r\n")
    mkcfs("sign", "image.cfs", "--key", "locked.key", "--passphrase-file", "crlf")


def test_passphrase_from_a_descriptor(locked: Path) -> None:
    done = with_descriptor("sign", "image.cfs", "--key", "locked.key")
    assert done.returncode == 0, done.stderr
    mkcfs("verify", "image.cfs", "--key", "locked.pub")
    assert with_descriptor("keygen", "another").returncode == 0
    mkcfs("sign", "image.cfs", "--key", "another.key", "--passphrase-file", "secret")
    assert "cannot read: Bad file descriptor" in refused(
        "sign", "image.cfs", "--key", "locked.key", "--passphrase-fd", "99", code=1
    )


def test_passphrase_from_the_environment(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKCFS_PASSPHRASE", SECRET)
    mkcfs("sign", "image.cfs", "--key", "locked.key")
    mkcfs("sign", "image.cfs", "--key", "a.key")  # not encrypted: the passphrase is of no use, and that is fine
    mkcfs("verify", "image.cfs", "--key", "locked.pub")
    mkcfs("keygen", "another")
    assert b"ENCRYPTED" in Path("another.key").read_bytes()
    mkcfs("keygen", "open", "--no-passphrase")
    assert b"ENCRYPTED" not in Path("open.key").read_bytes()
    monkeypatch.setenv("MKCFS_PASSPHRASE", "wrong")
    said = refused("sign", "image.cfs", "--key", "locked.key", code=1)
    assert "locked.key: wrong passphrase" in said
    assert SECRET not in said


def test_passphrase_from_the_terminal(locked: Path) -> None:
    code, shown = on_terminal("sign", "image.cfs", "--key", "locked.key", answers=[SECRET])
    assert code == 0, shown
    assert "Passphrase of locked.key: " in shown
    assert SECRET not in shown
    mkcfs("verify", "image.cfs", "--key", "locked.pub")
    code, shown = on_terminal("sign", "image.cfs", "--key", "locked.key", answers=["wrong"])
    assert code == 1
    assert "wrong passphrase" in shown


def test_a_new_key_asks_twice_on_the_terminal(place: Path) -> None:
    code, shown = on_terminal("keygen", "new", answers=[SECRET, SECRET])
    assert code == 0, shown
    assert "The same again: " in shown
    Path("secret").write_text(SECRET)
    mkcfs("sign", "image.cfs", "--key", "new.key", "--passphrase-file", "secret")
    code, shown = on_terminal("keygen", "other", answers=[SECRET, "something else"])
    assert code == 2
    assert "the two passphrases differ" in shown
    assert not Path("other.key").exists()
    code, shown = on_terminal("keygen", "open", answers=[""])
    assert code == 0, shown
    assert b"ENCRYPTED" not in Path("open.key").read_bytes()


def test_no_passphrase_and_nobody_to_ask(locked: Path) -> None:
    said = refused("sign", "image.cfs", "--key", "locked.key", code=1)
    assert "locked.key: the private key is encrypted" in said
    assert "hint: give it with --passphrase-file, --passphrase-fd or MKCFS_PASSPHRASE" in said
    assert not Path("image.cfs.sig").exists()


def test_a_passphrase_is_never_an_argument() -> None:
    for verb in ("sign", "keygen", "build"):
        said = mkcfs(verb, "--help").stdout.decode()
        assert "--passphrase-file" in said
        assert "--passphrase " not in said
