"""How much memory there is, by what the kernel writes into files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.linux import memory


def group(path: Path, limit: str, **used: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(limit + "\n")
    (path / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in used.items()))


def test_this_machine_has_some() -> None:
    found = memory.available_memory()
    assert found is not None
    assert 0 < found < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_limits_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group around the process counts; caches do not."""
    monkeypatch.setattr(memory, "_CGROUPS", bytes(tmp_path))
    with open("/proc/self/cgroup", encoding="ascii") as file:
        own = next((line[3:].strip() for line in file if line.startswith("0::/")), None)
    if own is None:
        pytest.skip("no control groups of version 2")
    whole = memory.available_memory()
    assert whole is not None
    group(tmp_path, "max")
    group(tmp_path / own.strip("/"), str(1 << 20), anon=100_000, file=900_000, shmem=50_000, slab_unreclaimable=5)
    assert memory.available_memory() == (1 << 20) - 150_005
    group(tmp_path / own.strip("/"), "1000", anon=100_000)
    assert memory.available_memory() == 0
    (tmp_path / own.strip("/") / "memory.stat").write_text("nonsense without numbers\nanon x\n")
    assert memory._left(bytes(tmp_path / own.strip("/"))) is None
