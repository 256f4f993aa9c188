"""Which certificate authorities are trusted, and what is said of a certificate that is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from authority import Authority
from raw_server import RawServer, answering

from lightlyfs import app
from lightlyfs.api import addresses
from lightlyfs.api.addresses import trust_of
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


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_variable_that_names_no_authorities_is_told(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=rf"CURL_CA_BUNDLE is {path}"):
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
