"""What the tree of a dataset does, in process and through mounts of libfuse 3 and libfuse 2."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest
from dataset_files import FILES
from trees import Tree, is_by_path, refused, soon

from lightlyfs.testing import LocalServer

MIB = 1 << 20


def test_a_directory_lists_its_names_in_byte_order(tree: Tree) -> None:
    assert [name for name in tree.names() if name not in (".", "..")] == [
        "a.jpg",
        "big.bin",
        "cars",
        "empty.png",
        "one.bin",
    ]
    assert tree.names("cars/green") == ["frame0.png", "frame1.png"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_size_and_bytes_of_its_sample(tree: Tree, name: str) -> None:
    assert tree.stat(name).size == len(FILES[name])
    assert tree.read(name) == FILES[name]


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 1),
        (MIB - 1, 2),
        (MIB, MIB),
        (3 * MIB - 7, MIB + 20),
        (9_499_999, 10),
        (9_500_000, 10),
        (1 << 40, 5),
    ],
)
def test_a_read_at_any_place_gives_the_bytes_there(tree: Tree, offset: int, size: int) -> None:
    assert tree.read("big.bin", offset, size) == FILES["big.bin"][offset : offset + size]


def test_inode_numbers_differ_and_stay(tree: Tree) -> None:
    numbers = [tree.stat(path).ino for path in ["", "cars", "cars/green", *FILES]]

    assert len(set(numbers)) == len(numbers)
    assert numbers == [tree.stat(path).ino for path in ["", "cars", "cars/green", *FILES]]


def test_times_are_those_of_the_sample_and_of_the_newest_below(tree: Tree, server: LocalServer) -> None:
    times = {document["fileName"]: document["lastModifiedAt"] // 1000 for document in server.samples()}

    assert tree.stat("a.jpg").mtime == times["a.jpg"]
    assert tree.stat("cars").mtime == max(t for name, t in times.items() if name.startswith("cars/"))


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("missing.jpg", errno.ENOENT),
        ("cars/missing/x.jpg", errno.ENOENT),
        ("cars/GREEN", errno.ENOENT),
        (".Trash-0", errno.ENOENT),
        ("cars/.hidden", errno.ENOENT),
    ],
)
def test_a_path_that_is_not_there_says_so(tree: Tree, path: str, number: int) -> None:
    with refused(number):
        tree.stat(path)


def test_a_file_is_not_a_directory_nor_the_reverse(tree: Tree) -> None:
    with refused(errno.ENOTDIR):
        tree.names("a.jpg")
    with refused(errno.EISDIR):
        tree.read("cars")


def test_a_name_that_is_not_utf8_is_not_there(tree: Tree) -> None:
    with refused(errno.ENOENT):
        tree.stat("bad\udcff")


def test_attributes_tell_what_the_api_knows(tree: Tree, server: LocalServer) -> None:
    (document,) = [d for d in server.samples() if d["fileName"] == "cars/x.jpg"]

    assert tree.xattr("cars/x.jpg", "user.lightly.sample_id").decode() == document["id"]
    assert tree.xattr("cars/x.jpg", "user.lightly.file_name") == b"cars/x.jpg"
    assert tree.xattr("cars/x.jpg", "user.lightly.upload") == b"uploaded"
    assert json.loads(tree.xattr("cars/x.jpg", "user.lightly.metadata")) == {"sizeInBytes": 77}
    assert sorted(tree.xattrs("cars/x.jpg")) == [
        f"user.lightly.{name}" for name in ("file_name", "metadata", "sample_id", "type", "upload")
    ]


@pytest.mark.parametrize(
    ("path", "name", "number"),
    [
        ("a.jpg", "user.lightly.exif", errno.ENODATA),
        ("a.jpg", "user.other", errno.ENODATA),
        ("cars", "user.lightly.sample_id", errno.ENODATA),
        ("a.jpg", "security.selinux", errno.ENOTSUP),
        ("missing", "user.lightly.exif", errno.ENOENT),
    ],
)
def test_an_attribute_that_is_not_there_says_so(tree: Tree, path: str, name: str, number: int) -> None:
    with refused(number):
        tree.xattr(path, name)


def test_directories_list_no_attributes(tree: Tree) -> None:
    assert tree.xattrs("cars") == []


def test_many_readers_of_one_cold_file_cause_one_fetch(own_server: LocalServer, own_tree: Tree) -> None:
    data = os.urandom(3_000_000)
    own_server.add_sample("shared.bin", data)
    own_tree.refresh()
    got: list[bytes] = []
    start = threading.Barrier(10)

    def read() -> None:
        start.wait()
        got.append(own_tree.read("shared.bin"))

    readers = [threading.Thread(target=read) for _ in range(10)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert got == [data] * 10
    assert own_server.stats.snapshot()["bytes_sent"] < 2 * len(data)


@pytest.mark.parametrize(
    ("reported", "actual"),
    [(100_000, 300_000), (300_000, 100_000), (5, 0), (0, 5), (8 << 20, 9 << 20), (None, 7)],
)
def test_a_wrong_size_hint_never_cuts_or_pads(
    own_server: LocalServer, own_tree: Tree, reported: int | None, actual: int
) -> None:
    data = os.urandom(actual)
    meta = {} if reported is None else {"sizeInBytes": reported}
    own_server.add_sample("liar.jpg", data, {"metaData": meta})
    own_tree.refresh()

    assert "liar.jpg" in own_tree.names()
    if reported is not None:
        # where an open cannot correct the size, it is shown only once it is known
        assert own_tree.stat("liar.jpg").size == (actual if is_by_path(own_tree) else reported)
    assert own_tree.read("liar.jpg") == data
    soon(lambda: own_tree.stat("liar.jpg").size == actual)
    assert own_tree.read("liar.jpg") == data


def test_a_sample_without_an_object_is_empty_and_says_so_at_open(
    own_server: LocalServer, own_tree: Tree
) -> None:
    sample_id = own_server.add_sample("nothing.jpg", None)
    own_tree.refresh()

    assert "nothing.jpg" in own_tree.names()
    if is_by_path(own_tree):
        # an open could not be refused there, so the look-up before it is
        with refused(errno.ENODATA):
            own_tree.stat("nothing.jpg")
    else:
        assert own_tree.stat("nothing.jpg").size == 0
    with refused(errno.ENODATA):
        own_tree.read("nothing.jpg")

    own_server.replace_object(sample_id, b"something")
    assert own_tree.read("nothing.jpg") == b"something"


def test_a_new_sample_shows_on_refresh_and_a_changed_one_has_its_new_bytes(
    own_server: LocalServer, own_tree: Tree
) -> None:
    sample_id = own_server.add_sample("a/b.jpg", b"old")
    own_tree.refresh()
    assert own_tree.read("a/b.jpg") == b"old"

    own_server.replace_object(sample_id, b"new bytes")
    own_tree.refresh()

    assert own_tree.read("a/b.jpg") == b"new bytes"
    soon(lambda: own_tree.stat("a/b.jpg").size == len(b"new bytes"))


HOSTILE = [
    "",
    "/",
    "//",
    "/abs.jpg",
    "../up.jpg",
    "a/../../b.jpg",
    ".",
    "..",
    "./x",
    "a//b.jpg",
    "trail/",
    "nul\0byte.jpg",
    "new\nline.jpg",
    "back\\slash.jpg",
    "\ud800.jpg",
    "%2F.jpg",
    "%",
    ".lightlyfs/status.json",
    "x" * 300 + ".jpg",
    "é" * 200 + "/" + "y" * 256 + ".png",
    "clash",
    "clash/inner.jpg",
    "twin.jpg",
    "twin.jpg",
    "twin.jpg",
    ".hidden",
    ".Trash-0/files/x.jpg",
    "sp ace/tab\t.jpg",
    "-rf",
    "*?.jpg",
    "\x01\x7f",
    "a'b\"c`$(d);&|<>.jpg",
]


def walk(tree: Tree, path: str = "") -> dict[str, bytes]:
    """Every file below a path with its true name."""
    found: dict[str, bytes] = {}
    for name in tree.names(path):
        child = f"{path}/{name}" if path else name
        if tree.stat(child).is_directory:
            found.update(walk(tree, child))
        else:
            found[child] = tree.xattr(child, "user.lightly.file_name")
    return found


def test_every_sample_of_a_hostile_name_is_reachable_and_nothing_escapes(
    own_server: LocalServer, own_tree: Tree
) -> None:
    ids = [own_server.add_sample(name, f"content of {i}".encode()) for i, name in enumerate(HOSTILE)]
    own_tree.refresh()

    found = walk(own_tree)

    if is_by_path(own_tree):
        del found["read before.bin"]
    assert sorted(found.values()) == sorted(name.encode("utf-8", "surrogatepass") for name in HOSTILE)
    by_id = {own_tree.xattr(path, "user.lightly.sample_id").decode(): path for path in found}
    assert set(by_id) == set(ids)
    for number, sample_id in enumerate(ids):
        assert own_tree.read(by_id[sample_id]) == f"content of {number}".encode()


def test_the_names_of_hostile_samples_are_the_same_after_another_listing(
    own_server: LocalServer, own_tree: Tree
) -> None:
    for name in HOSTILE:
        own_server.add_sample(name, b"x")
    own_tree.refresh()
    before = walk(own_tree)
    own_tree.refresh()

    assert walk(own_tree) == before
