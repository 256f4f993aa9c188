"""Pictures that come from others are opened as one of a few raster formats, by a process of few rights."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lightlyfs.errors import MalformedAnswer
from lightlyfs.staging.facts_process import FactsPool

POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
(x) print
showpage
"""
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><rect width="5" height="5"/></svg>'
WMF = b"\xd7\xcd\xc6\x9a" + b"\0" * 100


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FactsPool]:
    """A pool whose processes would find a Ghostscript that leaves a trace."""
    trap = tmp_path / "bin" / "gs"
    trap.parent.mkdir()
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path / 'trace'}\n")
    trap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{trap.parent}:{os.environ['PATH']}")
    subject = FactsPool(1)
    yield subject
    subject.close()


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (400, 300), "red").save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_raster_pictures_become_small(pool: FactsPool, kind: str) -> None:
    with Image.open(io.BytesIO(pool.png_of(encoded(kind), 256))) as image:
        assert (image.format, image.size) == ("PNG", (256, 192))


@pytest.mark.parametrize(
    "picture",
    [POSTSCRIPT, PDF, SVG, WMF, b"", b"\xff\xd8\xff\xe0 no more"],
    ids=["eps", "pdf", "svg", "wmf", "", "cut"],
)
def test_nothing_else_is_opened(pool: FactsPool, tmp_path: Path, picture: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        pool.png_of(picture, 256)
    named_like_an_image = tmp_path / "picture.jpg"
    named_like_an_image.write_bytes(picture)
    facts = pool.facts_of(named_like_an_image)
    assert facts.thumbnail is None
    assert not (tmp_path / "trace").exists()
    assert pool.png_of(encoded("PNG"), 256).startswith(b"\x89PNG")


def test_a_picture_that_claims_to_be_huge_is_refused(pool: FactsPool) -> None:
    out = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(out, "PNG")
    with pytest.raises(MalformedAnswer, match="12000 x 12000"):
        pool.png_of(out.getvalue(), 256)


def test_the_process_has_no_network_and_writes_no_file(pool: FactsPool) -> None:
    pool.png_of(encoded("PNG"), 256)
    process = pool._all[0]._process
    assert process is not None
    place = Path(f"/proc/{process.pid}")
    limits = {
        line[:25].strip(): line[26:].split()[0] for line in (place / "limits").read_text().splitlines()[1:]
    }
    assert limits["Max file size"] == "0"
    assert limits["Max core file size"] == "0"
    if os.geteuid() == 0:
        assert os.readlink(place / "ns" / "net") != os.readlink("/proc/self/ns/net")


# a program of a user without rights: its processes get a user namespace of their own with their network
WITHOUT_RIGHTS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_SECUREBITS, SECBIT_NOROOT, CAPABILITY_VERSION_3 = 28, 1, 0x20080522
if libc.geteuid() == 0:
    assert libc.prctl(PR_SET_SECUREBITS, SECBIT_NOROOT) == 0
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0
from lightlyfs.staging.facts_process import FactsPool
pool = FactsPool(1)
sys.stdout.buffer.write(pool.png_of(sys.stdin.buffer.read(), 256))
pool.close()
"""


def test_a_user_without_rights_gets_pictures_too() -> None:
    command = [sys.executable, "-c", WITHOUT_RIGHTS]
    done = subprocess.run(command, input=encoded("JPEG"), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.size == (256, 192)
