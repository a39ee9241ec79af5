"""Object storage on loopback: versitygw over a directory, which checks signatures and the hashes of what is sent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cfstools.transport.cloud import CloudOptions
from tests.requirements import go_tool
from tests.servers.ports import own_port, wait_for_port

KEY, SECRET, BUCKET = "access-key", "secret-of-the-test", "bucket"


class Storage(NamedTuple):
    """Where it listens, and the directory of its one bucket."""

    endpoint: str
    bucket: Path

    def options(self, **more: str) -> CloudOptions:
        """How it is spoken to; *more* changes that."""
        config = {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            **more,
        }
        return CloudOptions(config=config, retries=1)

    @property
    def environment(self) -> dict[str, str]:
        """The same for commands."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ALLOW_HTTP": "true",
        }


@contextmanager
def versitygw(directory: Path) -> Iterator[Storage]:
    """Serve ``s3://bucket`` out of *directory*."""
    program = go_tool("versitygw")
    bucket = directory / "data" / BUCKET
    bucket.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with own_port() as port, (directory / "log").open("wb") as log:
        listening = ["--port", f"127.0.0.1:{port}", "--access", KEY, "--secret", SECRET]
        words = [str(program), *listening, "posix", str(directory / "data")]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            wait_for_port(port, process)
            yield Storage(f"http://127.0.0.1:{port}", bucket)
        finally:
            process.terminate()
            process.wait()
