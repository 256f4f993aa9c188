"""Two mounts of one dataset that use one name at the same moment, and names that others change."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import requests
from shared_mount import REPLACED, UPLOAD_IMAGES, jpeg
from test_writing import stored
from trees import (
    InProcessTree,
    MountedTree,
    WritableTree,
    environment,
    in_process,
    need_fuse,
    refused,
    start_mount,
    wait_until,
)

from lightlyfs.testing import LocalServer

ROUNDS = 6
WAIT_S = 30.0
# longer than names of a listing are trusted when a sample is created
NAMES_AGE_S = 2.2


@contextlib.contextmanager
def two_trees(
    server: LocalServer, directory: Path, *, shared: bool, **flags: str
) -> Iterator[tuple[InProcessTree, InProcessTree]]:
    """Two mounts that upload images, with one cache directory or with one each."""
    caches = (directory / "cache", directory / ("cache" if shared else "other"))
    flags = {"upload": "images", **flags}
    with in_process(server, caches[0], **flags) as one, in_process(server, caches[1], **flags) as two:
        yield one, two


def rename_by_api(server: LocalServer, sample_id: str, name: str) -> None:
    """Rename a sample as a colleague's script does."""
    url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{sample_id}"
    answer = requests.put(url, params={"token": server.token}, json={"fileName": name}, timeout=10)
    answer.raise_for_status()


def id_of(server: LocalServer, name: str) -> str:
    """The id of the one sample of a name."""
    (found,) = [one["id"] for one in server.samples() if one["fileName"] == name]
    return str(found)


def shown_samples(server: LocalServer) -> dict[str, bytes | None]:
    """What the server holds, but for what was put away."""
    return {name: data for name, data in stored(server).items() if not name.startswith(REPLACED)}


def at_once(*actions: Callable[[threading.Barrier], None]) -> list[int]:
    """Run actions in a thread each, which meet at a barrier; the errno that each failed with, or 0."""
    barrier = threading.Barrier(len(actions), timeout=WAIT_S)
    outcomes = [-1] * len(actions)

    def run(number: int) -> None:
        try:
            actions[number](barrier)
            outcomes[number] = 0
        except OSError as error:
            outcomes[number] = error.errno or -1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    return outcomes


def close_at_once(trees: Sequence[WritableTree], name: str, contents: Sequence[bytes]) -> list[int]:
    """Write a file of one name on each machine, and close them at the same moment."""

    def writer(tree: WritableTree, data: bytes) -> Callable[[threading.Barrier], None]:
        def write(barrier: threading.Barrier) -> None:
            with tree.writing(name) as file:
                file.write(0, data)
                barrier.wait()

        return write

    return at_once(*(writer(tree, data) for tree, data in zip(trees, contents, strict=True)))


def check_one_won(
    server: LocalServer, trees: Sequence[WritableTree], name: str, contents: Sequence[bytes], codes: list[int]
) -> None:
    """One writer has the name on the server and on both machines; the other's bytes are beside it."""
    stem, _, extension = name.rpartition(".")
    beside = f"{stem}~2.{extension}"
    assert sorted(codes) == [0, errno.EEXIST]
    won, lost = codes.index(0), codes.index(errno.EEXIST)
    for tree in trees:
        tree.refresh()
    assert shown_samples(server)[name] == contents[won]
    wait_until(lambda: beside in trees[lost].names(), WAIT_S)
    assert beside not in trees[won].names()
    for tree in trees:
        assert tree.names().count(name) == 1
        assert tree.read(name) == contents[won]
    assert trees[lost].read(beside) == contents[lost]
    assert trees[lost].xattr(beside, "user.lightly.upload").startswith(b"local")


@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "two caches"])
def test_of_two_that_create_one_name_at_once_one_has_it_and_nothing_is_lost(
    own_server: LocalServer, tmp_path: Path, shared: bool
) -> None:
    with two_trees(own_server, tmp_path, shared=shared) as trees:
        for number in range(ROUNDS):
            name = f"{number}.jpg"
            contents = [jpeg(2 * number), jpeg(2 * number + 1)]

            codes = close_at_once(trees, name, contents)

            check_one_won(own_server, trees, name, contents, codes)
        names = sorted(f"{number}.jpg" for number in range(ROUNDS))
        assert sorted(shown_samples(own_server)) == names


