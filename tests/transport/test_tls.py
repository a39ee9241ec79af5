"""Whom we trust over TLS, what we show them, and what is said when it fails."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.errors import NetworkError, NoTls, TransientError
from cfstools.transport import url
from cfstools.transport.http import Http, Request
from cfstools.transport.pool import Pool
from cfstools.transport.proxies import NO_PROXIES, Proxies, parse_proxies
from cfstools.transport.retry import Clock
from cfstools.transport.tls import TlsFiles, context, read_authorities
from cfstools.transport.url import Url
from tests.servers.authority import Authority
from tests.servers.faulty import END, Asked, FaultyServer, Part, Tunnel, head, reply


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> tuple[str, str]:
    certificate, key = authority.issue("server")
    return str(certificate), str(key)


def get(url: Url, files: TlsFiles = TlsFiles(), proxies: Proxies = NO_PROXIES) -> bytes:  # noqa: B008
    pool = Pool(tls=lambda _origin: files, proxies=proxies)
    http = Http(pool, clock=Clock(sleep=lambda _seconds: None))
    try:
        return http.document(Request(url), limit=1000).data
    finally:
        http.close()


def hello(_asked: Asked) -> Iterator[Part]:
    yield reply(200, b"hello")


def trusting(authority: Authority) -> TlsFiles:
    return TlsFiles((bytes(authority.certificate),))


def test_only_who_is_trusted_is_spoken_to(authority: Authority, certificate: tuple[str, str], tmp_path: Path) -> None:
    with FaultyServer(hello, certificate) as server:
        assert get(server.url(), trusting(authority)) == b"hello"
        for files in (TlsFiles(), trusting(Authority(tmp_path, "stranger"))):
            connections = server.connections
            with pytest.raises(
                NetworkError, match=r"cannot connect: certificate verify failed: unable to get local issuer"
            ) as raised:
                get(server.url(), files)
            assert not isinstance(raised.value, TransientError)
            assert raised.value.hint == "NetworkOptions.authorities"
            assert server.connections == connections + 1
        assert len(server.asked) == 1


def test_a_certificate_is_for_its_host(authority: Authority) -> None:
    other, key = authority.issue("other", hosts=("elsewhere.example",))
    with FaultyServer(hello, (str(other), str(key))) as server:
        assert get(server.url(), trusting(authority)) == b"hello"
        named = server.url()._replace(origin=server.url().origin._replace(host="localhost"))
        with pytest.raises(NetworkError, match="certificate verify failed: Hostname mismatch"):
            get(named, trusting(authority))


def test_a_certificate_of_ours_is_shown(authority: Authority, certificate: tuple[str, str]) -> None:
    ours, key = authority.issue("client", client=True)
    with FaultyServer(hello, certificate) as server:
        assert server._context is not None
        server._context.verify_mode = ssl.CERT_REQUIRED
        server._context.load_verify_locations(authority.certificate)
        assert get(server.url(), trusting(authority)._replace(certificate=bytes(ours), key=bytes(key))) == b"hello"
        with pytest.raises(NetworkError):
            get(server.url(), trusting(authority))


def test_a_server_without_tls_is_told_apart() -> None:
    with FaultyServer(hello) as server:
        tls = server.url()._replace(origin=server.url().origin._replace(scheme="https"))
        with pytest.raises(NoTls, match=rf"^https://127\.0\.0\.1:{server.port}: the server does not speak TLS$"):
            get(tls)


def test_a_connection_that_breaks_is_no_tls_error(authority: Authority, certificate: tuple[str, str]) -> None:
    def answer(asked: Asked) -> Iterator[Part]:
        if asked.number == 0:
            yield head(200, length=5) + b"he"
            yield END
        yield reply(200, b"hello")

    with FaultyServer(answer, certificate) as server:
        assert get(server.url(), trusting(authority)) == b"hello"
        assert len(server.asked) == 2


@pytest.mark.parametrize("contents", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_files_that_cannot_be_used(tmp_path: Path, authority: Authority, contents: bytes | None) -> None:
    path = tmp_path / "given.pem"
    if contents is not None:
        path.write_bytes(contents)
    for files, what in (
        (TlsFiles((bytes(path),)), "CA file"),
        (TlsFiles(certificate=bytes(path), key=bytes(path)), "certificate"),
    ):
        with pytest.raises(NetworkError, match=f"{what}") as raised:
            context(files)
        assert raised.value.subject == str(path)


def test_files_for_those_who_do_not_read_any(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other").certificate
    both = read_authorities([bytes(authority.certificate), bytes(other)])
    assert both == authority.certificate.read_bytes() + b"\n" + other.read_bytes()
    with pytest.raises(NetworkError, match="cannot read the CA file: No such file") as raised:
        read_authorities([bytes(tmp_path / "none")])
    assert raised.value.subject == str(tmp_path / "none")


def test_a_key_that_is_encrypted_is_no_reason_to_prompt(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("locked", client=True)
    locked = tmp_path / "locked.key"
    words = ["openssl", "pkey", "-in", str(key), "-aes128", "-passout", "pass:word", "-out", str(locked)]
    subprocess.run(words, check=True, capture_output=True)
    with pytest.raises(NetworkError, match="the key of the certificate is encrypted"):
        context(TlsFiles(certificate=bytes(certificate), key=bytes(locked)))


# Proxies


def test_plain_requests_go_to_the_proxy_as_a_whole() -> None:
    with FaultyServer(hello) as proxy:
        proxies = parse_proxies(f"http://user:word@127.0.0.1:{proxy.port}", None, None)
        assert (
            get(Url(proxy.url().origin._replace(host="far.example", port=80), "/a", "b=c"), proxies=proxies) == b"hello"
        )
    assert proxy.asked[0].target == "http://far.example/a?b=c"
    assert proxy.asked[0].headers["proxy-authorization"] == "Basic dXNlcjp3b3Jk"
    assert proxy.asked[0].headers["host"] == "far.example"


def test_tls_goes_through_a_tunnel_without_its_credentials(authority: Authority, certificate: tuple[str, str]) -> None:
    with FaultyServer(hello, certificate) as server, FaultyServer(lambda _: [head(200), Tunnel(server.port)]) as proxy:
        proxies = parse_proxies(None, f"http://user:word@127.0.0.1:{proxy.port}", None)
        assert get(server.url(), trusting(authority), proxies) == b"hello"
        assert proxy.asked[0].method == "CONNECT"
        assert proxy.asked[0].target == f"127.0.0.1:{server.port}"
        assert proxy.asked[0].headers["proxy-authorization"] == "Basic dXNlcjp3b3Jk"
        assert "proxy-authorization" not in server.asked[0].headers


def test_a_proxy_that_refuses() -> None:
    with FaultyServer(lambda _: [reply(407, b"who are you")]) as proxy:
        proxies = parse_proxies(None, f"http://user:word@127.0.0.1:{proxy.port}", None)
        with pytest.raises(
            NetworkError, match=r"^https://far\.example: cannot connect through the proxy: .* 407"
        ) as raised:
            get(url.parse("https://far.example/"), proxies=proxies)
        assert not isinstance(raised.value, TransientError)
        assert "word" not in str(raised.value)
        assert proxy.connections == 1
    with pytest.raises(TransientError, match="cannot connect through the proxy: Connection refused"):
        get(url.parse("https://far.example/"), proxies=proxies)
