"""nginx on loopback, serving a directory."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfstools.transport import url
from cfstools.transport.url import Url
from tests.requirements import need_command
from tests.servers.ports import own_port, wait_for_port

_CONFIGURATION = """
daemon off;
pid {work}/pid;
error_log {work}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {work}/access.log;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port}{tls};
        root {root};
        {more}
    }}
}}
"""


@contextmanager
def nginx(root: Path, work: Path, *, certificate: tuple[Path, Path] | None = None, more: str = "") -> Iterator[Url]:
    """Serve *root*; *work* is for nginx's own files, with ``access.log``. Over TLS with *certificate* and its key."""
    need_command("nginx")
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)
    if certificate is not None:
        more += f" ssl_certificate {certificate[0]}; ssl_certificate_key {certificate[1]};"
    with own_port() as port:
        text = _CONFIGURATION.format(work=work, port=port, root=root, tls=" ssl" if certificate else "", more=more)
        (work / "nginx.conf").write_text(f"user root;{text}", encoding="utf-8")
        words = ["nginx", "-e", str(work / "error.log"), "-p", str(work), "-c", str(work / "nginx.conf")]
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_port(port, process)
            yield url.parse(f"{'https' if certificate else 'http'}://127.0.0.1:{port}/")
        finally:
            process.terminate()
            process.wait()
