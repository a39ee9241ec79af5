"""Everything that can be wrong with an image, its signature and its objects is found, all of it, and named."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from cfstools import native
from cfstools.api.build import BuildOptions, build
from cfstools.api.sign import sign
from cfstools.api.verify import MAX_PROBLEMS, Outcome, Problem, ProblemKind, Problems, VerifyReport, verify
from cfstools.errors import CheckFailed, InputError, StoreError, UsageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.regions import RegionKind, regions
from cfstools.linux import verity as kernel_verity
from cfstools.signing import KeyState, Verdict, make_trailer, parse_envelope, sign_envelope
from cfstools.signing.keys import KeyType
from cfstools.sources import image_file
from cfstools.store import DirectoryStore, MemoryStore
from cfstools.store.care import check as object_check
from cfstools.store.care.check import Flaw, ObjectChecker
from cfstools.tree import Directory, External, RegularFile
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes, object_path
from cfstools.verity.files import read_digest_file
from cfstools.view.needed import Names, needed_objects
from tests.api.trust import EXTERNAL, FILES, Place, key_of, make_place
from tests.formats.images import read_image

KEY = key_of(KeyType.ED25519)
PUBLIC = KEY.verifier
NO_DIGEST = ObjectId(Algorithm.SHA256, bytes(32))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


@pytest.fixture
def signed(place: Place) -> Place:
    sign(place.image, [KEY])
    return place


def only(report: VerifyReport) -> Problem:
    assert not report.ok
    assert report.problem_count == len(report.problems) == 1
    return report.problems[0]


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.total: int | None = 0
        self.done = 0
        self.finished = 0

    def stage(self, name: str, total: int | None, unit: str) -> Self:
        assert (name, unit) == ("verify", "B")
        self.total = total
        return self

    def advance(self, amount: int) -> None:
        self.done += amount

    def finish(self) -> None:
        self.finished += 1


# What is right


@pytest.mark.parametrize("threads", [1, 3])
def test_all_is_well(signed: Place, threads: int) -> None:
    progress = Recorder()
    report = verify(
        signed.image, keys=[PUBLIC], stores=[signed.store], canonical=True, threads=threads, progress=progress
    )
    assert report.ok
    assert not report.problems
    assert not report.warnings
    assert (report.structure, report.canonical, report.objects) == (Outcome.OK, Outcome.OK, Outcome.OK)
    assert report.digest_check is Outcome.NOT_CHECKED
    assert report.objects_needed == report.objects_hashed == len(EXTERNAL)
    assert report.bytes_hashed == sum(FILES[name] for name in EXTERNAL)
    assert report.format == "v0-sha256-12"
    data = signed.image_file.read_bytes()
    assert report.digest == digest_bytes(data).hex()
    assert (progress.total, progress.done, progress.finished) == (report.bytes_hashed, report.bytes_hashed, 1)


def test_what_was_not_asked_for_is_said_to_be_unchecked(signed: Place) -> None:
    report = verify(signed.image)
    assert report.ok
    assert report.signature.state is Verdict.NOT_CHECKED
    assert report.structure is Outcome.OK
    assert (report.objects, report.canonical, report.digest_check) == (Outcome.NOT_CHECKED,) * 3
    signed.signature_file.unlink()
    assert verify(signed.image).signature.state is Verdict.MISSING


def test_shallow_looks_objects_up(place: Place) -> None:
    report = verify(place.image, stores=[place.store], deep=False)
    assert report.ok
    assert (report.objects_present, report.objects_hashed, report.bytes_hashed) == (len(EXTERNAL), 0, 0)
    data = bytearray(place.object_of("etc/small").read_bytes())
    data[0] ^= 1
    place.object_of("etc/small").write_bytes(data)
    assert verify(place.image, stores=[place.store], deep=False).ok
    place.object_of("etc/small").write_bytes(data[1:])
    assert only(verify(place.image, stores=[place.store], deep=False)).kind is ProblemKind.SIZE
    with pytest.raises(UsageError, match="needs a store"):
        verify(place.image, deep=False)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_expected_digest(algorithm: Algorithm, place: Place) -> None:
    place.build(algorithm=algorithm)
    data = place.image_file.read_bytes()
    digest = digest_bytes(data, Params(algorithm=algorithm))
    report = verify(place.image, digest=ObjectId(algorithm, digest), stores=[place.store])
    assert report.ok
    assert report.digest == digest.hex()
    assert report.digest_check is Outcome.OK
    wrong = bytes([digest[0] ^ 1]) + digest[1:]
    problem = only(verify(place.image, digest=ObjectId(algorithm, wrong), stores=[place.store]))
    assert problem.kind is ProblemKind.DIGEST
    assert problem.what == f"the image has the fs-verity digest {digest.hex()}, not {wrong.hex()}"


def test_a_plain_sha256_is_recognised(place: Place) -> None:
    sha256 = bytes.fromhex(verify(place.image).sha256)
    assert only(verify(place.image, digest=ObjectId.of(sha256))).what.endswith("that is its plain SHA-256")


def test_signatures_of_both_algorithms_digests(place: Place) -> None:
    place.build(algorithm=Algorithm.SHA512)
    sign(place.image, [KEY])
    assert verify(place.image, keys=[PUBLIC]).ok
    # A statement with the right SHA-256 and the fs-verity digest of something else.
    payload = parse_envelope(place.signature_file.read_bytes()).payload
    digest = verify(place.image).digest.encode()
    assert digest in payload
    place.signature_file.write_bytes(sign_envelope(payload.replace(digest, digest[::-1]), [KEY]))
    problem = only(verify(place.image, keys=[PUBLIC]))
    assert "fsverity-sha512-12" in problem.what


def test_a_digest_and_a_signature_must_both_hold(signed: Place) -> None:
    digest = ObjectId.parse(verify(signed.image).digest)
    assert verify(signed.image, digest=digest, keys=[PUBLIC]).ok
    report = verify(signed.image, digest=NO_DIGEST, keys=[PUBLIC])
    assert only(report).kind is ProblemKind.DIGEST
    assert report.signature.state is Verdict.VERIFIED
    assert report.structure is Outcome.NOT_CHECKED
    report = verify(signed.image, digest=NO_DIGEST, keys=[key_of(KeyType.RSA).verifier])
    assert [problem.kind for problem in report.problems] == [ProblemKind.DIGEST, ProblemKind.SIGNATURE]


# Nothing is interpreted before it is trusted


@pytest.mark.parametrize("with_digest", [False, True])
def test_nothing_is_parsed_before_it_is_trusted(
    with_digest: bool, signed: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the image was interpreted")

    for name in ("open_image", "needed_objects"):
        monkeypatch.setattr(sys.modules["cfstools.api.verify"], name, touched)
    monkeypatch.setattr("cfstools.formats.composefs.format.ComposefsImage.__init__", touched)
    data = bytearray(signed.image_file.read_bytes())
    data[2000] ^= 1
    signed.image_file.write_bytes(data)
    if with_digest:
        report = verify(signed.image, digest=NO_DIGEST, stores=[signed.store])
    else:
        report = verify(signed.image, keys=[PUBLIC], stores=[signed.store])
    only(report)
    assert (report.structure, report.objects) == (Outcome.NOT_CHECKED, Outcome.NOT_CHECKED)


def test_the_file_is_read_once(signed: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer who changes the image right after it was read changes nothing: what is used is what was verified."""
    original = digest_bytes

    def replaced(data: memoryview, params: Params) -> bytes:
        signed.image_file.write_bytes(bytes(len(data)))
        return original(data, params)

    monkeypatch.setattr(sys.modules["cfstools.api.verify"], "digest_bytes", replaced)
    report = verify(signed.image, keys=[PUBLIC], stores=[signed.store], canonical=True)
    assert report.ok
    assert not any(signed.image_file.read_bytes())


