"""`lightly://` as a guest in a program's process: forks, worker processes, files that stay open.

What it does to its host is looked at from `guest.py`, in a process of its own.
"""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from trees import environment, use_here, wait_until

from lightlyfs import database
from lightlyfs.forks import FORK_GATE
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions, Stall

GUEST = Path(__file__).parents[1] / "guest.py"
FILES = {"a.bin": os.urandom(100_000)} | {f"{number}.jpg": os.urandom(20_000) for number in range(30)}
FILES |= {f"many/{number}.bin": os.urandom(3_000) for number in range(600)}

Guest = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with FILES."""
    root = tmp_path_factory.mktemp("guest") / "served"
    root.mkdir()
    (root / "many").mkdir()
    for name, data in FILES.items():
        (root / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def guest(served: Path) -> Iterator[Guest]:
    """Run a program of `guest.py` and return what it printed; all share one cache."""
    command = [sys.executable, "-m", "lightlyfs", "serve", str(served), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(4)]
        given = dict(line.removeprefix("export ").strip().replace('"', "").split("=", 1) for line in lines)
        home = served.parent / "home"
        kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
        environ = kept | given | {"XDG_CACHE_HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        environ["GUEST_DATASET"] = given["LIGHTLY_DATASET_ID"]

        def run(*words: object, timeout_s: float = 60.0) -> dict[str, Any]:
            program = [sys.executable, str(GUEST), *map(str, words)]
            done = subprocess.run(
                program, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False
            )
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found

        try:
            yield run
        finally:
            server.terminate()


@pytest.fixture
def fs(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system in the test's own process, of a dataset called `cars`."""
    with LocalServer(ServerOptions(source=served, dataset_name="cars")) as server:
        use_here(server, tmp_path / "home", monkeypatch)
        found = fsspec.filesystem("lightly", upload="all", skip_instance_cache=True)
        found.server = server
        yield found
        fsspec_parts.close_all()


def test_a_guest_changes_nothing_of_its_host_and_keeps_few_descriptors(guest: Guest) -> None:
    """Over 1,024 of them `select` fails, and a raised limit is inherited by every child."""
    found = guest("manners")
    assert found["changed"] == []
    assert found["files"] == 600
    assert found["kept_open"] <= 256


# forks


def test_a_worker_that_reads_imports_no_more_than_that_takes(guest: Guest) -> None:
    """The command line, `requests` and Pillow took half of the second that a new worker needed."""
    unneeded = {"click", "rich", "requests", "urllib3", "httpx", "PIL", "uvicorn", "numpy", "mfusepy", "fuse"}
    assert unneeded & set(guest("imports")["modules"]) == set()


def check_forks(found: dict[str, Any]) -> None:
    assert (found["hung"], found["failed"], found["errors"]) == (0, 0, [])
    assert found["more_descriptors"] < 10


def test_children_that_are_forked_while_threads_read_read_too(guest: Guest) -> None:
    """A thread of the parent is inside SQLite at almost every fork; two of 32 hung."""
    check_forks(guest("forks", 32))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_thousand_forks_under_load_hang_nowhere(guest: Guest) -> None:
    check_forks(guest("forks", 1_000, timeout_s=580))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loader_workers_read_whichever_way_they_begin(guest: Guest, method: str) -> None:
    found = guest("epochs", method, 1, 2)
    assert (found["wrong"], found["errors"]) == (0, [])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_fifty_epochs_of_loader_workers(guest: Guest, method: str) -> None:
    found = guest("epochs", method, 50, 8, timeout_s=880)
    assert (found["wrong"], found["errors"]) == (0, [])


def test_a_forked_child_reads_on_in_a_file_that_its_parent_opened(guest: Guest) -> None:
    """Its own write of one is refused, and closing it takes nothing from the parent."""
    found = guest("inherited")
    assert found == {"read": 100_000, "write": "EBADF", "parent": 100_000, "uploaded": 6}


