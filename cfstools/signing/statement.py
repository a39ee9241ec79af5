"""What is signed: an in-toto Statement v1 about one composefs image (docs/signatures.md, "Statement")."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from cfstools.errors import FormatError, SignatureInvalid, UsageError
from cfstools.strictjson import JsonLimits, dump_canonical, parse_json
from cfstools.text import quoted
from cfstools.values import Value
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cfstools:composefs-image:v1"
MAX_STATEMENT = 1 << 16
MAX_IMAGE = 1 << 63
MAX_DEPTH = 32
MAX_VALUES = 1 << 14

# Names in the digest set: the bytes of the image, and its fs-verity digest by hash and log2 of the block size.
PLAIN = "sha256"
FSVERITY = {algorithm: f"fsverity-{algorithm.value}-12" for algorithm in Algorithm}

_SIZES = {PLAIN: 32, **{name: algorithm.digest_size for algorithm, name in FSVERITY.items()}}
NO_SUBJECTS: Mapping[str, bytes] = MappingProxyType({})

_HEX = re.compile(r"[0-9a-f]+")
_FORMAT = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


class ImageDigests(Value):
    """Identity of an image: size in bytes, SHA-256, and fs-verity digest (4096-byte blocks, no salt).

    Checking a signature needs one of the two digests (the kernel measures only the second), signing both. *measure*
    computes the fs-verity digest by another algorithm, for statements with that one.
    """

    size: int
    sha256: bytes | None = None
    fsverity: bytes | None = None
    measure: Callable[[Algorithm], bytes] | None = None

    @classmethod
    def of(cls, data: Buffer, algorithm: Algorithm | None = None) -> ImageDigests:
        """Those of the image *data*: the fs-verity digest by *algorithm*, without one by whichever is asked for."""
        # It loads the system's library, which takes longer than to hash a small image.
        from hashlib import sha256  # noqa: PLC0415

        def measure(wanted: Algorithm) -> bytes:
            return digest_bytes(data, Params(algorithm=wanted))

        return cls(
            size=memoryview(data).nbytes,
            sha256=sha256(data).digest(),
            fsverity=None if algorithm is None else measure(algorithm),
            measure=measure if algorithm is None else None,
        )

    def named(self, wanted: Collection[str] = ()) -> dict[str, bytes]:
        """The digests by their names in a statement; those in *wanted* are computed if *measure* can.

        Raises UsageError if one has an impossible length.
        """
        found = {}
        if self.sha256 is not None:
            if len(self.sha256) != _SIZES[PLAIN]:
                raise UsageError(f"a SHA-256 has 32 bytes, not {len(self.sha256)}")
            found[PLAIN] = self.sha256
        if self.fsverity is not None:
            found[FSVERITY[ObjectId.of(self.fsverity).algorithm]] = self.fsverity
        if self.measure is not None:
            more = [algorithm for algorithm, name in FSVERITY.items() if name in wanted and name not in found]
            found.update((FSVERITY[algorithm], self.measure(algorithm)) for algorithm in more)
        return found


class Statement(Value):
    """A parsed statement. ``digests`` has only known names; ``name`` is for people and never compared.

    ``further`` holds the SHA-256 of other subjects, such as the manifest that carries the image.
    """

    name: str
    size: int
    digests: Mapping[str, bytes]
    format_version: str
    further: tuple[bytes, ...] = ()

    def difference(self, image: ImageDigests) -> str | None:
        """Why this statement is not about *image*; ``None`` if it is.

        They must have at least one digest in common, and all common digests must be equal.
        """
        if self.size != image.size:
            return f"it is for an image of {self.size} bytes, this one has {image.size}"
        given = image.named(self.digests)
        common = [name for name in self.digests if name in given]
        if not common:
            return f"it has no digest to compare: {', '.join(self.digests)} in it, {', '.join(given)} computed"
        for name in common:
            if self.digests[name] != given[name]:
                return f"it is for an image with {name} {self.digests[name].hex()}, this one has {given[name].hex()}"
        return None


def renamed(payload: bytes, name: str) -> bytes:
    """The *payload* that :func:`make_statement` made, with another name for its subject."""
    import json  # noqa: PLC0415 - verbs that make no statement do without

    body = json.loads(payload)
    body["subject"][0]["name"] = name
    return dump_canonical(body)


def make_statement(
    name: bytes, image: ImageDigests, format_version: str, *, further: Mapping[str, bytes] = NO_SUBJECTS
) -> bytes:
    """Make the statement about *image* as canonical JSON: equal arguments give equal bytes.

    *name* is the file's name without directories (bytes that are not UTF-8 become ``\\xNN``); *format_version* is a
    word like ``v1-sha256-12``. *further* has the SHA-256 of other subjects by their names. Raises UsageError if a
    digest is missing.
    """
    digests = image.named()
    if len(digests) != 2:
        raise UsageError("both digests of the image are needed to sign it")
    if not _FORMAT.fullmatch(format_version):
        raise UsageError(f"{quoted(format_version)} is not a format version")
    text = dump_canonical(
        {
            "_type": STATEMENT_TYPE,
            "predicateType": PREDICATE_TYPE,
            "predicate": {"formatVersion": format_version, "size": image.size},
            "subject": [
                {
                    "name": name.decode("utf-8", "backslashreplace"),
                    "digest": {key: value.hex() for key, value in digests.items()},
                },
                *({"name": other, "digest": {PLAIN: value.hex()}} for other, value in further.items()),
            ],
        }
    )
    parse_statement(text)  # sign only what is accepted when read
    return text


def parse_statement(payload: bytes) -> Statement:
    """Parse a statement whose signature was verified. Raises SignatureInvalid for any other document.

    Unknown members are ignored, as in-toto requires, and so are digests with unknown names.
    """
    where = "statement"
    body = load_object(payload, limit=MAX_STATEMENT, where=where)
    for member, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if body.get(member) != expected:
            raise SignatureInvalid(f"{member} is {_shown(body.get(member))}, not {expected}", where=where)
    image, others = _subjects(body.get("subject"))
    name = image.get("name", "")
    if not isinstance(name, str):
        raise SignatureInvalid("the subject's name is not a string", where=where)
    size, version = _predicate(body.get("predicate"))
    return Statement(
        name=name,
        size=size,
        format_version=version,
        digests=_digests(image.get("digest")),
        further=tuple(_further(others)),
    )


def _subjects(value: object) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The subject that is the image, the only one with an fs-verity digest, and the others."""
    where = "statement"
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise SignatureInvalid("it has no list of subjects", where=where)
    measured = set(FSVERITY.values())
    images = [one for one in value if isinstance(one.get("digest"), dict) and one["digest"].keys() & measured]
    if len(images) != 1:
        found = "more than one" if images else "none"
        raise SignatureInvalid(f"exactly one subject has to have an fs-verity digest, {found} has", where=where)
    return images[0], [one for one in value if one is not images[0]]