def test_usage(signed: Place) -> None:
    with pytest.raises(UsageError, match="cannot be reached"):
        verify(signed.image, keys=[PUBLIC, PUBLIC], threshold=2)
    with pytest.raises(StoreError, match="nowhere"):
        verify(signed.image, stores=[os.fsencode(signed.root / "nowhere")])
    with pytest.raises(InputError, match="No such file"):
        verify(signed.image, signature=os.fsencode(signed.root / "nowhere"))


# Two places


def test_one_place_that_does_not_hold_decides(signed: Place) -> None:
    sign(signed.image, [KEY], attach=True)
    report = verify(signed.image, keys=[PUBLIC])
    assert report.ok
    data = signed.signature_file.read_bytes()
    signed.signature_file.write_bytes(data.replace(b'"sig":"', b'"sig":"AAAA'))
    report = verify(signed.image, keys=[PUBLIC])
    assert report.signature.state is Verdict.MISMATCH
    assert all(problem.what.startswith("beside: ") for problem in report.problems)
    signed.signature_file.write_bytes(data)
    file = bytearray(signed.image_file.read_bytes())
    file[-40] ^= 1
    signed.image_file.write_bytes(file)
    report = verify(signed.image, keys=[PUBLIC])
    assert report.signature_place is not None
    assert report.problems[0].what.startswith("attached: trailer: ")


