"""Mounts an image by FUSE and serves it: ``python -m tests.mount.fuse.serving IMAGE DIR STORE… [--option]``.

Without options by fusermount3; with ``--detached`` by the mount API, as root, also of a user namespace. ``--check
WORD``, ``--allow-other``. ``--store-form`` shows the objects of the image as a store instead of its tree. Prints
``ready`` once the kernel was answered, the errors of reads, and the counters when the mount is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from cfstools.errors import CfsError
from cfstools.linux.mount import MountFlag, move_mount
from cfstools.mount.choose import Check
from cfstools.mount.fuse import connect
from cfstools.mount.fuse.base import Nodes
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.mount.fuse.nodes import TreeNodes
from cfstools.mount.fuse.server import serve
from cfstools.mount.fuse.store_nodes import StoreNodes
from cfstools.sources.image_file import load_image
from cfstools.store import DirectoryStore, MemoryStore
from cfstools.threadpool import ThreadPool
from cfstools.tree.objects import objects_of
from cfstools.view.nodes import View


def main(words: list[str]) -> int:
    """Serve until the mount is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("directory")
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--allow-other", action="store_true")
    parser.add_argument("--store-form", action="store_true")
    parser.add_argument("--check", default="read")
    options = parser.parse_args(words)
    root = load_image(os.fsencode(options.image))
    nodes: TreeNodes | StoreNodes
    nodes = StoreNodes(objects_of(root)) if options.store_form else TreeNodes(View(root, MemoryStore()))
    device = _by_api(options) if options.detached else _by_helper(options)
    return _serve(device, nodes, options, posix_acl=options.allow_other)


def _by_helper(options: argparse.Namespace) -> int:
    place = os.open(options.directory, os.O_PATH | os.O_DIRECTORY)
    device = connect.by_helper(
        place,
        helper=b"/usr/bin/fusermount3",
        source=os.fsencode(options.image),
        allow_other=options.allow_other,
        flags=MountFlag.READ_ONLY,
    )
    os.close(place)
    return device


def _by_api(options: argparse.Namespace) -> int:
    place = os.open(options.directory, os.O_PATH | os.O_DIRECTORY)
    device, mount = connect.detached(
        source=os.fsencode(options.image),
        allow_other=options.allow_other,
        default_permissions=options.allow_other,
    )
    move_mount(mount, place)
    os.close(mount)
    os.close(place)
    return device


def _serve(device: int, nodes: Nodes, options: argparse.Namespace, *, posix_acl: bool) -> int:
    stores = [DirectoryStore(os.fsencode(store)) for store in options.stores]
    assert isinstance(nodes, TreeNodes | StoreNodes)

    def failed(node: int, error: CfsError) -> None:
        print(f"{node}: {error}", file=sys.stderr, flush=True)

    with (
        ThreadPool(32, "fuse") as pool,
        ObjectContents(nodes, stores, check=Check(options.check)) as contents,
    ):
        counters = serve(
            device,
            nodes,
            contents,
            pool=pool,
            posix_acl=posix_acl,
            ready=lambda: print("ready", flush=True),
            failed=failed,
        )
    print(json.dumps({name: getattr(counters, name) for name in counters.__slots__}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
