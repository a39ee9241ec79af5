"""Ours against composefs-rs, the other builder of composefs images, whose command ``cfsctl`` tools/rust-tool builds.

Where it cannot be built the rows have only our times, and say so. It syncs what it pulls, but not the objects of a
directory: there its row has a ``syncfs`` after the command, so that both sides end with a durable store.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from benchmarks import build_oci
from benchmarks.build_directory import BUILD
from benchmarks.runner import MKCFS, Job, Target, set_aside

_TOOL = Path(__file__).parents[1] / "tools" / "rust-tool"
_OUR_FORMAT = ("--erofs-version", "0")  # with which it cannot pull
_AS_IT_IS = "--no-propagate-usr-to-root"  # other trees than those of systems have no usr


@cache
def cfsctl() -> list[str]:
    """Return the first words of its command lines; none where it is not to be had."""
    made = subprocess.run([str(_TOOL), "cfsctl"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        print(made.stderr.strip() or "tools/rust-tool cannot build cfsctl")
        return []
    return [made.stdout.strip(), "--hash", "sha256"]


def job(
    name: str,
    ours: Sequence[str],
    words: Sequence[str],
    target: Target | None,
    *,
    repository: Path | None = None,
    synced: bool = True,
    before: Callable[[], None] = lambda: None,
) -> Job:
    """Return a job against cfsctl with *words* and a *repository* or none; its row says if there is no cfsctl.

    What it leaves in the repository is made durable unless it has *synced* that itself.
    """
    tool = cfsctl()
    place = ["--insecure", "--repo", str(repository)] if repository is not None else ["--no-repo"]
    theirs = [*tool, *place, *words]
    if not synced:
        theirs = ["sh", "-ec", f"{shlex.join(theirs)}; exec sync -f {shlex.quote(str(repository))}"]
    return Job(
        name=f"{name} / composefs-rs" + ("" if tool else ", which is not to be had here"),
        ours=ours,
        theirs=theirs if tool else None,
        target=target if tool else None,
        before=before,
    )


def directory_jobs(label: str, source: Path, scratch: Path) -> Iterator[Job]:
    """Yield the jobs for one directory: into an empty store, and for the digest alone."""
    ours, theirs, renew = _empty(scratch, "directory")
    yield job(
        f"{label}, cold store",
        [*BUILD, str(source), str(ours / "i.cfs"), "--store", str(ours / "s")],
        [*_OUR_FORMAT, "create-image", _AS_IT_IS, str(source)],
        Target(1.5, 2),
        repository=theirs,
        synced=False,
        before=renew,
    )
    yield job(
        f"{label}, --print-digest-only",
        [*BUILD, "--print-digest-only", str(source)],
        [*_OUR_FORMAT, "compute-id", _AS_IT_IS, str(source)],
        None,
    )


def oci_jobs(scratch: Path, *, size: int) -> Iterator[Job]:
    """Yield the job for an image of *size* bytes, uncompressed, in each compression."""
    for compression in build_oci.COMPRESSIONS:
        layout = build_oci.image(size, compression) / "layout"
        ours, theirs, renew = _empty(scratch, "oci")
        yield job(
            f"{compression} image of {size // 1000**2} MB, cold store",
            [*MKCFS, "build", f"oci:{layout}", str(ours / "i.cfs"), "--store", str(ours / "s")],
            ["oci", "pull", f"oci:{layout}:latest", "pulled"],
            Target(1.5, 2),
            repository=theirs,
            before=renew,
        )


def _empty(scratch: Path, name: str) -> tuple[Path, Path, Callable[[], None]]:
    """Return a place for each side, and what makes both anew."""
    ours, theirs = scratch / f"rs-{name}-ours", scratch / f"rs-{name}-theirs"

    def renew() -> None:
        set_aside(ours, theirs)
        ours.mkdir()
        if tool := cfsctl():
            init = [*tool, "--repo", str(theirs), "init", "--insecure", "--algorithm", "fsverity-sha256-12"]
            subprocess.run(init, check=True, capture_output=True)

    return ours, theirs, renew