def test_a_stranger_beside_does_not_hide_what_is_attached(place: Place) -> None:
    sign(place.image, [key_of(KeyType.P256)])
    sign(place.image, [KEY], attach=True)
    assert verify(place.image, keys=[PUBLIC]).ok
    assert verify(place.image, keys=[key_of(KeyType.P256).verifier]).ok
    report = verify(place.image, keys=[key_of(KeyType.RSA).verifier])
    assert report.signature.state is Verdict.UNKNOWN_KEY
    assert all(check.state is KeyState.UNKNOWN_KEY for check in report.signature.signatures)


def test_a_trailer_for_a_shorter_image(place: Place) -> None:
    """An envelope that signs the first block only: it is another image, and no smaller one either."""
    data = place.image_file.read_bytes()
    sign(place.image, [KEY])
    envelope = place.signature_file.read_bytes()
    place.signature_file.unlink()
    place.image_file.write_bytes(data[:4096] + make_trailer(4096, envelope))
    assert "of 4096 bytes" not in only(verify(place.image, keys=[PUBLIC])).what.partition("this one has")[0]
    assert not verify(place.image).ok


def test_a_trailer_that_is_cut(place: Place) -> None:
    sign(place.image, [KEY], attach=True)
    data = place.image_file.read_bytes()
    for cut in (1, 8, 100, 512):
        place.image_file.write_bytes(data[:-cut])
        report = verify(place.image, keys=[PUBLIC])
        assert only(report).kind is ProblemKind.SIGNATURE
        assert report.signature.state is Verdict.MISMATCH
        assert not verify(place.image).ok


# Structure


def test_structure_without_a_key(place: Place) -> None:
    data = bytearray(place.image_file.read_bytes())
    for offset in (100, 1024 + 100):
        data[offset] ^= 1
    place.image_file.write_bytes(data)
    report = verify(place.image, stores=[place.store])
    assert [problem.kind for problem in report.problems] == [ProblemKind.STRUCTURE] * 2
    assert report.structure is Outcome.WRONG
    # What is wrong can still be read, so the objects are checked as well.
    assert report.objects is Outcome.OK
    place.image_file.write_bytes(bytes(8192))
    report = verify(place.image, stores=[place.store], canonical=True)
    assert only(report).kind is ProblemKind.STRUCTURE
    assert (report.format, report.objects, report.canonical) == (None, Outcome.NOT_CHECKED, Outcome.NOT_CHECKED)
    place.image_file.write_bytes(b"")
    assert only(verify(place.image)).kind is ProblemKind.STRUCTURE


