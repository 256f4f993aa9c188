"""`lightly://` through fsspec, as pandas, pyarrow and Dask use it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.callbacks import Callback
from trees import use_here

from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.testing import LocalServer, ServerOptions

FILES = {
    "a.bin": os.urandom(300_000),
    "big.bin": os.urandom(6_000_000),
    "cars/red/0.jpg": os.urandom(1_000),
    "cars/red/1.jpg": os.urandom(1_000),
    "cars/blue.jpg": b"blue",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """FILES, and the environment to use them."""
    root = tmp_path / "served"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    with LocalServer(ServerOptions(source=root, dataset_name="cars")) as running:
        use_here(running, tmp_path / "home", monkeypatch)
        yield running


@pytest.fixture
def fs(server: LocalServer, tmp_path: Path) -> Iterator[Any]:
    from lightlyfs.fsspec import parts as fsspec_parts

    cache_dir = str(tmp_path / "cache")
    yield fsspec.filesystem("lightly", cache_dir=cache_dir, upload="all", skip_instance_cache=True)
    fsspec_parts.close_all()


def test_names_are_listed_walked_and_found(fs: Any) -> None:
    assert fs.ls("", detail=False) == ["cars"]
    assert fs.ls("lightly://cars", detail=False) == ["cars/a.bin", "cars/big.bin", "cars/cars"]
    assert set(fs.find("cars")) == {f"cars/{name}" for name in FILES}
    assert fs.glob("lightly://cars/**/*.jpg") == [
        "cars/cars/blue.jpg",
        "cars/cars/red/0.jpg",
        "cars/cars/red/1.jpg",
    ]
    assert fs.du("cars") == sum(map(len, FILES.values()))
    assert fs.isdir("cars/cars")
    assert not fs.exists("cars/nothing")
    with pytest.raises(FileNotFoundError):
        fs.info("cars/nothing")
    with pytest.raises(OSError, match="no-such-dataset"):
        fs.ls("no-such-dataset")


def test_info_names_the_sample_and_its_version(server: LocalServer, fs: Any) -> None:
    (document,) = [one for one in server.samples() if one["fileName"] == "a.bin"]
    info = fs.info("cars/a.bin")
    assert (info["size"], info["type"], info["sample_id"]) == (300_000, "file", document["id"])
    assert info["mtime"] == document["lastModifiedAt"] // 1000
    assert fs.modified("cars/a.bin").timestamp() == info["mtime"]
    before = fs.checksum("cars/a.bin")
    assert fs.ukey("cars/a.bin") != fs.ukey("cars/big.bin")
    assert fs.cat("cars/a.bin") == FILES["a.bin"]
    assert fs.checksum("cars/big.bin") != before


@pytest.mark.parametrize("name", FILES)
def test_bytes_are_those_of_the_sample(fs: Any, name: str) -> None:
    data, path = FILES[name], f"lightly://cars/{name}"
    with fs.open(path) as file:
        assert file.read() == data
        file.seek(-2, 2)
        assert file.read() == data[-2:]
        file.seek(3)
        assert file.read(5) == data[3:8]
    assert fs.cat_file(path, 2, -2) == data[2:-2]
    assert fs.cat_file(path, -3) == data[-3:]
    assert fs.cat_file(path, 5, 2) == b""


def test_a_small_file_is_read_whole_without_an_open(fs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Filesystem, path: str, flags: int) -> Any:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as patched:
        patched.setattr(Filesystem, "open", refused)
        for _ in range(2):
            assert fs.cat_file("cars/a.bin") == FILES["a.bin"]
        with pytest.raises(AssertionError, match=r"big\.bin was opened"):
            fs.cat_file("cars/big.bin")
    assert fs.cat_file("cars/big.bin") == FILES["big.bin"]
    with pytest.raises(IsADirectoryError):
        fs.cat_file("cars/cars")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("cars/nothing")


def test_ranges_and_files_come_in_parallel(server: LocalServer, fs: Any) -> None:
    ranges = [("cars/big.bin", at, at + 1000) for at in range(0, 6_000_000, 300_000)]
    got = fs.cat_ranges(*map(list, zip(*ranges, strict=True)))
    assert got == [FILES["big.bin"][start:end] for _, start, end in ranges]
    assert fs.cat("cars/cars", recursive=True) == {
        f"cars/{name}": data for name, data in FILES.items() if name.startswith("cars/")
    }
    (there, gone) = fs.cat_ranges(["cars/a.bin", "cars/nothing"], 0, 3)
    assert there == FILES["a.bin"][:3]
    assert isinstance(gone, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["cars/a.bin", "cars/nothing"], 0, 3, on_error="raise")


def test_files_are_written_copied_and_renamed(server: LocalServer, fs: Any, tmp_path: Path) -> None:
    with fs.open("lightly://cars/new/x.bin", "wb") as file:
        file.write(b"first ")
        file.write(b"second")
    fs.pipe("cars/piped.bin", b"piped")
    fs.cp("cars/piped.bin", "cars/copied.bin")
    fs.mv("cars/copied.bin", "cars/moved.bin")
    moved = []
    (tmp_path / "local.bin").write_bytes(b"l" * 10_000_000)
    fs.put(str(tmp_path / "local.bin"), "cars/put.bin", callback=_Counting(moved))
    assert sum(moved) == 10_000_000
    stored = {one["fileName"]: server.object_bytes(one["id"]) for one in server.samples()}
    assert {name: stored[name] for name in stored.keys() - FILES.keys()} == {
        "new/x.bin": b"first second",
        "piped.bin": b"piped",
        "moved.bin": b"piped",
        "put.bin": b"l" * 10_000_000,
    }
    fs.get("cars/cars", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got/red/0.jpg").read_bytes() == FILES["cars/red/0.jpg"]


class _Counting(Callback):  # type: ignore[misc]
    def __init__(self, counted: list[int]) -> None:
        super().__init__()
        self.counted = counted

    def relative_update(self, inc: int = 1) -> None:
        if isinstance(self, _Bytes):
            self.counted.append(inc)

    def branched(self, *_: Any, **__: Any) -> Callback:
        return _Bytes(self)


class _Bytes(_Counting):
    """Of one file; the other counts files."""

    def __init__(self, files: _Counting) -> None:
        super().__init__(files.counted)


def test_what_the_api_cannot_do_is_refused(server: LocalServer, fs: Any) -> None:
    with pytest.raises(PermissionError):
        fs.rm("cars/a.bin")
    with pytest.raises(PermissionError):
        fs.pipe("cars/a.bin", b"other")
    with pytest.raises(FileExistsError):
        fs.open("cars/a.bin", "xb")
    with pytest.raises(ValueError, match="names no dataset"):
        fs.rmdir("")
    assert server.object_bytes(server.samples()[0]["id"]) in FILES.values()


def test_a_block_that_fails_uploads_no_half_a_file(server: LocalServer, fs: Any) -> None:
    with pytest.raises(ZeroDivisionError), fs.open("cars/half.bin", "wb") as file:  # noqa: PT012
        file.write(b"half")
        _ = 1 / 0
    assert not fs.exists("cars/half.bin")
    assert "half.bin" not in {one["fileName"] for one in server.samples()}
    with pytest.raises(ValueError, match="rb, wb, xb or ab"):
        fs.open("cars/a.bin", "r+b")


def test_options_are_those_of_a_mount_and_never_a_token(server: LocalServer) -> None:
    with pytest.raises(ValueError, match="options are pickled"):
        fsspec.filesystem("lightly", token="secret")
    with pytest.raises(ValueError, match="unknown storage option colour"):
        fsspec.filesystem("lightly", colour="red")
    with pytest.raises(ValueError, match="unknown storage option hf"):
        fsspec.filesystem("lightly", hf="not the options of a file system")


def test_options_of_another_file_system_are_passed_over(fs: Any, tmp_path: Path) -> None:
    """Hugging Face `datasets` hands those of `hf` to every file system."""
    options = {"hf": {"endpoint": "https://hub.example"}, "cache_dir": str(tmp_path / "cache")}
    handed_all = fsspec.filesystem("lightly", skip_instance_cache=True, **options)
    assert handed_all.cat("cars/a.bin") == FILES["a.bin"]


def test_it_is_pickled_without_a_token(server: LocalServer, fs: Any) -> None:
    pickled = pickle.dumps(fs)
    assert server.token.encode() not in pickled
    assert pickle.loads(pickled).cat("cars/a.bin") == FILES["a.bin"]


def test_another_process_and_a_forked_one_read_too(server: LocalServer, fs: Any) -> None:
    assert fs.cat("cars/a.bin") == FILES["a.bin"]
    script = "import fsspec, sys; sys.stdout.buffer.write(fsspec.open(sys.argv[1]).open().read())"
    done = subprocess.run(
        [sys.executable, "-c", script, "lightly://cars/cars/blue.jpg"], capture_output=True, check=True
    )
    assert done.stdout == b"blue"
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, fs.cat_file("cars/a.bin", 0, 100))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == FILES["a.bin"][:100]
    os.wait()


def test_threads_share_one_listing_and_one_cache(server: LocalServer, fs: Any) -> None:
    server.stats.reset()
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(fs.cat("cars/a.bin"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [FILES["a.bin"]] * 10
    assert server.stats.count("readurl") == 1


def test_json_is_read_by_those_who_know_urls_only(server: LocalServer, fs: Any) -> None:
    fs.pipe("cars/notes.json", json.dumps({"a": 1}).encode())
    with fsspec.open("lightly://cars/notes.json", "rt") as file:
        assert json.load(file) == {"a": 1}
