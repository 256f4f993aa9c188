"""No token and no signature reach a log, a terminal, a file, an argument list or a helper's environment."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from dataset_files import FILES, fill
from PIL import Image
from trees import environment, lightlyfs, mounted

from lightlyfs.testing import DropReply, Expired, LocalServer, ServerOptions, Stall, Status, Truncate

TOKEN = "Zq9/s3cret+tok=en%41&x~_-endQ7"
SIGNED = re.compile(rb"(?i)(x-amz-signature|[?&]sig)(=|%3d)(?!\*\*\*)")
# what a person may call a program with who debugs it
LOUD = """
import http.client, logging, sys, traceback
sys.modules["pycurl"] = None  # requests and urllib3 say what they send, libcurl does not
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
import fsspec
fs = fsspec.filesystem("lightly", server=sys.argv[2], upload="all")
fs.pipe(f"{sys.argv[1]}/written.bin", b"over fsspec")
for name in fs.find(sys.argv[1]):
    try:
        fs.cat(name)
    except Exception:
        logging.getLogger("requests").exception("failed")
        traceback.print_exc()
print(fs, repr(fs.__dict__), fs.to_json())
"""


def spelled(secret: str) -> list[bytes]:
    """How a secret may be written; not by the code under test."""
    raw = secret.encode()
    plain = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        quote(secret, safe="").lower(),
    }
    shifted = [base64.b64encode(b"xy"[:ahead] + raw + b"z").decode()[4:-4] for ahead in range(3)]
    shifted += [text.translate(str.maketrans("+/", "-_")) for text in shifted]
    return [text.encode() for text in (*plain, *shifted)]


def leaks(data: bytes, *, signed: bool = True) -> list[str]:
    """What of the token, or of a signature, stands in these bytes."""
    found = [form.decode() for form in spelled(TOKEN) if form in data]
    return found + [match[0].decode() for match in (SIGNED.finditer(data) if signed else ())]


def descendants(pid: int) -> set[int]:
    """The processes below one, and itself."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= descendants(int(child))
    return found


@pytest.fixture
def secret_server(tmp_path: Path) -> Iterator[LocalServer]:
    """A dataset whose token would show itself anywhere."""
    root = fill(tmp_path / "images", FILES)
    with LocalServer(ServerOptions(source=root, dataset_name="secret", token=TOKEN)) as server:
        yield server


def trouble(server: LocalServer) -> None:
    """Let every kind of failure be written about."""
    server.faults.add(
        Status(status=401, count=1, target="readurl"),
        Status(status=500, count=2, target="readurl"),
        DropReply(count=1, target="api"),
        Expired(count=2),
        Status(status=403, count=1, target="storage"),
        Truncate(count=1, target="storage"),
        Stall(count=1, target="storage", at="half", hold_s=0.5),
    )


def program(server: LocalServer, environ: Mapping[str, str]) -> bytes:
    """What a program prints that reads everything over fsspec, with all logs there are."""
    words = [sys.executable, "-c", LOUD, server.dataset_name, server.url]
    done = subprocess.run(words, env=dict(environ), capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"DEBUG:" in done.stdout
    return done.stdout + done.stderr


@pytest.mark.fuse
@pytest.mark.parametrize("given_by", ["environment", "file"])
def test_all_that_a_mount_leaves_behind_names_no_secret(
    secret_server: LocalServer, tmp_path: Path, given_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--log-level", "debug", "--allow-overwrite"]
    file = tmp_path / "token"
    if given_by == "file":
        file.write_text(TOKEN)
        file.chmod(0o644)
        options += ["--token-file", str(file)]
        monkeypatch.setattr("trees.environment", without_token)
    said: dict[str, bytes] = {}
    with mounted(secret_server, tmp_path / "tree", "3", *options) as tree:
        trouble(secret_server)
        for name in FILES:
            with contextlib.suppress(OSError):
                tree.read(name)
        Image.new("RGB", (64, 48), "green").save(tree.mountpoint / "new.png")
        tree.rename("new.png", "renamed.png")
        for words in (
            ["status", str(tree.mountpoint), "--json"],
            ["status", str(tree.mountpoint), "--problems"],
            ["refresh", str(tree.mountpoint)],
            ["warm", str(tree.mountpoint)],
            ["uploads", "list"],
            ["mount", "no such dataset", str(tmp_path)],
        ):
            done = tree.run(*words, check=False)
            said[" ".join(words)] = (done.stdout + done.stderr).encode()
        said["log"] = tree.log.read_bytes()
        said["recent log"] = (tree.mountpoint / ".lightlyfs/log").read_bytes()
        said["status.json"] = (tree.mountpoint / ".lightlyfs/status.json").read_bytes()
        processes = descendants(tree.process.pid)
        assert len(processes) > 1, "no helper was started"
        for pid in processes:
            said[f"argv of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
            if given_by == "file" or pid != tree.process.pid:  # a user's own choice is in their own process
                said[f"environ of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
        listening = Path("/proc/net/unix").read_bytes()
        said["names of sockets"] = listening
    assert b"DEBUG" in said["log"]
    assert (f"chmod 600 {file}".encode() in said["log"]) == (given_by == "file")
    said["program"] = program(secret_server, environment(secret_server, tmp_path / "program"))
    gone = environment(secret_server, tmp_path / "gone") | {"LIGHTLY_SERVER_LOCATION": "http://127.0.0.1:9"}
    done = lightlyfs("doctor", environ=gone, check=False)
    said["doctor"] = (done.stdout + done.stderr).encode()
    assert {name: found for name, data in said.items() if (found := leaks(data))} == {}
    # signed URLs are kept in one file, which only their owner can read
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path != file]
    assert any(path.name == "urls.db" for path in left)
    kept = {str(path): leaks(path.read_bytes(), signed=not path.name.startswith("urls.db")) for path in left}
    assert {name: found for name, found in kept.items() if found} == {}


def without_token(server: LocalServer, cache: Path) -> dict[str, str]:
    """The environment of a command that has its token from a file."""
    environ = environment(server, cache)
    return {name: value for name, value in environ.items() if not name.endswith("_TOKEN")}


def test_the_forms_searched_for_are_found_where_they_stand() -> None:
    for text in (
        f"?token={quote(TOKEN, safe='')}",
        f"Basic {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}",
    ):
        assert leaks(text.encode())
    assert leaks(b"https://h/?a=1&sig=abc")
    assert not leaks(b"https://h/?a=1&sig=***")
