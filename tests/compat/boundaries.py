"""Dump texts aimed at the places where a size, an xattr area or a name meets the end of a block.

Written as text, without our own printer, so that both sides read what neither of them wrote.
"""

from __future__ import annotations

import random

TYPES = {"file": 0o100644, "link": 0o120777, "fifo": 0o010600, "socket": 0o140755, "char": 0o020666, "block": 0o060660}
KEYS = ["user.", "trusted.", "security.", "system.posix_acl_access", "system.posix_acl_default", "lustre.", "other"]


class DumpMaker:
    """Makes the dump text of one seed, line by line."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.leaves: list[str] = []
        # A few values that many inodes have, so that they are shared.
        self.values = [self.value(self.near(40, 30)) for _ in range(4)]

    def near(self, size: int, spread: int = 40) -> int:
        """Return a size at or near a boundary, at least 1."""
        return max(1, size + self.random.randint(-spread, spread))

    def value(self, size: int) -> str:
        """Return this many bytes of escaped text."""
        return "".join(
            f"\\x{self.random.randrange(256):02x}" if self.random.random() < 0.1 else "v" for _ in range(size)
        )

    def xattrs(self, budget: int) -> str:
        """Return xattr fields of roughly this many bytes."""
        fields: dict[str, str] = {}
        while budget > 0 and len(fields) < 900:
            key = self.random.choice(KEYS)
            if not key.startswith("system."):
                key += f"k{self.random.randrange(1000)}" + "n" * self.random.choice([0, 0, 3, 200])
            shared = self.random.random() < 0.5
            fields[key] = self.random.choice(self.values) if shared else self.value(min(budget, self.near(60, 59)))
            budget -= len(key) + 8 + fields[key].count("v")
        return "".join(f" {key}={value}" for key, value in fields.items())

    def stamp(self) -> str:
        """Return owner, group, device number and time: mostly those of a compact inode."""
        owner = self.random.choice([0, 0, 0, 0, 65_535, 65_536])
        time = self.random.choice(["7.5", "7.5", "7.5", "8.0", "-3.7"])
        return f"{owner} 0 {self.random.choice([0, 259, 1793])} {time}"

    def areas(self) -> str:
        """Return xattrs: none, few, or up to several blocks of them."""
        return self.xattrs(self.random.choice([0, 0, 0, 100, 1000, self.near(4000, 200), 9000, self.near(32_550, 300)]))

    def leaf(self, path: str) -> None:
        """Add one entry that is not a directory."""
        self.leaves.append(path)
        kind = self.random.choices(["file", "inline", "link", "special", "huge"], [3, 4, 5, 1, 1])[0]
        if kind == "inline":
            size = self.random.choice([self.near(2048, 2), self.near(4096, 2), self.near(5000 - 40), 0, 1])
            fields = (size, TYPES["file"], "-", self.value(size) or "-", "-")
        elif kind == "link":
            size = min(4095, self.random.choice([self.near(4060, 60), self.near(2000, 900), self.near(20, 19)]))
            fields = (size, TYPES["link"], "t" * size, "-", "-")
        elif kind == "special":
            special = self.random.choice(["fifo", "socket", "char", "block"])
            fields = (self.random.choice([0, 0, 2**32]), TYPES[special], "-", "-", "-")
        else:
            size = self.random.choice([65, 4097, 2**32 - 1, 2**32, 2**43 + 1])
            if kind == "huge":
                size = self.near(1010, 13) * 2**43
            digest = self.random.randbytes(32).hex()
            fields = (size, TYPES["file"], f"{digest[:2]}/{digest[2:]}", "-", digest)
        size, mode, payload, content, digest = fields
        self.lines.append(f"{path} {size} {mode:o} 1 {self.stamp()} {payload} {content} {digest}{self.areas()}")

    def directory(self, path: str, depth: int) -> None:
        """Add a directory whose names take about half a block, one block or two, and what is in it."""
        self.lines.append(f"{path or '/'} 0 40755 2 {self.stamp()} - - -{self.areas()}")
        room = self.random.choice([0, 60, 300, self.near(2048), self.near(4096), self.near(8192)])
        number = 0
        while room > 0:
            length = min(255, self.random.choice([4, 9, 30, 200, 255]), max(4, room - 12))
            name = f"{self.random.choice('!-.AZaz~')}{number:03}".ljust(length, "n")
            number += 1
            room -= 12 + length
            child = f"{path}/{name}"
            if depth and self.random.random() < 0.05:
                self.directory(child, depth - 1)
            elif self.leaves and self.random.random() < 0.5:
                target = self.random.choice(self.leaves)
                self.lines.append(f"{child} 0 @100644 1 0 0 0 0.0 {target} - -")
            else:
                self.leaf(child)


def boundary_dump(seed: int) -> bytes:
    """Return the dump text of this seed."""
    maker = DumpMaker(seed)
    maker.directory("", 2)
    return "".join(f"{line}\n" for line in maker.lines).encode()
