"""DSSE envelopes: a payload with any number of signatures (docs/signatures.md, "Envelope"; DSSE v1.0).

Nothing here interprets the payload: signatures are over its bytes, and only what holds is worth parsing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing.jsontext import dump_canonical, load_object
from cfstools.signing.statement import parse_statement, renamed
from cfstools.text import quoted
from cfstools.values import Value

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE = 1 << 20
MAX_SIGNATURES = 256
MAX_KEY_ID = 1024

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class Verifier(Protocol):
    """One public key."""

    @property
    def key_id(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, 64 lower-case hexadecimal digits."""

    @property
    def algorithm(self) -> str:
        """What kind of key it is, for people: ``Ed25519``, ``ECDSA P-256``, ``RSA-3072``."""

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether *signature* is this key's over *data*; false for any other bytes, never an error."""


class Signer(Protocol):
    """One private key."""

    @property
    def verifier(self) -> Verifier:
        """The public half."""

    def sign(self, data: bytes) -> bytes:
        """The signature over *data*, in the form the public half verifies."""


class Signature(Value):
    """One entry of an envelope. ``key_id`` is a hint nobody vouches for; empty if there is none."""

    key_id: str
    value: bytes


class Envelope(Value):
    """A parsed envelope whose signatures nobody has checked yet.

    ``members`` is the JSON as it came, unknown members included; ``signatures`` has one value for each of its
    entries, in the same order.
    """

    payload: bytes
    signatures: tuple[Signature, ...]
    members: dict[str, object]

    @property
    def signed_bytes(self) -> bytes:
        """What the signatures are over."""
        return pae(self.payload)


class KeyState(Enum):
    """What came of one signature."""

    VERIFIED = "verified"
    DUPLICATE = "duplicate"
    NOT_CHECKED = "not checked"
    UNKNOWN_KEY = "unknown key"
    MISMATCH = "mismatch"


class SignatureCheck(Value):
    """One signature and its state. ``key_id`` is the key that verified it, else the one it claims."""

    key_id: str
    state: KeyState
    algorithm: str | None = None


def pae(payload: bytes) -> bytes:
    """The bytes that are signed for *payload* (DSSE v1.0, "Signature Definition": pre-authentication encoding)."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope strictly; ``SignatureInvalid`` for anything else.

    Base64 may use either alphabet but must be canonical, the payload type must be ours, and unknown members are
    ignored, with one exception: an entry that names no ``keyid`` may have none, or a damaged ``keyid`` would
    pass for a signature without one.
    """
    members = load_object(data, limit=MAX_ENVELOPE, where="envelope")
    kind = members.get("payloadType")
    if kind != PAYLOAD_TYPE:
        shown = quoted(kind, 80) if isinstance(kind, str) else "missing"
        raise SignatureInvalid(f"payloadType is {shown}, not {PAYLOAD_TYPE}", where="envelope")
    payload = _decode(members.get("payload"), "payload")
    entries = members.get("signatures")
    if not isinstance(entries, list) or not entries:
        raise SignatureInvalid("there is no signature in it", where="envelope")
    if len(entries) > MAX_SIGNATURES:
        raise SignatureInvalid(f"{len(entries)} signatures, at most {MAX_SIGNATURES} are accepted", where="envelope")
    signatures = tuple(_parse_entry(entry, f"signature {number}") for number, entry in enumerate(entries, 1))
    return Envelope(payload=payload, signatures=signatures, members=members)


def _parse_entry(entry: object, where: str) -> Signature:
    if not isinstance(entry, dict):
        raise SignatureInvalid("not an object", where=where)
    if "keyid" not in entry and len(entry) > 1:
        strange = next((name for name in entry if name != "sig"), "")
        raise SignatureInvalid(f"it has no keyid but the unknown member {quoted(strange, 80)}", where=where)
    key_id = entry.get("keyid", "")
    if not isinstance(key_id, str) or len(key_id) > MAX_KEY_ID:
        raise SignatureInvalid(f"keyid is not a string of at most {MAX_KEY_ID} characters", where=where)
    return Signature(key_id=key_id, value=_decode(entry.get("sig"), "sig", where))


