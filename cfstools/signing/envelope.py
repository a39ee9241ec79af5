"""DSSE envelopes: a payload with any number of signatures (docs/signatures.md, "Envelope"; DSSE v1.0).

Signatures are over the bytes of the payload, so checking them does not parse it.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing.statement import load_object, parse_statement, renamed
from cfstools.strictjson import dump_canonical
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
        """The kind of key, for people: ``Ed25519``, ``ECDSA P-256``, ``RSA-3072``."""

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether *signature* is a valid one of *data* by this key; false for any other bytes, never an error."""


class Signer(Protocol):
    """One private key."""

    @property
    def verifier(self) -> Verifier:
        """The public half."""

    def sign(self, data: bytes) -> bytes:
        """Sign *data*; the result is what the public half verifies."""


class Signature(Value):
    """One entry of an envelope. ``key_id`` is an unauthenticated hint; empty if there is none."""

    key_id: str
    value: bytes


class Envelope(Value):
    """A parsed envelope whose signatures have not been checked.

    ``members`` is the JSON object as read, with unknown members; ``signatures`` are its entries in the same order.
    """

    payload: bytes
    signatures: tuple[Signature, ...]
    members: dict[str, object]

    @property
    def signed_bytes(self) -> bytes:
        """The bytes that the signatures sign."""
        return pae(self.payload)


class KeyState(Enum):
    """The result of checking one signature."""

    VERIFIED = "verified"
    DUPLICATE = "duplicate"
    NOT_CHECKED = "not checked"
    UNKNOWN_KEY = "unknown key"
    MISMATCH = "mismatch"


class SignatureCheck(Value):
    """One signature and its state. ``key_id`` is the key that verified it, else the one that it names."""

    key_id: str
    state: KeyState
    algorithm: str | None = None


def pae(payload: bytes) -> bytes:
    """The bytes that are signed for *payload* (DSSE v1.0, "Signature Definition": pre-authentication encoding)."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes) -> Envelope:
    """Parse an envelope strictly. Raises SignatureInvalid.

    Base64 may use either alphabet but must be canonical. The payload type must be ours. Unknown members are ignored,
    except in an entry without ``keyid``: there the unknown member may be a damaged ``keyid``.
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
    """Decode canonical, padded base64 in the standard or the URL-safe alphabet."""
    import base64  # noqa: PLC0415 - most verbs that can read a signature meet none

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
    """Sign *payload* with each key; returns the envelope as canonical JSON.

    Entries are ordered by key id, so the order of *signers* does not matter. Raises UsageError without a signer.
    """
    import base64  # noqa: PLC0415 - most verbs that can read a signature meet none

    entries = _sign(payload, {signer.verifier.key_id: signer for signer in signers})
    if not entries:
        raise UsageError("there is no key to sign with")
    return _write({"payload": base64.b64encode(payload).decode("ascii"), "payloadType": PAYLOAD_TYPE}, entries)


def extend_envelope(existing: bytes | None, payload: bytes, signers: Sequence[Signer]) -> bytes:
    """As :func:`add_signatures`, but a new envelope where there is no *existing* one. Raises also ``UsageError``."""
    if existing is None or not signers:
        return sign_envelope(payload, signers)
    return add_signatures(existing, payload, signers)


def add_signatures(existing: bytes, payload: bytes, signers: Iterable[Signer]) -> bytes:
    """Add the missing signatures of *signers* to the *existing* envelope; returns it unchanged if none is missing.

    *payload* is the statement as :func:`make_statement` would make it now. The payload of the envelope must be the same
    except for the name of the file; if not, or if the envelope is malformed, raises SignatureInvalid.
    """
    envelope = parse_envelope(existing)
    if not _says_the_same(envelope.payload, payload):
        raise SignatureInvalid(
            "the existing envelope is for another image or states more than would be signed now",
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
    """Whether *present* equals *wanted* except for the name: a key must not sign anything its owner did not intend."""
    return present == renamed(wanted, parse_statement(present).name)


def check_signatures(envelope: Envelope, keys: Sequence[Verifier]) -> tuple[SignatureCheck, ...]:
    """The state of each signature of *envelope* under *keys*, in the order of the envelope.

    A signature is checked with the key that it names, or with all keys if it names none. Each key counts once: further
    valid signatures of it are duplicates.
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
    import base64  # noqa: PLC0415 - most verbs that can read a signature meet none

    data = pae(payload)
    return [
        {"keyid": key_id, "sig": base64.b64encode(signer.sign(data)).decode("ascii")}
        for key_id, signer in signers.items()
    ]


def _write(members: Mapping[str, object], entries: list[dict[str, str]]) -> bytes:
    """Encode the envelope. Raises SignatureInvalid if :func:`parse_envelope` would refuse it."""
    entries = sorted(entries, key=lambda entry: entry.get("keyid", ""))
    data = dump_canonical({**members, "signatures": entries})
    parse_envelope(data)
    return data
