"""What a signature says: an in-toto Statement v1 about one composefs image (docs/signatures.md, "Statement")."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing.jsontext import dump_canonical, load_object
from cfstools.text import quoted
from cfstools.values import Value
from cfstools.verity import Algorithm, ObjectId

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cfstools:composefs-image:v1"
MAX_STATEMENT = 1 << 16
MAX_IMAGE = 1 << 63

# Names in the digest set: the bytes of the image, and its fs-verity digest by hash and log2 of the block size.
PLAIN = "sha256"
FSVERITY = {algorithm: f"fsverity-{algorithm.value}-12" for algorithm in Algorithm}

_SIZES = {PLAIN: 32, **{name: algorithm.digest_size for algorithm, name in FSVERITY.items()}}
_HEX = re.compile(r"[0-9a-f]+")
_FORMAT = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


class ImageDigests(Value):
    """What identifies an image: its size in bytes, its SHA-256 and its fs-verity digest (4096-byte blocks, no salt).

    To check a signature one of the two digests is enough (the kernel measures only the second); to sign, both
    are needed. *measure* takes the fs-verity digest by another algorithm, for statements that have that one.
    """

    size: int
    sha256: bytes | None = None
    fsverity: bytes | None = None
    measure: Callable[[Algorithm], bytes] | None = None

    def named(self, wanted: Collection[str] = ()) -> dict[str, bytes]:
        """The digests by their names in a statement, with those of *wanted* that can be had.

        ``UsageError`` if one has an impossible length.
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
    """A parsed statement. ``digests`` has those of the names known here; ``name`` is for people, never compared."""

    name: str
    size: int
    digests: Mapping[str, bytes]
    format_version: str

    def difference(self, image: ImageDigests) -> str | None:
        """Why this statement is not about *image*, or None if it is.

        Every digest known to both must be equal, and there must be one.
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
    """The statement *payload*, made by :func:`make_statement`, with another name for its subject."""
    body = json.loads(payload)
    body["subject"][0]["name"] = name
    return dump_canonical(body)


def make_statement(name: bytes, image: ImageDigests, format_version: str) -> bytes:
    """The statement about *image* as canonical JSON: equal arguments, equal bytes.

    *name* is the file's name without directories (bytes that are not UTF-8 appear as ``\\xNN``);
    *format_version* is a word like ``v1-sha256-12``. ``UsageError`` if a digest is missing.
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
                }
            ],
        }
    )
    parse_statement(text)  # what is signed here is accepted here
    return text


def parse_statement(payload: bytes) -> Statement:
    """Read a statement whose signature holds. ``SignatureInvalid`` for anything that is not ours.

    Members that are not known are ignored, as in-toto asks; digests of unknown names likewise.
    """
    where = "statement"
    body = load_object(payload, limit=MAX_STATEMENT, where=where)
    for member, expected in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if body.get(member) != expected:
            raise SignatureInvalid(f"{member} is {_shown(body.get(member))}, not {expected}", where=where)
    subject = body.get("subject")
    if not isinstance(subject, list) or len(subject) != 1 or not isinstance(subject[0], dict):
        raise SignatureInvalid("it has to have exactly one subject", where=where)
    name = subject[0].get("name", "")
    if not isinstance(name, str):
        raise SignatureInvalid("the subject's name is not a string", where=where)
    size, version = _predicate(body.get("predicate"))
    return Statement(name=name, size=size, format_version=version, digests=_digests(subject[0].get("digest")))


def _digests(value: object) -> dict[str, bytes]:
    if not isinstance(value, dict):
        raise SignatureInvalid("the subject has no digests", where="statement")
    found = {}
    for name, size in _SIZES.items():
        if name not in value:
            continue
        text = value[name]
        if not isinstance(text, str) or len(text) != 2 * size or not _HEX.fullmatch(text):
            raise SignatureInvalid(f"{name} is not {2 * size} lower-case hexadecimal digits", where="statement")
        found[name] = bytes.fromhex(text)
    if not found.keys() & set(FSVERITY.values()):
        raise SignatureInvalid("it has no fs-verity digest", where="statement")
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
