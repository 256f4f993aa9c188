"""Forks while other threads make TLS connections: OpenSSL has locks, too, and the real API speaks TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest
from authority import Authority
from raw_server import RawServer, answering

GUEST = Path(__file__).parents[1] / "guest.py"
Serve = Callable[..., RawServer]


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.long)])
def test_children_make_tls_connections_of_their_own(
    serve: Serve, authority: Authority, tmp_path: Path, count: int
) -> None:
    """Of 600 five hung. As many authorities as a system has make a handshake as long as it is."""
    bundle = tmp_path / "all.pem"
    bundle.write_bytes(Path(authority.bundle).read_bytes() + Path(certifi.where()).read_bytes())
    server = serve(answering(lambda connection, _: connection.say("200 OK", b"x")), authority.server)
    program = [sys.executable, str(GUEST), "tls_forks", server.url, str(bundle), str(count)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"hung": 0, "failed": 0, "errors": []}
