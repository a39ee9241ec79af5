"""Object storage as places: ``s3://``, ``gs://``, ``az://``. The only importer of obstore (extra ``cloud``).

obstore signs requests, finds credentials of instances and workloads, and repeats what failed before it had an answer.
It also reads the standard variables of the environment by itself; what is given here comes first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import unquote

from cfstools.errors import (
    AccessDenied,
    CfsError,
    ContentsWrong,
    NetworkError,
    NotFound,
    SourceChanged,
    TransientError,
    Unsupported,
)
from cfstools.streams.buffered import Read
from cfstools.text import quoted, without_secrets
from cfstools.transport.base import Body, Span, Version, check_name, pieces
from cfstools.values import Value

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
PIECE = 1 << 20  # so much at least comes at once from the network
IN_MEMORY = 8 << 20  # what is at most sent in one request
_KINDS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})</Message>")
_STATUS = re.compile(r"status code: ([0-9]{3})|response error: ([0-9]{3})", re.IGNORECASE)


class CloudOptions(Value):
    """*config*: keys of obstore, such as ``endpoint``, ``region``, ``access_key_id``; *authorities*: PEM, besides the
    system's; *connections* are kept; *timeout*: seconds without an answer."""

    config: Mapping[str, str] = {}
    authorities: bytes | None = None
    connections: int = 32
    retries: int = 4
    timeout: float = 30

    def __repr__(self) -> str:
        return f"CloudOptions({', '.join(sorted(self.config))})"


_used_in: list[int] = []  # the process that used obstore first


def _refuse_forked(subject: str) -> None:
    """Raise ``Unsupported`` in a child of a process that used obstore: its threads are missing, and calls never end."""
    if not _used_in:
        _used_in.append(os.getpid())
    if _used_in[0] != os.getpid():
        raise Unsupported("object storage cannot be used after a fork of a process that used it", subject=subject)


