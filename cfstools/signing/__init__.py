"""Keys, signatures and the policy over them; the only importer of cryptography.

This package itself imports no cryptography: :mod:`cfstools.signing.keys` and what it needs do, so it is imported
where a key is really used.
"""

from cfstools.signing.attach import MAX_TRAILER, Attached, find_trailer, make_trailer, starts_trailer
from cfstools.signing.envelope import (
    KeyState,
    Signature,
    SignatureCheck,
    Signer,
    Verifier,
    add_signatures,
    check_signatures,
    extend_envelope,
    parse_envelope,
    sign_envelope,
)
from cfstools.signing.policy import SignatureReport, Verdict, judge
from cfstools.signing.statement import ImageDigests, Statement, make_statement, parse_statement

__all__ = [
    "MAX_TRAILER",
    "Attached",
    "ImageDigests",
    "KeyState",
    "Signature",
    "SignatureCheck",
    "SignatureReport",
    "Signer",
    "Statement",
    "Verdict",
    "Verifier",
    "add_signatures",
    "check_signatures",
    "extend_envelope",
    "find_trailer",
    "judge",
    "make_statement",
    "make_trailer",
    "parse_envelope",
    "parse_statement",
    "sign_envelope",
    "starts_trailer",
]
