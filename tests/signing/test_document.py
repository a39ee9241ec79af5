"""docs/signatures.md tells the truth: its example is what we make, its commands do what it says."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from cfstools.formats.dump.parse import parse_dump
from cfstools.signing import (
    ImageDigests,
    Verdict,
    judge,
    make_statement,
    make_trailer,
    parse_envelope,
    parse_statement,
    sign_envelope,
)
from cfstools.signing.keys import KeyType, PrivateKey, generate, load_private_key, load_public_key, sign_kernel
from tests.formats.images import write_image
from tests.requirements import REPOSITORY, need_command
from tests.signing.conftest import key_of

DOCUMENT = (REPOSITORY / "docs" / "signatures.md").read_text("utf-8")
GOLDEN = REPOSITORY / "tests" / "golden"
_PART = re.compile(r"<!-- (file|run): (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)
PARTS = {(kind, name): text for kind, name, text in _PART.findall(DOCUMENT)}

KEY = PARTS["file", "key.pem"].encode()
PUBLIC = PARTS["file", "key.pub"].encode()
STATEMENT = PARTS["file", "statement"].removesuffix("\n").encode()
ENVELOPE = PARTS["file", "root.cfs.sig"].removesuffix("\n").encode()
UNPACK, ED25519, COMPARE = (PARTS["run", name] for name in ("unpack", "ed25519", "compare"))


def digests() -> ImageDigests:
    """What the reference tools recorded for the image of the example."""
    with (GOLDEN / "expected.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    row = next(row for row in rows if (row["dump"], row["options"]) == ("001-root-only.dump", "min=0,max=1"))
    return ImageDigests(
        size=int(row["image_size"]),
        sha256=bytes.fromhex(row["image_sha256"]),
        fsverity=bytes.fromhex(row["fsverity_digest"]),
    )


def image() -> bytes:
    return bytes(write_image(parse_dump((GOLDEN / "dumps" / "001-root-only.dump").read_bytes())))


def run(directory: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    need_command("bash", "openssl", "sed", "sha256sum")
    script = "set -e -o pipefail\n" + "".join(commands)
    return subprocess.run(["bash", "-c", script], cwd=directory, capture_output=True, text=True, check=False)


def prepare(directory: Path, key: PrivateKey, envelope: bytes) -> None:
    (directory / "root.cfs").write_bytes(image())
    (directory / "root.cfs.sig").write_bytes(envelope)
    (directory / "key.pub").write_bytes(key.verifier.pem())


def test_the_example_key() -> None:
    key = PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    assert key.pem() == KEY
    assert key.verifier.pem() == PUBLIC
    assert f"key id is `{key.key_id}`" in DOCUMENT


def test_the_example_is_what_we_make() -> None:
    assert make_statement(b"root.cfs", digests(), "v0-sha256-12") == STATEMENT
    assert sign_envelope(STATEMENT, [load_private_key(KEY)]) == ENVELOPE
    assert f"The statement, {len(STATEMENT)} bytes" in DOCUMENT
    assert f"vnd.in-toto+json {len(STATEMENT)} `" in DOCUMENT
    assert f"The envelope, {len(ENVELOPE)} bytes" in DOCUMENT
    assert f"example has {len(make_trailer(16384, ENVELOPE))} bytes" in DOCUMENT
    assert parse_envelope(ENVELOPE).payload == STATEMENT
    assert parse_statement(STATEMENT).size == len(image())


def test_the_example_verifies() -> None:
    assert judge(ENVELOPE, digests(), [load_public_key(PUBLIC)]).state is Verdict.VERIFIED


@pytest.mark.parametrize("state", Verdict)
def test_every_state_is_explained(state: Verdict) -> None:
    assert f"| `{state.value}` |" in DOCUMENT


def test_openssl_verifies_the_example(tmp_path: Path) -> None:
    prepare(tmp_path, load_private_key(KEY), ENVELOPE)
    done = run(tmp_path, UNPACK, ED25519, COMPARE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Signature Verified Successfully", "signed for this image"]
    assert (tmp_path / "signed").read_bytes() == parse_envelope(ENVELOPE).signed_bytes


@pytest.mark.parametrize("kind", KeyType)
def test_openssl_verifies_every_type_of_key_among_others(kind: KeyType, tmp_path: Path) -> None:
    key = key_of(kind)
    prepare(tmp_path, key, sign_envelope(STATEMENT, [key, generate(), generate(KeyType.P256)]))
    assert run(tmp_path, UNPACK).returncode == 0
    commands = ED25519 if kind is KeyType.ED25519 else PARTS["run", "digest"]
    if kind is KeyType.P384:
        commands = commands.replace("-sha256", "-sha384")
    done = run(tmp_path, commands)
    assert done.returncode == 0, done.stderr
    (tmp_path / "signed").write_bytes(parse_envelope(ENVELOPE).signed_bytes.replace(b"16384", b"16385"))
    assert run(tmp_path, commands).returncode != 0


def test_openssl_and_another_image(tmp_path: Path) -> None:
    prepare(tmp_path, load_private_key(KEY), ENVELOPE)
    (tmp_path / "root.cfs").write_bytes(image()[:-1] + b"x")
    done = run(tmp_path, UNPACK, ED25519, COMPARE)
    assert done.returncode != 0
    assert "signed for" not in done.stdout


def test_the_kernel_signature(tmp_path: Path, rsa: PrivateKey) -> None:
    need_command("fsverity", "openssl")
    (tmp_path / "root.cfs").write_bytes(image())
    (tmp_path / "kernel.pem").write_bytes(rsa.pem())
    request = ["openssl", "req", "-x509", "-new", "-key", "kernel.pem", "-out", "kernel.crt", "-subj", "/CN=kernel"]
    subprocess.run(request, cwd=tmp_path, check=True, capture_output=True)
    done = run(tmp_path, PARTS["run", "kernel"])
    assert done.returncode == 0, done.stderr
    fsverity = digests().fsverity
    assert fsverity is not None
    ours = sign_kernel(fsverity, 1, rsa, (tmp_path / "kernel.crt").read_bytes())
    assert (tmp_path / "root.cfs.p7s").read_bytes() == ours
