"""Verb ``verify``: digest, signature, structure, then every object; all problems, not only the first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from enum import Enum

from cfstools.errors import FormatError, UsageError
from cfstools.formats.base import OpenImage, PlanOptions, Severity
from cfstools.formats.escape import escape_text
from cfstools.formats.registry import open_image
from cfstools.lifetime import keep_until_exit
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.signing import ImageDigests, SignatureReport, Verdict, Verifier, judge
from cfstools.signing.files import PlacedSignature, SignaturePlace, SignedFile
from cfstools.sources.image_file import ImageBytes, read_signed
from cfstools.store.base import Store
from cfstools.store.care.check import BadObject, Flaw, ObjectChecker, Tally
from cfstools.store.open import StorePlace
from cfstools.store.write.keeping import open_and_keep
from cfstools.text import shown_path
from cfstools.threadpool import Call, ThreadPool
from cfstools.tree import Directory
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes
from cfstools.view.needed import Names, needed_objects

MAX_PROBLEMS = 10_000


class ProblemKind(Enum):
    """What sort of thing is wrong."""

    DIGEST = "digest"
    SIGNATURE = "signature"
    STRUCTURE = "structure"
    CANONICAL = "canonical"
    MISSING = "missing"
    SIZE = "size"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    UNVERIFIABLE = "unverifiable"


_KINDS_OF_FLAWS = {
    Flaw.MISSING: ProblemKind.MISSING,
    Flaw.SIZE: ProblemKind.SIZE,
    Flaw.DAMAGED: ProblemKind.DAMAGED,
    Flaw.UNREADABLE: ProblemKind.UNREADABLE,
    Flaw.UNVERIFIABLE: ProblemKind.UNVERIFIABLE,
}


class Problem(Report):
    """One problem: of what ``kind``, with which file (``subject``, a path), and what it is.

    For an object, ``paths`` are the first of the ``path_count`` names in the image whose contents it is.
    """

    kind: ProblemKind
    subject: str
    what: str
    paths: tuple[str, ...] = ()
    path_count: int = 0

    def __str__(self) -> str:
        if not self.path_count:
            return f"{self.kind.value}: {self.what}"
        others = self.path_count - len(self.paths)
        names = ", ".join(self.paths) + (f" and {others} more" if others else "")
        return f"{self.kind.value}: {names}: object {self.subject}: {self.what}"


class Problems:
    """Collects problems: all are counted, the first ``MAX_PROBLEMS`` are kept."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.count = 0

    def add(self, problems: Iterable[Problem]) -> int:
        """Add *problems* and return how many they were."""
        before = self.count
        for problem in problems:
            self.count += 1
            if len(self.kept) < MAX_PROBLEMS:
                self.kept.append(problem)
        return self.count - before


class Outcome(Enum):
    """The result of one part of the check."""

    OK = "ok"
    WRONG = "wrong"
    NOT_CHECKED = "not checked"


class VerifyReport(Report):
    """What ``verify`` found. ``ok`` is true if nothing that was asked for is wrong.

    ``digest`` (fs-verity), ``sha256`` and ``size`` are those of the image without a signature attached to it;
    ``format`` is known once the image was interpreted. ``digest_check`` is about the digest that was expected,
    ``canonical`` about the bytes a careful writer would have made. ``objects_needed`` counts different objects;
    of those found right, ``objects_measured`` have the kernel's word, ``objects_hashed`` were read, and
    ``objects_present`` were only looked up (shallow). ``problems`` are at most ``MAX_PROBLEMS``,
    ``problem_count`` counts all.
    """

    image: str
    ok: bool
    size: int
    sha256: str
    digest: str
    format: str | None
    digest_check: Outcome
    signature: SignatureReport
    signature_place: SignaturePlace | None
    structure: Outcome
    canonical: Outcome
    objects: Outcome
    objects_needed: int
    objects_measured: int
    objects_hashed: int
    objects_present: int
    bytes_hashed: int
    problems: tuple[Problem, ...]
    problem_count: int
    warnings: tuple[str, ...]


