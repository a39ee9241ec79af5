"""Opening registries: options, auth files, credential helpers, certificates and registries.conf become repositories."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from threading import Lock

from cfstools.errors import InputError, os_error
from cfstools.lifetime import Closable
from cfstools.linux.contents import file_type, whole_file
from cfstools.oci.registry.certificates import Certificates, find_certificates, read_certificates
from cfstools.oci.registry.content import RegistryContent
from cfstools.oci.registry.credentials import (
    AskHelper,
    AuthFile,
    Credential,
    HelperAnswer,
    find_credential,
    parse_auth_file,
)
from cfstools.oci.registry.reference import ImageReference, RegistryOptions
from cfstools.oci.registry.registriesconf import Endpoint, RegistryEntry, endpoints, parse_registries
from cfstools.oci.registry.repository import Registry, Repository
from cfstools.text import shown_path
from cfstools.transport.http import Http, ignore_warning
from cfstools.transport.proxies import NO_PROXIES
from cfstools.transport.retry import REAL_TIME, Clock
from cfstools.transport.tls import TlsFiles
from cfstools.transport.url import PORTS, Origin

HELPER_TIMEOUT = 30.0
"""How long a credential helper may take to answer, in seconds."""


def ask_helper(name: str, server: str) -> HelperAnswer:
    """Run ``docker-credential-NAME get`` for *server*; its standard error is discarded.

    Raises :class:`InputError` if it cannot be run or takes longer than 30 seconds.
    """
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=HELPER_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        hint = "the auth file names it: install it, or log in without it"
        raise InputError(f"credential helper {program} is not installed", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise InputError(f"credential helper {program} did not answer within {HELPER_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise os_error(error, f"cannot run the credential helper {program}") from error
    return HelperAnswer(done.returncode, done.stdout)


class Registries(Closable):
    """Connections to registries; thread-safe.

    *warn* receives warnings: skipped mirrors, and those that servers send. *ask* runs credential helpers.
    """

    def __init__(
        self,
        options: RegistryOptions,
        *,
        warn: Callable[[str], None] = ignore_warning,
        ask: AskHelper = ask_helper,
        clock: Clock = REAL_TIME,
    ) -> None:
        self._options = options
        self._warn = warn
        self._ask = ask
        self._lock = Lock()
        self._registries: dict[tuple[str, bool], Registry] = {}
        self._certificates: dict[str, Certificates] = {}
        self._auth_files: tuple[AuthFile, ...] | None = None
        self._entries = _registry_entries(options.configurations)
        network = options.network
        proxies = network.proxies or NO_PROXIES
        from cfstools.transport.pool import Patience, Pool  # noqa: PLC0415 - loads TLS: only where something is asked

        patience = Patience.of(network.timeout)
        pool = Pool(connections=network.connections, tls=self._tls, proxies=proxies, patience=patience, clock=clock)
        self.http = Http(pool, connections=network.connections, clock=clock, warn=warn)

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def content(self, reference: ImageReference, *, mirrors: bool = True) -> RegistryContent:
        """An image to read, from *mirrors* first; without them from where :meth:`writable` writes.

        Raises :class:`OciError` if registries.conf blocks it.
        """
        places = endpoints(self._entries, reference)[0 if mirrors else -1 :]
        repositories = [self._repository(place, reference) for place in places]
        return RegistryContent(repositories, reference, connections=self._options.network.connections)

    def writable(self, reference: ImageReference, *, mount_from: str | None = None) -> Repository:
        """The repository of *reference* to write to; *mount_from* is another one to mount blobs from."""
        place = endpoints(self._entries, reference)[-1]
        return self._repository(place, reference, actions="pull,push", mount_from=mount_from)

    def _repository(
        self, place: Endpoint, reference: ImageReference, *, actions: str = "pull", mount_from: str | None = None
    ) -> Repository:
        moved = place.is_mirror or (place.host, place.repository) != (reference.host, reference.repository)
        return Repository(
            self._registry(place),
            place.repository,
            self._credential,
            actions=actions,
            mount_from=mount_from,
            subject=f"docker://{place.host}/{place.repository}" if moved else str(reference),
            warn=self._warn,
        )

    def _registry(self, place: Endpoint) -> Registry:
        with self._lock:
            key = place.host, place.insecure
            registry = self._registries.get(key)
            if registry is None:
                registry = Registry(self.http, place.host, plain_http=self._options.plain_http, insecure=place.insecure)
                self._registries[key] = registry
                self._certificates[_without_scheme(registry.origin)] = self._registry_certificates(place.host)
            return registry

    def _registry_certificates(self, host: str) -> Certificates:
        if self._options.cert_directory is not None:
            return read_certificates(self._options.cert_directory)
        return find_certificates(self._options.cert_directories, host)

    def _tls(self, origin: Origin) -> TlsFiles:
        """The TLS files for *origin*. The client certificate is sent to registries only, not to token servers."""
        found = self._certificates.get(_without_scheme(origin))
        if found is None:
            host = _without_scheme(origin)
            found = find_certificates(self._options.cert_directories, host)
            if self._options.cert_directory is not None:
                found = read_certificates(self._options.cert_directory)._replace(client=None)
        certificate, key = found.client or (None, None)
        return TlsFiles((*self._options.network.authorities, *found.authorities), certificate, key)

    def _credential(self, host: str, repository: str) -> Credential | None:
        with self._lock:
            if self._auth_files is None:
                self._auth_files = _read_auth_files(self._options.auth_files, required=self._options.auth_required)
        return find_credential(self._auth_files, host, repository, self._ask)


def _without_scheme(origin: Origin) -> str:
    port = "" if PORTS[origin.scheme] == origin.port else f":{origin.port}"
    return f"{origin.host}{port}"


def _read_auth_files(paths: Sequence[bytes], *, required: bool) -> tuple[AuthFile, ...]:
    return tuple(parse_auth_file(_contents(path), shown_path(path)) for path in paths if required or file_type(path))


def _registry_entries(paths: Sequence[bytes]) -> tuple[RegistryEntry, ...]:
    return parse_registries((shown_path(path), _contents(path)) for path in paths)


def _contents(path: bytes) -> bytes:
    with whole_file(path) as data:
        return bytes(data)
