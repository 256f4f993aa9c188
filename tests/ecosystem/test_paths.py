"""Paths of pathlib over a dataset, by universal_pathlib."""

from __future__ import annotations

import pytest

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.ecosystem


@pytest.mark.filterwarnings("ignore:UPath 'lightly' filesystem not explicitly implemented")
def test_a_path_of_a_dataset_is_one_of_pathlib(server: LocalServer) -> None:
    upath = pytest.importorskip("upath")
    root = upath.UPath("lightly://pictures")
    assert len(list(root.glob("**/*.jpg"))) == len(server.samples())
    first = root / "00" / "00000.jpg"
    assert first in set(first.parent.iterdir())
    assert (first.name, first.suffix, first.parent.is_dir()) == ("00000.jpg", ".jpg", True)
    assert len(first.read_bytes()) == first.stat().st_size > 0
    assert not (root / "lorries").exists()
    with pytest.raises(FileNotFoundError):
        list(upath.UPath("lightly://lorries").iterdir())
