"""Ray Data through pyarrow's way into fsspec: the names, bytes and pictures of the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightlyfs.examples.common import Place
from lightlyfs.examples.ray_stats import arrow_filesystem, ray_running
from lightlyfs.examples.stats import partitions_of
from lightlyfs.localserver import LocalServer

pytestmark = pytest.mark.ecosystem

BLOCKS = 4


@pytest.fixture(scope="module")
def data(server: LocalServer) -> Iterator[Any]:
    """Ray Data on four workers; `server` set the environment that they inherit."""
    with ray_running(4):
        from ray import data

        data.DataContext.get_current().enable_progress_bars = False
        yield data


def test_binary_files_have_their_names_and_bytes(data: Any, place: Place, pictures: Path) -> None:
    paths = [path for partition in partitions_of(place) for path in partition]
    rows = data.read_binary_files(
        paths,
        filesystem=arrow_filesystem(place.options),
        include_paths=True,
        override_num_blocks=BLOCKS,
    ).take_all()
    found = {row["path"]: hashlib.sha256(row["bytes"]).hexdigest() for row in rows}
    assert len(rows) == len(found)
    assert found == {
        f"pictures/{path.relative_to(pictures)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pictures.rglob("*.jpg")
    }


def test_images_of_a_directory_have_the_mean_of_the_folder(data: Any, place: Place, pictures: Path) -> None:
    far = data.read_images(
        "pictures/03", filesystem=arrow_filesystem(place.options), override_num_blocks=BLOCKS
    )
    near = data.read_images(str(pictures / "03"), override_num_blocks=BLOCKS)
    assert far.count() == near.count() == len(list((pictures / "03").iterdir()))
    assert far.map_batches(_means).mean("mean") == pytest.approx(near.map_batches(_means).mean("mean"), 1e-12)


def _means(batch: dict[str, Any]) -> dict[str, Any]:
    return {"mean": batch["image"].mean(axis=(1, 2, 3))}
