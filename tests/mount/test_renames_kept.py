"""A sample that was renamed has its new name over a remount, before any listing shows it."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from test_damaged_files import kill
from trees import InProcessTree, in_process, mounted

from lightlyfs.api.models import SampleUpdate
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.errors import NoSuchFile
from lightlyfs.fs.namespace import LISTING_LAGS_S
from lightlyfs.staging.journal import Journal
from lightlyfs.testing import LocalServer, Status

NAMES = [f"a/{number}.jpg" for number in range(4)]
NO_LISTING = Status(status=503, target="partial")


@pytest.fixture(autouse=True)
def _samples(own_server: LocalServer) -> None:
    for name in (*NAMES, "b/whole.jpg", "c/deep/other.jpg"):
        own_server.add_sample(name, name.encode())


def journal_of(tree: InProcessTree) -> Journal:
    assert tree.parts.uploads is not None
    return tree.parts.uploads.journal


def test_names_stand_over_an_unmount(own_server: LocalServer, tmp_path: Path) -> None:
    with in_process(own_server, tmp_path / "tree") as tree:
        tree.names("a")
        tree.rename("a/0.jpg", "a/new.jpg")
        tree.rename("a/1.jpg", "elsewhere.jpg")
        tree.rename("elsewhere.jpg", "a/twice.jpg")
        tree.rename("b", "d")
        tree.rename("c", "e")
        own_server.faults.add(NO_LISTING)

    with in_process(own_server, tmp_path / "tree") as tree:
        assert tree.names() == ["a", "d", "e"]
        assert tree.names("a") == ["2.jpg", "3.jpg", "new.jpg", "twice.jpg"]
        assert (tree.names("d"), tree.names("e/deep")) == (["whole.jpg"], ["other.jpg"])
        assert tree.read("a/new.jpg") == b"a/0.jpg"
        with pytest.raises(NoSuchFile):
            tree.parts.filesystem.getattr("a/0.jpg")
        assert len(journal_of(tree).renamed()) == 4

        own_server.faults.clear()
        tree.refresh()
        assert tree.names() == ["a", "d", "e"]
        assert tree.names("a") == ["2.jpg", "3.jpg", "new.jpg", "twice.jpg"]
        assert journal_of(tree).renamed() == []


def test_names_stand_over_a_kill(own_server: LocalServer, tmp_path: Path) -> None:
    with mounted(own_server, tmp_path) as tree:
        assert (tree.mountpoint / "a/0.jpg").read_bytes() == b"a/0.jpg"
        (tree.mountpoint / "a/0.jpg").rename(tree.mountpoint / "a/new.jpg")
        own_server.faults.add(NO_LISTING)
        kill(tree)

    with mounted(own_server, tmp_path) as tree:
        assert tree.names("a") == ["1.jpg", "2.jpg", "3.jpg", "new.jpg"]
        assert (tree.mountpoint / "a/new.jpg").read_bytes() == b"a/0.jpg"
        own_server.faults.clear()
        tree.refresh()
        assert tree.names("a") == ["1.jpg", "2.jpg", "3.jpg", "new.jpg"]


@pytest.mark.parametrize("new", ["a/theirs.jpg", "a/0.jpg"])
def test_what_others_rename_meanwhile_is_shown_as_they_called_it(
    own_server: LocalServer, tmp_path: Path, new: str
) -> None:
    with in_process(own_server, tmp_path / "tree") as tree:
        tree.names("a")
        tree.rename("a/0.jpg", "a/mine.jpg")
        (row,) = journal_of(tree).renamed()
        parts = tree.parts
        parts.client.update_sample(parts.dataset_id, row.sample_id, SampleUpdate(file_name=new))
        if new == row.old:
            # as if it was long ago: a listing that shows the old name is no late one then
            journal_of(tree).put_renamed(row._replace(renamed_s=row.renamed_s - int(LISTING_LAGS_S) - 1))

    with in_process(own_server, tmp_path / "tree") as tree:
        tree.refresh()
        assert tree.names("a") == sorted([new[2:], "1.jpg", "2.jpg", "3.jpg"])
        assert journal_of(tree).renamed() == []


def test_a_catalogue_that_cannot_be_read_keeps_no_mount_from_its_start(
    own_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with in_process(own_server, tmp_path / "tree") as tree:
        tree.names("a")
        tree.rename("a/0.jpg", "a/new.jpg")
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "by_id", fail)
            tree.rename("a/1.jpg", "a/other.jpg")
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "by_id", fail)
            tree = stack.enter_context(in_process(own_server, tmp_path / "tree"))
        tree.refresh()
        assert tree.names("a") == ["2.jpg", "3.jpg", "new.jpg", "other.jpg"]
        assert journal_of(tree).renamed() == []


def test_the_journal_does_not_grow_with_renames(own_server: LocalServer, tmp_path: Path) -> None:
    with in_process(own_server, tmp_path / "tree") as tree:
        tree.names("a")
        for _ in range(5):
            for name in NAMES:
                tree.rename(name, f"{name}.png")
                tree.rename(f"{name}.png", name)
        assert len(journal_of(tree).renamed()) <= len(NAMES)
        own_server.faults.add(NO_LISTING)
    with in_process(own_server, tmp_path / "tree") as tree:
        assert tree.names("a") == [name[2:] for name in NAMES]
        assert journal_of(tree).renamed() == []
        own_server.faults.clear()
        tree.rename(NAMES[0], "a/new.jpg")
        tree.refresh()
        assert journal_of(tree).renamed() == []
