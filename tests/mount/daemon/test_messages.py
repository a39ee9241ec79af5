"""What goes over the pipe."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.cli.hints import spelled
from cfstools.errors import CfsError, Phrase, Remedy, SignatureInvalid, StoreError, Unsupported
from cfstools.mount.daemon.messages import await_ready, tell_error, tell_ready


def received(said: bytes) -> int:
    ours, theirs = os.pipe()
    try:
        os.write(theirs, said)
        os.close(theirs)
        return await_ready(ours)
    finally:
        os.close(ours)


def told(error: CfsError) -> CfsError:
    ours, theirs = os.pipe()
    try:
        tell_error(theirs, error)
        with pytest.raises(CfsError) as raised:
            await_ready(ours)
    finally:
        os.close(ours)
    return raised.value


def test_ready() -> None:
    ours, theirs = os.pipe()
    tell_ready(theirs, 1234)
    assert await_ready(ours) == 1234
    os.close(ours)


def test_an_error_arrives_as_it_was() -> None:
    error = Unsupported("no", where="offset 1", subject="a\nb", hint=Phrase("use {} or {}", Remedy.STORES, Remedy.KEEP))
    error.add_note("remove x")
    found = told(error)
    assert (type(found), str(found), found.hint) == (Unsupported, str(error), "use stores or keep")
    assert spelled(found.hint or "") == "use --store or --keep"
    assert found.__notes__ == ["remove x"]
    assert told(SignatureInvalid("wrong")).exit_code == 3
    assert spelled(told(StoreError(Phrase("{} asks", Remedy.STORES))).what) == "--store asks"


def test_a_closed_pipe_is_a_failure() -> None:
    with pytest.raises(CfsError, match="ended before it was ready"):
        received(b"")


def test_nobody_may_be_listening() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    tell_ready(theirs, 1)
    with pytest.raises(OSError):
        os.fstat(theirs)


def of(template: str, *remedies: str) -> bytes:
    what = {"template": template, "remedies": remedies}
    names = ("where", "subject", "hint")
    return json.dumps({"error": "CfsError", "what": what, **dict.fromkeys(names), "notes": []}).encode()


@pytest.mark.parametrize(
    "said",
    [
        b"0",
        b"0 ",
        b"0 x",
        b"1 5",
        b"null",
        b"[]",
        b"{}",
        b'{"error": []}',
        of("{}", "no"),
        of("{} {}", "keep"),
        b"\xff",
    ],
)
def test_what_cannot_be_read(said: bytes) -> None:
    with pytest.raises(CfsError, match="said nothing that can be read"):
        received(said)


@given(st.binary(max_size=300))
def test_any_bytes(said: bytes) -> None:
    try:
        received(said)
    except CfsError:
        return
