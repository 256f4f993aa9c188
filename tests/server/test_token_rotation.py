"""Tokens that change under a running program: in a file, or given by its own function."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from trees import use_here, wait_until

from lightlyfs.app.connections import TokenFile
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.server import request_checks
from lightlyfs.testing import LocalServer, ServerOptions

FILES = {f"{number}.jpg": os.urandom(500) for number in range(60)}
valid: set[str] = set()


def own_token() -> str:
    """The token of this process, as a program's function gives it."""
    return sorted(valid)[-1]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """FILES; it accepts the tokens in `valid`, and the program has none but what a test gives it."""
    root = tmp_path / "served"
    root.mkdir()
    for name, data in FILES.items():
        (root / name).write_bytes(data)
    valid.clear()
    valid.add("token-0")
    monkeypatch.setattr(
        request_checks, "same_secret", lambda secret, given: given in valid or given == secret
    )
    with LocalServer(ServerOptions(source=root, dataset_name="cars")) as running:
        use_here(running, tmp_path / "home", monkeypatch)
        monkeypatch.delenv("LIGHTLY_TOKEN")
        yield running
        fsspec_parts.close_all()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("token-0\n")
    return path


def rotate(token: Path, number: int) -> None:
    """As secrets are mounted: another file takes the place, then the old token ends."""
    valid.add(f"token-{number}")
    token.with_suffix(".new").write_text(f"token-{number}\n")
    token.with_suffix(".new").replace(token)
    valid.discard(f"token-{number - 1}")


def opened(**options: Any) -> Any:
    return fsspec.filesystem("lightly", skip_instance_cache=True, **options)


def test_a_token_file_is_read_again_when_it_changed(server: LocalServer, token: Path, tmp_path: Path) -> None:
    """By every file system of the process, each with a cache of its own here."""
    many = [opened(token_file=str(token), cache_dir=str(tmp_path / name)) for name in ("a", "b")]
    for number in range(1, 5):
        name = f"{number}.jpg"
        assert [fs.cat(f"cars/{name}") for fs in many] == [FILES[name]] * 2
        rotate(token, number)


def test_rotation_under_load_costs_no_read(server: LocalServer, token: Path) -> None:
    fs = opened(token_file=str(token), metadata_ttl="0", no_cache=True)
    errors: list[Exception] = []
    stop = threading.Event()

    def read(first: int) -> None:
        names = list(FILES)
        while not stop.is_set():
            first += 7
            name = names[first % len(names)]
            try:
                assert fs.cat(f"cars/{name}") == FILES[name]
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 15):
        rotate(token, number)
        stop.wait(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_what_a_refused_token_stopped_goes_on_with_the_next_access(server: LocalServer, token: Path) -> None:
    """No request is sent any more then, so it is the access that looks at the file."""
    fs = opened(token_file=str(token), metadata_ttl="0")
    fs.ls("cars")
    valid.clear()
    (parts,) = fsspec_parts._running._parts.values()
    fs.exists("cars/new.jpg")
    wait_until(lambda: fs.exists("cars/new.jpg") or parts.catalog.refresher.stopped, 10)
    server.add_sample("new.jpg", b"new")
    valid.add("renewed")
    token.write_text("renewed")
    wait_until(lambda: fs.exists("cars/new.jpg"), 10)
    assert not parts.catalog.refresher.stopped


def test_a_token_may_be_a_function_of_the_program(server: LocalServer) -> None:
    fs = opened(token=own_token)
    assert fs.cat("cars/1.jpg") == FILES["1.jpg"]
    valid.clear()
    valid.add("token-1")
    assert fs.cat("cars/2.jpg") == FILES["2.jpg"]
    assert pickle.loads(pickle.dumps(fs)).cat("cars/3.jpg") == FILES["3.jpg"]
    assert b"token-1" not in pickle.dumps(fs)
    valid.clear()
    with pytest.raises(PermissionError, match="failed: IndexError"):
        fs.cat("cars/4.jpg")


def test_a_token_file_that_is_away_or_empty_leaves_the_last_token(token: Path) -> None:
    changes: list[str] = []
    source = TokenFile(token, "token-0")
    source.on_change = lambda: changes.append("changed")
    assert (source(), source(None)) == ("token-0", "token-0")
    token.write_text("")
    assert source() == "token-0"
    token.unlink()
    assert source("token-0") == "token-0"
    assert changes == []
    token.write_text("token-1")
    stamp = token.stat()
    assert source() == "token-1"
    token.write_text("token-2")
    os.utime(token, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert source() == "token-1"  # it looks the same
    assert source("token-1") == "token-2"
    assert changes == ["changed"] * 2
