"""Which version of an object a handle reads, and what becomes of one that appears, changes or expires."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trees import (
    InProcessFile,
    InProcessTree,
    MountedTree,
    Tree,
    in_process,
    mounted,
    refused,
    soon,
)

from lightlyfs.testing import ChangedEtag, Expired, IgnoreRange, LocalServer, NoVersion

# fetched in ranges, so that much of it is not here when its beginning is
BYTES = 9_500_000
LARGE_BYTES = 20_000_000


def content(seed: str, size: int = BYTES) -> bytes:
    """Bytes that no other seed has."""
    return random.Random(seed).randbytes(size)


@pytest.fixture(params=["in-process", pytest.param("fuse3", marks=pytest.mark.fuse)])
def tree(
    request: pytest.FixtureRequest, own_server: LocalServer, tmp_path: Path
) -> Iterator[InProcessTree | MountedTree]:
    """The dataset of `own_server`, without a kernel and as a mount."""
    subject = in_process if request.param == "in-process" else mounted
    with subject(own_server, tmp_path / "tree") as made:
        yield made


@contextlib.contextmanager
def opened(tree: Tree, path: str) -> Iterator[Callable[[int, int], bytes]]:
    """An open file, as what reads `size` bytes at an offset of it."""
    if isinstance(tree, MountedTree):
        with open(tree.mountpoint / path, "rb", buffering=0) as file:
            yield lambda offset, size: os.pread(file.fileno(), size, offset)
    else:
        assert isinstance(tree, InProcessTree)
        files = tree.parts.filesystem
        handle = files.open(path, os.O_RDONLY).handle
        yield InProcessFile(tree, handle).read
        files.release(handle)


def test_an_image_that_comes_after_its_sample_is_found(own_server: LocalServer, tree: Tree) -> None:
    """Other clients create a sample first and store its image then, and nothing else tells of that."""
    sample_id = own_server.add_sample("late.jpg", None)
    tree.refresh()
    with refused(errno.ENODATA):
        tree.read("late.jpg")

    own_server.replace_object(sample_id, b"here I am")

    assert tree.read("late.jpg") == b"here I am"
    soon(lambda: tree.stat("late.jpg").size == len(b"here I am"))


def test_a_handle_never_mixes_two_versions(own_server: LocalServer, tree: Tree) -> None:
    """An object replaced by one of the same size ends the old handle; the next one has the new bytes."""
    old, new = content("old"), content("new")
    sample_id = own_server.add_sample("swapped.bin", old)
    tree.refresh()

    with opened(tree, "swapped.bin") as read:
        assert read(0, 100) == old[:100]
        own_server.replace_object(sample_id, new)
        with refused(errno.ESTALE):
            read(8_000_000, 100)

        assert tree.read("swapped.bin") == new
        with refused(errno.ESTALE):
            read(7_000_000, 100)


def test_a_program_that_read_from_the_page_cache_gets_no_other_version(
    own_server: LocalServer, tree: Tree
) -> None:
    """Of two programs the second made the kernel read the beginning; the first has that all the same."""
    if not isinstance(tree, MountedTree):
        pytest.skip("needs the pages of a kernel")
    old, new = content("old"), content("new")
    sample_id = own_server.add_sample("shared.bin", old)
    tree.refresh()

    with opened(tree, "shared.bin") as first, opened(tree, "shared.bin") as second:
        assert second(0, 4_096) == old[:4_096]
        assert first(0, 4_096) == old[:4_096]
        own_server.replace_object(sample_id, new)
        for read in (first, second):
            with refused(errno.ESTALE):
                read(8_000_000, 100)


@pytest.mark.parametrize("size", [200_000, BYTES], ids=["small", "large"])
def test_an_object_of_the_same_size_is_a_new_version_where_storage_names_none(
    own_server: LocalServer, tree: Tree, size: int
) -> None:
    own_server.faults.add(NoVersion())
    sample_id = own_server.add_sample("unnamed.bin", content("old", size))
    tree.refresh()
    assert tree.read("unnamed.bin") == content("old", size)

    own_server.replace_object(sample_id, content("new", size))
    tree.refresh()

    assert tree.read("unnamed.bin") == content("new", size)


def test_a_new_etag_is_a_new_version(own_server: LocalServer, tree: Tree) -> None:
    data = content("etag")
    own_server.add_sample("retagged.bin", data)
    tree.refresh()

    with opened(tree, "retagged.bin") as read:
        assert read(0, 100) == data[:100]
        own_server.faults.add(ChangedEtag())
        with refused(errno.ESTALE):
            read(8_000_000, 100)

        assert tree.read("retagged.bin") == data


@pytest.mark.parametrize("size", [3_000_000, 11_000_000], ids=["shorter", "longer"])
def test_an_object_of_another_size_is_a_new_version(own_server: LocalServer, tree: Tree, size: int) -> None:
    sample_id = own_server.add_sample("resized.bin", content("old"))
    tree.refresh()

    with opened(tree, "resized.bin") as read:
        assert read(0, 100) == content("old")[:100]
        own_server.replace_object(sample_id, content("new", size))
        with refused(errno.ESTALE):
            read(8_000_000, 100)

    assert tree.read("resized.bin") == content("new", size)
    soon(lambda: tree.stat("resized.bin").size == size)


@pytest.mark.parametrize("size", [3_000_000, 11_000_000], ids=["shorter", "longer"])
def test_two_versions_that_are_open_at_once_cut_each_other_nothing(
    own_server: LocalServer, tree: Tree, size: int
) -> None:
    """The kernel has one size for both; who reads the old one gets an error, not an early end."""
    sample_id = own_server.add_sample("resized.bin", content("old"))
    new = content("new", size)
    tree.refresh()

    with opened(tree, "resized.bin") as read:
        assert read(0, 100) == content("old")[:100]
        own_server.replace_object(sample_id, new)
        tree.refresh()
        assert tree.read("resized.bin") == new
        with refused(errno.ESTALE):
            read(8_000_000, 100)
        with refused(errno.ESTALE):
            read(BYTES - 50, 100)
        assert tree.read("resized.bin") == new

    assert tree.read("resized.bin") == new
    soon(lambda: tree.stat("resized.bin").size == size)


def test_a_url_that_expired_is_renewed_for_an_open_file(own_server: LocalServer, tree: Tree) -> None:
    data = content("expiring", LARGE_BYTES)
    own_server.add_sample("long.bin", data)
    tree.refresh()

    with opened(tree, "long.bin") as read:
        # backwards and far apart, so that nothing is fetched ahead and one request meets one fault
        for offset in range(LARGE_BYTES - 1_500_000, 0, -4_000_000):
            own_server.faults.add(Expired(count=1))
            assert read(offset, 100) == data[offset : offset + 100]
            assert own_server.faults.armed() == []


def test_a_large_file_without_ranges_comes_once(own_server: LocalServer, tree: Tree) -> None:
    data = content("large", LARGE_BYTES)
    own_server.add_sample("large.bin", data)
    tree.refresh()
    own_server.faults.add(IgnoreRange(target="storage"))
    own_server.stats.reset()

    assert tree.read("large.bin") == data
    assert own_server.stats.snapshot()["bytes_sent"] < 2 * len(data)


@pytest.mark.parametrize("hint", [50_000, 150_000])
def test_sizes_that_turn_out_wrong_while_files_are_fetched_ahead_cut_nothing(
    own_server: LocalServer, tree: Tree, hint: int
) -> None:
    """The kernel holds the sizes it was shown; it has to hear of those of files that were not opened yet."""
    images = {f"{number:02}.jpg": content(f"wrong {number}", 100_000) for number in range(40)}
    for name, data in images.items():
        own_server.add_sample(name, data, {"metaData": {"sizeInBytes": hint}})
    tree.refresh()
    assert [tree.stat(name).size for name in images] == [hint] * 40

    for name, data in images.items():
        assert tree.read(name) == data