@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "two caches"])
def test_with_leave_to_overwrite_both_succeed_and_one_sample_has_the_name(
    own_server: LocalServer, tmp_path: Path, shared: bool
) -> None:
    with two_trees(own_server, tmp_path, shared=shared, allow_overwrite="on") as trees:
        for number in range(ROUNDS):
            name = f"{number}.jpg"
            contents = [jpeg(2 * number), jpeg(2 * number + 1)]

            codes = close_at_once(trees, name, contents)

            assert codes == [0, 0]
            for tree in trees:
                tree.refresh()
            held = shown_samples(own_server)[name]
            assert held in contents
            assert [tree.read(name) for tree in trees] == [held, held]
            assert [tree.names().count(name) for tree in trees] == [1, 1]
        assert sorted(shown_samples(own_server)) == sorted(f"{number}.jpg" for number in range(ROUNDS))


@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "two caches"])
def test_many_names_that_both_create_are_each_there_once(
    own_server: LocalServer, tmp_path: Path, shared: bool
) -> None:
    names = [f"{number}.jpg" for number in range(24)]
    with two_trees(own_server, tmp_path, shared=shared) as trees:

        def copier(tree: InProcessTree, order: list[str], data: bytes) -> Callable[[threading.Barrier], None]:
            def copy(barrier: threading.Barrier) -> None:
                barrier.wait()
                for name in order:
                    with contextlib.suppress(FileExistsError, PermissionError):
                        tree.write(name, data)

            return copy

        at_once(copier(trees[0], names, jpeg(1)), copier(trees[1], names[::-1], jpeg(2)))
        for tree in trees:
            tree.refresh()

        held = shown_samples(own_server)
        assert sorted(held) == sorted(names)
        assert set(held.values()) <= {jpeg(1), jpeg(2)}
        for tree in trees:
            assert {name: tree.read(name) for name in names} == held


@pytest.mark.parametrize("asked_first", [True, False], ids=["name asked for", "names fresh"])
def test_a_name_that_others_took_while_a_file_was_open_is_theirs(
    own_server: LocalServer, tmp_path: Path, asked_first: bool
) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        with refused(errno.EEXIST), tree.writing("a.jpg") as file:
            file.write(0, jpeg(1))
            settle_names(tree, asked_first)
            theirs = own_server.add_sample("a.jpg", jpeg(2))
        tree.refresh()

        assert id_of(own_server, "a.jpg") == theirs
        assert tree.names() == ["a.jpg", "a~2.jpg"]
        assert (tree.read("a.jpg"), tree.read("a~2.jpg")) == (jpeg(2), jpeg(1))
        left = [one["fileName"] for one in own_server.samples() if one["id"] != theirs]
        assert len(left) == (0 if asked_first else 1)
        assert all(name.startswith(REPLACED) for name in left)


@pytest.mark.parametrize("asked_first", [True, False], ids=["name asked for", "names fresh"])
def test_with_leave_a_name_that_others_took_meanwhile_gets_the_bytes(
    own_server: LocalServer, tmp_path: Path, asked_first: bool
) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images", allow_overwrite="on") as tree:
        with tree.writing("a.jpg") as file:
            file.write(0, jpeg(1))
            settle_names(tree, asked_first)
            theirs = own_server.add_sample("a.jpg", jpeg(2))
        tree.refresh()

        assert id_of(own_server, "a.jpg") == theirs
        assert shown_samples(own_server) == {"a.jpg": jpeg(1)}
        assert tree.names() == ["a.jpg"]
        assert tree.read("a.jpg") == jpeg(1)


def settle_names(tree: InProcessTree, old: bool) -> None:
    """Let what is known of names be of just now, or older than it is trusted."""
    tree.refresh()
    if old:
        time.sleep(NAMES_AGE_S)