class CloudTarget:
    """The names below *address*, ``SCHEME://BUCKET/PREFIX``, as :class:`cfstools.transport.base.Target`.

    Raises ``Unsupported`` where obstore is not installed, ``NetworkError`` for what is no such address.
    """

    def __init__(self, address: str, options: CloudOptions) -> None:
        scheme, _, rest = address.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme not in SCHEMES or not bucket or re.search(r"[?#@\x00-\x20]", rest):
            raise NetworkError(f"{quoted(without_secrets(address))} names no bucket")
        self._address = f"{scheme}://{bucket}/{prefix.strip('/')}".rstrip("/")
        self._prefix = unquote(prefix).strip("/")
        for part in self._prefix.split("/") if self._prefix else ():
            check_name(part)
        try:
            import obstore  # noqa: PLC0415 - an extra, and 10 ms
            from obstore import store  # noqa: PLC0415
        except ImportError as error:
            hint = "pip install 'cfstools[cloud]'"
            raise Unsupported("object storage needs the package obstore", subject=self._address, hint=hint) from error
        _refuse_forked(self._address)
        self._obstore = obstore
        client: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=min(10, options.timeout)),
            "read_timeout": timedelta(seconds=options.timeout),
            "timeout": timedelta(hours=6),
            "pool_max_idle_per_host": str(options.connections),
        }
        if options.authorities is not None:
            client["root_certificate"] = options.authorities
        if str(options.config.get("endpoint", "")).startswith("http://"):
            client["allow_http"] = True
        retry = {"max_retries": options.retries, "retry_timeout": timedelta(seconds=120)}
        make = getattr(store, _KINDS[scheme]).from_url
        try:
            self._store: ObjectStore = make(
                f"{scheme}://{bucket}", config=dict(options.config), client_options=client, retry_config=retry
            )
        except self._errors() as error:
            self._fail(error, "")

    def size(self, name: str) -> int | None:
        """Length in bytes, or ``None``."""
        try:
            return self._obstore.head(self._store, self._key(name))["size"]
        except FileNotFoundError:
            return None
        except self._errors() as error:
            self._fail(error, name)

    @contextmanager
    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> Iterator[Read]:
        """Read a span of it, or all."""
        if span is not None and not span.size:
            yield lambda _count: b""
            return
        options: dict[str, Any] = {} if span is None else {"range": tuple(span)}
        if version is not None and version.value is not None:
            options["if_match"] = version.value
        try:
            got = self._obstore.get(self._store, self._key(name), options=cast("Any", options))
            meta, came = got.meta, Span(*got.range)
        except self._errors() as error:
            self._fail(error, name)
        if span is not None and came != span:
            raise ContentsWrong("is shorter there than it should be", subject=self.describe(name))
        if version is not None:
            version.check(meta["e_tag"], self.describe(name))
        yield self._reader(iter(got.stream(PIECE)), name, came.size)

    def describe(self, name: str) -> str:
        """The address of the name."""
        return f"{self._address}/{name}" if name else self._address

    def close(self) -> None:
        """Nothing is held that has to be given back."""

    def put(self, name: str, body: Body, *, replace: bool) -> bool:
        """Store a body: a small one in one request, which says that nothing may be there; a large one in parts.

        For a large one without *replace* it is looked up before whether there is one: two who put it at once both do.
        """
        small = body.size <= IN_MEMORY
        if not replace and not small and self.size(name) is not None:
            return False
        try:
            with body.open() as read:
                parts = pieces(read, body.size, self.describe(name))
                if small:
                    mode: Any = "overwrite" if replace else "create"
                    self._obstore.put(self._store, self._key(name), b"".join(parts), mode=mode, use_multipart=False)
                else:
                    self._obstore.put(self._store, self._key(name), parts, chunk_size=IN_MEMORY, max_concurrency=2)
        except self._obstore.exceptions.AlreadyExistsError:
            return False
        except self._errors() as error:
            self._fail(error, name)
        return True

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All names below a directory with their sizes."""
        below = self._key(prefix) if prefix else self._prefix
        skipped = len(self._prefix) + 1 if self._prefix else 0
        listing = self._obstore.list(self._store, below or None, chunk_size=1000)
        while True:
            try:
                page = next(listing)
            except StopIteration:
                return
            except self._errors() as error:
                self._fail(error, prefix)
            for entry in page:
                yield entry["path"][skipped:], entry["size"]

    def _key(self, name: str) -> str:
        name = check_name(name)
        return f"{self._prefix}/{name}" if self._prefix else name

    def _reader(self, parts: Iterator[bytes], name: str, size: int) -> Read:
        buffer = memoryview(b"")
        left = size

        def read(count: int) -> bytes:
            nonlocal buffer, left
            if not left:
                return b""
            if not buffer:
                try:
                    buffer = memoryview(next(parts))
                except StopIteration:
                    raise TransientError(
                        "the connection broke: the answer is cut", subject=self.describe(name)
                    ) from None
                except self._errors() as error:
                    raise TransientError(_text(error), subject=self.describe(name)) from error
            part = bytes(buffer[: min(count, left)])
            buffer = buffer[len(part) :]
            left -= len(part)
            return part

        return read

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._obstore.exceptions.BaseError, FileNotFoundError, PermissionError, OSError, ValueError)

    def _fail(self, error: Exception, name: str) -> NoReturn:
        """Raise an error of obstore as ours. Its texts have answers of servers in them, which repeat what was sent."""
        raise self._translated(error, self.describe(name)) from error

    def _translated(self, error: Exception, subject: str) -> CfsError:
        exceptions = self._obstore.exceptions
        text = _text(error)
        status = _STATUS.search(str(error))
        code = status and (status[1] or status[2])
        if isinstance(error, FileNotFoundError):
            return NotFound("not found", subject=subject)
        if isinstance(error, exceptions.PreconditionError):
            return SourceChanged("changed while it was read", subject=subject)
        denied = exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
        if isinstance(error, denied) or code in {"401", "403"}:
            return AccessDenied(f"access denied{_said(error)}", subject=subject)
        if code == "416":
            return ContentsWrong("is shorter there than it should be", subject=subject)
        return NetworkError(text, subject=subject)


def _said(error: Exception) -> str:
    """Code and message of an S3 answer, in brackets."""
    found = [match[1] for match in (_CODE.search(str(error)), _MESSAGE.search(str(error))) if match]
    return f" ({': '.join(found)})" if found else ""


def _text(error: Exception) -> str:
    """What failed, without the answer that came."""
    first = str(error).partition("\n")[0].partition(": <?xml")[0].partition("Debug source")[0]
    return f"the storage failed: {without_secrets(first)[:300].strip()}{_said(error)}"
