"""Registries as processes on loopback: docker-registry from Debian, and the ones written in Go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.requirements import go_tool, need_command
from tests.servers.tokens import ISSUER, SERVICE, TokenServer

_LISTENING = re.compile(rb"listening on 127\.0\.0\.1:([0-9]+)[^0-9]")  # the whole number: a line may be half written
_ADDRESS = re.compile(rb"127\.0\.0\.1:([0-9]+)[^0-9]")
_STARTING = 60.0


@contextmanager
def docker_registry(
    directory: Path,
    *,
    certificate: tuple[Path, Path] | None = None,
    tokens: TokenServer | None = None,
    passwords: Path | None = None,
    storage: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Debian's docker-registry over *directory*; the result is ``localhost:PORT``."""
    need_command("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    default = {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}}
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": dict(storage or default),
        "http": {"addr": "127.0.0.1:0", "secret": "none"},
    }
    if certificate is not None:
        configuration["http"]["tls"] = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    if tokens is not None:
        answer = {"realm": tokens.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(tokens.key.path)}
        configuration["auth"] = {"token": answer}
    elif passwords is not None:
        configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(passwords)}}
    written = directory / "registry.yml"
    written.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
    words = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    with _running(
        ["docker-registry", "serve", str(written)], directory / "registry.log", {**words, **(environment or {})}
    ) as log:
        port = _awaited(log, _LISTENING)
        yield f"localhost:{port}"


@contextmanager
def go_registry(directory: Path) -> Iterator[str]:
    """A registry in memory that knows referrers; the result is ``localhost:PORT``."""
    directory.mkdir(parents=True, exist_ok=True)
    program = go_tool("registry")
    with _running([str(program), "127.0.0.1:0"], directory / "registry.log", dict(os.environ)) as process:
        yield f"localhost:{_awaited(process, _ADDRESS)}"


class _Log:
    """The output of a process that was started."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process


@contextmanager
def _running(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[_Log]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(environment), start_new_session=True
        )
    try:
        yield _Log(log, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _awaited(log: _Log, pattern: re.Pattern[bytes]) -> int:
    """The port that the process says it listens on."""
    end = time.monotonic() + _STARTING
    while time.monotonic() < end:
        found = pattern.search(log.path.read_bytes())
        if found:
            return int(found[1])
        if log.process.poll() is not None:
            break
        time.sleep(0.02)
    raise AssertionError(f"did not start: {log.path.read_text(errors='replace')}")
