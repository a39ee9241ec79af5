from __future__ import annotations

from pathlib import Path

import pytest

from cfstools.errors import InputError
from cfstools.oci.registry.certificates import NO_CERTIFICATES, Certificates, find_certificates, read_certificates


def make(directory: Path, *names: str) -> bytes:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_bytes(b"")
    return bytes(directory)


def test_the_first_directory_that_has_the_host_counts(tmp_path: Path) -> None:
    bases = [bytes(tmp_path / name) for name in ("absent", "user", "system")]
    user = make(tmp_path / "user" / "reg.example:5000", "b.crt", "a.crt", "me.cert", "me.key", "README")
    system = make(tmp_path / "system" / "reg.example", "ca.crt")
    make(tmp_path / "system" / "reg.example:5000", "ca.crt")
    found = find_certificates(bases, "reg.example:5000")
    assert found.authorities == (user + b"/a.crt", user + b"/b.crt")
    assert found.client == (user + b"/me.cert", user + b"/me.key")
    assert find_certificates(bases, "reg.example") == Certificates((system + b"/ca.crt",))
    assert find_certificates(bases, "else.example") == NO_CERTIFICATES
    assert read_certificates(user) == found


@pytest.mark.parametrize("host", [".", "..", "..:443", ".hidden"])
def test_no_host_leads_elsewhere(host: str, tmp_path: Path) -> None:
    """A registry chooses the name of its token server."""
    make(tmp_path / "above" / host, "ca.crt") if host == ".hidden" else make(tmp_path / "above" / "x")
    (tmp_path / "above" / "ca.crt").write_bytes(b"")
    (tmp_path / "above" / "certs.d").mkdir()
    (tmp_path / "above" / "certs.d" / "ca.crt").write_bytes(b"")
    assert (
        find_certificates([bytes(tmp_path / "above" / "certs.d"), bytes(tmp_path / "above")], host) == NO_CERTIFICATES
    )


@pytest.mark.parametrize(("there", "missing"), [("me.cert", "me.key"), ("me.key", "me.cert")])
def test_half_of_a_pair_is_an_error(tmp_path: Path, there: str, missing: str) -> None:
    make(tmp_path / "reg.example", there)
    with pytest.raises(InputError, match=f"{there} is there without {missing}"):
        find_certificates([bytes(tmp_path)], "reg.example")


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_certificates(bytes(tmp_path / "absent"))
    with pytest.raises(InputError, match="cannot read"):
        find_certificates([bytes(tmp_path)], "a" * 300)
