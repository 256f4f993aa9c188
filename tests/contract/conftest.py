"""One contract, two transports: every test that takes `make_transport` runs over both forms."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from raw_server import Handler, RawServer

from lightlyfs.api.contract import Transport, TransportConfig
from lightlyfs.api.curl import CurlTransport
from lightlyfs.api.over_requests import RequestsTransport

FORMS: dict[str, type[RequestsTransport] | type[CurlTransport]] = {
    "requests": RequestsTransport,
    "pycurl": CurlTransport,
}


@pytest.fixture(params=sorted(FORMS))
def make_transport(request: pytest.FixtureRequest) -> Iterator[Callable[..., Transport]]:
    """A factory of the transport under test, by the fields of `TransportConfig`."""
    made: list[Transport] = []

    def make(**config: Any) -> Transport:
        made.append(FORMS[request.param](TransportConfig(**config)))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def transport(make_transport: Callable[..., Transport]) -> Transport:
    """The transport under test with its default configuration."""
    return make_transport()


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """Start a raw server with a handler; stopped at the end of the test."""
    started: list[RawServer] = []

    def start(handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> RawServer:
        started.append(RawServer(handler, tls, host).__enter__())
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA and a certificate for 127.0.0.1, made with the `openssl` command."""
    folder: Path = tmp_path_factory.mktemp("ca")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    signed = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile host.ext"
    steps = [
        f"req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test",
        f"req {key} -keyout host.key -out host.csr -subj /CN=127.0.0.1",
        f"x509 -req -in host.csr {signed} -out host.pem",
    ]
    (folder / "host.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:signed.test\n")
    try:
        for step in steps:
            subprocess.run(
                ["openssl", *step.split()], cwd=folder, check=True, capture_output=True, timeout=30
            )
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no certificate without the openssl command: {exc}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "host.pem", folder / "host.key")
    return Authority(str(folder / "ca.pem"), context)
