"""The public library: each verb of ``mkcfs`` as a function with documented arguments that returns a report.

``docs/library.md`` shows its use. What this module exports, and the errors in :mod:`cfstools.errors`, is public;
everything else may change in any release. A name's module is imported when the name is first used: a program that only
verifies does not load what reads container images.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfstools.api.build import BuildOptions as BuildOptions
    from cfstools.api.build import BuildReport as BuildReport
    from cfstools.api.build import ObjectOptions as ObjectOptions
    from cfstools.api.build import build as build
    from cfstools.api.cat import cat as cat
    from cfstools.api.diff import DiffOptions as DiffOptions
    from cfstools.api.diff import DiffReport as DiffReport
    from cfstools.api.diff import diff as diff
    from cfstools.api.digest import FileDigest as FileDigest
    from cfstools.api.digest import digest as digest
    from cfstools.api.expect import BuildChoice as BuildChoice
    from cfstools.api.expect import ExpectReport as ExpectReport
    from cfstools.api.expect import expect as expect
    from cfstools.api.extract import CopyMode as CopyMode
    from cfstools.api.extract import ExtractOptions as ExtractOptions
    from cfstools.api.extract import ExtractReport as ExtractReport
    from cfstools.api.extract import extract as extract
    from cfstools.api.inspect import InspectReport as InspectReport
    from cfstools.api.inspect import TreeLine as TreeLine
    from cfstools.api.inspect import TreeReport as TreeReport
    from cfstools.api.inspect import describe_source as describe_source
    from cfstools.api.inspect import inspect as inspect
    from cfstools.api.inspect import layout as layout
    from cfstools.api.inspect import tree as tree
    from cfstools.api.inspect import tree_report as tree_report
    from cfstools.api.keygen import KeygenReport as KeygenReport
    from cfstools.api.keygen import keygen as keygen
    from cfstools.api.lazy import LazyStores as LazyStores
    from cfstools.api.lazy import Prefetch as Prefetch
    from cfstools.api.listing import EntryReport as EntryReport
    from cfstools.api.listing import dump as dump
    from cfstools.api.listing import entries as entries
    from cfstools.api.listing import ls as ls
    from cfstools.api.listing import objects as objects
    from cfstools.api.mount import MountReport as MountReport
    from cfstools.api.mount import mount as mount
    from cfstools.api.mountable import Protection as Protection
    from cfstools.api.mountable import VerityMode as VerityMode
    from cfstools.api.plan import PlanOptions as PlanOptions
    from cfstools.api.plan import PlanReport as PlanReport
    from cfstools.api.plan import plan as plan
    from cfstools.api.pull import PullOptions as PullOptions
    from cfstools.api.pull import PullReport as PullReport
    from cfstools.api.pull import pull as pull
    from cfstools.api.push import PushOptions as PushOptions
    from cfstools.api.push import PushReport as PushReport
    from cfstools.api.push import push as push
    from cfstools.api.push_files import FilesPushReport as FilesPushReport
    from cfstools.api.push_files import push_files as push_files
    from cfstools.api.run import RunReport as RunReport
    from cfstools.api.run import run as run
    from cfstools.api.serving import Serving as Serving
    from cfstools.api.sign import RemoveReport as RemoveReport
    from cfstools.api.sign import SignReport as SignReport
    from cfstools.api.sign import remove_signatures as remove_signatures
    from cfstools.api.sign import sign as sign
    from cfstools.api.sign import sign_for_kernel as sign_for_kernel
    from cfstools.api.store_fsck import StoreFsckReport as StoreFsckReport
    from cfstools.api.store_fsck import fsck as fsck
    from cfstools.api.store_gc import StoreGcReport as StoreGcReport
    from cfstools.api.store_gc import gc as gc
    from cfstools.api.store_push import SendOptions as SendOptions
    from cfstools.api.store_push import StorePushReport as StorePushReport
    from cfstools.api.store_push import push_objects as push_objects
    from cfstools.api.store_stat import StoreStatReport as StoreStatReport
    from cfstools.api.store_stat import stat as stat
    from cfstools.api.umount import umount as umount
    from cfstools.api.verify import Outcome as Outcome
    from cfstools.api.verify import VerifyReport as VerifyReport
    from cfstools.api.verify import verify as verify
    from cfstools.mount import Layers as Layers
    from cfstools.mount.choose import Check as Check
    from cfstools.mount.choose import Method as Method
    from cfstools.mount.inside.ids import IdChoice as IdChoice
    from cfstools.mount.inside.ids import Namespaces as Namespaces
    from cfstools.mount.lazy.options import LazyOptions as LazyOptions
    from cfstools.oci.descriptor import parse_platform as parse_platform
    from cfstools.oci.registry.reference import RegistryOptions as RegistryOptions
    from cfstools.progress import SILENT as SILENT
    from cfstools.progress import Progress as Progress
    from cfstools.signing.keys import KeyType as KeyType
    from cfstools.signing.keys import read_private_key as read_private_key
    from cfstools.signing.keys import read_public_key as read_public_key
    from cfstools.signing.new_image import Signing as Signing
    from cfstools.sources.oci_request import OciOptions as OciOptions
    from cfstools.sources.oci_request import OciRequest as OciRequest
    from cfstools.sources.source import SourceKind as SourceKind
    from cfstools.store.base import Object as Object
    from cfstools.store.base import Store as Store
    from cfstools.store.care.repair import RepairOptions as RepairOptions
    from cfstools.store.locking import Waiting as Waiting
    from cfstools.store.memory import MemoryStore as MemoryStore
    from cfstools.store.open import RemotePlace as RemotePlace
    from cfstools.streams.limits import DecompressionLimits as DecompressionLimits
    from cfstools.streams.limits import TarLimits as TarLimits
    from cfstools.transport.open import NetworkOptions as NetworkOptions
    from cfstools.tree.layer_rules import LayerRules as LayerRules
    from cfstools.tree.xattrs import XattrPolicy as XattrPolicy
    from cfstools.verity import Algorithm as Algorithm
    from cfstools.verity import ObjectId as ObjectId

# Module to the public names that it defines: what the imports above say, for the interpreter.
_HOMES = {
    "cfstools.api.build": "BuildOptions BuildReport ObjectOptions build",
    "cfstools.api.cat": "cat",
    "cfstools.api.diff": "DiffOptions DiffReport diff",
    "cfstools.api.digest": "FileDigest digest",
    "cfstools.api.expect": "BuildChoice ExpectReport expect",
    "cfstools.api.extract": "CopyMode ExtractOptions ExtractReport extract",
    "cfstools.api.inspect": "InspectReport TreeLine TreeReport describe_source inspect layout tree tree_report",
    "cfstools.api.keygen": "KeygenReport keygen",
    "cfstools.api.listing": "EntryReport dump entries ls objects",
    "cfstools.api.lazy": "LazyStores Prefetch",
    "cfstools.api.mount": "MountReport mount",
    "cfstools.api.mountable": "Protection VerityMode",
    "cfstools.api.plan": "PlanOptions PlanReport plan",
    "cfstools.api.pull": "PullOptions PullReport pull",
    "cfstools.api.push": "PushOptions PushReport push",
    "cfstools.api.push_files": "FilesPushReport push_files",
    "cfstools.api.sign": "RemoveReport SignReport remove_signatures sign sign_for_kernel",
    "cfstools.api.store_fsck": "StoreFsckReport fsck",
    "cfstools.api.store_gc": "StoreGcReport gc",
    "cfstools.api.store_push": "SendOptions StorePushReport push_objects",
    "cfstools.api.store_stat": "StoreStatReport stat",
    "cfstools.api.run": "RunReport run",
    "cfstools.api.serving": "Serving",
    "cfstools.api.umount": "umount",
    "cfstools.api.verify": "Outcome VerifyReport verify",
    "cfstools.mount": "Layers",
    "cfstools.mount.choose": "Check Method",
    "cfstools.mount.inside.ids": "IdChoice Namespaces",
    "cfstools.mount.lazy.options": "LazyOptions",
    "cfstools.oci.descriptor": "parse_platform",
    "cfstools.oci.registry.reference": "RegistryOptions",
    "cfstools.progress": "SILENT Progress",
    "cfstools.signing.keys": "KeyType read_private_key read_public_key",
    "cfstools.signing.new_image": "Signing",
    "cfstools.sources.oci_request": "OciOptions OciRequest",
    "cfstools.sources.source": "SourceKind",
    "cfstools.store.base": "Object Store",
    "cfstools.store.memory": "MemoryStore",
    "cfstools.store.care.repair": "RepairOptions",
    "cfstools.store.locking": "Waiting",
    "cfstools.store.open": "RemotePlace",
    "cfstools.streams.limits": "DecompressionLimits TarLimits",
    "cfstools.transport.open": "NetworkOptions",
    "cfstools.tree.layer_rules": "LayerRules",
    "cfstools.tree.xattrs": "XattrPolicy",
    "cfstools.verity": "Algorithm ObjectId",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


class _Library(ModuleType):
    """This package: takes each public name from its module when it is first used.

    Importing ``cfstools.api.build`` makes Python bind the module to the name ``build`` of this package, which is that
    of the function. Such a binding is passed over; the module stays where imports look for it.
    """

    def __getattr__(self, name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME_OF):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME_OF})


sys.modules[__name__].__class__ = _Library