def test_a_local_file_gives_way_to_a_sample_and_to_a_directory(
    own_server: LocalServer, tmp_path: Path
) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        tree.write("notes.txt", b"mine")
        tree.write("list.txt", b"my list")
        tree.write("d/deep.txt", b"deep")
        own_server.add_sample("notes.txt", b"theirs")
        own_server.add_sample("list.txt/a.jpg", jpeg(1))
        own_server.add_sample("d/deep.txt", b"their deep one")

        tree.refresh()

        assert tree.names() == ["d", "list.txt", "list~2.txt", "notes.txt", "notes~2.txt"]
        assert tree.names("list.txt") == ["a.jpg"]
        assert tree.names("d") == ["deep.txt", "deep~2.txt"]
        assert (tree.read("notes.txt"), tree.read("notes~2.txt")) == (b"theirs", b"mine")
        assert tree.read("list~2.txt") == b"my list"
        assert (tree.read("d/deep.txt"), tree.read("d/deep~2.txt")) == (b"their deep one", b"deep")
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        assert tree.names() == ["d", "list.txt", "list~2.txt", "notes.txt", "notes~2.txt"]
        assert tree.read("notes~2.txt") == b"mine"


def test_a_local_directory_gives_way_to_a_sample(own_server: LocalServer, tmp_path: Path) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        tree.mkdir("cars")
        tree.mkdir("cars/empty")
        tree.write("cars/red/notes.txt", b"mine")
        own_server.add_sample("cars", jpeg(1))

        tree.refresh()

        assert tree.names() == ["cars", "cars~2"]
        assert tree.read("cars") == jpeg(1)
        assert tree.names("cars~2") == ["empty", "red"]
        assert tree.read("cars~2/red/notes.txt") == b"mine"


def test_an_empty_local_directory_gives_way_to_a_sample(own_server: LocalServer, tmp_path: Path) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        tree.mkdir("cars")
        own_server.add_sample("cars", jpeg(1))

        tree.refresh()

        assert not tree.stat("cars").is_directory
        assert tree.read("cars") == jpeg(1)
        assert tree.names() == ["cars", "cars~2"]


def test_an_upload_that_others_renamed_is_where_they_put_it(own_server: LocalServer, tmp_path: Path) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        tree.write("a.jpg", jpeg(1))
        tree.write("listed.jpg", jpeg(2))
        tree.refresh()
        tree.write("late.jpg", jpeg(3))
        ino = tree.stat("listed.jpg").ino
        for old, new in [("a.jpg", "b.jpg"), ("listed.jpg", "d/listed.jpg"), ("late.jpg", "later.jpg")]:
            rename_by_api(own_server, id_of(own_server, old), new)

        tree.refresh()

        check_renamed(tree)
        assert tree.stat("d/listed.jpg").ino == ino
        tree.write("a.jpg", jpeg(4))  # the name is free again
        assert tree.read("a.jpg") == jpeg(4)
    assert shown_samples(own_server)["a.jpg"] == jpeg(4)


def test_an_upload_that_others_renamed_is_where_they_put_it_over_a_remount(
    own_server: LocalServer, tmp_path: Path
) -> None:
    with in_process(own_server, tmp_path / "tree", upload="images") as tree:
        tree.write("a.jpg", jpeg(1))
        tree.write("listed.jpg", jpeg(2))
        tree.refresh()
        tree.write("late.jpg", jpeg(3))
    for old, new in [("a.jpg", "b.jpg"), ("listed.jpg", "d/listed.jpg"), ("late.jpg", "later.jpg")]:
        rename_by_api(own_server, id_of(own_server, old), new)

    for _ in range(2):
        with in_process(own_server, tmp_path / "tree", upload="images") as tree:
            tree.refresh()
            check_renamed(tree)


def check_renamed(tree: InProcessTree) -> None:
    """Only the names that others gave, with the bytes that were written under the old ones."""
    assert tree.names() == ["b.jpg", "d", "later.jpg"]
    assert tree.names("d") == ["listed.jpg"]
    assert [tree.read(name) for name in ("b.jpg", "d/listed.jpg", "later.jpg")] == [jpeg(1), jpeg(2), jpeg(3)]
    for gone in ("a.jpg", "listed.jpg", "late.jpg"):
        with refused(errno.ENOENT):
            tree.stat(gone)


def test_an_upload_that_others_replaced_before_it_was_listed_shows_their_bytes(
    own_server: LocalServer, tmp_path: Path
) -> None:
    with two_trees(own_server, tmp_path, shared=False, allow_overwrite="on") as (one, two):
        one.write("a.jpg", jpeg(1))
        two.refresh()
        two.write("a.jpg", jpeg(2))

        one.parts.catalog.refresher.list_now()  # as the end of a TTL does

        assert one.read("a.jpg") == jpeg(2)
        assert one.stat("a.jpg").size == len(jpeg(2))


