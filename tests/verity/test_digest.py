"""fs-verity digests: known values, agreement of all ways to compute them, and with the fsverity tool."""

from __future__ import annotations

import array
import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools import verity
from cfstools.errors import InputError, SourceChanged, UsageError
from cfstools.verity import DEFAULT, Algorithm, MerkleHasher, ObjectId, Params, digest_bytes, object_path
from cfstools.verity import files as verity_files
from cfstools.verity.files import CopyFailed, digest_file, hash_fd
from cfstools.verity.object_id import digest_at

needs_fsverity = pytest.mark.skipif(not shutil.which("fsverity"), reason="the fsverity tool is not installed")

SHA512 = Params(algorithm=Algorithm.SHA512)

KNOWN = [
    (bytes(4096), "babc284ee4ffe7f449377fbf6692715b43aec7bc39c094a95878904d34bac97e"),
    (bytes(524289), "e4143a5705610b7ad2eb85482cfc033c7062a89b9faf9118603f592d53fd10e0"),
    (b"hello world\n", "37061ef2ac4c21bec68489b56138c5780306a4ad7fe6676236ecdf2c9027cd92"),
    # The empty file as the kernel and fsverity see it, not as composefs' C library does (quirk Q7).
    (b"", "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
]


@pytest.mark.parametrize(("data", "digest"), KNOWN)
def test_known_digests(data: bytes, digest: str) -> None:
    assert verity.digest_bytes(data).hex() == digest
    hasher = MerkleHasher()
    hasher.update(data)
    assert hasher.digest().hex() == digest


def reference(data: bytes, params: Params) -> bytes:
    """The definition, written as plainly as possible (composefs format, section 5.1)."""

    def blocks(level: bytes) -> list[bytes]:
        size = params.block_size
        return [level[at : at + size].ljust(size, b"\0") for at in range(0, len(level), size)]

    def one(block: bytes) -> bytes:
        salt = params.salt
        while len(salt) % params.algorithm.hash_block:
            salt += b"\0"
        return params.algorithm.new(salt + block).digest()

    root = bytes(params.algorithm.digest_size)
    if data:
        hashes = [one(block) for block in blocks(data)]
        while len(hashes) > 1:
            hashes = [one(block) for block in blocks(b"".join(hashes))]
        root = hashes[0]
    return params.algorithm.new(verity.descriptor(root, len(data), params)).digest()


params_strategy = st.builds(
    lambda algorithm, log, salt: Params(algorithm=algorithm, block_size=1 << log, salt=salt),
    st.sampled_from(Algorithm),
    st.integers(7, 13),
    st.one_of(st.just(b""), st.binary(max_size=32)),
)


@settings(max_examples=150, deadline=None)
@given(
    params=params_strategy,
    size=st.one_of(st.integers(0, 300), st.integers(0, 70000), st.sampled_from([4095, 4096, 4097, 16384, 65536])),
    seed=st.binary(min_size=1, max_size=9),
    cuts=st.lists(st.integers(0, 70000), max_size=6),
)
def test_all_ways_agree(params: Params, size: int, seed: bytes, cuts: list[int]) -> None:
    data = (seed * (size // len(seed) + 1))[:size]
    expected = reference(data, params)
    assert verity.digest_bytes(data, params) == expected
    hasher = MerkleHasher(params)
    at = 0
    for cut in sorted(cuts):
        piece = data[at : max(at, cut)]
        hasher.update(piece)
        at += len(piece)
        assert hasher.size == at
    hasher.update(data[at:])
    assert hasher.digest() == expected


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("around", [-1, 0, 1])
def test_level_boundaries(levels: int, around: int) -> None:
    """Sizes where a tree gains a level: two digests to a block, so that 2^n blocks fill n levels."""
    params = Params(block_size=64)
    data = os.urandom(64 * 2**levels + around)
    hasher = MerkleHasher(params)
    for at in range(0, len(data), 7):
        hasher.update(data[at : at + 7])
    assert hasher.digest() == verity.digest_bytes(data, params) == reference(data, params)


def test_gathered_digests_are_flushed_into_several_levels() -> None:
    params = Params(block_size=64)
    data = bytes(range(256)) * (4 << 12)
    hasher = MerkleHasher(params)
    for at in range(0, len(data), 1 << 18):
        hasher.update(data[at : at + (1 << 18)])
    assert hasher.digest() == verity.digest_bytes(data, params)


def test_digest_may_be_asked_more_than_once() -> None:
    hasher = MerkleHasher()
    assert hasher.digest() == verity.digest_bytes(b"")
    hasher.update(b"one")
    assert hasher.digest() == hasher.digest() == verity.digest_bytes(b"one")
    hasher.update(bytes(5000))
    assert hasher.digest() == verity.digest_bytes(b"one" + bytes(5000))


def test_any_contiguous_buffer_is_taken() -> None:
    words = array.array("I", range(3000))
    raw = words.tobytes()
    hasher = MerkleHasher()
    hasher.update(words)
    hasher.update(array.array("I"))
    assert verity.digest_bytes(words) == verity.digest_bytes(raw) == hasher.digest()
    assert verity.digest_bytes(memoryview(bytearray(raw))) == verity.digest_bytes(raw)
    assert verity.digest_bytes(array.array("I")) == verity.digest_bytes(b"")
    with pytest.raises(BufferError):
        verity.digest_bytes(memoryview(raw)[::2])


def test_large_blocks_are_padded() -> None:
    params = Params(block_size=1 << 20)
    hasher = MerkleHasher(params)
    hasher.update(b"x")
    assert hasher.digest() == verity.digest_bytes(b"x", params) == reference(b"x", params)


def test_files_and_descriptors(tmp_path: Path) -> None:
    data = os.urandom((2 << 20) + 4097)
    path = tmp_path / "f"
    path.write_bytes(data)
    assert verity_files.digest_file(str(path)) == verity.digest_bytes(data)
    assert verity_files.digest_file(os.fsencode(path), SHA512) == verity.digest_bytes(data, SHA512)
    with path.open("rb") as file:
        file.seek(1000)
        assert verity_files.hash_fd(file.fileno())[0] == verity.digest_bytes(data)
        assert verity_files.hash_fd(file.fileno()) == (verity.digest_bytes(data), len(data))
        assert file.tell() == 1000


def test_progress_counts_bytes(tmp_path: Path) -> None:
    class Count:
        total = 0

        def advance(self, amount: int) -> None:
            self.total += amount

        def finish(self) -> None:
            raise AssertionError("the stage belongs to the caller")

    path = tmp_path / "f"
    path.write_bytes(bytes(3_000_001))
    count = Count()
    verity_files.digest_file(str(path), progress=count)
    assert count.total == 3_000_001


def test_short_reads_from_a_pipe() -> None:
    data = os.urandom(300_001)
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            for at in range(0, len(data), 4999):
                pipe.write(data[at : at + 4999])

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        assert verity_files.hash_fd(read_end)[0] == verity.digest_bytes(data)
    finally:
        thread.join()
        os.close(read_end)


def test_unreadable_inputs(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(InputError) as caught:
        verity_files.digest_file(str(missing))
    assert str(caught.value) == f"{missing}: cannot open: No such file or directory"
    with pytest.raises(InputError) as caught:
        verity_files.digest_file(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: cannot read: Is a directory"


def test_a_file_that_cannot_be_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **_named: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "file"
    path.write_bytes(b"data")
    monkeypatch.setattr(verity_files, "has_changed", fails)
    with pytest.raises(InputError, match="cannot read: Input/output error"):
        verity_files.digest_file(str(path))


def fsverity(path: Path, params: Params) -> str:
    command = ["fsverity", "digest", "--compact", f"--hash-alg={params.algorithm.value}"]
    command.append(f"--block-size={params.block_size}")
    if params.salt:
        command.append(f"--salt={params.salt.hex()}")
    return subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout.strip()


@needs_fsverity
@settings(max_examples=40, deadline=None)
@given(params=params_strategy, size=st.integers(0, 60000))
def test_agrees_with_fsverity(params: Params, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("digest") / "f"
    path.write_bytes(os.urandom(size))
    assert verity_files.digest_file(str(path), params).hex() == fsverity(path, params)


@needs_fsverity
def test_file_over_4_gib_agrees_with_fsverity(tmp_path: Path) -> None:
    """Sizes past 32 bits; the sparse file is read by the tool, the same zeros are fed to our hasher."""
    size = (4 << 30) + 5
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    hasher = MerkleHasher()
    zeros = memoryview(bytes(16 << 20))
    while hasher.size < size:
        hasher.update(zeros[: size - hasher.size])
    assert hasher.digest().hex() == fsverity(path, DEFAULT)
    path.unlink()


@needs_fsverity
@pytest.mark.parametrize(
    ("options", "fits"),
    [
        (("sha256", 64, 0), True),
        (("sha256", 32, 0), False),
        (("sha512", 128, 0), True),
        (("sha512", 64, 0), False),
        (("sha256", 1000, 0), False),
        (("sha256", 0, 0), False),
        (("sha256", -4096, 0), False),
        (("sha256", 1 << 30, 0), True),
        (("sha256", 1 << 31, 0), False),
        (("sha256", 4096, 32), True),
        (("sha256", 4096, 33), False),
        (("sha512", 4096, 32), True),
        (("sha512", 4096, 33), False),
    ],
)
def test_limits_are_those_of_fsverity(options: tuple[str, int, int], fits: bool, tmp_path: Path) -> None:
    name, block_size, salt_size = options
    path = tmp_path / "f"
    path.write_bytes(b"x")
    salt = ["--salt=" + "ab" * salt_size] if salt_size else []
    tool = subprocess.run(
        ["fsverity", "digest", f"--hash-alg={name}", f"--block-size={block_size}", *salt, str(path)],
        check=False,
        capture_output=True,
    )
    assert (tool.returncode == 0) is fits
    try:
        Params(algorithm=Algorithm(name), block_size=block_size, salt=b"\xab" * salt_size)
    except UsageError:
        assert not fits
    else:
        assert fits


def test_limit_messages() -> None:
    for arguments, message in [
        ({"block_size": 1000}, "block size 1000 is not a power of two"),
        ({"block_size": 32}, "block size 32 is too small for sha256: at least 64"),
        ({"block_size": 1 << 31}, "block size 2147483648 is too large: at most 1073741824"),
        ({"salt": bytes(33)}, "salt of 33 bytes is too long: at most 32"),
    ]:
        with pytest.raises(UsageError, match=message):
            Params(**arguments)  # type: ignore[arg-type]


def test_algorithms() -> None:
    assert Algorithm.from_number(2) is ObjectId.of(bytes(64)).algorithm
    assert (Algorithm.SHA256.number, Algorithm.SHA256.digest_size, Algorithm.SHA256.hash_block) == (1, 32, 64)
    assert (Algorithm.SHA512.number, Algorithm.SHA512.digest_size, Algorithm.SHA512.hash_block) == (2, 64, 128)
    assert Algorithm.SHA256.new(b"abc").digest().hex().startswith("ba7816bf")
    with pytest.raises(UsageError, match="unknown fs-verity hash algorithm 3"):
        Algorithm.from_number(3)
    with pytest.raises(UsageError, match="a digest of 20 bytes"):
        ObjectId.of(bytes(20))


def test_formatted_digest(tmp_path: Path) -> None:
    digest = verity.digest_bytes(b"data")
    formatted = verity.formatted_digest(ObjectId(Algorithm.SHA256, digest))
    assert formatted == b"FSVerity\x01\x00\x20\x00" + digest
    if shutil.which("fsverity"):
        path = tmp_path / "f"
        path.write_bytes(b"data")
        command = ["fsverity", "digest", "--for-builtin-sig", "--compact", str(path)]
        tool = subprocess.run(command, check=True, capture_output=True, text=True)
        assert formatted.hex() == tool.stdout.strip()


def test_descriptor_bytes() -> None:
    params = Params(algorithm=Algorithm.SHA512, block_size=1024, salt=b"salt")
    record = verity.descriptor(b"r" * 64, 0x0102030405060708, params)
    assert len(record) == verity.DESCRIPTOR_SIZE == 256
    assert record[:16] == bytes.fromhex("01020a04000000000807060504030201")
    assert record[16:80] == b"r" * 64
    assert record[80:112] == b"salt".ljust(32, b"\0")
    assert not any(record[112:])


def test_object_path() -> None:
    assert verity.object_path(bytes.fromhex("ab" * 32)) == b"ab/" + b"ab" * 31
    assert verity.object_path(bytes.fromhex("0f" * 64)) == b"0f/" + b"0f" * 63


def test_object_ids() -> None:
    short, long = "Ab" * 32, "cd" * 64
    assert ObjectId.parse(short) == ObjectId.parse("sha256:" + short) == (Algorithm.SHA256, b"\xab" * 32)
    assert ObjectId.parse(long) == ObjectId.parse("sha512:" + long) == (Algorithm.SHA512, b"\xcd" * 64)
    assert str(ObjectId.parse(short)) == "sha256:" + "ab" * 32
    assert ObjectId.parse(short).path == b"ab/" + b"ab" * 31
    assert ObjectId.parse(long).params == Params(algorithm=Algorithm.SHA512)
    for text, message in [
        ("", "0 hexadecimal digits instead of 64 or 128"),
        ("ab" * 20, "40 hexadecimal digits"),
        ("sha512:" + short, "64 hexadecimal digits do not fit sha512"),
        ("sha1:" + short, "hexadecimal digits expected"),
        ("zz" * 32, "hexadecimal digits expected"),
        (short + "\n", "hexadecimal digits expected"),
    ]:
        with pytest.raises(UsageError, match=message):
            ObjectId.parse(text)


# Large files, in segments


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verity_files, "SEGMENT", 1 << 16)


@pytest.mark.usefixtures("small_segments", "each_implementation")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 131072, (1 << 20) + 5])
def test_segments(tmp_path: Path, threads: int, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert digest_file(path.as_posix(), threads=threads) == digest_bytes(data)
    with path.open("rb") as source, (tmp_path / "copy").open("wb+") as copy:
        assert hash_fd(source.fileno(), threads=threads, copy_fd=copy.fileno()) == (digest_bytes(data), size)
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.usefixtures("small_segments", "each_implementation")
@pytest.mark.parametrize("change", [1, -1, 1 << 17, -(1 << 17)])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_changes_its_size_meanwhile(tmp_path: Path, change: int, threads: int) -> None:
    """There is no digest of something that never was; with a copy it is that of the copy, however long that is."""
    size = 1 << 19
    path = tmp_path / "file"
    path.write_bytes(bytes(size))

    class Changing:
        done = False

        def advance(self, amount: int) -> None:
            if not self.done:
                os.truncate(path, size + change)
                self.done = True

        def finish(self) -> None:
            pass

    with path.open("rb") as file, pytest.raises(SourceChanged, match="changed while it was read"):
        hash_fd(file.fileno(), threads=threads, progress=Changing())
    path.write_bytes(bytes(size))
    with path.open("rb") as file, (tmp_path / "copy").open("wb+") as copy:
        digest, met = hash_fd(file.fileno(), threads=threads, copy_fd=copy.fileno(), progress=Changing())
    data = (tmp_path / "copy").read_bytes()
    assert (digest_bytes(data), len(data)) == (digest, met)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("size", [100, 5 << 20])
def test_a_copy_that_cannot_be_written(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    reading = os.open(tmp_path / "file", os.O_RDONLY)
    full = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(CopyFailed, match="No space left"):
        hash_fd(reading, copy_fd=full)
    read_end, write_end = os.pipe()
    os.write(write_end, b"data")
    os.close(write_end)
    with pytest.raises(CopyFailed, match="No space left"):
        hash_fd(read_end, copy_fd=full)
    for fd in (reading, full, read_end):
        os.close(fd)


def test_a_pipe_is_copied(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"data")
    os.close(write_end)
    with (tmp_path / "copy").open("wb") as copy:
        assert hash_fd(read_end, copy_fd=copy.fileno()) == (digest_bytes(b"data"), 4)
    os.close(read_end)
    assert (tmp_path / "copy").read_bytes() == b"data"


def test_blocks_larger_than_a_segment(tmp_path: Path) -> None:
    params = Params(block_size=1 << 24)
    (tmp_path / "file").write_bytes(b"data")
    assert digest_file((tmp_path / "file").as_posix(), params) == digest_bytes(b"data", params)


@pytest.mark.parametrize("blocks", [1, 127, 128, 129, 128 * 3, 128 * 128, 128 * 128 + 1])
@pytest.mark.parametrize("before", [0, 1, 127])
def test_zeros_are_appended_as_data_is(blocks: int, before: int) -> None:
    hasher = MerkleHasher(DEFAULT)
    head = b"x" * 4096 * before
    hasher.update(head)
    hasher.update_zeros(4096 * blocks)
    assert hasher.digest() == digest_bytes(head + bytes(4096 * blocks))


def test_a_copy_that_cannot_grow(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"")
    with path.open("rb") as file, pytest.raises(CopyFailed):
        verity_files._set_size(file.fileno(), 1)


def test_a_file_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")

    def broken(_fd: int, _before: os.stat_result, **_kinds: bool) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verity_files, "has_changed", broken)
    with pytest.raises(InputError, match=f"{path}: cannot read: Input/output error"):
        digest_file(str(path))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_path_of_an_object_leads_back_to_its_digest(algorithm: Algorithm) -> None:
    digest = bytes(range(256))[: algorithm.digest_size]
    path = object_path(digest)
    assert digest_at(path) == digest_at(b"/" + path) == digest_at(path.replace(b"/", b"//") + b"/") == digest
    others = [
        b"",
        b"/",
        path[:-1],
        path + b"0",
        path.upper(),
        path.replace(b"/", b""),
        b"x/" + path,
        path[1:],
        path + b"\n",
    ]
    assert [digest_at(other) for other in others] == [None] * len(others)