def verify(
    image: bytes,
    *,
    keys: Sequence[Verifier] = (),
    threshold: int = 1,
    signature: bytes | None = None,
    digest: ObjectId | None = None,
    stores: Sequence[StorePlace] = (),
    deep: bool = True,
    canonical: bool = False,
    threads: int = 1,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Check the image at *image* and, if there are *stores*, every object it needs.

    The file or block device is read once; of one with zeros behind the image only that. First come its fs-verity
    *digest*, if one is expected, and its signature, if there are *keys*; with either, nothing in it is interpreted
    before they hold, but for its length. Then its structure (composefs format, section
    10.2) and, with *canonical*, whether a careful writer would have made exactly these bytes. Then its objects: present
    in a store with the right size and, if *deep*, the right digest. The envelope is looked for behind the image, and in
    *signature* or else ``IMAGE.sig``: signatures of *threshold* different keys must hold in one of the two places, and
    no signature of a given key may fail in either.

    What is wrong is in the report. Of a large file that by its first block is no image no more is read where there are
    neither keys nor a digest; that is CheckFailed. Raises UsageError, InputError and StoreError where something cannot
    be checked.
    """
    if not stores and not deep:
        raise UsageError("a shallow check is about objects and needs a store", hint="name one")
    judge(None, ImageDigests(size=0), keys, threshold=threshold)  # a threshold that cannot be reached is found early
    with ExitStack() as stack:
        opened = stack.enter_context(open_and_keep(stores))
        file, found = read_signed(image, signature, trusted=bool(keys or digest))
        run = _Verification(file, found)
        if threads > 1 and digest is None:
            run.hash_meanwhile(stack)
        trusted = run.check_digest(digest)
        trusted = run.check_signature(keys, threshold) and trusted
        if trusted or not (keys or digest):
            run.check_contents(opened, canonical=canonical, deep=deep, threads=threads, progress=progress)
        return run.report()


class _Verification:
    """The state of one check, stage by stage."""

    def __init__(self, file: SignedFile, found: ImageBytes) -> None:
        self._subject = shown_path(file.path)
        self._file = file
        self._found = found
        self._image = file.image
        self._hashing: Call[None] | None = None
        self._sha256 = b""
        self._digests: dict[Algorithm, bytes] = {}
        self._algorithm = Algorithm.SHA256
        self._format: str | None = None
        self._digest_check = Outcome.NOT_CHECKED
        self._signature = SignatureReport(state=Verdict.MISSING, required=0)
        self._place: SignaturePlace | None = None
        self._structure = Outcome.NOT_CHECKED
        self._unreadable = ""
        self._canonical = Outcome.NOT_CHECKED
        self._objects = Outcome.NOT_CHECKED
        self._needed = 0
        self._tally = Tally()
        self._names: Names | None = None
        self._problems = Problems()
        self._warnings: list[str] = []
        if found.other_bytes:
            rest = f"{found.left_out} bytes follow on the device, not all of them zeros"
            self._warnings.append(f"{rest}; they are no part of the image, and nobody looks at them")

    def hash_meanwhile(self, stack: ExitStack) -> None:
        """Hash the image in another thread while it is parsed, unless a signature depends on the digest."""
        if not self._file.has_envelope:
            self._hashing = stack.enter_context(ThreadPool(1, "hash")).submit(self._hash)

    def _hash(self) -> None:
        import hashlib  # it loads the system's library, which takes longer than to hash a small image

        self._sha256 = hashlib.sha256(self._image).digest()
        self._digests[Algorithm.SHA256] = digest_bytes(self._image, Params())

    def _wait_for_hashes(self) -> None:
        """Wait for the digests of the image, or compute them here."""
        if self._hashing is not None:
            self._hashing.result()
        elif not self._sha256:
            self._hash()

    def check_digest(self, expected: ObjectId | None) -> bool:
        """Compare the fs-verity digest with the one expected; whether nothing is wrong."""
        if expected is None:
            return True
        self._algorithm, wanted = expected
        actual = self._digest(self._algorithm)
        if wanted in (actual, self._found.whole_digest(self._algorithm)):
            self._digest_check = Outcome.OK
            return True
        self._digest_check = Outcome.WRONG
        what = f"the image has the fs-verity digest {actual.hex()}, not {wanted.hex()}"
        self._wait_for_hashes()
        if wanted == self._sha256:
            what += "; that is its plain SHA-256"
        self._fail(ProblemKind.DIGEST, [what])
        return False

    def check_signature(self, keys: Sequence[Verifier], threshold: int) -> bool:
        """Find and judge the envelopes; whether nothing is wrong."""
        found: Sequence[PlacedSignature] = ()
        if self._file.has_envelope:
            found = self._file.judge(self._image_digests(), keys, threshold=threshold)
            chosen = _choose(found)
            self._place, self._signature = chosen.place, chosen.report
        else:
            self._signature = judge(None, ImageDigests(size=len(self._image)), keys, threshold=threshold)
        where = f"{self._place.value}: " if self._place and len(found) > 1 else ""
        return self._fail(ProblemKind.SIGNATURE, [where + what for what in self._signature.problems]) == 0

    def check_contents(
        self, stores: Sequence[Store], *, canonical: bool, deep: bool, threads: int, progress: Progress
    ) -> None:
        """Check the structure and, with *stores*, every object of the tree, if the image can be read at all.

        Of an image that can be read at once the objects are hashed while its structure is looked at.
        """
        with ExitStack() as stack:

            def begin(root: Directory) -> ObjectChecker:
                needed = needed_objects(root, self._algorithm)
                self._needed, self._names = len(needed), Names(root)
                stage = stack.enter_context(running_stage(progress, "verify", needed.size, "B"))
                params = Params(algorithm=self._algorithm)
                check = ObjectChecker(needed, stores, params, deep=deep, threads=threads, progress=stage)
                return stack.enter_context(check)

            image, root = self._read()
            check = begin(root) if root is not None and stores else None
            if image is not None:
                self._check_structure(image, root, canonical=canonical)
            if check is not None:
                self._add_up(check)

    def _read(self) -> tuple[OpenImage | None, Directory | None]:
        """The image and its tree, as far as they can be read."""
        image = None
        try:
            image = open_image(self._image)
            keep_until_exit(image)
            root = image.tree()
        except FormatError as error:
            self._structure = Outcome.WRONG
            self._unreadable = str(error)
            if image is None:
                self._fail(ProblemKind.STRUCTURE, [self._unreadable])
            return image, None
        self._algorithm = image.algorithm or self._algorithm
        self._format = image.word(self._algorithm)
        return image, root

    def _check_structure(self, image: OpenImage, root: Directory | None, *, canonical: bool) -> None:
        """Record everything that is wrong with the image; *root* is its tree if it can be read."""
        findings = image.findings()
        errors = [str(finding) for finding in findings if finding.severity is Severity.ERROR]
        self._warnings += [str(finding) for finding in findings if finding.severity is Severity.WARNING]
        if root is None:
            self._fail(ProblemKind.STRUCTURE, errors or [self._unreadable])
            return
        self._structure = Outcome.WRONG if self._fail(ProblemKind.STRUCTURE, errors) else Outcome.OK
        if canonical:
            difference = None if image.canonical else self._canonical_difference(image)
            wrong = self._fail(ProblemKind.CANONICAL, [] if difference is None else [difference])
            self._canonical = Outcome.WRONG if wrong else Outcome.OK

    def _canonical_difference(self, image: OpenImage) -> str | None:
        from cfstools.formats.canonical import canonical_difference

        # The writer may have met another name of an inode first than a reader.
        options = PlanOptions(algorithm=self._algorithm, min_version=image.version, max_version=image.version)
        return canonical_difference(image.format, self._image, image.tree(as_written=True), options)

    def _add_up(self, check: ObjectChecker) -> None:
        """Record the results of the object checks."""
        self._objects = Outcome.OK
        total = self._tally
        for tally in check.tallies():
            total.measured += tally.measured
            total.hashed += tally.hashed
            total.present += tally.present
            total.bytes_hashed += tally.bytes_hashed
            if self._problems.add(self._object_problem(finding) for finding in tally.findings):
                self._objects = Outcome.WRONG

    def _object_problem(self, finding: BadObject) -> Problem:
        """What is wrong with an object, naming the files that need it."""
        assert self._names is not None
        paths, count = self._names.of(finding.key)
        return Problem(
            kind=_KINDS_OF_FLAWS[finding.flaw],
            subject=finding.location or escape_text(finding.key[0]),
            what=finding.what,
            paths=tuple(map(escape_text, paths)),
            path_count=count,
        )

    def report(self) -> VerifyReport:
        """Everything found so far."""
        self._wait_for_hashes()
        return VerifyReport(
            image=self._subject,
            ok=self._problems.count == 0,
            size=len(self._image),
            sha256=self._sha256.hex(),
            digest=self._digest(self._algorithm).hex(),
            format=self._format,
            digest_check=self._digest_check,
            signature=self._signature,
            signature_place=self._place,
            structure=self._structure,
            canonical=self._canonical,
            objects=self._objects,
            objects_needed=self._needed,
            objects_measured=self._tally.measured,
            objects_hashed=self._tally.hashed,
            objects_present=self._tally.present,
            bytes_hashed=self._tally.bytes_hashed,
            problems=tuple(self._problems.kept),
            problem_count=self._problems.count,
            warnings=tuple(self._warnings),
        )

    def _fail(self, kind: ProblemKind, texts: Sequence[str]) -> int:
        return self._problems.add(Problem(kind=kind, subject=self._subject, what=what) for what in texts)

    def _digest(self, algorithm: Algorithm) -> bytes:
        self._wait_for_hashes()
        if algorithm not in self._digests:
            self._digests[algorithm] = digest_bytes(self._image, Params(algorithm=algorithm))
        return self._digests[algorithm]

    def _image_digests(self) -> ImageDigests:
        fsverity = self._digest(Algorithm.SHA256)
        return ImageDigests(size=len(self._image), sha256=self._sha256, fsverity=fsverity, measure=self._digest)


def _choose(found: Sequence[PlacedSignature]) -> PlacedSignature:
    """The report that decides: that of a signature that does not hold, else of one that does."""
    for state in (Verdict.MISMATCH, Verdict.VERIFIED):
        for signature in found:
            if signature.report.state is state:
                return signature
    return found[0]