@pytest.mark.parametrize("sole", [True, False], ids=["sole writer", "one of several"])
def test_a_sole_writer_asks_for_no_name(own_server: LocalServer, tmp_path: Path, sole: bool) -> None:
    flags = {"sole_writer": "on"} if sole else {}
    with in_process(own_server, tmp_path / "tree", upload="images", metadata_ttl="infinite", **flags) as tree:
        tree.refresh()
        time.sleep(NAMES_AGE_S)
        own_server.stats.reset()

        for number in range(5):
            tree.write(f"{number}.jpg", jpeg(number))

        asked = own_server.stats.count("partial")
        assert own_server.stats.count("withWriteUrls") == 5
        assert asked == 0 if sole else asked >= 10
    assert len(stored(own_server)) == 5


class TwoMounts:
    """Two real mounts of a server, on directories of one machine or of two."""

    def __init__(self, server: LocalServer, directory: Path, shared: bool, options: Sequence[str]) -> None:
        self.trees: list[MountedTree] = []
        for number in range(2):
            mountpoint = directory / f"mnt{number}"
            mountpoint.mkdir(parents=True)
            environ = environment(server, directory / ("cache" if shared else f"cache{number}"))
            log = directory / f"{number}.log"
            self.trees.append(
                start_mount(server.dataset_id, mountpoint, environ, log, *UPLOAD_IMAGES, *options)
            )

    def copy_at_once(self, name: str, sources: Sequence[Path]) -> list[int]:
        """Copy a file to one name on each with a program of its own; their exit codes."""

        def copier(tree: MountedTree, source: Path) -> Callable[[threading.Barrier], None]:
            def copy(barrier: threading.Barrier) -> None:
                barrier.wait()
                done = subprocess.run(
                    ["cp", str(source), str(tree.mountpoint / name)],
                    capture_output=True,
                    text=True,
                    timeout=WAIT_S,
                    check=False,
                    env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
                )
                if done.returncode:
                    assert "File exists" in done.stderr, done.stderr
                    raise FileExistsError(errno.EEXIST, done.stderr)

            return copy

        return at_once(*(copier(tree, source) for tree, source in zip(self.trees, sources, strict=True)))

    def end(self) -> None:
        """Unmount both."""
        for tree in self.trees:
            tree.end()


@pytest.mark.fuse
@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "two caches"])
def test_two_mounts_that_copy_to_one_name_at_once(
    own_server: LocalServer, tmp_path: Path, shared: bool
) -> None:
    need_fuse("3")
    sources = [tmp_path / "one.jpg", tmp_path / "two.jpg"]
    two = TwoMounts(own_server, tmp_path / "mounts", shared, ())
    try:
        for number in range(3):
            name = f"{number}.jpg"
            contents = [jpeg(2 * number), jpeg(2 * number + 1)]
            for source, data in zip(sources, contents, strict=True):
                source.write_bytes(data)

            codes = two.copy_at_once(name, sources)

            check_one_won(own_server, two.trees, name, contents, codes)
    finally:
        two.end()


@pytest.mark.fuse
def test_two_mounts_that_may_overwrite_copy_to_one_name_at_once(
    own_server: LocalServer, tmp_path: Path
) -> None:
    need_fuse("3")
    sources = [tmp_path / "one.jpg", tmp_path / "two.jpg"]
    two = TwoMounts(own_server, tmp_path / "mounts", False, ("--allow-overwrite",))
    try:
        for number in range(3):
            name = f"{number}.jpg"
            contents = [jpeg(2 * number), jpeg(2 * number + 1)]
            for source, data in zip(sources, contents, strict=True):
                source.write_bytes(data)

            codes = two.copy_at_once(name, sources)

            assert codes == [0, 0]
            for tree in two.trees:
                tree.refresh()
            held = shown_samples(own_server)[name]
            assert held in contents
            wait_until(lambda name=name, held=held: [t.read(name) for t in two.trees] == [held, held], 5)
    finally:
        two.end()