def _decode(value: object, member: str, where: str = "envelope") -> bytes:
    """Base64 in the standard or the URL-safe alphabet, padded, with nothing that could be written otherwise."""
    if not isinstance(value, str) or not value.isascii():
        raise SignatureInvalid(f"{member} is not a base64 string", where=where)
    text = value.encode("ascii")
    standard = text.translate(_URL_SAFE)
    try:
        decoded = base64.b64decode(standard, validate=True)
    except binascii.Error:
        raise SignatureInvalid(f"{member} is not base64", where=where) from None
    if base64.b64encode(decoded) != standard or (standard != text and (b"+" in text or b"/" in text)):
        raise SignatureInvalid(f"{member} is not canonical base64", where=where)
    if not decoded:
        raise SignatureInvalid(f"{member} is empty", where=where)
    return decoded


def sign_envelope(payload: bytes, signers: Iterable[Signer]) -> bytes:
    """An envelope around *payload* with one signature of each key, as canonical JSON.

    Entries are ordered by key id, so the order of *signers* does not matter. ``UsageError`` without a signer.
    """
    entries = _sign(payload, {signer.verifier.key_id: signer for signer in signers})
    if not entries:
        raise UsageError("there is no key to sign with")
    return _write({"payload": base64.b64encode(payload).decode("ascii"), "payloadType": PAYLOAD_TYPE}, entries)


def add_signatures(existing: bytes, payload: bytes, signers: Iterable[Signer]) -> bytes:
    """The *existing* envelope with a valid signature of each of *signers*.

    What signs already is left alone, and if nothing is missing the bytes come back unchanged. *payload* is what
    would be signed today (:func:`make_statement`): the one in the envelope must say the same, except for the
    name of the file. Otherwise, and if the envelope is malformed, ``SignatureInvalid``.
    """
    envelope = parse_envelope(existing)
    if not _says_the_same(envelope.payload, payload):
        raise SignatureInvalid(
            "the envelope there is for another image or says more than we would sign",
            hint="remove it to sign afresh",
        )
    wanted = {signer.verifier.key_id: signer for signer in signers}
    for check in check_signatures(envelope, [signer.verifier for signer in wanted.values()]):
        if check.state is KeyState.VERIFIED:
            del wanted[check.key_id]
    if not wanted:
        return existing
    entries = envelope.members["signatures"]
    assert isinstance(entries, list)
    kept = [entry for entry in entries if entry.get("keyid") not in wanted]
    return _write(envelope.members, kept + _sign(envelope.payload, wanted))


def _says_the_same(present: bytes, wanted: bytes) -> bool:
    """Whether *present* is *wanted* under another name, to the byte: a key signs nothing its owner did not mean."""
    return present == renamed(wanted, parse_statement(present).name)


def check_signatures(envelope: Envelope, keys: Sequence[Verifier]) -> tuple[SignatureCheck, ...]:
    """The state of each signature of *envelope* under *keys*, in the order of the envelope.

    A signature is tried with the key it names, or with all if it names none. A key counts once: what it verifies
    again is a duplicate.
    """
    data = envelope.signed_bytes
    by_id = {key.key_id: key for key in keys}
    seen: set[str] = set()
    checks = []
    for signature in envelope.signatures:
        named = by_id.get(signature.key_id)
        candidates = [named] if named else [] if signature.key_id else list(by_id.values())
        found = next((key for key in candidates if key.verify(data, signature.value)), None)
        if found is not None:
            state = KeyState.DUPLICATE if found.key_id in seen else KeyState.VERIFIED
            seen.add(found.key_id)
            checks.append(SignatureCheck(key_id=found.key_id, state=state, algorithm=found.algorithm))
        elif named is not None:
            checks.append(SignatureCheck(key_id=named.key_id, state=KeyState.MISMATCH, algorithm=named.algorithm))
        else:
            checks.append(SignatureCheck(key_id=signature.key_id, state=KeyState.UNKNOWN_KEY))
    return tuple(checks)


def _sign(payload: bytes, signers: Mapping[str, Signer]) -> list[dict[str, str]]:
    data = pae(payload)
    return [
        {"keyid": key_id, "sig": base64.b64encode(signer.sign(data)).decode("ascii")}
        for key_id, signer in signers.items()
    ]


def _write(members: Mapping[str, object], entries: list[dict[str, str]]) -> bytes:
    """The envelope as bytes, within the limits of :func:`parse_envelope`."""
    entries = sorted(entries, key=lambda entry: entry.get("keyid", ""))
    data = dump_canonical({**members, "signatures": entries})
    parse_envelope(data)
    return data