def test_all_work_on_databases_is_kept_apart_from_forks(fs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one forgets to guard hangs a child once in a thousand forks, which no test would find."""
    outside: list[str] = []
    for name in ("execute", "executemany", "executescript"):

        def checked(self: Any, sql: str, *rest: Any, _name: str = name) -> Any:
            if not FORK_GATE.entered():
                outside.append(sql)
            return getattr(super(database.Connection, self), _name)(sql, *rest)

        monkeypatch.setattr(database.Connection, name, checked, raising=False)
    assert fs.cat("cars/a.bin") == FILES["a.bin"]
    fs.pipe("cars/new/x.bin", b"x")
    fs.mv("cars/new/x.bin", "cars/new/y.bin")
    (parts,) = fsspec_parts._running._parts.values()
    parts.refresh()
    assert fs.find("cars/new") == ["cars/new/y.bin"]
    fs.cat("cars", recursive=True)
    fsspec_parts.close_all()
    assert outside == []


# files that are never closed


def test_opens_without_a_close_never_hang_and_hold_no_descriptor(guest: Guest) -> None:
    """The collector ends fsspec's files wherever something allocates, also under our own locks."""
    found = guest("opens", 12_000)
    assert found["more_descriptors"] < 10


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_hundred_thousand_opens_without_a_close(guest: Guest) -> None:
    found = guest("opens", 200_000, timeout_s=580)
    assert found["more_descriptors"] < 10


class _Cycle:
    """Keeps something until the garbage collector comes."""

    def __init__(self, held: object) -> None:
        self.held, self.me = held, self


@pytest.mark.parametrize("kind", ["file", "text"])
def test_a_file_that_was_never_closed_is_kept_and_not_uploaded(
    fs: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    file = fs.open("cars/half.bin", "wb")
    file.write(b"half")
    _Cycle(io.TextIOWrapper(file) if kind == "text" else file)
    del file
    gc.collect()
    assert "half.bin" not in {one["fileName"] for one in fs.server.samples()}
    with caplog.at_level(logging.WARNING):
        assert fs.cat("cars/half.bin") == b"half"
    assert "never closed" in caplog.text
    (parts,) = fsspec_parts._running._parts.values()
    assert [(file.path, file.record.state) for file in parts.uploads.local.all()] == [
        ("half.bin", "interrupted")
    ]
    assert "half.bin" not in {one["fileName"] for one in fs.server.samples()}


LATE = """
import fsspec
fs = fsspec.filesystem("lightly", metadata_ttl="0.001", read_ahead="off")
print(fs.ls("fleet", detail=False))
"""


_LEAVES_A_READ = """
import threading, time
import fsspec
fs = fsspec.filesystem("lightly")
fs.ls("cars")
threading.Thread(target=fs.cat_file, args=("cars/large.bin",), daemon=True).start()
input()
"""


def test_a_program_ends_while_a_large_file_is_still_coming(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with (tmp_path / "served/large.bin").open("wb") as file:
        file.truncate(9 << 20)
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="cars")) as server:
        server.faults.add(Stall(target="storage.get", at="half"))
        program = subprocess.Popen(
            [sys.executable, "-c", _LEAVES_A_READ],
            env=environment(server, tmp_path / "home"),
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: server.stats.count("storage.get") > 0, 30)
        try:
            # a stalled transfer is given up after 20 s, and begun again
            program.communicate(b"\n", timeout=15)
        finally:
            program.kill()
            program.wait()
    assert program.returncode == 0


def test_without_a_server_a_program_ends_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are asked for once more, which takes a minute to fail."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/top.jpg").write_bytes(b"x")
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="fleet")) as server:
        use_here(server, tmp_path / "home", monkeypatch)
        subprocess.run([sys.executable, "-c", LATE], timeout=60, check=True)
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=25, check=True
    )
    assert done.stdout == "['fleet/top.jpg']\n"
