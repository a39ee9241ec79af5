"""Which ids a namespace of ours knows, and the namespace itself."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum

from cfstools.errors import Phrase, Remedy, Unsupported
from cfstools.linux import namespaces
from cfstools.linux.namespaces import HelperFailed, IdMap
from cfstools.values import Value


class IdChoice(Enum):
    """The ids that a command sees in its user namespace.

    ``SUB``: the caller is root, and further ids are those of the caller in /etc/subuid and /etc/subgid. ``ROOT``: the
    caller is root, and nobody else exists. ``SAME``: the caller is itself, and nobody else exists. ``AUTO``: no user
    namespace for who may mount without one; else ``SUB`` where there are such ids and the tools for them, or ``ROOT``.
    """

    AUTO = "auto"
    SUB = "sub"
    ROOT = "root"
    SAME = "same"


class Namespaces(Value):
    """How namespaces are made: which ids they know, and the paths of newuidmap and newgidmap, if any."""

    ids: IdChoice = IdChoice.AUTO
    helpers: tuple[bytes, bytes] | None = None


_ROOT = (0, 0)


def spawn(choice: IdChoice, helpers: tuple[bytes, bytes] | None, work: Callable[[IdChoice | None], int]) -> int:
    """Fork a process into new namespaces and call *work* there with the choice that was made; return the pid.

    *helpers* are the paths of newuidmap and newgidmap, if they are installed. ``None`` as choice: there is only a new
    mount namespace. See :func:`cfstools.linux.namespaces.spawn`. Raises Unsupported.
    """
    try:
        if choice is not IdChoice.AUTO:
            return _spawn(choice, _map(choice, helpers), work)
        if namespaces.may_mount():
            return _spawn(None, None, work)
        ids = None if helpers is None else namespaces.subordinate_ids(helpers)
        if ids is not None:
            try:
                return _spawn(IdChoice.SUB, ids, work)
            except HelperFailed:  # not set-user-ID, or of another opinion about the ranges
                pass
        return _spawn(IdChoice.ROOT, namespaces.one_id(_ROOT), work)
    except HelperFailed as error:
        raise Unsupported(f"cannot map subordinate ids: {error.strerror}") from error
    except OSError as error:
        if choice is IdChoice.AUTO and namespaces.may_mount():
            raise Unsupported(f"cannot make a mount namespace: {_why(error)}") from error
        template = "`sysctl user.max_user_namespaces`, AppArmor or a chroot may forbid it; a mount with {} needs none"
        hint = Phrase(template, Remedy.METHOD_FUSE)
        raise Unsupported(f"cannot make a user namespace: {_why(error)}", hint=hint) from error


def _spawn(choice: IdChoice | None, ids: IdMap | None, work: Callable[[IdChoice | None], int]) -> int:
    return namespaces.spawn(ids, lambda: work(choice))


def _map(choice: IdChoice, helpers: tuple[bytes, bytes] | None) -> IdMap:
    if choice is IdChoice.SAME:
        return namespaces.one_id()
    if choice is IdChoice.ROOT:
        return namespaces.one_id(_ROOT)
    if helpers is None:
        raise Unsupported("subordinate ids need newuidmap and newgidmap", hint="they are in the package uidmap")
    ids = namespaces.subordinate_ids(helpers)
    if ids is None:
        hint = "`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER` gives some"
        raise Unsupported("this user has no subordinate ids in /etc/subuid and /etc/subgid", hint=hint)
    return ids


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "there are as many as the system allows"
    return error.strerror or str(error)
