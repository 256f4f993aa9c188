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
from lightlyfs.testing import LocalServer

# what Ray calls deprecated is what it uses itself
pytestmark = [pytest.mark.ecosystem, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

BLOCKS = 4
PICTURES = 64


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
    assert len(list((pictures / "03").iterdir())) == PICTURES // 8
    assert means(far) == means(near)


def means(images: Any) -> list[float]:
    """The mean of each picture, of which there is each once."""
    found = sorted(float(row["image"].mean()) for row in images.take_all())
    assert len(found) == len(set(found)) == PICTURES // 8
    return found
