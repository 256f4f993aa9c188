"""Which certificate authorities are trusted, and what is said of a certificate that is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from raw_server import RawServer, answering

from lightlyfs import app
from lightlyfs.api import addresses
from lightlyfs.api.addresses import trust_of
from lightlyfs.api.client import Credentials, LightlyClient
from lightlyfs.api.contract import Request, Response, Transport, TransportConfig
from lightlyfs.api.curl import CurlTransport
from lightlyfs.errors import SettingsError, TlsFailed
from lightlyfs.settings import read_secrets, resolve

Serve = Callable[..., RawServer]


no_datasets = answering(lambda connection, _: connection.say("200 OK", b"[]"))
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "LIGHTLY_CA_CERTS")


def datasets_of(server: RawServer, environ: dict[str, str], **flags: str) -> int:
    """How many datasets a client with this environment sees; it goes the whole way from the settings."""
    environ = {"LIGHTLY_TOKEN": "t", "LIGHTLY_SERVER_LOCATION": server.url} | environ
    settings = resolve(flags, environ)
    client = app.connect(settings, read_secrets(environ, None), environ).client
    return len(client.list_datasets(policy=app.quick_policy()))


WAYS: dict[str, Callable[[Path], tuple[dict[str, str], dict[str, str]]]] = {
    "SSL_CERT_FILE": lambda pem: ({"SSL_CERT_FILE": str(pem)}, {}),
    "SSL_CERT_DIR": lambda pem: ({"SSL_CERT_DIR": f"/nowhere:{pem.parent}"}, {}),
    "REQUESTS_CA_BUNDLE": lambda pem: ({"REQUESTS_CA_BUNDLE": str(pem)}, {}),
    "REQUESTS_CA_BUNDLE, a directory": lambda pem: ({"REQUESTS_CA_BUNDLE": str(pem.parent)}, {}),
    "CURL_CA_BUNDLE": lambda pem: ({"CURL_CA_BUNDLE": str(pem)}, {}),
    "LIGHTLY_CA_CERTS": lambda pem: ({"LIGHTLY_CA_CERTS": str(pem)}, {}),
    "--ca-certs": lambda pem: ({}, {"ca_certs": str(pem)}),
    "several": lambda pem: (
        {"SSL_CERT_FILE": addresses.certifi.where(), "SSL_CERT_DIR": str(pem.parent)},
        {"ca_certs": addresses.certifi.where()},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_authority_of_ones_own_is_trusted_each_usual_way(
    serve: Serve, authority: Authority, way: str
) -> None:
    server = serve(no_datasets, authority.server)
    environ, flags = WAYS[way](Path(authority.bundle))
    assert datasets_of(server, environ, **flags) == 0


def test_the_systems_authorities_are_trusted_and_certifis_last(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(no_datasets, authority.server)
    monkeypatch.setattr(addresses, "SYSTEM_BUNDLES", ("/no/bundle", authority.bundle))
    assert datasets_of(server, {}) == 0
    assert trust_of({}, None).origin == f"the system's ({authority.bundle})"
    monkeypatch.setattr(addresses, "SYSTEM_BUNDLES", ())
    assert trust_of({}, None).bundle == addresses.certifi.where()
    with pytest.raises(TlsFailed):
        datasets_of(server, {})


def test_variables_replace_the_systems_authorities_and_the_option_adds_to_them(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(no_datasets, authority.server)
    monkeypatch.setattr(addresses, "SYSTEM_BUNDLES", (authority.bundle,))
    assert datasets_of(server, {}, ca_certs=addresses.certifi.where()) == 0
    with pytest.raises(TlsFailed):
        datasets_of(server, {"SSL_CERT_FILE": addresses.certifi.where()})


def test_a_certificate_that_is_not_trusted_is_named_with_its_issuer_and_the_option(
    serve: Serve, authority: Authority
) -> None:
    """A company's proxy signs for every host; its name in the error says whom to ask."""
    server = serve(no_datasets, authority.server)
    with pytest.raises(TlsFailed, match=r"issued by CN ?= ?test; trust it with --ca-certs FILE"):
        datasets_of(server, {})


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"valid_days": (-3, -1)}, "who runs the server has to renew it"),
    "not valid yet": ({"valid_days": (1, 3)}, "check the clock of this machine"),
    "of another host": ({"names": "DNS:other.test"}, "it is for another host"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_certificate_that_no_option_helps_is_told_with_what_does(
    make_transport: Callable[..., Transport], serve: Serve, authority: Authority, tmp_path: Path, fault: str
) -> None:
    made, way_out = FAULTS[fault]
    server = serve(no_datasets, authority.vouch(tmp_path, **made))
    with pytest.raises(TlsFailed, match=way_out) as caught:
        make_transport(ca_bundle=authority.bundle).send(Request("GET", server.url))
    assert "--ca-certs" not in str(caught.value)


def test_a_certificate_of_a_portal_that_passes_is_waited_out(serve: Serve, authority: Authority) -> None:
    """A sign-in page of a network answers for every host until somebody has signed in."""
    server = serve(no_datasets, authority.server)
    transport = _PortalFirst(CurlTransport(TransportConfig(ca_bundle=authority.bundle)))
    client = LightlyClient(server.url, Credentials(token="t"), transport)
    assert client.list_datasets() == []
    assert transport.refused == 2


class _PortalFirst:
    """A transport of which the first two requests meet the certificate of somebody else."""

    def __init__(self, inner: CurlTransport) -> None:
        self._inner = inner
        self._stranger = CurlTransport(TransportConfig(ca_bundle=addresses.certifi.where()))
        self.refused = 0

    def send(self, request: Request) -> Response:
        if self.refused == 2:
            return self._inner.send(request)
        self.refused += 1
        return self._stranger.send(request)

    def close(self) -> None:
        self._inner.close()
        self._stranger.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        ("no certificate", "holds no certificate in PEM form"),
    ],
)
def test_a_variable_that_names_no_authorities_is_told(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=rf"CURL_CA_BUNDLE is {path}, which {why}"):
        trust_of({"CURL_CA_BUNDLE": str(path)}, Path(addresses.certifi.where()))


def test_doctor_shows_which_authorities_are_trusted(authority: Authority) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environ = {
        **kept,
        "LIGHTLY_TOKEN": "t",
        "SSL_CERT_FILE": authority.bundle,
        "LIGHTLY_SERVER_LOCATION": "http://[::1]:9",
    }
    command = [sys.executable, "-m", "lightlyfs", "doctor"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert f"ok       CAs        SSL_CERT_FILE ({authority.bundle})" in done.stdout