def test_bytes_that_a_careful_writer_would_not_make(place: Place) -> None:
    data = bytearray(place.image_file.read_bytes())
    inode = [region for region in regions(bytes(data)) if region.kind is RegionKind.INODE][3]
    data[inode.start + 20] ^= 1  # the inode number, which nothing depends on
    place.image_file.write_bytes(data)
    assert verify(place.image, stores=[place.store]).ok
    report = verify(place.image, stores=[place.store], canonical=True)
    problem = only(report)
    assert problem.kind is ProblemKind.CANONICAL
    assert f"first at {inode.start + 20:#x} in inode" in problem.what
    assert report.canonical is Outcome.WRONG
    assert report.objects is Outcome.OK


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_canonical_in_every_version(version: int, hash_name: str, place: Place) -> None:
    dump = place.root / "tree.dump"
    dump.write_text(
        "/ 4096 40755 3 0 0 0 7.5 - - - user.z=1 user.a=2\n"
        "/dir 4096 40755 2 0 0 0 0.0 - - -\n"
        "/dir/gone 0 20644 1 0 0 0 0.0 - - -\n"
        "/early 0 @10644 - - - - 0.0 /fifo - -\n"
        "/fifo 0 10644 2 0 0 0 0.0 - - -\n"
        "/link 3 120777 1 1 2 0 -1.0 dir - -\n"
    )
    build(
        os.fsencode(dump),
        place.image,
        options=BuildOptions(from_file=True, min_version=version, max_version=version, algorithm=Algorithm(hash_name)),
    )
    assert verify(place.image, canonical=True).ok


def test_link_counts_of_the_c_tool_are_warnings(place: Place) -> None:
    dump = place.root / "tree.dump"
    dump.write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n/f 1 100644 3 0 0 0 0.0 - x -\n")
    build(os.fsencode(dump), place.image, options=BuildOptions(from_file=True))
    report = verify(place.image, canonical=True)
    assert report.ok
    assert len(report.warnings) == 1
    assert "link count 3" in report.warnings[0]


# Objects


def paths_of(name: str) -> tuple[str, ...]:
    return ("/etc/copy", "/etc/small", "/usr/linked") if name == "etc/small" else (f"/{name}",)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


DAMAGE: list[tuple[Callable[[Path], None], ProblemKind, str]] = [
    (flip, ProblemKind.DAMAGED, "its fs-verity digest is"),
    (cut, ProblemKind.SIZE, "bytes instead of"),
    (lengthen, ProblemKind.SIZE, "bytes instead of"),
    (Path.unlink, ProblemKind.MISSING, "it is in none of the stores"),
    (to_directory, ProblemKind.UNREADABLE, "not a regular file"),
    (to_fifo, ProblemKind.UNREADABLE, "not a regular file"),
    (to_link, ProblemKind.UNREADABLE, "not a regular file"),
]


@pytest.mark.parametrize("name", EXTERNAL)
@pytest.mark.parametrize("harm", DAMAGE, ids=[harm[0].__name__ for harm in DAMAGE])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_object(
    name: str, harm: tuple[Callable[[Path], None], ProblemKind, str], threads: int, signed: Place
) -> None:
    damage, kind, what = harm
    damage(signed.object_of(name))
    report = verify(signed.image, keys=[PUBLIC], stores=[signed.store], threads=threads)
    problem = only(report)
    assert problem.kind is kind
    assert what in problem.what
    assert problem.paths == paths_of(name)
    assert problem.path_count == len(paths_of(name))
    relative = signed.object_of(name).relative_to(signed.root / "objects")
    assert str(relative) in problem.subject
    assert problem.paths[0] in str(problem)
    assert str(relative) in str(problem)
    assert (report.structure, report.objects) == (Outcome.OK, Outcome.WRONG)
    assert report.signature.state is Verdict.VERIFIED
    assert report.objects_hashed == len(EXTERNAL) - 1


def test_all_problems_are_listed(place: Place) -> None:
    data = bytearray(place.image_file.read_bytes())
    data[100] ^= 1
    place.image_file.write_bytes(data)
    place.object_of("etc/small").unlink()
    flip(place.object_of("usr/lib/blocks"))
    cut(place.object_of("usr/lib/large"))
    report = verify(place.image, stores=[place.store], threads=2)
    assert {problem.kind for problem in report.problems} == {
        ProblemKind.STRUCTURE,
        ProblemKind.MISSING,
        ProblemKind.DAMAGED,
        ProblemKind.SIZE,
    }
    assert report.problem_count == 4


