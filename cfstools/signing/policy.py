"""From the states of single signatures to one verdict about an image (docs/signatures.md, "Verifying")."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.report import Report
from cfstools.signing.envelope import (
    Envelope,
    KeyState,
    SignatureCheck,
    Verifier,
    check_signatures,
    parse_envelope,
)
from cfstools.signing.statement import ImageDigests, Statement, parse_statement
from cfstools.text import printable
from cfstools.values import Value

_SHOWN_KEYS = 10


class Verdict(Enum):
    """What is known about an image's signature."""

    VERIFIED = "verified"
    NOT_CHECKED = "not checked"
    MISSING = "missing"
    MISMATCH = "mismatch"
    UNKNOWN_KEY = "unknown key"


class SignatureReport(Report):
    """The verdict: ``state``, ids of the keys whose signatures are valid, all signatures, all problems.

    ``statement`` is set only if enough signatures are valid, even if it is about another image.
    """

    state: Verdict
    required: int
    verified_by: tuple[str, ...] = ()
    signatures: tuple[SignatureCheck, ...] = ()
    statement: Statement | None = None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are no problems. Without keys nothing is checked, so there are none."""
        return not self.problems

    def require(self) -> None:
        """Raise SignatureInvalid with all problems unless :attr:`ok`."""
        if self.problems:
            raise SignatureInvalid("; ".join(self.problems))


class _Count(Value):
    """The signatures of one envelope, compared with a threshold."""

    state: Verdict
    checks: tuple[SignatureCheck, ...]
    verified_by: tuple[str, ...]
    problems: tuple[str, ...]


def judge(
    envelope: bytes | None, image: ImageDigests, keys: Sequence[Verifier], *, threshold: int = 1
) -> SignatureReport:
    """Check the *envelope* of an image, ``None`` if there is none, against *keys*.

    Verified means: signatures of at least *threshold* different keys are valid, no signature that names one of *keys*
    is invalid, and the statement is about *image*. Without keys an envelope is parsed, not checked. Raises UsageError
    for a threshold that the keys cannot reach; everything else is in the report.
    """
    _check_threshold(keys, threshold)
    required = threshold if keys else 0
    if envelope is None:
        unsigned = ("there is no signature",) if keys else ()
        return SignatureReport(state=Verdict.MISSING, required=required, problems=unsigned)
    try:
        parsed = parse_envelope(envelope)
    except SignatureInvalid as error:
        return SignatureReport(state=Verdict.MISMATCH, required=required, problems=(str(error),))
    if not keys:
        claims = tuple(SignatureCheck(key_id=one.key_id, state=KeyState.NOT_CHECKED) for one in parsed.signatures)
        return SignatureReport(state=Verdict.NOT_CHECKED, required=required, signatures=claims)
    count = _count(parsed, keys, threshold)
    state, statement, problems = count.state, None, count.problems
    if state is Verdict.VERIFIED:
        statement, problem = _read_statement(parsed.payload, image)
        if problem:
            state, problems = Verdict.MISMATCH, (problem,)
    return SignatureReport(
        state=state,
        required=required,
        verified_by=count.verified_by,
        signatures=count.checks,
        statement=statement,
        problems=problems,
    )


def _check_threshold(keys: Sequence[Verifier], threshold: int) -> None:
    different = len({key.key_id for key in keys})
    if threshold < 1:
        raise UsageError(f"a threshold of {threshold} would accept anything")
    if keys and threshold > different:
        raise UsageError(f"a threshold of {threshold} cannot be reached with {different} different key(s)")


def _read_statement(payload: bytes, image: ImageDigests) -> tuple[Statement | None, str | None]:
    """Parse the signed *payload*; the second value says why it is not about *image*."""
    try:
        statement = parse_statement(payload)
    except SignatureInvalid as error:
        return None, str(error)
    difference = statement.difference(image)
    return statement, f"the signature holds, but {difference}" if difference else None


def _count(envelope: Envelope, keys: Sequence[Verifier], threshold: int) -> _Count:
    checks = check_signatures(envelope, keys)
    verified = tuple(check.key_id for check in checks if check.state is KeyState.VERIFIED)
    strangers = [check for check in checks if check.state is KeyState.UNKNOWN_KEY]
    problems = [_mismatch(number, check) for number, check in enumerate(checks, 1) if check.state is KeyState.MISMATCH]
    state = Verdict.MISMATCH if problems else Verdict.VERIFIED
    if len(verified) < threshold:
        if state is Verdict.VERIFIED:
            state = Verdict.UNKNOWN_KEY if strangers else Verdict.MISSING
        problems.append(f"{len(verified)} of {threshold} required signatures hold{_others(checks, keys)}")
    return _Count(state=state, checks=checks, verified_by=verified, problems=tuple(problems))


def _mismatch(number: int, check: SignatureCheck) -> str:
    return (
        f"signature {number} names the key {check.key_id} ({check.algorithm}) and is not its signature of this "
        "statement: one of them was changed, or a key of another type made it"
    )


def _others(checks: Sequence[SignatureCheck], keys: Sequence[Verifier]) -> str:
    """Which signatures the envelope has instead of the missing ones."""
    made = sorted({check.key_id[:80] or "a key without id" for check in checks if check.state is KeyState.UNKNOWN_KEY})
    if len(made) > _SHOWN_KEYS:
        made = [*made[:_SHOWN_KEYS], f"and {len(made) - _SHOWN_KEYS} more"]
    twice = sorted({check.key_id for check in checks if check.state is KeyState.DUPLICATE})
    given = ", ".join(f"{key.key_id} ({key.algorithm})" for key in keys)
    parts = []
    if made:
        parts.append(f"made by unknown keys: {', '.join(map(printable, made))}")
    if twice:
        parts.append(f"duplicates, counted once: {', '.join(twice)}")
    return "".join(f"; {part}" for part in [*parts, f"keys given: {given}"])
