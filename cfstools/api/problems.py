"""What a check found wrong, one value for each problem."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from cfstools.formats.escape import escape_text
from cfstools.report import Report

MAX_PROBLEMS = 10_000


class ProblemKind(Enum):
    """What sort of thing is wrong."""

    DIGEST = "digest"
    SIGNATURE = "signature"
    STRUCTURE = "structure"
    CANONICAL = "canonical"
    MISSING = "missing"
    SIZE = "size"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    UNVERIFIABLE = "unverifiable"


class Problem(Report):
    """One problem: of what ``kind``, with which file (``subject``, a path), and what it is.

    For an object, ``paths`` are the first of the ``path_count`` names in the image whose contents it is.
    """

    kind: ProblemKind
    subject: str
    what: str
    paths: tuple[str, ...] = ()
    path_count: int = 0

    def __str__(self) -> str:
        if not self.path_count:
            return f"{self.kind.value}: {self.what}"
        others = self.path_count - len(self.paths)
        names = ", ".join(self.paths) + (f" and {others} more" if others else "")
        return f"{self.kind.value}: {names}: object {self.subject}: {self.what}"


class Problems:
    """Collects problems: all are counted, the first ``MAX_PROBLEMS`` are kept."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.count = 0

    def add(self, problems: Iterable[Problem]) -> int:
        """Add *problems* and return how many they were."""
        before = self.count
        for problem in problems:
            self.count += 1
            if len(self.kept) < MAX_PROBLEMS:
                self.kept.append(problem)
        return self.count - before


def shown(path: bytes) -> str:
    """A path from an image as printable text."""
    return escape_text(path)
