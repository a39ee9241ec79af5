"""What an image is: looked at once, whatever is asked of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.api import InspectReport
from cfstools.api.build import build
from cfstools.api.inspect import describe_source, inspect, layout, tree, tree_report
from cfstools.errors import FormatError, InputError, UsageError

ASKED: list[Callable[[bytes], object]] = [
    describe_source,
    inspect,
    tree_report,
    lambda path: list(tree(path)),
    lambda path: list(layout(path)),
]


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"x" * 100)
    build(bytes(tmp_path / "source"), bytes(tmp_path / "image"))
    return bytes(tmp_path / "image")


@pytest.mark.parametrize("ask", ASKED)
def test_a_plain_image_is_opened_once(
    image: bytes, ask: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What replaces it after the first look is not what is read."""
    opened = []
    real = os.open

    def counting(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = real(path, flags, mode, dir_fd=dir_fd)
        if path == image:
            opened.append(path)
            Path(os.fsdecode(image)).unlink()
            Path(os.fsdecode(image)).write_bytes(b"something else")
        return fd

    monkeypatch.setattr(os, "open", counting)
    ask(image)
    assert opened == [image]


def test_it_is_described_as_it_is_inspected(image: bytes) -> None:
    report = describe_source(image)
    assert isinstance(report, InspectReport)
    assert report == inspect(image)


@pytest.mark.parametrize("ask", ASKED)
def test_what_is_no_image(image: bytes, ask: Callable[[bytes], object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source: is a directory|source: cannot|source: is not"):
        ask(bytes(tmp_path / "source"))
    with pytest.raises(InputError, match="nothing: cannot open"):
        ask(bytes(tmp_path / "nothing"))
    (tmp_path / "text").write_text("no image " * 1000)
    with pytest.raises(FormatError, match="text: "):
        ask(bytes(tmp_path / "text"))


@pytest.mark.parametrize("ask", ASKED[1:])
def test_container_images_are_refused_by_name(ask: Callable[[bytes], object]) -> None:
    with pytest.raises(UsageError, match="oci:app: is a container image, and this needs a composefs image") as caught:
        ask(b"oci:app")
    assert caught.value.hint == "build() makes one of a container image"