def test_only_the_first_names_are_kept(place: Place) -> None:
    for number in range(20):
        shutil.copyfile(place.source / "etc/small", place.source / f"copy{number:02}")
    place.build()
    place.object_of("etc/small").unlink()
    problem = only(verify(place.image, stores=[place.store]))
    assert problem.paths == ("/copy00", "/copy01", "/copy02")
    assert problem.path_count == 23
    assert "/copy00, /copy01, /copy02 and 20 more: object " in str(problem)


def test_problems_are_bounded_and_counted() -> None:
    problems = Problems()
    problem = Problem(kind=ProblemKind.MISSING, subject="x", what="y")
    assert problems.add(problem for _ in range(MAX_PROBLEMS + 5)) == MAX_PROBLEMS + 5
    assert problems.count == MAX_PROBLEMS + 5
    assert len(problems.kept) == MAX_PROBLEMS


def test_stores_form_a_chain(place: Place) -> None:
    """The first store that has an object is where the kernel takes it from, so there it has to be intact."""
    other = place.root / "other"
    shutil.copytree(place.root / "objects", other)
    place.object_of("etc/small").unlink()
    flip(other / place.object_of("usr/lib/blocks").relative_to(place.root / "objects"))
    assert verify(place.image, stores=[place.store, os.fsencode(other)]).ok
    problem = only(verify(place.image, stores=[os.fsencode(other), place.store]))
    assert problem.kind is ProblemKind.DAMAGED
    assert problem.subject.startswith(str(other))


def test_objects_at_other_paths(place: Place) -> None:
    """The kernel follows the path in the image, wherever that is, so this is what is checked."""
    content = b"c" * 500
    digest = digest_bytes(content)
    dump = place.root / "tree.dump"
    line = f"/f 500 100644 1 0 0 0 0.0 my/own/name - {digest.hex()}\n"
    dump.write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n" + line)
    build(os.fsencode(dump), place.image, options=BuildOptions(from_file=True))
    store = place.root / "objects"
    problem = only(verify(place.image, stores=[place.store]))
    assert (problem.kind, problem.subject) == (ProblemKind.MISSING, "my/own/name")
    (store / "my/own").mkdir(parents=True)
    (store / "my/own/name").write_bytes(content)
    assert verify(place.image, stores=[place.store]).ok
    (store / "my/own/name").write_bytes(b"d" * 500)
    assert only(verify(place.image, stores=[place.store])).kind is ProblemKind.DAMAGED


def test_contents_without_a_digest_cannot_be_verified(place: Place) -> None:
    dump = place.root / "tree.dump"
    dump.write_text(
        "/ 4096 40755 2 0 0 0 0.0 - - -\n/f 500 100644 1 0 0 0 0.0 some/name - -\n/g 0 100644 1 0 0 0 0.0 - - -\n"
    )
    build(os.fsencode(dump), place.image, options=BuildOptions(from_file=True))
    (place.root / "objects/some").mkdir()
    (place.root / "objects/some/name").write_bytes(bytes(500))
    problem = only(verify(place.image, stores=[place.store]))
    assert problem.kind is ProblemKind.UNVERIFIABLE
    assert problem.paths == ("/f",)
    assert verify(place.image, stores=[place.store], deep=False).ok


