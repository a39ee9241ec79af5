"""Access control lists of layers: the text of archives, the kernel's form, and what is left where they are not kept."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import OciError, TarError
from cfstools.formats.tar import Member, TarReader, TarWarning
from cfstools.oci.acl import ACCESS_KEY, DEFAULT_KEY, Acl, AclEntry, parse_acl_text, parse_acl_value
from cfstools.oci.aclmembers import AclSettler
from cfstools.oci.mapping import KeptXattrs, XattrKeeper
from tests.formats.tar.tarbytes import END, header, pax, read

BASIC = b"user::rw-,group::r--,other::---"
NAMED = b"user::rw-,user:1000:rwx,group::r--,mask::rw-,other::---"
NAMED_VALUE = struct.pack(
    "<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 7, 1000, 4, 4, 2**32 - 1, 16, 6, 2**32 - 1, 32, 0, 2**32 - 1
)


@pytest.mark.parametrize(
    "text",
    [
        NAMED,
        b"user::rw-\nuser:1000:rwx\t#effective:rw-\ngroup::r--\nmask::rw-\nother::---\n",
        b"user::rw-,user:lisa:rwx:1000,group::r--,mask::rw-,other::---",  # star and libarchive
        b"u::rw-,u:1000:rwx,g::r--,m:rw-,o:---",
        b" other::--- , mask::rw- , group::r-- , user:1000:rwx , user::rw- ",
        b"default:user::rw-,d:user:1000:rwx,default:group::r--,default:mask::rw-,default:other::---",
        b"user::rw,user:1000:rwx,group::r,mask::rw,other::-",
    ],
)
def test_texts_of_all_writers(text: bytes) -> None:
    acl = parse_acl_text(text)
    assert acl.encode() == NAMED_VALUE
    assert parse_acl_value(NAMED_VALUE) == acl
    assert (acl.mode, acl.safe_mode, acl.is_extended, acl.is_numeric) == (0o660, 0o640, True, True)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"user::rw-",
        b"user::rw-,group::r--",
        BASIC + b",user::r--",
        BASIC + b",user:1:rwx",
        BASIC + b",mask::r--,mask::r--",
        BASIC + b",mask::r--,user:1:r--,user:1:rwx",
        BASIC + b",mask::r--,user:x:r--:1,user:1:rwx",
        BASIC + b",mask:x:r--",
        BASIC + b",mask::r--,user:1",
        BASIC + b",mask::r--,user:1:r--:2:3",
        BASIC + b",mask::r--,user:1:r--:x",
        BASIC + b",mask::r--,user:4294967295:r--",
        BASIC + b",mask::r--,user:99999999999:r--",
        BASIC + b",mask::r--,other:7:r--",
        b"owner@:rw-p:allow",
        b"user::6,group::4,other::0",
        b"user::,group::r,other::r",
        b"\xff\0",
    ],
)
def test_texts_that_are_none(text: bytes) -> None:
    with pytest.raises(OciError):
        parse_acl_text(text)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0\0",
        NAMED_VALUE[:-1],
        b"\3" + NAMED_VALUE[1:],
        NAMED_VALUE[:4] + b"\3" + NAMED_VALUE[5:],
        NAMED_VALUE[:6] + b"\x08" + NAMED_VALUE[7:],
        NAMED_VALUE + NAMED_VALUE[12:20],
    ],
)
def test_values_that_are_none(value: bytes) -> None:
    with pytest.raises(OciError):
        parse_acl_value(value)


@given(st.binary(max_size=80), st.lists(st.sampled_from([b"user:", b"u::", b"rwx", b"1", b":", b",", b"\n", b"mask"])))
def test_noise_raises_nothing_but_the_error(noise: bytes, parts: list[bytes]) -> None:
    for parse, data in ((parse_acl_text, noise), (parse_acl_value, noise), (parse_acl_text, b"".join(parts))):
        try:
            parse(data)
        except OciError:
            continue


permissions = st.integers(0, 7)
entries = st.tuples(st.sampled_from([2, 8]), permissions, st.integers(0, 3))


@given(
    st.lists(permissions, min_size=4, max_size=4), st.lists(entries, max_size=4, unique_by=lambda one: (one[0], one[2]))
)
def test_nobody_gains_without_the_list(base: list[int], named: list[tuple[int, int, int]]) -> None:
    """Whoever asks, as the kernel answers: with the list, and by the mode that is left without it."""
    user, group, mask, other = base
    acl = Acl(
        tuple(
            AclEntry(*one) for one in sorted([(1, user, -1), (4, group, -1), (16, mask, -1), (32, other, -1), *named])
        )
    )
    for uid in range(5):
        for groups in ([], [9], [0], [9, 1], [2, 3], [9, 0, 1, 2, 3]):
            without = acl.safe_mode >> 3 & 7 if 9 in groups else acl.safe_mode & 7
            for wanted in (1, 2, 4):
                assert allowed(base, named, uid, groups, wanted) or not without & wanted


def allowed(base: list[int], named: list[tuple[int, int, int]], uid: int, groups: list[int], wanted: int) -> bool:
    """What the kernel says to somebody who is not the owner; the group of the file is 9."""
    _, group, mask, other = base
    for tag, bits, number in named:
        if tag == 2 and number == uid:
            return bool(bits & mask & wanted)
    matching = [bits for tag, bits, number in named if tag == 8 and number in groups] + [group] * (9 in groups)
    return any(bits & mask & wanted for bits in matching) if matching else bool(other & wanted)


def settled(data: bytes, kept: KeptXattrs, *, safe_modes: bool = True) -> tuple[Member, list[str]]:
    """The one member of *data* after its lists were settled, and the warnings."""
    warnings: list[str] = []
    ((member, _),) = read(data + END)
    AclSettler(XattrKeeper(kept).keeps, lambda warning: warnings.append(warning.what), safe_modes=safe_modes).settle(
        member
    )
    return member, warnings


def mode(text: bytes) -> bytes:
    return b"%07o\0" % int(text, 8)


def test_a_list_is_kept_where_all_attributes_are() -> None:
    data = pax((b"SCHILY.acl.access", NAMED)) + header(b"f", mode=mode(b"660"))
    member, warnings = settled(data, KeptXattrs.ALL)
    assert (member.mode, member.xattrs, warnings) == (0o660, {ACCESS_KEY: NAMED_VALUE}, [])


def test_lists_of_directories() -> None:
    data = pax((b"SCHILY.acl.access", BASIC), (b"SCHILY.acl.default", NAMED), (b"SCHILY.xattr.user.a", b"1"))
    member, warnings = settled(data + header(b"d/", b"5", mode=mode(b"640")), KeptXattrs.ALL)
    assert (member.mode, warnings) == (0o640, [])
    assert member.xattrs == {DEFAULT_KEY: NAMED_VALUE, b"user.a": b"1"}  # what the mode says needs no list
    member, warnings = settled(data + header(b"d/", b"5", mode=mode(b"640")), KeptXattrs.USER)
    assert (member.mode, warnings) == (0o640, ["has a default access control list that is not kept"])
    assert settled(pax((b"SCHILY.acl.default", NAMED)) + header(b"f"), KeptXattrs.ALL)[0].xattrs == {}


def test_a_list_decides_about_the_mode_as_on_disk() -> None:
    data = pax((b"SCHILY.acl.access", NAMED)) + header(b"f", mode=mode(b"4644"))
    member, warnings = settled(data, KeptXattrs.ALL)
    assert member.mode == 0o4660
    assert warnings == ["mode 4644 becomes 0660 by the access control list"]


@pytest.mark.parametrize("how", ["text", "value"])
@pytest.mark.parametrize(("safe", "left"), [(True, 0o2640), (False, 0o2660)])
def test_a_list_that_is_not_kept_is_said(how: str, safe: bool, left: int) -> None:
    record = (b"SCHILY.acl.access", NAMED) if how == "text" else (b"SCHILY.xattr." + ACCESS_KEY, NAMED_VALUE)
    member, warnings = settled(pax(record) + header(b"f", mode=mode(b"2660")), KeptXattrs.USER, safe_modes=safe)
    assert member.mode == left
    assert len(warnings) == 1
    assert warnings[0].startswith("has an access control list that is not kept: mode 26")
    assert XattrKeeper(KeptXattrs.USER).keep(member.xattrs) == {}


def test_names_without_numbers_cannot_be_kept() -> None:
    text = NAMED.replace(b"1000", b"lisa")
    member, (warning,) = settled(pax((b"SCHILY.acl.access", text)) + header(b"f", mode=mode(b"660")), KeptXattrs.ALL)
    assert (member.mode, member.xattrs) == (0o640, {})
    assert "names users or groups without their numbers" in warning


@pytest.mark.parametrize(
    "records",
    [
        [(b"SCHILY.acl.access", b"user:::")],
        [(b"SCHILY.xattr." + ACCESS_KEY, b"junk")],
        [(b"SCHILY.acl.access", NAMED), (b"SCHILY.xattr." + ACCESS_KEY, NAMED_VALUE.replace(b"\x07", b"\x05"))],
    ],
)
def test_lists_that_cannot_be_read(records: list[tuple[bytes, bytes]]) -> None:
    data = pax(*records) + header(b"f")
    for kept, safe in ((KeptXattrs.ALL, False), (KeptXattrs.USER, True)):
        with pytest.raises(TarError, match=r"offset 0x0/0 \(member f\): .*list"):
            settled(data, kept, safe_modes=safe)
    member, (warning,) = settled(data, KeptXattrs.CAPABILITY, safe_modes=False)
    assert member.mode == 0o644
    assert "has an access control list that is not kept and cannot be read" in warning


def test_lists_of_other_systems_and_of_links() -> None:
    member, (warning,) = settled(pax((b"SCHILY.acl.ace", b"owner@:rw:allow")) + header(b"f"), KeptXattrs.ALL)
    assert (member.xattrs, "of a kind Linux does not have (ace)" in warning) == ({}, True)
    for kind in (b"1", b"2"):
        data = pax((b"SCHILY.acl.access", NAMED)) + header(b"l", kind, link=b"t")
        assert settled(data, KeptXattrs.ALL)[1] == []
    assert settled(pax((b"SCHILY.acl.access", b"")) + header(b"f"), KeptXattrs.ALL)[1] == []


def test_members_without_lists_are_not_touched() -> None:
    reader = TarReader(io.BytesIO(pax((b"SCHILY.xattr.user.a", b"1")) + header(b"f") + END).read)
    member = next(reader)
    warnings: list[TarWarning] = []
    AclSettler(lambda key: False, warnings.append, safe_modes=True).settle(member)
    assert warnings == []
    assert (member.mode, member.xattrs) == (0o644, {b"user.a": b"1"})


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_what_others_write_of_a_list_is_the_list(tmp_path: Path, program: str) -> None:
    if which(program) is None:
        pytest.skip(f"needs {program}")
    path = tmp_path / "f"
    path.touch(0o660)
    # A number without a name: GNU tar writes names alone where it knows them.
    value = parse_acl_text(NAMED.replace(b"1000", b"1234567890")).encode()
    try:
        os.setxattr(path, ACCESS_KEY, value)
    except OSError:
        pytest.skip("the file system keeps no access control lists")
    options = ["--acls", "--numeric-owner", "--format=pax", "-C", str(tmp_path), "f"]
    data = subprocess.run([program, "-cf", "-", *options], check=True, capture_output=True).stdout
    member, warnings = settled(data[: -len(END)], KeptXattrs.ALL)
    assert member.xattrs == {ACCESS_KEY: value}
    assert (member.mode, warnings) == (stat.S_IMODE(path.stat().st_mode), [])
