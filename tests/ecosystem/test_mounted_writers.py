"""Libraries that write tables and arrays to a mount, twice in a row: none of it becomes a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from trees import mounted

from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = [pytest.mark.ecosystem, pytest.mark.fuse]


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalServer, Path]]:
    """A mount as a user gets it, and its server."""
    root = tmp_path_factory.mktemp("written")
    (root / "own").mkdir()
    with (
        LocalServer(ServerOptions(source=root / "own", dataset_name="own")) as server,
        mounted(server, root / "tree", "3", "--upload", "images") as tree,
    ):
        yield server, tree.mountpoint


def zarr_array(path: Path, values: np.ndarray) -> np.ndarray:
    zarr = pytest.importorskip("zarr")
    array = zarr.open_array(str(path), mode="w", shape=values.shape, chunks=(20, 20), dtype=values.dtype)
    array[:] = values
    return np.asarray(zarr.open_array(str(path), mode="r")[:])


def numpy_file(path: Path, values: np.ndarray) -> np.ndarray:
    np.save(path.with_suffix(".npy"), values)
    return np.asarray(np.load(path.with_suffix(".npy")))


def csv_table(path: Path, values: np.ndarray) -> np.ndarray:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(values).to_csv(path, index=False)
    return np.asarray(pandas.read_csv(path))


def parquet_table(path: Path, values: np.ndarray) -> np.ndarray:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(values, columns=[str(n) for n in range(values.shape[1])])
    table.to_parquet(path)
    return np.asarray(pandas.read_parquet(path))


@pytest.mark.parametrize("write", [zarr_array, numpy_file, csv_table, parquet_table])
def test_what_is_no_image_is_written_and_read_back_and_not_sent(
    mount: tuple[LocalServer, Path], write: Callable[[Path, np.ndarray], np.ndarray]
) -> None:
    server, mountpoint = mount
    path = mountpoint / write.__name__

    for factor in (1, 2):
        values = np.arange(20_000, dtype="int64").reshape(100, 200) * factor
        assert np.array_equal(write(path, values), values)

    assert server.samples() == []
