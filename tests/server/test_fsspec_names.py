"""Names that look like patterns or chains of URLs, and the caches that fsspec puts over a file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from trees import use_here

from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import Latency, LocalServer, ServerOptions

ODD = [
    "a[1].jpg",
    "what?.jpg",
    "star*.jpg",
    "a::b.jpg",
    "[x]/in.jpg",
    "d*/in.jpg",
    "zip::c/in.jpg",
    "h#s%20h ü.jpg",
]
# what the odd ones match as patterns
PLAIN = ["a1.jpg", "whats.jpg", "stars.jpg", "x/in.jpg", "dir/in.jpg"]
FILES = {name: name.encode() for name in [*ODD, *PLAIN]}


@pytest.fixture(scope="module")
def fs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FILES, in a dataset called `odd`."""
    home = tmp_path_factory.mktemp("odd")
    for name, data in FILES.items():
        path = home / "served" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    options = ServerOptions(source=home / "served", dataset_name="odd")
    with LocalServer(options) as server, pytest.MonkeyPatch.context() as patch:
        use_here(server, home / "home", patch)
        yield fsspec.filesystem("lightly", upload="all", skip_instance_cache=True)
        fsspec_parts.close_all()


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_is_there_is_no_pattern(fs: Any, tmp_path: Path, name: str) -> None:
    data, path = FILES[name], f"odd/{name}"
    for spelled in (path, f"lightly://{path}"):
        assert fs.cat(spelled) == data
        assert fs.cat_file(spelled) == data
        assert fs.info(spelled)["name"] == path
        assert fs.exists(spelled)
        with fs.open(spelled) as file:
            assert file.read() == data
    assert fs.cat([path, "odd/a1.jpg"]) == {path: data, "odd/a1.jpg": b"a1.jpg"}
    fs.get(path, str(tmp_path / "one.jpg"))
    assert (tmp_path / "one.jpg").read_bytes() == data
    (tmp_path / "into").mkdir()
    fs.get(path, str(tmp_path / "into"))
    assert (tmp_path / "into" / os.path.basename(name)).read_bytes() == data
    fs.get([path], [str(tmp_path / "listed.jpg")])
    assert (tmp_path / "listed.jpg").read_bytes() == data
    if "::" not in name:  # which in a URL are those of a chain
        with fsspec.open(f"lightly://{path}", upload="all") as file:
            assert file.read() == data
    fs.get_file(path, str(tmp_path / "file.jpg"))
    assert (tmp_path / "file.jpg").read_bytes() == data
    fs.cp(path, f"odd/copies/{ODD.index(name)}.jpg")
    assert fs.cat(f"odd/copies/{ODD.index(name)}.jpg") == data
    assert fs.expand_path(path) == [path]


@pytest.mark.parametrize("folder", ["[x]", "d*", "zip::c"])
def test_a_directory_whose_name_looks_like_a_pattern_is_itself(fs: Any, tmp_path: Path, folder: str) -> None:
    data = FILES[f"{folder}/in.jpg"]
    assert fs.ls(f"odd/{folder}", detail=False) == [f"odd/{folder}/in.jpg"]
    assert fs.find(f"odd/{folder}") == [f"odd/{folder}/in.jpg"]
    assert fs.cat(f"odd/{folder}", recursive=True) == {f"odd/{folder}/in.jpg": data}
    fs.get(f"odd/{folder}", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got/in.jpg").read_bytes() == data
    fs.cp(f"odd/{folder}", f"odd/all/{len(folder)}", recursive=True)
    assert fs.cat(f"odd/all/{len(folder)}/in.jpg") == data


def test_patterns_are_patterns_where_nothing_has_their_name(fs: Any, tmp_path: Path) -> None:
    assert fs.cat("odd/what[s].jpg") == {"odd/whats.jpg": b"whats.jpg"}
    fs.get("odd/d[a-z]r/*.jpg", f"{tmp_path}/")
    assert (tmp_path / "in.jpg").read_bytes() == b"dir/in.jpg"
    with pytest.raises(FileNotFoundError):
        fs.cat("odd/none[s].jpg")


@pytest.mark.parametrize("cache", ["blockcache", "filecache", "simplecache"])
def test_caches_of_fsspec_stand_over_it(fs: Any, tmp_path: Path, cache: str) -> None:
    options = {cache: {"cache_storage": str(tmp_path / cache)}, "lightly": {"upload": "all"}}
    for name in ("a1.jpg", "dir/in.jpg"):
        for _ in range(2):
            with fsspec.open(f"{cache}::lightly://odd/{name}", "rb", **options) as file:
                assert file.read() == FILES[name]
    over = fsspec.filesystem(cache, fs=fs, cache_storage=str(tmp_path / "odd"))
    for name in ODD:
        for _ in range(2):
            with over.open(f"odd/{name}") as file:
                assert file.read() == FILES[name]
        assert over.cat(f"odd/{name}") == FILES[name]
        assert over.info(f"odd/{name}")["size"] == len(FILES[name])
    assert sorted(over.find("odd/dir")) == ["odd/dir/in.jpg"]


def test_a_cache_of_files_sees_that_a_sample_changed(fs: Any, tmp_path: Path) -> None:
    over = fsspec.filesystem("filecache", fs=fs, cache_storage=str(tmp_path), check_files=True)
    writing = fsspec.filesystem("lightly", upload="all", allow_overwrite=True, skip_instance_cache=True)
    writing.pipe("odd/changing.jpg", b"first")
    fs.exists("odd")
    (parts,) = [one for one in fsspec_parts._running._parts.values() if not one.settings.allow_overwrite]
    parts.refresh()
    assert over.cat("odd/changing.jpg") == b"first"
    writing.pipe("odd/changing.jpg", b"second, and longer")
    parts.refresh()
    assert over.cat("odd/changing.jpg") == b"second, and longer"


def test_a_folder_is_listed_though_a_sample_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first listing is complete the API is asked for one name, and finds the sample."""
    for name in ("good/1.jpg", "good/2.jpg", *(f"other/{number}.jpg" for number in range(20))):
        path = tmp_path / "served" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="twice")) as server:
        server.add_sample("good", b"the sample")
        server.faults.add(Latency(target="list", delay_s=0.3), Latency(target="partial", delay_s=0.3))
        use_here(server, tmp_path / "home", monkeypatch)
        fs = fsspec.filesystem("lightly", skip_instance_cache=True, page_size=5)
        try:
            assert fs.ls("twice/good", detail=False) == ["twice/good/1.jpg", "twice/good/2.jpg"]
        finally:
            fsspec_parts.close_all()
