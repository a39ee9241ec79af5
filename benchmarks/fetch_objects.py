"""Objects from a web server on loopback into a store, against ``curl`` fetching the same files.

Ours also checks every digest and brings the store to storage; curl only writes files.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.runner import Job, build_image, set_aside
from cfstools.progress import SILENT
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.write.arriving import ArrivingObjects
from cfstools.transport.fetch import fetch_all
from cfstools.transport.objects import PlaceObjects
from cfstools.transport.open import open_http
from cfstools.transport.url import parse
from cfstools.transport.web import WebPlace
from cfstools.verity import object_path
from tests.servers.nginx import nginx

CONNECTIONS = 32


def jobs(label: str, source: Path | str, scratch: Path, stack: ExitStack) -> Iterator[Job]:
    """Yield the job for the objects of one source; none where nginx or curl is missing."""
    if shutil.which("nginx") is None or shutil.which("curl") is None:
        return
    store, into, listed = scratch / "fetch/objects", scratch / "fetched", scratch / "fetch-list"
    build_image(source, scratch / "fetch.cfs", "--store", str(store))
    base = stack.enter_context(nginx(store.parent, scratch / "fetch-nginx"))
    files = sorted(path.relative_to(store) for path in store.rglob("*") if len(path.name) == 62)
    listed.write_text("".join(f'url = "{base}objects/{path}"\noutput = "{into}/{path}"\n' for path in files))
    curl = ["curl", "-s", "--parallel", "--parallel-max", str(CONNECTIONS), "--create-dirs", "--config", str(listed)]
    yield Job(
        name=f"{label}, objects from nginx / curl",
        ours=[sys.executable, "-m", "benchmarks.fetch_objects", f"{base}objects", str(store), str(into)],
        theirs=curl,
        before=lambda: set_aside(into),
    )


def fetch(url: str, like: Path, into: Path) -> int:
    """Fetch all objects that the store *like* has from *url*; return how many."""
    with DirectoryStore(bytes(like)) as store:
        wanted = {digest: os.stat(store.describe(digest)).st_size for digest in store.objects()}
    with open_http() as http, DirectoryStore(bytes(into), create=True) as target, StoreWriter(target) as writer:
        source = PlaceObjects(WebPlace(parse(url), http), lambda digest: object_path(digest).decode(), url)
        sink = ArrivingObjects(writer)
        report = fetch_all([source], wanted, sink, connections=CONNECTIONS, progress=SILENT)
        sink.finish()
    if (error := report.error(bytes.hex)) is not None:
        raise error
    return report.objects


if __name__ == "__main__":
    fetch(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
