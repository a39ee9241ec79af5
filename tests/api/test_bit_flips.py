"""Of a real file system every flipped bit is reported, wherever it is, and for objects with the right paths."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from cfstools.api.build import build
from cfstools.api.sign import sign
from cfstools.api.verify import Outcome, ProblemKind, VerifyReport, verify
from cfstools.signing import Verdict
from cfstools.signing.keys import KeyType
from cfstools.verity.files import digest_file
from tests.api.trust import key_of

KEY = key_of(KeyType.ED25519)


@dataclass(frozen=True)
class Subject:
    """A built and signed tree; ``names`` has the paths in the image of each object, found without the image."""

    image: Path
    store: Path
    objects: list[Path]
    names: dict[str, list[str]]

    def verify(self) -> VerifyReport:
        return verify(
            os.fsencode(self.image), keys=[KEY.verifier], stores=[os.fsencode(self.store)], threads=os.cpu_count() or 1
        )


def make_subject(source: Path, place: Path, *, attach: bool) -> Subject:
    image, store = place / "image.cfs", place / "objects"
    build(os.fsencode(source), os.fsencode(image), stores=[os.fsencode(store)], threads=2)
    sign(os.fsencode(image), [KEY], attach=attach)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in source.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 64:
            names[digest_file(os.fsencode(path)).hex()].append(f"/{path.relative_to(source)}")
    objects = sorted(path for path in store.glob("??/*") if path.is_file())
    assert {path.parent.name + path.name for path in objects} == set(names)
    return Subject(image, store, objects, names)


def flip(path: Path, place: int, bit: int) -> None:
    """Flip a bit where it is, leaving all else of the file as it was."""
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)


def flip_and_verify(subject: Subject, path: Path, source: random.Random) -> None:
    place, bit = source.randrange(path.stat().st_size), source.randrange(8)
    flip(path, place, bit)
    try:
        report = subject.verify()
    finally:
        flip(path, place, bit)
    where = (path, place, bit)
    assert not report.ok, where
    if path in (subject.image, subject.image.with_name("image.cfs.sig")):
        assert {problem.kind for problem in report.problems} == {ProblemKind.SIGNATURE}, where
        assert report.signature.state is not Verdict.VERIFIED or report.signature.problems, where
        assert (report.structure, report.objects) == (Outcome.NOT_CHECKED, Outcome.NOT_CHECKED), where
        return
    (problem,) = report.problems
    names = subject.names[path.parent.name + path.name]
    assert problem.kind is ProblemKind.DAMAGED, where
    assert problem.subject == str(path)
    assert problem.path_count == len(names), where
    assert set(problem.paths) <= set(names), where
    assert len(problem.paths) == min(len(names), 3), where


def flip_many(subject: Subject, flips: int, source: random.Random) -> None:
    assert subject.verify().ok
    signature = subject.image.with_name("image.cfs.sig")
    for number in range(flips):
        kind = number % 4
        if kind == 0:
            path = subject.image
        elif kind == 1:
            path = signature if signature.exists() else subject.image
        else:
            path = source.choice(subject.objects)
        flip_and_verify(subject, path, source)
    assert subject.verify().ok


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("attach", [False, True], ids=["beside", "attached"])
def test_a_thousand_flipped_bits_in_a_part_of_debian(attach: bool, debian_tree: Path, tmp_path: Path) -> None:
    subject = make_subject(debian_tree / "var/lib/dpkg", tmp_path, attach=attach)
    assert len(subject.objects) > 300
    flip_many(subject, 1000, random.Random(f"a part {attach}"))


@pytest.mark.slow
@pytest.mark.root
def test_flipped_bits_in_all_of_debian(debian_tree: Path, tmp_path: Path) -> None:
    subject = make_subject(debian_tree, tmp_path, attach=False)
    assert len(subject.objects) > 3000
    flip_many(subject, 48, random.Random("all"))
