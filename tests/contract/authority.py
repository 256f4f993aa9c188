"""A certificate authority of the tests' own."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

_CONFIG = """
[ca]
default_ca = own
[own]
database = index
serial = number
new_certs_dir = .
policy = names
default_md = sha256
x509_extensions = host
[names]
commonName = supplied
[host]
subjectAltName = {names}
"""


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own and the TLS side of a server it vouches for."""

    bundle: str
    server: ssl.SSLContext

    def vouch(
        self, folder: Path, *, names: str = "IP:127.0.0.1", valid_days: tuple[int, int] = (-1, 1)
    ) -> ssl.SSLContext:
        """Return the TLS side of a server with another certificate; `valid_days` count from today."""
        made = Path(self.bundle).parent
        (folder / "index").write_text("")
        (folder / "number").write_text("01")
        (folder / "own.cnf").write_text(_CONFIG.format(names=names))
        begin, end = (f"{datetime.now(UTC) + timedelta(days=days):%y%m%d%H%M%SZ}" for days in valid_days)
        command = ["openssl", "ca", "-batch", "-notext", "-config", "own.cnf", "-cert", self.bundle]
        command += ["-keyfile", str(made / "ca.key"), "-in", str(made / "host.csr"), "-out", "host.pem"]
        command += ["-startdate", begin, "-enddate", end]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "host.pem", made / "host.key")
        return context
