"""The digest of independent blocks on one core: the native function against OpenSSL's EVP with a context kept.

Run as a program it hashes, so that each side is a process of its own: ``python -m benchmarks.kernel ALGORITHM GIB``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inputs import cached
from benchmarks.runner import Job, Target
from cfstools import native

_BUFFER = 32 << 20
_BLOCK = 4096

# Declared by hand, so that the library is needed and not its headers.
_EVP = """
#include <stdlib.h>
#include <string.h>
typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_md_st EVP_MD;
EVP_MD_CTX *EVP_MD_CTX_new(void);
EVP_MD *EVP_MD_fetch(void *, const char *, const char *);
int EVP_DigestInit_ex2(EVP_MD_CTX *, const EVP_MD *, const void *);
int EVP_DigestUpdate(EVP_MD_CTX *, const void *, size_t);
int EVP_DigestFinal_ex(EVP_MD_CTX *, unsigned char *, unsigned *);
int main(int argc, char **argv) {
    const size_t size = BUFFER, block = BLOCK;
    unsigned char *data = malloc(size), out[64];
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_MD *algorithm = EVP_MD_fetch(NULL, argv[1], NULL);
    long turns = atol(argv[2]) * (long)((1ul << 30) / size);
    memset(data, argc, size);
    while (turns-- > 0)
        for (size_t at = 0; at < size; at += block)
            if (!EVP_DigestInit_ex2(context, algorithm, NULL) || !EVP_DigestUpdate(context, data + at, block) ||
                !EVP_DigestFinal_ex(context, out, NULL))
                return 1;
    return 0;
}
"""


def jobs(gib: int) -> Iterator[Job]:
    """Yield a job for each algorithm that hashes so many GiB."""

    def make(place: Path) -> None:
        source = place / "evp.c"
        source.write_text(_EVP.replace("BUFFER", str(_BUFFER)).replace("BLOCK", str(_BLOCK)), encoding="ascii")
        command = ["cc", "-O2", "-o", str(place / "evp"), str(source), "-l:libcrypto.so.3"]
        subprocess.run(command, check=True)

    evp = cached("evp", make) / "evp"
    for algorithm, target in (("sha256", Target(1.9, 2.2)), ("sha512", None)):
        yield Job(
            name=f"{algorithm} of {gib} GiB in 4 KiB blocks, one core / EVP",
            ours=[sys.executable, "-m", "benchmarks.kernel", algorithm, str(gib)],
            theirs=[str(evp), algorithm, str(gib)],
            target=target,
            pure=True,
        )


def main(algorithm: str, gib: str) -> None:
    """Hash a buffer again and again."""
    data = bytes(_BUFFER)
    for _ in range(int(gib) * (1 << 30) // _BUFFER):
        native.hash_blocks(algorithm, data, _BLOCK, b"")


if __name__ == "__main__":
    from os import environ

    native.use(environ.get("MKCFS_NATIVE", "auto"))
    main(*sys.argv[1:])
