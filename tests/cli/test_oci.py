"""Container images through the command: every form, one digest; what goes wrong leaves nothing."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.cli.test_app import failing
from tests.mkcfs import COMMAND, mkcfs
from tests.oci import making

# Computed by cfsctl 0.9: the one-layer image, by format version and algorithm.
APRIL = {
    ("0", "sha256"): "3ca8774fe5b7293770fa5b5c43ec8e4b213fc3e3d3cd42094d1d821101854f36",
    ("1", "sha256"): "b032cbc10e2e251424fdf57d1c0f884ac93fa28ecc48f9074886bf5d7d6080c5",
}
AUGUST_SHA512 = (
    "d06f1f6a73f62ed48e05ce9442ff045cdf2a9f5ba1ec623795de3d6177a253d9"
    "1076459795d94f55d8c3d71dab458bb3fc0071255a50c0a4896d86ffdc870b9a"
)


def on_disk(place: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


def digest_of(*words: str | Path) -> str:
    return mkcfs("build", "--print-digest-only", *words).stdout.decode().strip()


@pytest.mark.parametrize(("version", "algorithm"), APRIL)
def test_known_digests_by_every_route(version: str, algorithm: str, tmp_path: Path) -> None:
    layer = making.hello()
    files = making.image([layer], "+gzip")
    (tmp_path / "oci.tar").write_bytes(making.archive(files))
    (tmp_path / "docker.tar").write_bytes(gzip.compress(making.archive(making.docker([layer]))))
    (tmp_path / "layer.tar").write_bytes(layer)
    on_disk(tmp_path / "layout", files)
    options = ["--format-version", version, "--hash", algorithm]
    for source in (
        f"oci:{tmp_path / 'layout'}",
        f"oci-archive:{tmp_path / 'oci.tar'}",
        f"docker-archive:{tmp_path / 'docker.tar'}",
        str(tmp_path / "layout"),
        str(tmp_path / "oci.tar"),
        str(tmp_path / "layer.tar"),
    ):
        assert digest_of(source, *options) == APRIL[version, algorithm], source


def test_version_1_is_the_default_and_sha512_is_known(tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(making.archive(making.image([making.hello()])))
    assert digest_of(tmp_path / "app.tar") == APRIL["1", "sha256"]
    (tmp_path / "linked.tar").write_bytes(making.archive(making.image([making.hello(hard_link=True)])))
    assert digest_of(tmp_path / "linked.tar", "--hash", "sha512") == AUGUST_SHA512


def test_a_layer_from_a_pipe(tmp_path: Path) -> None:
    done = mkcfs("build", "-", "--print-digest-only", stdin=gzip.compress(making.hello()))
    assert done.stdout.decode().strip() == APRIL["1", "sha256"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_empty_or_cut_layer_leaves_nothing(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    for data, what in ((b"", b"the archive is empty"), (making.hello()[:512], b"it may be truncated")):
        done = mkcfs("build", "-", tmp_path / "e.cfs", stdin=pack(data), check=False)
        assert done.code == 1
        assert what in done.stderr
    assert not (tmp_path / "e.cfs").exists()


def test_a_layer_without_end_blocks_is_accepted_by_its_digest(tmp_path: Path) -> None:
    layer = making.hello().rstrip(b"\0")
    layer += bytes(-len(layer) % 512)
    (tmp_path / "layer.tar").write_bytes(layer)
    said = failing("build", tmp_path / "layer.tar", "--print-digest-only", code=1)
    assert "layer 1: offset" in said
    for number, files in enumerate((making.image([layer]), making.docker([layer]))):
        (tmp_path / f"{number}.tar").write_bytes(making.archive(files))
        done = mkcfs("build", tmp_path / f"{number}.tar", "--print-digest-only")
        assert done.stdout.decode().strip() == APRIL["1", "sha256"]
        assert b"without end blocks" in done.stderr


@pytest.mark.parametrize("source", ["-", "oci-archive:-", "docker-archive:-"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_archive_from_a_pipe(source: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    files = making.docker([making.hello()]) if source[0] == "d" else making.image([making.hello()])
    archive = pack(making.archive(files))
    done = mkcfs("build", source, "--print-digest-only", stdin=archive)
    assert done.stdout.decode().strip() == APRIL["1", "sha256"]
    done = mkcfs("build", source, tmp_path / "image", "--store", tmp_path / "store", stdin=archive)
    assert (
        mkcfs("digest", tmp_path / "image").stdout.decode().split()[0].removeprefix("sha256:") == APRIL["1", "sha256"]
    )
    assert b"DiffID" in mkcfs("inspect", source, stdin=archive).stdout


@pytest.mark.parametrize("source", ["-", "oci-archive:-"])
def test_an_archive_on_standard_input_may_be_a_file(source: str, tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(gzip.compress(making.archive(making.image([making.hello()]))))
    for verb, expected in (("build", APRIL["1", "sha256"]), ("inspect", "oci-archive")):
        words = [*COMMAND, verb, source, *(["--print-digest-only"] if verb == "build" else [])]
        with (tmp_path / "app.tar").open("rb") as file:
            done = subprocess.run(words, stdin=file, capture_output=True, check=True)
        assert expected in done.stdout.decode()


def test_a_large_layer_from_a_pipe_is_read_whole(tmp_path: Path) -> None:
    layer = making.tar(making.member("usr/"), making.member("usr/large", os.urandom(1_000_000)))
    (tmp_path / "layer.tar").write_bytes(layer)
    done = mkcfs("build", "-", "--print-digest-only", stdin=layer)
    assert done.stdout.decode().strip() == digest_of(tmp_path / "layer.tar")
    with (tmp_path / "layer.tar").open("rb") as file:
        words = [*COMMAND, "build", "-", "--print-digest-only"]
        assert subprocess.run(words, stdin=file, capture_output=True, check=True).stdout == done.stdout


def test_layers_do_not_go_over_an_image(tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(making.archive(making.image([making.hello()])))
    (tmp_path / "top.tar").write_bytes(making.hello())
    words: list[str | Path] = ["build", tmp_path / "app.tar", "--layer", tmp_path / "top.tar", "--print-digest-only"]
    assert "a further layer goes over a layer tar, and the source is an image" in failing(*words, code=2)


def test_layers_in_order_and_objects_of_removed_files(tmp_path: Path) -> None:
    base = making.tar(
        making.member("usr/"), making.member("usr/big", b"b" * 1000), making.member("usr/old", b"o" * 1000)
    )
    top = making.tar(making.member("usr/.wh.old", b""))
    (tmp_path / "base.tar").write_bytes(base)
    (tmp_path / "top.tar").write_bytes(top)
    image, store = tmp_path / "image.cfs", tmp_path / "objects"
    words: list[str | Path] = [
        "build",
        tmp_path / "base.tar",
        image,
        "--layer",
        tmp_path / "top.tar",
        "--store",
        store,
        "--json",
    ]
    report = json.loads(mkcfs(*words).stdout)
    assert (report["objects_new"], len(report["source"]["layers"])) == (1, 2)
    listed = mkcfs("ls", image).stdout
    assert b"/usr/big" in listed
    assert b"/usr/old" not in listed
    assert len(list(store.glob("??/*"))) == 1


def test_a_wrong_layer_digest_stops_with_nothing_published(tmp_path: Path) -> None:
    layer = making.tar(making.member("usr/"), making.member("usr/big", b"b" * 1000))
    files = making.image([layer])
    name = f"blobs/sha256/{making.digest(layer).partition(':')[2]}"
    files[name] = layer.replace(b"b" * 1000, b"b" * 999 + b"c")
    (tmp_path / "app.tar").write_bytes(making.archive(files))
    said = failing("build", tmp_path / "app.tar", tmp_path / "app.cfs", "--store", tmp_path / "objects", code=3)
    assert "app.tar" in said
    assert not (tmp_path / "app.cfs").exists()
    assert list((tmp_path / "objects").glob("??/*")) == []


def test_several_images_are_listed_until_one_is_chosen(tmp_path: Path) -> None:
    layout = making.Layout()
    layout.tag(layout.manifest([making.hello()]), "one")
    layout.tag(layout.manifest([making.hello(hard_link=True)]), "two")
    on_disk(tmp_path / "layout", layout.files())
    said = failing("build", f"oci:{tmp_path / 'layout'}", "--print-digest-only", code=1)
    assert "one" in said
    assert "two" in said
    assert digest_of(f"oci:{tmp_path / 'layout'}:one") == APRIL["1", "sha256"]


def test_malformed_platform_is_usage(tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(making.archive(making.image([making.hello()])))
    failing("build", tmp_path / "app.tar", "--print-digest-only", "--platform", "linux", code=2)


def test_bombs_are_refused(tmp_path: Path) -> None:
    layer = making.tar(making.member("usr/"), making.member("usr/zeros", bytes(3_000_000)))
    (tmp_path / "app.tar").write_bytes(making.archive(making.image([layer], "+gzip")))
    words: list[str | Path] = ["build", tmp_path / "app.tar", tmp_path / "app.cfs", "--max-unpacked", "1000000"]
    done = mkcfs(*words, check=False)
    assert done.code == 1
    assert b"--max-unpacked" in done.stderr
    assert not (tmp_path / "app.cfs").exists()


def test_holes_count_as_unpacked(tmp_path: Path) -> None:
    records = {"GNU.sparse.size": "3000000", "GNU.sparse.numblocks": "0", "GNU.sparse.map": "", "GNU.sparse.name": "f"}
    (tmp_path / "layer.tar").write_bytes(
        making.tar(making.member("f", b"", pax_headers=records), form=tarfile.PAX_FORMAT)
    )
    words: list[str | Path] = ["build", tmp_path / "layer.tar", "--print-digest-only"]
    assert mkcfs(*words).code == 0
    done = mkcfs(*words, "--max-unpacked", "1000000", check=False)
    assert done.code == 1
    assert b"holes" in done.stderr
    assert b"--max-unpacked" in done.stderr


@pytest.mark.parametrize("option", ["--tree", "--layout"])
def test_trees_and_layouts_are_those_of_composefs_images(option: str) -> None:
    done = mkcfs("inspect", "oci:app", option, check=False)
    assert done.code == 2
    assert done.stderr == (
        b"mkcfs: oci:app: is a container image, and this needs a composefs image\n"
        b"hint: `mkcfs build` makes one of a container image\n"
    )


def test_a_window_may_be_as_large_as_asked_for(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "layer").write_bytes(packer.compress(making.hello()) + packer.flush())
    refused = mkcfs("build", tmp_path / "layer", "--print-digest-only", check=False)
    assert (refused.code, b"--max-window" in refused.stderr) == (1, True)
    assert digest_of(tmp_path / "layer", "--max-window", str(1 << 27)) == APRIL["1", "sha256"]


def test_inspect_shows_manifest_config_and_layers(tmp_path: Path) -> None:
    layer = making.hello()
    (tmp_path / "app.tar").write_bytes(making.archive(making.image([layer], "+gzip")))
    said = mkcfs("inspect", tmp_path / "app.tar").stdout.decode()
    assert "manifest: sha256:" in said
    assert "config:   sha256:" in said
    assert f"DiffID {making.digest(layer)}" in said
    report = json.loads(mkcfs("inspect", "--json", f"oci-archive:{tmp_path / 'app.tar'}").stdout)
    assert report["layers"][0]["diff_id"] == making.digest(layer)


def test_warnings_name_layer_and_path(tmp_path: Path) -> None:
    layer = making.tar(making.member("usr/"), making.member("opt/deep/file", b"x"))
    (tmp_path / "layer.tar").write_bytes(layer)
    done = mkcfs("build", tmp_path / "layer.tar", "--print-digest-only")
    warned = done.stderr.decode()
    assert "layer 1" in warned
    assert "opt" in warned
    assert mkcfs("-q", "build", tmp_path / "layer.tar", "--print-digest-only").stderr == b""
    failing("build", tmp_path / "layer.tar", "--print-digest-only", "--oci-strict", code=1)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A file of 300 MB in a layer must not be held in memory."""
    sparse = tmp_path / "large"
    with sparse.open("wb") as file:
        os.truncate(file.fileno(), 300_000_000)
    # What getrusage says includes the peak of the process that started this one.
    program = (
        "import re, sys; from cfstools.cli.app import run; code = run(sys.argv[1:]); "
        "print(code, *re.findall(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read()))"
    )
    command = [COMMAND[0], "-c", program, "build", "-", "--print-digest-only"]
    with subprocess.Popen(["tar", "-cC", tmp_path, "large"], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(command, stdin=tar.stdout, capture_output=True, check=True)
    code, peak = done.stdout.split(b"\n")[1].split()
    assert code == b"0"
    assert int(peak) < 150 << 10


def test_an_import_with_few_descriptors(tmp_path: Path) -> None:
    """Small files are written many at a time, but not more than may be open."""
    archive = tmp_path / "layer.tar"
    members = [making.member(f"f{number}", b"%d" % number * 100) for number in range(600)]
    archive.write_bytes(making.tar(*members))
    images = []
    for limit in (48, 1024):
        image, store = tmp_path / f"{limit}.cfs", tmp_path / f"store-{limit}"
        words = ["build", str(archive), str(image), "--store", str(store)]
        done = subprocess.run(
            ["sh", "-c", f'ulimit -Hn {limit}; exec "$@"', "sh", *COMMAND, *words], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert len(list(store.glob("??/*"))) == 600
        images.append(image.read_bytes())
    assert images[0] == images[1]