def _further(subjects: Iterable[dict[str, object]]) -> Iterator[bytes]:
    """The SHA-256 of other subjects; one without is none of ours."""
    for subject in subjects:
        digest = subject.get("digest")
        text = digest.get(PLAIN) if isinstance(digest, dict) else None
        if isinstance(text, str) and len(text) == 2 * _SIZES[PLAIN] and _HEX.fullmatch(text):
            yield bytes.fromhex(text)


def load_object(data: bytes, *, limit: int, where: str) -> dict[str, object]:
    """Parse *data* as one JSON object of at most *limit* bytes.

    Raises SignatureInvalid for whatever :func:`~cfstools.strictjson.parse_json` refuses, and for other values.
    """
    try:
        value = parse_json(data, JsonLimits(size=limit, depth=MAX_DEPTH, values=MAX_VALUES))
    except FormatError as error:
        raise SignatureInvalid(error.what, where=where) from None
    if not isinstance(value, dict):
        raise SignatureInvalid("not a JSON object", where=where)
    return value


def _digests(value: object) -> dict[str, bytes]:
    assert isinstance(value, dict)  # as the subject that is the image has them
    found = {}
    for name, size in _SIZES.items():
        if name not in value:
            continue
        text = value[name]
        if not isinstance(text, str) or len(text) != 2 * size or not _HEX.fullmatch(text):
            raise SignatureInvalid(f"{name} is not {2 * size} lower-case hexadecimal digits", where="statement")
        found[name] = bytes.fromhex(text)
    return found


def _predicate(value: object) -> tuple[int, str]:
    if not isinstance(value, dict):
        raise SignatureInvalid("it has no predicate", where="statement")
    size, version = value.get("size"), value.get("formatVersion")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_IMAGE:
        raise SignatureInvalid("size is not a number of bytes", where="statement")
    if not isinstance(version, str) or not _FORMAT.fullmatch(version):
        raise SignatureInvalid("formatVersion is not a format version", where="statement")
    return size, version


def _shown(value: object) -> str:
    return quoted(value, 80) if isinstance(value, str) else "missing"
