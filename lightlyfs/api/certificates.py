"""The certificate authorities to trust: those of the environment, else the system's, else certifi's.

The first of the variables of requests, curl and OpenSSL that is set replaces the system's authorities.
`--ca-certs` adds authorities to the result. The transports accept one PEM file, so several files are
concatenated in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import certifi

from lightlyfs.errors import SettingsError

# the first that is set counts, as requests and curl have it; each names a file or a directory
_VARIABLES = (("REQUESTS_CA_BUNDLE",), ("CURL_CA_BUNDLE",), ("SSL_CERT_FILE", "SSL_CERT_DIR"))
# where distributions keep theirs: Debian and Alpine, Red Hat (old and new), SUSE, BSD and macOS
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_BEGIN = b"-----BEGIN CERTIFICATE-----"
# a certificate takes some 2 KB; what is larger in a directory of them is none
_MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class Trust:
    """A PEM file of authorities, and where they come from, for people."""

    bundle: str
    origin: str


def trust_of(environ: Mapping[str, str], ca_certs: Path | None) -> Trust:
    """Return the authorities to trust; SettingsError names the variable whose file has none."""
    sources = [*_sources(environ), *([] if ca_certs is None else [("--ca-certs", ca_certs)])]
    origin = " and ".join(f"{name} ({path})" for name, path in sources)
    if len(sources) == 1 and sources[0][1].is_file():
        return Trust(str(sources[0][1]), origin)
    return Trust(_put_together(tuple(sources)), origin)


def untrusted_text(issuer: str) -> str:
    """Return the way out of an untrusted certificate, for an error; `issuer` is "" if unknown."""
    option = "trust it with --ca-certs FILE or LIGHTLY_CA_CERTS"
    return f"issued by {issuer}; {option}" if issuer else option


def _sources(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    for names in _VARIABLES:
        given = [(name, path) for name in names for path in _paths(name, environ.get(name, ""))]
        if given:
            return given
    system = next((path for path in map(Path, SYSTEM_BUNDLES) if path.is_file()), None)
    return [("certifi", Path(certifi.where()))] if system is None else [("the system's", system)]


def _paths(name: str, text: str) -> list[Path]:
    # OpenSSL takes a list of directories, and passes over those that are not there
    if name == "SSL_CERT_DIR":
        return [Path(one) for one in text.split(os.pathsep) if os.path.isdir(one)]
    return [Path(text)] if text else []


@lru_cache(maxsize=8)
def _put_together(sources: tuple[tuple[str, Path], ...]) -> str:
    """Return the path of one file with the certificates of several; it lasts as long as this process."""
    pem = b"".join(dict.fromkeys(text for name, path in sources for text in _read(name, path)))
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lightlyfs-authorities", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(prefix="lightlyfs-authorities-", suffix=".pem")
    while pem:
        pem = pem[os.write(descriptor, pem) :]
    return path


def _read(name: str, path: Path) -> Iterator[bytes]:
    """Yield the files with certificates at a path."""
    found = False
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and file.stat().st_size <= _MAX_FILE_BYTES:
                text = file.read_bytes()
                if _BEGIN in text:
                    found = True
                    yield text.rstrip() + b"\n"
    except OSError as error:
        raise SettingsError(f"{name} is {path}, which cannot be read: {error.strerror}") from None
    if not found:
        raise SettingsError(f"{name} is {path}, which holds no certificate in PEM form")
