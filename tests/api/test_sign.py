"""Keys are made whole, signatures are added, kept and taken off, and only what is valid is signed."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.api.inspect import inspect
from cfstools.api.keygen import keygen
from cfstools.api.sign import remove_signatures, sign, sign_for_kernel
from cfstools.api.verify import verify
from cfstools.errors import (
    ImageError,
    InputError,
    KeyUnusable,
    LimitExceeded,
    PassphraseNeeded,
    SignatureInvalid,
    UsageError,
)
from cfstools.signing import Verdict
from cfstools.signing.keys import KeyType, read_private_key, read_public_key, sign_kernel
from cfstools.signing.new_image import Signing
from cfstools.sources.image_file import MAX_IMAGE_FILE, read_image_file
from cfstools.verity import Algorithm, digest_bytes
from tests.api.trust import Place, key_of, make_place

ED25519 = KeyType.ED25519


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def held(path: Path) -> tuple[int, int, bytes]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


# Keys


@pytest.mark.parametrize("kind", KeyType)
@pytest.mark.parametrize("passphrase", [None, "pässword".encode()])
def test_new_keys_are_read_back(kind: KeyType, passphrase: bytes | None, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path / "k")
    report = keygen(name, kind=kind, passphrase=passphrase)
    assert stat.S_IMODE((tmp_path / "k.key").stat().st_mode) == 0o600
    public = read_public_key(name + b".pub")
    assert report.key_id == public.key_id
    assert report.algorithm == public.algorithm
    assert read_private_key(name + b".key", passphrase).key_id == public.key_id
    assert report.encrypted == (passphrase is not None)
    label = b"ENCRYPTED PRIVATE KEY" if passphrase else b"-----BEGIN PRIVATE KEY"
    assert label in (tmp_path / "k.key").read_bytes()
    if passphrase:
        with pytest.raises(PassphraseNeeded, match=r"k\.key"):
            read_private_key(name + b".key")
        with pytest.raises(KeyUnusable, match="wrong passphrase"):
            read_private_key(name + b".key", b"another")


def test_openssl_reads_new_keys(tmp_path: Path) -> None:
    keygen(os.fsencode(tmp_path / "k"), passphrase=b"secret")
    command = ["openssl", "pkey", "-in", "k.key", "-passin", "pass:secret", "-pubout"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout == (tmp_path / "k.pub").read_bytes()


@pytest.mark.parametrize("taken", ["k.key", "k.pub"])
def test_an_existing_key_is_never_overwritten(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(InputError, match=rf"{taken}: will not be overwritten: File exists"):
        keygen(os.fsencode(tmp_path / "k"))
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def test_no_key_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        keygen(os.fsencode(tmp_path / "nowhere/k"))


def test_a_full_disk_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"k\.key: cannot write: No space left"):
        keygen(os.fsencode(tmp_path / "k"))
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keygen(os.fsencode(tmp_path / "k"))
    assert list(tmp_path.iterdir()) == []


def interrupted(_fd: int) -> None:
    raise KeyboardInterrupt


def test_sizes_and_passphrases_no_key_can_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2048 bits"):
        keygen(os.fsencode(tmp_path / "k"), kind=KeyType.RSA, rsa_bits=2048)
    with pytest.raises(UsageError, match="passphrase"):
        keygen(os.fsencode(tmp_path / "k"), passphrase=b"")
    assert list(tmp_path.iterdir()) == []


# Signing


@pytest.mark.parametrize("kind", KeyType)
@pytest.mark.parametrize("attach", [False, True], ids=["beside", "attached"])
def test_every_key_type_in_both_places(kind: KeyType, attach: bool, place: Place) -> None:
    key = key_of(kind)
    before = place.image_file.read_bytes()
    report = sign(place.image, [key], attach=attach)
    assert report.changed
    assert report.key_ids == (key.key_id,)
    assert report.digest == digest_bytes(before).hex()
    assert place.image_file.read_bytes().startswith(before)
    assert (place.image_file.read_bytes() == before) != attach
    assert place.signature_file.exists() != attach
    found = verify(place.image, keys=[key.verifier], stores=[place.store])
    assert found.ok
    assert found.signature.state is Verdict.VERIFIED
    assert found.signature.verified_by == (key.key_id,)
    assert found.signature_place is not None
    assert found.signature_place.value == report.place == ("attached" if attach else "beside")
    (shown,) = inspect(place.image).signatures
    assert shown.place is found.signature_place
    assert shown.report.state is Verdict.NOT_CHECKED
    assert shown.report.signatures[0].key_id == key.key_id


@pytest.mark.parametrize("attach", [False, True])
@pytest.mark.parametrize("kind", KeyType)
def test_signing_twice_does_not_even_write(kind: KeyType, attach: bool, place: Place) -> None:
    sign(place.image, [key_of(kind)], attach=attach)
    written = place.image_file if attach else place.signature_file
    before = held(written)
    assert not sign(place.image, [key_of(kind)], attach=attach).changed
    assert held(written) == before


def test_several_keys_at_once_or_later_give_the_same_envelope(place: Place) -> None:
    first, second = key_of(ED25519), key_of(KeyType.RSA)
    sign(place.image, [first, second])
    together = place.signature_file.read_bytes()
    remove_signatures(place.image)
    sign(place.image, [second])
    sign(place.image, [first])
    assert place.signature_file.read_bytes() == together
    keys = [first.verifier, second.verifier]
    assert verify(place.image, keys=keys, threshold=2).signature.verified_by == tuple(sorted(k.key_id for k in keys))


def test_another_file_for_the_signature(place: Place) -> None:
    where = place.root / "elsewhere"
    report = sign(place.image, [key_of(ED25519)], output=os.fsencode(where))
    assert report.signature == str(where)
    assert not place.signature_file.exists()
    keys = [key_of(ED25519).verifier]
    assert verify(place.image, keys=keys, signature=os.fsencode(where)).ok
    assert verify(place.image, keys=keys).signature.state is Verdict.MISSING
    assert remove_signatures(place.image, output=os.fsencode(where)).removed == (str(where),)
    assert not where.exists()


def test_attaching_keeps_permissions_and_removing_gives_the_image_back(place: Place) -> None:
    before = place.image_file.read_bytes()
    place.image_file.chmod(0o640)
    sign(place.image, [key_of(ED25519)], attach=True)
    sign(place.image, [key_of(ED25519)])
    assert stat.S_IMODE(place.image_file.stat().st_mode) == 0o640
    assert remove_signatures(place.image).removed == (str(place.image_file), str(place.signature_file))
    assert place.image_file.read_bytes() == before
    assert stat.S_IMODE(place.image_file.stat().st_mode) == 0o640
    assert not place.signature_file.exists()
    assert remove_signatures(place.image).removed == ()


def test_an_image_of_sha512(place: Place) -> None:
    place.build(algorithm=Algorithm.SHA512)
    report = sign(place.image, [key_of(ED25519)])
    assert len(report.digest) == 128
    assert report.format == "v0-sha512-12"
    assert verify(place.image, keys=[key_of(ED25519).verifier], stores=[place.store]).ok


def test_the_hash_can_be_chosen_where_no_object_tells_it(place: Place) -> None:
    empty = place.root / "nothing"
    empty.mkdir()
    built = build(os.fsencode(empty), place.image, options=BuildOptions(algorithm=Algorithm.SHA512))
    assert sign(place.image, [key_of(ED25519)], algorithm=Algorithm.SHA512).digest == built.digest
    with pytest.raises(SignatureInvalid, match="another image"):
        sign(place.image, [key_of(ED25519)])


def test_only_a_valid_image_is_signed(place: Place) -> None:
    data = bytearray(place.image_file.read_bytes())
    data[1024 + 4] ^= 1
    place.image_file.write_bytes(data)
    with pytest.raises(ImageError, match="not signed") as caught:
        sign(place.image, [key_of(ED25519)])
    assert caught.value.subject == str(place.image_file)
    place.image_file.write_bytes(b"text\n" * 1000)
    with pytest.raises(SignatureInvalid, match="no multiple of 4096"):
        sign(place.image, [key_of(ED25519)])
    place.image_file.write_bytes(bytes(8192))
    with pytest.raises(ImageError, match="not signed"):
        sign(place.image, [key_of(ED25519)], attach=True)
    assert not place.signature_file.exists()


def test_no_key(place: Place) -> None:
    with pytest.raises(UsageError, match="no key"):
        sign(place.image, [])
    with pytest.raises(UsageError, match="no key"):
        build(os.fsencode(place.source), place.image, signing=Signing(keys=[]))


def test_a_file_that_is_no_envelope_is_left_alone(place: Place) -> None:
    place.signature_file.write_bytes(b"\x89\x01 somebody's own signature")
    before = held(place.signature_file)
    with pytest.raises(SignatureInvalid, match=r"image\.cfs\.sig"):
        sign(place.image, [key_of(ED25519)])
    with pytest.raises(InputError, match="is not deleted"):
        remove_signatures(place.image)
    with pytest.raises(SignatureInvalid, match=r"image\.cfs\.sig") as caught:
        build(os.fsencode(place.source), place.image, signing=Signing(keys=[key_of(ED25519)]))
    assert "not replaced" in str(caught.value.hint)
    assert held(place.signature_file) == before


def test_an_envelope_of_another_image_is_not_added_to(place: Place) -> None:
    sign(place.image, [key_of(ED25519)])
    (place.source / "new").write_text("new")
    place.build()
    with pytest.raises(SignatureInvalid, match="another image"):
        sign(place.image, [key_of(KeyType.RSA)])


def test_removing_needs_the_right_to_delete(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(place.image, [key_of(ED25519)])

    def refuse(_path: bytes, *, dir_fd: int) -> None:
        assert dir_fd >= 0
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(InputError, match=r"image\.cfs\.sig: cannot delete: Operation not permitted"):
        remove_signatures(place.image)


def test_places_that_contradict_each_other(place: Place) -> None:
    with pytest.raises(UsageError, match="no file of its own"):
        sign(place.image, [key_of(ED25519)], attach=True, output=b"x")
    with pytest.raises(UsageError, match="no file of its own"):
        build(b"x", place.image, signing=Signing(keys=[key_of(ED25519)], attach=True, output=b"x"))
    for target in (None, io.BytesIO()):
        with pytest.raises(UsageError, match="written to a file"):
            build(b"x", target, signing=Signing(keys=[key_of(ED25519)]))


def test_images_that_cannot_be_read(place: Place) -> None:
    with pytest.raises(InputError, match="No such file"):
        sign(os.fsencode(place.root / "absent"), [key_of(ED25519)])
    with pytest.raises(InputError, match="not a regular file"):
        sign(os.fsencode(place.root), [key_of(ED25519)])
    os.mkfifo(place.root / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        verify(os.fsencode(place.root / "fifo"))
    os.mkfifo(place.root / "image.cfs.sig")
    with pytest.raises(InputError, match=r"image\.cfs\.sig: is not a regular file"):
        verify(place.image)
    with (place.root / "huge").open("wb") as file:
        file.truncate(MAX_IMAGE_FILE + 1)
    with pytest.raises(LimitExceeded, match="at most 4294967296 are read"):
        verify(os.fsencode(place.root / "huge"))
    (place.root / "none").write_bytes(b"")
    assert bytes(read_image_file(os.fsencode(place.root / "none"))) == b""
    with pytest.raises(InputError, match="cannot read: Is a directory"):
        read_public_key(os.fsencode(place.root))


# The kernel's PKCS#7


def test_the_kernels_signature(place: Place) -> None:
    key = key_of(KeyType.RSA)
    (place.root / "k.pem").write_bytes(key.pem())
    request = ["openssl", "req", "-x509", "-new", "-key", "k.pem", "-out", "k.crt", "-subj", "/CN=k"]
    subprocess.run(request, cwd=place.root, check=True, capture_output=True)
    certificate = os.fsencode(place.root / "k.crt")
    report = sign_for_kernel(place.image, key, certificate)
    assert report.signature == str(place.image_file) + ".p7s"
    assert report.place == "kernel"
    expected = sign_kernel(digest_bytes(place.image_file.read_bytes()), 1, key, (place.root / "k.crt").read_bytes())
    assert (place.root / "image.cfs.p7s").read_bytes() == expected
    output = os.fsencode(place.root / "other.p7s")
    sign_for_kernel(place.image, key, certificate, output=output, algorithm=Algorithm.SHA512)
    assert (place.root / "other.p7s").read_bytes() != expected
    with pytest.raises(KeyUnusable, match=r"k\.crt: the certificate is for another key"):
        sign_for_kernel(place.image, key_of(KeyType.P256), certificate)
    sign(place.image, [key], attach=True)
    with pytest.raises(UsageError, match="measure the signature"):
        sign_for_kernel(place.image, key, certificate)


# Building with a signature


@pytest.mark.parametrize("attach", [False, True], ids=["beside", "attached"])
def test_a_build_signs_as_sign_does(attach: bool, place: Place) -> None:
    key = key_of(ED25519)
    sign(place.image, [key], attach=attach)
    image, signature = place.image_file.read_bytes(), place.signature_file.read_bytes() if not attach else b""
    place.image_file.unlink()
    place.signature_file.unlink(missing_ok=True)
    report = build(
        os.fsencode(place.source), place.image, stores=[place.store], signing=Signing(keys=[key], attach=attach)
    )
    assert place.image_file.read_bytes() == image
    assert report.key_ids == (key.key_id,)
    if attach:
        assert report.signature == str(place.image_file)
    else:
        assert place.signature_file.read_bytes() == signature
        assert report.signature == str(place.signature_file)
        # The signature is there before the image is.
        assert place.signature_file.stat().st_ctime_ns <= place.image_file.stat().st_ctime_ns
    assert verify(place.image, keys=[key.verifier], stores=[place.store]).ok


def test_a_rebuild_keeps_signatures_of_the_same_image_only(place: Place) -> None:
    mine, theirs = key_of(ED25519), key_of(KeyType.RSA)
    sign(place.image, [mine, theirs])
    before = held(place.signature_file)
    signing = Signing(keys=[mine])
    build(os.fsencode(place.source), place.image, stores=[place.store], signing=signing)
    assert held(place.signature_file) == before
    (place.source / "new").write_text("new")
    build(os.fsencode(place.source), place.image, stores=[place.store], signing=signing)
    envelope = json.loads(place.signature_file.read_bytes())
    assert [entry["keyid"] for entry in envelope["signatures"]] == [mine.key_id]
    assert verify(place.image, keys=[mine.verifier], stores=[place.store]).ok


def test_a_failed_build_touches_neither_image_nor_signature(place: Place) -> None:
    sign(place.image, [key_of(ED25519)])
    before = held(place.image_file), held(place.signature_file)
    (place.root / "bad.dump").write_text("nonsense\n")
    with pytest.raises(Exception, match=r"bad\.dump"):
        build(
            os.fsencode(place.root / "bad.dump"),
            place.image,
            options=BuildOptions(from_file=True),
            signing=Signing(keys=[key_of(KeyType.RSA)]),
        )
    assert (held(place.image_file), held(place.signature_file)) == before


def test_a_signature_that_cannot_be_written_leaves_the_old_image(place: Place) -> None:
    before = held(place.image_file)
    signing = Signing(keys=[key_of(ED25519)], output=os.fsencode(place.root / "nowhere/sig"))
    (place.source / "new").write_text("new")
    with pytest.raises(InputError, match="nowhere"):
        build(os.fsencode(place.source), place.image, stores=[place.store], signing=signing)
    assert held(place.image_file) == before
    assert sorted(path.name for path in place.root.iterdir()) == ["image.cfs", "objects", "rootfs"]
