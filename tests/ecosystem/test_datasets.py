"""Hugging Face `datasets` over `lightly://`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightlyfs.examples.common import Place
from lightlyfs.examples.hf_imagefolder import load

pytestmark = pytest.mark.ecosystem


@pytest.mark.parametrize("processes", [1, 2])
def test_a_folder_of_images_has_its_bytes_and_labels(
    place: Place, pictures: Path, tmp_path: Path, processes: int
) -> None:
    from datasets import Image

    rows = load(place, str(tmp_path / "hf"), processes)
    names = rows.features["label"].names
    plain = rows.cast_column("image", Image(decode=False))
    found = sorted((names[row["label"]], Path(row["image"]["path"]).read_bytes()) for row in plain)
    assert found == sorted((path.parent.name, path.read_bytes()) for path in pictures.rglob("*.jpg"))
    assert rows[0]["image"].size == (128, 96)


def test_a_stream_of_images_needs_no_copy_on_the_disk(place: Place, pictures: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from PIL import Image

    stream: Any = load_dataset(
        "imagefolder",
        data_files={"train": f"{place.url}/**"},
        storage_options=dict(place.options),
        cache_dir=str(tmp_path / "hf"),
        streaming=True,
    )["train"]
    found = sorted(row["image"].tobytes() for row in stream)
    assert found == sorted(Image.open(path).tobytes() for path in pictures.rglob("*.jpg"))
    assert not list((tmp_path / "hf").rglob("*.jpg"))