def test_files_that_name_nothing() -> None:
    tree = Directory(mode=0o40755)
    tree.entries[b"empty"] = RegularFile(mode=0o100644, size=0, content=External(None, None))
    tree.entries[b"lost"] = RegularFile(mode=0o100644, size=5, content=External(None, None))
    tree.entries[b"pathless"] = RegularFile(mode=0o100644, size=5, content=External(bytes(32), None))
    needed = needed_objects(tree, Algorithm.SHA256)
    assert [needed.key(number)[0] for number in range(len(needed))] == [b"", object_path(bytes(32))]
    store = MemoryStore()
    digest = store.add(b"content")
    tree.entries[b"held"] = RegularFile(mode=0o100644, size=7, content=External(digest, None))
    needed = needed_objects(tree, Algorithm.SHA256)
    with ObjectChecker(needed, [store], Params()) as check:
        (tally,) = check.tallies()
    assert [finding.flaw for finding in tally.findings] == [Flaw.UNVERIFIABLE, Flaw.MISSING]
    assert tally.hashed == 1


def test_every_object_is_checked_once(place: Place) -> None:
    tree = read_image(place.image_file.read_bytes())
    needed = needed_objects(tree, Algorithm.SHA256)
    names = Names(tree)
    named = [names.of(needed.key(one)) for one in range(len(needed))]
    assert [paths[0] for paths, _ in named] == [b"/etc/copy", b"/usr/lib/blocks", b"/usr/lib/large"]
    assert [count for _, count in named] == [3, 1, 1]


@pytest.mark.both
@pytest.mark.parametrize("loops", ["auto", "pure"])
def test_many_objects_in_threads(loops: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: native.use("auto"))
    native.use(loops)
    source = tmp_path / "rootfs"
    source.mkdir()
    for number in range(300):
        (source / f"f{number:03}").write_bytes(b"%d" % number * 100)
    image, store = os.fsencode(tmp_path / "i.cfs"), os.fsencode(tmp_path / "objects")
    build(os.fsencode(source), image, stores=[store])
    progress = Recorder()
    report = verify(image, stores=[store], threads=4, progress=progress)
    assert report.ok
    assert report.objects_hashed == 300
    assert progress.done == progress.total == report.bytes_hashed
    shutil.rmtree(tmp_path / "objects")
    (tmp_path / "objects").mkdir()
    progress = Recorder()
    report = verify(image, stores=[store], threads=4, progress=progress)
    assert report.problem_count == 300
    assert progress.done == progress.total


def test_an_interruption_ends_the_threads(place: Place) -> None:
    class Stopping(Recorder):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    progress = Stopping()
    with pytest.raises(KeyboardInterrupt):
        verify(place.image, stores=[place.store], threads=2, progress=progress)
    assert progress.finished == 1


# By the kernel's word


@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_kernel_guards_is_not_read(threads: int, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        (status := place.object_of(name).stat()).st_ino: (1, digest_bytes((place.source / name).read_bytes()))
        for name in EXTERNAL
    }
    assert status.st_ino
    monkeypatch.setattr(kernel_verity, "measure", lambda fd: answers.get(os.fstat(fd).st_ino))
    monkeypatch.setattr(object_check, "digest_object", lambda *_, **__: pytest.fail("read"))
    monkeypatch.setattr(native, "check_objects", lambda *_: pytest.fail("read"))
    report = verify(place.image, stores=[place.store], threads=threads)
    assert report.ok
    assert (report.objects_measured, report.objects_hashed) == (len(EXTERNAL), 0)


