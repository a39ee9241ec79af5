"""``mkcfs store`` as users run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from cfstools.cli.store_options import Duration
from cfstools.store import DirectoryStore, StoreWriter
from tests.mkcfs import COMMAND, mkcfs

LARGE, OTHER = b"large " * 1000, b"other " * 1000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source, its image, and a store with one more object than it needs."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(LARGE)
    mkcfs("build", source, tmp_path / "image.cfs", "--store", tmp_path / "store")
    with DirectoryStore(bytes(tmp_path / "store")) as store, StoreWriter(store) as writer:
        writer.add_bytes(OTHER)
    return tmp_path


def care(place: Path, verb: str, *words: str | Path, code: int = 0) -> tuple[list[str], list[str]]:
    """The lines on standard output and standard error, without the path of the place."""
    done = mkcfs("store", verb, "--store", place / "store", *words, check=False)
    assert done.code == code, done.stderr
    out, err = (text.decode().replace(str(place), "").splitlines() for text in (done.stdout, done.stderr))
    return out, err


def object_of(place: Path, data: bytes) -> Path:
    return next(path for path in (place / "store").glob("*/*") if path.read_bytes() == data)


# fsck


def test_fsck(place: Path) -> None:
    assert care(place, "fsck") == (["/store: ok: 2 objects checked (11.7 KiB)"], [])
    broken = object_of(place, LARGE)
    name = f"{broken.parent.name}/{broken.name}"
    broken.write_bytes(b"")
    with open(os.path.join(bytes(place), b"store/odd\xff\n\x1b[31m"), "wb"):
        pass
    out, err = care(place, "fsck", code=3)
    assert sorted(out[:2]) == [
        f"/store: damaged: {name}: it is empty",
        "/store: foreign: odd\\xff\\n\\x1b[31m: a file that is not an object",
    ]
    assert out[2:] == ["/store: FAILED: 2 problems: 2 objects checked (5.9 KiB), 1 damaged, 1 foreign"]
    assert err == []
    report = json.loads(mkcfs("store", "fsck", "--store", place / "store", "--json", check=False).stdout)
    assert (report["schema"], report["remaining"], report["faults"]) == (1, 2, {"damaged": 1, "foreign": 1})
    assert {problem["path"] for problem in report["problems"]} == {name, "odd\\xff\\n\\x1b[31m"}


def test_fsck_repairs(place: Path) -> None:
    broken = object_of(place, LARGE)
    name = f"{broken.parent.name}/{broken.name}"
    broken.write_bytes(b"x")
    stage = place / "store/.mkcfs-tmp-0123456789abcdef"
    stage.mkdir()
    assert care(place, "fsck", "--repair", code=3)[0] == [
        "/store: temporary: .mkcfs-tmp-0123456789abcdef: left behind by a killed writer; removed",
        *care(place, "fsck", code=3)[0][:-1],
        "/store: FAILED: 1 problem: 2 objects checked (5.9 KiB), 1 damaged, 1 temporary, 1 put right",
    ]
    out, _ = care(place, "fsck", "--repair", "--from", place / "source", "-j1")
    assert out[0].startswith(f"/store: damaged: {name}: its digest is ")
    assert out[0].endswith("; replaced from /source/large")
    assert out[1] == "/store: ok: 2 objects checked (5.9 KiB), 1 damaged, 1 put right"
    assert broken.read_bytes() == LARGE
    assert care(place, "fsck", "--measure")[0][0].startswith("/store: ok: 2 objects checked")


def test_fsck_removes(place: Path) -> None:
    broken = object_of(place, LARGE)
    broken.write_bytes(b"x")
    (place / "store/.mkcfs-tmp-0123456789abcdef").mkdir()
    assert len(care(place, "fsck", "--remove-temporaries", code=3)[0]) == 3
    assert care(place, "fsck", "--remove-damaged")[0][0].endswith("; removed")
    assert not broken.exists()


def test_fsck_lists_no_end(place: Path) -> None:
    for number in range(10_005):
        (place / f"store/{number:05}").touch()
    out, _ = care(place, "fsck", code=3)
    assert len(out) == 10_002
    assert out[-2] == "/store: and 5 more like these"
    assert out[-1] == "/store: FAILED: 10005 problems: 2 objects checked (11.7 KiB), 10005 foreign"


def test_fsck_usage(place: Path) -> None:
    assert "--from says where --repair finds contents" in care(place, "fsck", "--from", place, code=2)[1][0]
    _, err = care(place, "fsck", "--repair", "--from", place / "image.cfs", code=1)
    assert err == ["mkcfs: /image.cfs: is not a directory"]
    done = mkcfs("store", "fsck", "--store", place / "nothing", check=False)
    assert done.code == 1
    assert b"nothing: cannot open the store: No such file" in done.stderr
    assert mkcfs("store", "fsck", check=False).code == 2


# gc


def test_gc(place: Path) -> None:
    dry, _ = care(place, "gc", "--keep", place / "image.cfs", "--grace", "0", "--dry-run")
    other = object_of(place, OTHER)
    assert dry == [
        f"{other.parent.name}/{other.name}",
        "/store: would remove 1 object (5.9 KiB), kept 1 (5.9 KiB) of 1 image",
    ]
    images = place / "images"
    images.mkdir()
    (place / "image.cfs").rename(images / "image.cfs")
    assert care(place, "gc", "--keep-dir", images)[0] == [
        "/store: removed 0 objects (0 B), kept 1 (5.9 KiB) of 1 image, 1 too young (5.9 KiB)"
    ]
    (place / "store/.mkcfs-tmp-0123456789abcdef").mkdir()
    assert care(place, "gc", "--keep-dir", images, "--grace", "0s")[0] == [
        "/store: removed 1 object (5.9 KiB), kept 1 (5.9 KiB) of 1 image, removed 1 left behind by writers"
    ]
    assert not other.exists()
    object_of(place, LARGE).unlink()
    assert care(place, "gc", "--keep-dir", images)[0] == [
        "/store: removed 0 objects (0 B), kept 0 (0 B) of 1 image, 1 needed but not there"
    ]


def test_gc_says_what_with_verbose_and_json(place: Path) -> None:
    other = object_of(place, OTHER)
    words = ["store", "gc", "--store", str(place / "store"), "--keep", str(place / "image.cfs"), "--grace", "0"]
    report = json.loads(mkcfs(*words, "--dry-run", "--json").stdout)
    assert report["removed"] == [other.parent.name + other.name]
    assert (report["schema"], report["dry_run"], report["kept"]) == (1, True, 1)
    assert report["images"] == [str(place / "image.cfs")]
    assert mkcfs("-v", *words).stdout.decode().splitlines()[0] == f"{other.parent.name}/{other.name}"


def test_gc_removes_nothing_in_doubt(place: Path) -> None:
    assert care(place, "gc", "--grace", "0", code=2)[1][0] == ("mkcfs: no image to keep: everything would be removed")
    (place / "empty").mkdir()
    _, err = care(place, "gc", "--keep-dir", place / "empty", "--grace", "0", code=1)
    assert err == ["mkcfs: /empty: holds no composefs image", "hint: is it mounted?"]
    (place / "cut.cfs").write_bytes((place / "image.cfs").read_bytes()[:3000])
    _, err = care(place, "gc", "--keep-dir", place, "--grace", "0", code=1)
    assert err[0].startswith("mkcfs: /cut.cfs: ")
    assert object_of(place, OTHER).exists()
    assert care(place, "gc", "--keep-nothing", "--grace", "0")[0][0].startswith("/store: removed 2 objects")


def test_gc_waits_and_says_so(place: Path) -> None:
    words = ["store", "gc", "--store", str(place / "store"), "--keep-dir", str(place), "--grace", "0"]
    with DirectoryStore(bytes(place / "store")) as store:
        with store.locked():
            done = mkcfs(*words, "--no-wait", check=False)
            assert done.code == 1
            held = f"its lock is held by process {os.getpid()} (pytest)"
            assert re.sub(r"\((python|pytest).*\)", "(pytest)", done.stderr.decode()).splitlines() == [
                f"mkcfs: {place}/store: the store is in use by another process",
                f"hint: {held}",
            ]
            done = mkcfs(*words, "--lock-timeout", "1", check=False)
            assert done.code == 1
            assert b"the store is still in use by another process after 1 s\n" in done.stderr
            done = mkcfs(*words, "--lock-timeout", "1", "--no-wait", check=False)
            assert done.code == 2
            process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith(f"mkcfs: {place}/store: waiting for other processes that use the store: {held[:-9]}")
            time.sleep(0.1)
            assert process.poll() is None
            assert object_of(place, OTHER).exists()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "removed 1 object" in out


def test_time_spans(place: Path) -> None:
    spans = {"0": 0, "90": 90, "90s": 90, "15m": 900, "1h": 3600, "2d": 172800}
    assert {text: Duration().convert(text, None, None) for text in spans} == spans
    assert Duration().convert(1.5, None, None) == 1.5
    for text in ("", "h", "-1", "1.5h", "1w", "1 h", "9999999999", "\u0661"):
        _, err = care(place, "gc", "--keep-dir", place, "--grace", text, code=2)
        assert any("is no time span: 90s, 15m, 1h, 2d" in line for line in err)


# stat


def test_stat(place: Path) -> None:
    out, _ = care(place, "stat")
    allocated = sum(512 * path.stat().st_blocks for path in (place / "store").glob("[0-9a-f][0-9a-f]/*"))
    assert out == [
        "store:       /store",
        "objects:     2: 2 sha256",
        f"size:        12000 bytes (11.7 KiB), {allocated / 1024:.1f} KiB on disk",
        "temporaries: 0",
        "foreign:     0",
        "    up to 64.0 KiB          2     11.7 KiB",
    ]


def test_stat_of_images(place: Path) -> None:
    mkcfs("build", place / "source", place / "second.cfs", "--store", place / "store", "--use-epoch")
    (place / "source/more").write_bytes(b"more" * 100)
    mkcfs("build", place / "source", place / "third.cfs", "--store", place / "elsewhere")
    images = [place / "image.cfs", place / "second.cfs", place / "third.cfs"]
    out, _ = care(place, "stat", *images)
    assert out[6:] == [
        "images:",
        "  /image.cfs: 1 object (5.9 KiB), 0 exclusive (0 B)",
        "  /second.cfs: 1 object (5.9 KiB), 0 exclusive (0 B)",
        "  /third.cfs: 2 objects (6.2 KiB), 0 exclusive (0 B), 1 missing (400 B)",
        "  needed by 3 images: 1 object",
        "  needed by none: 1 object (5.9 KiB)",
    ]
    report = json.loads(mkcfs("store", "stat", "--store", place / "store", *images, "--json").stdout)
    assert report["schema"] == 1
    assert report["images"] == list(map(str, images))
    assert report["usage"]["sharing"] == {"3": 1}
    assert report["usage"]["images"][2]["missing"] == 1


def test_stat_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert care(tmp_path, "stat")[0][1] == "objects:     0: none"
    huge = tmp_path / "store/ab"
    huge.mkdir()
    with (huge / ("c" * 62)).open("wb") as file:
        file.truncate((256 << 20) + 1)
    assert care(tmp_path, "stat")[0][-1] == "            larger          1    256.0 MiB"
