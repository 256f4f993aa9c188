"""The dataset for PyTorch, with and without PyTorch."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest

from lightlyfs.examples.common import Place
from lightlyfs.examples.torch_dataset import LightlyImages

pytestmark = pytest.mark.ecosystem


@pytest.fixture
def images(place: Place) -> LightlyImages:
    return LightlyImages(place.url, bytes, **place.options)


def on_disk(pictures: Path) -> list[tuple[bytes, int]]:
    """The items there should be: directories are numbered in order."""
    return [(path.read_bytes(), int(path.parent.name)) for path in sorted(pictures.rglob("*.jpg"))]


def test_items_are_the_files_with_the_numbers_of_their_directories(
    images: LightlyImages, pictures: Path
) -> None:
    expected = on_disk(pictures)
    assert [images[number] for number in range(len(images))] == expected
    assert images.__getitems__([5, 3]) == [expected[5], expected[3]]
    assert images.classes == [f"pictures/{number:02}" for number in range(8)]


def test_without_a_transform_an_item_is_a_picture(place: Place) -> None:
    picture, number = LightlyImages(f"{place.url}/01", **place.options)[0]
    assert (picture.mode, picture.size, number) == ("RGB", (128, 96), 0)


def item_of(pickled: bytes, number: int) -> Any:
    """Run in another process."""
    return pickle.loads(pickled)[number]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_other_processes_use_copies(images: LightlyImages, pictures: Path, way: Any) -> None:
    assert images[0]  # this process has it open
    with multiprocessing.get_context(way).Pool(2) as pool:
        items = pool.starmap(item_of, [(pickle.dumps(images), number) for number in range(len(images))])
    assert items == on_disk(pictures)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_data_loader_reads_an_epoch(images: LightlyImages, pictures: Path, way: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data", reason="pip install 'lightlyfs[torch]'")
    loader = torch_data.DataLoader(
        images, batch_size=8, num_workers=2, multiprocessing_context=way, collate_fn=list
    )
    assert [item for batch in loader for item in batch] == on_disk(pictures)