@pytest.mark.parametrize("answer", [(2, bytes(64)), (1, bytes(32)), (2, bytes(32))])
def test_another_measurement_is_not_believed_either_way(
    answer: tuple[int, bytes], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file sealed with another block size or hash may still hold the right bytes: they are read."""
    monkeypatch.setattr(kernel_verity, "measure", lambda _fd: answer)
    report = verify(place.image, stores=[place.store])
    assert report.ok
    assert report.objects_hashed == len(EXTERNAL)
    flip(place.object_of("usr/lib/blocks"))
    assert only(verify(place.image, stores=[place.store])).kind is ProblemKind.DAMAGED


def test_what_cannot_be_measured_or_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(kernel_verity, "measure", broken)
    assert verify(place.image, stores=[place.store]).ok
    monkeypatch.setattr(native, "check_objects", lambda _fds, _digests, _ends, first, end, *_: bytes(end - first))
    assert verify(place.image, stores=[place.store]).ok
    reading = os.pread

    def of_the_image(fd: int, size: int, offset: int) -> bytes:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) != "image.cfs":
            broken()
        return reading(fd, size, offset)

    monkeypatch.setattr(os, "pread", of_the_image)
    monkeypatch.setattr(native, "digest_range", broken)
    report = verify(place.image, stores=[place.store])
    assert [problem.kind for problem in report.problems] == [ProblemKind.UNREADABLE] * len(EXTERNAL)
    assert all("Input/output error" in problem.what for problem in report.problems)


def test_a_store_that_refuses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_store: DirectoryStore, digest: bytes) -> None:
        raise StoreError("cannot open the object: Permission denied", subject="objects/x")

    monkeypatch.setattr(DirectoryStore, "open", refuse)
    report = verify(place.image, stores=[place.store])
    assert {(problem.kind, problem.subject) for problem in report.problems} == {(ProblemKind.UNREADABLE, "objects/x")}


# Digest files


@pytest.mark.parametrize(
    "text",
    [
        "{0}",
        "{0}\n",
        "sha256:{0}\n",
        "sha256:{0} image.cfs\n",
        "{0}  image.cfs\n",
        "{0} *image.cfs\r\n",
        "\n\n sha256:{0}   dir/image.cfs \n",
        "sha256:{0} whatever.cfs\n",
        "sha256:{1} other.cfs\nsha256:{0} image.cfs\n{0} image.cfs\n",
    ],
)
def test_digest_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "digests"
    path.write_text(text.format("ab" * 32, "cd" * 32))
    assert read_digest_file(os.fsencode(path), b"here/image.cfs") == ObjectId(Algorithm.SHA256, b"\xab" * 32)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no line for image.cfs"),
        (b"ab" * 32 + b" a\n" + b"cd" * 32 + b" b\n", "no line for image.cfs"),
        (b"ab" * 32 + b" image.cfs\n" + b"cd" * 32 + b" image.cfs\n", "several digests for image.cfs"),
        (b"nonsense\n", "not a digest"),
        (b"\xff\xfe\n", "not a digest"),
        (b"ab" * 20, "40 hexadecimal digits"),
        (b" " * ((1 << 20) + 1), "too large"),
    ],
)
def test_digest_files_that_are_none(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "digests"
    path.write_bytes(data)
    with pytest.raises(InputError, match=why) as caught:
        read_digest_file(os.fsencode(path), b"image.cfs")
    assert caught.value.subject == str(path)


def test_large_files_are_looked_at_before_they_are_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    size = place.image_file.stat().st_size
    wrong = place.image_file.with_name("wrong")
    wrong.write_bytes(b"X" + place.image_file.read_bytes()[1:])
    monkeypatch.setattr(image_file, "LARGE_IMAGE", size)
    assert verify(os.fsencode(wrong)).structure is Outcome.WRONG  # at the limit: read, with digests in the report
    monkeypatch.setattr(image_file, "LARGE_IMAGE", size - 1)
    assert verify(place.image).ok
    with pytest.raises(CheckFailed, match=rf"not composefs; the rest of the file, of {size} bytes, was not read"):
        verify(os.fsencode(wrong))
    # With a digest nothing is looked at before that holds.
    assert verify(os.fsencode(wrong), digest=NO_DIGEST).digest_check is Outcome.WRONG


@pytest.mark.parametrize("damage", ["no blocks", "cut"])
def test_lengths_that_cannot_be_are_seen_early(place: Place, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    data = bytearray(place.image_file.read_bytes())
    blocks = fmt.SUPERBLOCK_OFFSET + 36
    assert int.from_bytes(data[blocks : blocks + 4], "little") * 4096 == len(data)
    data[blocks : blocks + 4] = (0 if damage == "no blocks" else len(data) // 4096 + 1).to_bytes(4, "little")
    place.image_file.write_bytes(data)
    monkeypatch.setattr(image_file, "LARGE_IMAGE", 4096)
    with pytest.raises(CheckFailed, match="no blocks" if damage == "no blocks" else "truncated"):
        verify(place.image)
