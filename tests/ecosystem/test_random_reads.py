"""Reads at any place of a file: by pandas, pyarrow, Pillow and as of zarr, against a mount of the same."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from trees import MountedTree, mounted

from lightlyfs.examples.common import make_pictures
from lightlyfs.examples.ray_stats import arrow_filesystem
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = [pytest.mark.ecosystem, pytest.mark.fuse]

ROWS = 60_000
BIG_BYTES = 9_000_000
READS = 60


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as CSV and Parquet, a large file, chunks as zarr names them, pictures."""
    import pandas

    folder = make_pictures(tmp_path_factory.mktemp("tables"), 8)
    table = pandas.DataFrame({"number": range(ROWS), "text": [f"row {n * 7919 % ROWS}" for n in range(ROWS)]})
    table.to_csv(folder / "table.csv", index=False)
    table.to_parquet(folder / "table.parquet", row_group_size=5_000)
    (folder / "big.bin").write_bytes(random.Random(3).randbytes(BIG_BYTES))
    (folder / "array").mkdir()
    for number in range(6):
        (folder / "array" / f"0.{number}").write_bytes(random.Random(number).randbytes(40_000))
    return folder


@pytest.fixture(scope="module")
def tree(
    server: LocalServer, tables: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedTree]:
    """A mount of the tables; the token is that of the other server, which the environment has."""
    directory = tmp_path_factory.mktemp("tree")
    with (
        LocalServer(ServerOptions(source=tables, dataset_name="tables", token=server.token)) as running,
        mounted(running, directory, "3", "--read-only") as subject,
    ):
        yield subject


@pytest.fixture
def options(tree: MountedTree, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Storage options for what is mounted."""
    yield {"cache_dir": str(tmp_path / "cache"), "server": tree.environ["LIGHTLY_SERVER_LOCATION"]}
    fsspec_parts.close_all()


def test_pandas_reads_tables(tree: MountedTree, options: dict[str, Any]) -> None:
    import pandas

    for kind, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        found = read(f"lightly://tables/table.{kind}", storage_options=options)
        assert len(found) == ROWS
        pandas.testing.assert_frame_equal(found, read(tree.mountpoint / f"table.{kind}"))


def test_pyarrow_reads_columns_and_places(tree: MountedTree, options: dict[str, Any]) -> None:
    import pyarrow.parquet

    arrow = arrow_filesystem(options)
    column = pyarrow.parquet.read_table("tables/table.parquet", columns=["text"], filesystem=arrow)
    assert column == pyarrow.parquet.read_table(tree.mountpoint / "table.parquet", columns=["text"])
    whole = (tree.mountpoint / "big.bin").read_bytes()
    with arrow.open_input_file("tables/big.bin") as file:
        assert file.size() == BIG_BYTES
        for start, size in places():
            assert file.read_at(size, start) == whole[start : start + size]
    info = {one.base_name: one.size for one in arrow.get_file_info(_everything("tables")) if one.is_file}
    assert info["big.bin"] == BIG_BYTES
    assert len(info) == len([path for path in tree.mountpoint.rglob("*") if path.is_file()])


def _everything(path: str) -> Any:
    from pyarrow.fs import FileSelector

    return FileSelector(path, recursive=True)


def places() -> list[tuple[int, int]]:
    """Where to read how much: anywhere, also over the end."""
    chosen = random.Random(11)
    starts = [chosen.randrange(BIG_BYTES) for _ in range(READS)]
    return [(start, chosen.choice([1, 4096, 70_000, 1 << 20])) for start in [*starts, BIG_BYTES - 5, 0]]


def test_places_of_an_open_file_are_those_of_the_mount(tree: MountedTree, options: dict[str, Any]) -> None:
    fs = fsspec.filesystem("lightly", **options)
    with fs.open("tables/big.bin") as ours, open(tree.mountpoint / "big.bin", "rb", buffering=0) as theirs:
        for start, size in places():
            ours.seek(start)
            assert ours.read(size) == tree.read("big.bin", start, size)
            assert ours.tell() == min(BIG_BYTES, start + size)
        assert theirs.seek(0, io.SEEK_END) == ours.seek(0, io.SEEK_END)
    starts, ends = zip(*((start, start + size) for start, size in places()), strict=True)
    ranges = fs.cat_ranges(["tables/big.bin"] * len(starts), list(starts), list(ends))
    assert ranges == [tree.read("big.bin", start, size) for start, size in places()]


def test_pillow_opens_pictures(tree: MountedTree, options: dict[str, Any]) -> None:
    from PIL import Image

    for path in sorted(tree.mountpoint.rglob("*.jpg")):
        url = f"lightly://tables/{path.relative_to(tree.mountpoint)}"
        with fsspec.open(url, **options) as file, Image.open(file) as ours, Image.open(path) as theirs:
            assert ours.tobytes() == theirs.tobytes()


def test_a_mapping_of_chunks_is_what_the_mount_has(tree: MountedTree, options: dict[str, Any]) -> None:
    """As zarr reads an array: by key, many at once, and some that are not there."""
    chunks = fsspec.get_mapper("lightly://tables/array", **options)
    assert sorted(chunks) == tree.names("array")
    assert chunks.getitems([*chunks, "0.9"], on_error="omit") == {
        name: tree.read(f"array/{name}") for name in tree.names("array")
    }
    with pytest.raises(KeyError):
        chunks["0.9"]
