"""A directory of samples is renamed one by one, and what is shown is what the server has."""

from __future__ import annotations

import errno
import itertools
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from test_writing import stored
from trees import InProcessTree, in_process, refused, wait_until

from lightlyfs.errors import Forbidden, ServerFault, Unreachable
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import Planned
from lightlyfs.staging.upload_steps import UploadedSamples
from lightlyfs.staging.uploader import Uploader
from lightlyfs.testing import LocalServer, Status

FILES = {f"a/{number}.jpg": str(number).encode() for number in range(4)}


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[InProcessTree]:
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    with in_process(own_server, tmp_path / "tree") as subject:
        subject.names("a")
        yield subject


def shown(tree: InProcessTree, directory: str = "") -> dict[str, bytes]:
    """Every file and its bytes."""
    found = {}
    for name in tree.names(directory):
        path = f"{directory}/{name}" if directory else name
        found.update(shown(tree, path) if tree.stat(path).is_directory else {path: tree.read(path)})
    return found


def moved(directory: str) -> dict[str, bytes]:
    return {f"{directory}/{name.partition('/')[2]}": data for name, data in FILES.items()}


def test_there_and_back_before_any_listing_and_after(own_server: LocalServer, tree: InProcessTree) -> None:
    for old, new in (("a", "b"), ("b", "a"), ("a", "c")):
        tree.rename(old, new)
        assert shown(tree) == moved(new) == stored(own_server)
        assert tree.names() == [new]
    tree.refresh()
    assert shown(tree) == moved("c")
    tree.rename("c", "a")
    tree.refresh()
    assert shown(tree) == FILES
    assert tree.names() == ["a"]


def test_a_directory_below_the_old_name_again(own_server: LocalServer, tree: InProcessTree) -> None:
    tree.rename("a", "b")
    tree.mkdir("a")
    tree.rename("b", "a/deep")

    assert shown(tree) == moved("a/deep") == stored(own_server)
    tree.refresh()
    assert shown(tree) == moved("a/deep")
    assert tree.names() == ["a"]


def test_a_directory_whose_samples_were_moved_out_can_be_removed(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    tree.mkdir("b")
    for name in tree.names("a"):
        tree.rename(f"a/{name}", f"b/{name}")

    tree.rmdir("a")

    assert tree.names() == ["b"]
    tree.mkdir("a")
    tree.rmdir("a")
    tree.refresh()
    assert shown(tree) == moved("b")


def test_a_new_file_under_the_old_name_is_seen(own_server: LocalServer, tree: InProcessTree) -> None:
    tree.rename("a", "b")
    tree.mkdir("a")
    tree.write("a/new.jpg", b"new")
    for _ in range(2):
        assert shown(tree) == {**moved("b"), "a/new.jpg": b"new"}
        tree.refresh()


def test_a_directory_of_local_files_alone_is_renamed_and_its_old_name_used_again(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    tree.mkdir("l")
    tree.write("l/x.tmp", b"x")
    tree.rename("l", "m")
    tree.mkdir("l")
    tree.write("l/y.jpg", b"y")
    tree.refresh()

    assert shown(tree) == {**FILES, "m/x.tmp": b"x", "l/y.jpg": b"y"}


def test_an_empty_directory_is_replaced_and_another_is_not(tree: InProcessTree) -> None:
    tree.mkdir("empty")
    tree.rename("a", "empty")
    assert shown(tree) == moved("empty")
    tree.mkdir("a")
    tree.write("a/x.tmp", b"x")
    with refused(errno.ENOTEMPTY):
        tree.rename("a", "empty")
    with refused(errno.EINVAL):
        tree.rename("empty", "empty/below")


def after_two(tree: InProcessTree, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Have the third of the renames that a directory takes, and those after it, do something else first."""
    renamed, original = itertools.count(), tree.parts.client.update_sample

    def update(*args: Any) -> None:
        if next(renamed) >= 2:
            then()
        original(*args)

    monkeypatch.setattr(tree.parts.client, "update_sample", update)


def away_after_two(tree: InProcessTree, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have the server fail from the third rename of a directory on, until the event is cleared."""
    away = threading.Event()
    away.set()

    def fail() -> None:
        if away.is_set():
            raise ServerFault("away", status=503)

    after_two(tree, monkeypatch, fail)
    return away


def fail_once(error: Exception) -> Callable[[], None]:
    errors = [error]

    def fail() -> None:
        if errors:
            raise errors.pop()

    return fail


def test_a_rename_that_is_refused_in_the_middle_changes_nothing(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.write("a/x.tmp", b"x")
    after_two(tree, monkeypatch, fail_once(Forbidden("no", status=403)))

    with refused(errno.EACCES):
        tree.rename("a", "b")

    assert stored(own_server) == FILES
    assert shown(tree) == {**FILES, "a/x.tmp": b"x"}
    assert tree.names() == ["a"]
    wait_until(lambda: is_finished(tree), 5)
    tree.refresh()
    assert shown(tree) == {**FILES, "a/x.tmp": b"x"}


def test_a_rename_whose_last_step_fails_takes_local_files_back_too(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.mkdir("a/made")
    tree.write("a/made/x.tmp", b"x")
    assert tree.parts.uploads is not None
    full = Mock(side_effect=OSError(errno.ENOSPC, "no room"))
    monkeypatch.setattr(tree.parts.uploads.local, "move_directories", full)

    with refused(errno.ENOSPC):
        tree.rename("a", "b")

    assert stored(own_server) == FILES
    assert shown(tree) == {**FILES, "a/made/x.tmp": b"x"}
    assert tree.names() == ["a"]


def test_a_rename_that_is_interrupted_is_taken_back_behind(
    own_server: LocalServer,
    tree: InProcessTree,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the request that was under way, which the server handles all the same."""
    caplog.set_level(logging.INFO)
    given_up, interrupted = threading.Event(), threading.Event()

    def interrupt() -> None:
        interrupted.set()
        assert given_up.wait(10)

    after_two(tree, monkeypatch, interrupt)
    monkeypatch.setattr(tree.parts.patience, "interrupted", interrupted.is_set)

    with refused(errno.EINTR):
        tree.rename("a", "b")
    interrupted.clear()
    assert tree.parts.uploads is not None
    assert len(tree.parts.uploads.journal.renames()) == 3
    given_up.set()

    wait_until(lambda: is_finished(tree), 10)
    assert shown(tree) == FILES == stored(own_server)
    wait_until(lambda: "took back what a rename that failed had renamed: 3 files of 3" in caplog.text, 5)


def test_a_rename_of_one_sample_that_is_interrupted_is_taken_back(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up, original = threading.Event(), tree.parts.client.update_sample

    def update(*args: Any) -> None:
        original(*args)
        interrupted.append(True)
        assert given_up.wait(10)

    interrupted: list[bool] = []
    monkeypatch.setattr(tree.parts.client, "update_sample", update)
    monkeypatch.setattr(tree.parts.patience, "interrupted", lambda: len(interrupted) == 1)

    with refused(errno.EINTR):
        tree.rename("a/0.jpg", "a/new.jpg")
    given_up.set()

    wait_until(lambda: is_finished(tree), 10)
    assert shown(tree) == FILES == stored(own_server)


def test_a_rename_that_the_server_fails_in_the_middle_is_taken_back_once_it_answers(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = away_after_two(tree, monkeypatch)
    monkeypatch.setattr("lightlyfs.fs.renames_left._FIRST_PAUSE_S", 0.01)

    with refused(errno.EIO):
        tree.rename("a", "b")
    assert not is_finished(tree)
    away.clear()

    wait_until(lambda: is_finished(tree), 10)
    assert shown(tree) == FILES == stored(own_server)


def test_a_rename_that_the_end_of_the_mount_cuts_off_is_taken_back_by_the_next(
    own_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program was told of a failure, unlike one whose mount was killed."""
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    with monkeypatch.context() as patched, in_process(own_server, tmp_path / "tree") as tree:
        tree.names("a")

        def end() -> None:
            tree.parts.stop_waiting()
            raise ServerFault("away", status=503)

        after_two(tree, patched, end)
        with refused(errno.EIO):
            tree.rename("a", "b")
    assert set(stored(own_server)) == {"b/0.jpg", "b/1.jpg", "a/2.jpg", "a/3.jpg"}
    with in_process(own_server, tmp_path / "tree", upload="none") as tree:
        tree.refresh()
        assert tree.names() == ["a", "b"]

    own_server.faults.add(Status(status=503, target="partial"))
    with in_process(own_server, tmp_path / "tree", sole_writer="on") as tree:
        wait_until(lambda: is_finished(tree), 10)
        assert shown(tree) == FILES == stored(own_server)
        wait_until(lambda: tree.names() == ["a"], 5)


def test_a_rename_that_is_asked_for_again_is_not_taken_back(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = away_after_two(tree, monkeypatch)
    with refused(errno.EIO):
        tree.rename("a", "b")
    wait_until(lambda: "lightlyfs-renames" in {thread.name for thread in threading.enumerate()}, 5)
    away.clear()

    tree.rename("b", "c")
    tree.rename("a/2.jpg", "c/2.jpg")

    assert tree.parts.uploads is not None
    left = {planned.old for planned in tree.parts.uploads.journal.renames()}
    assert left <= {"b/2.jpg"}  # which may have been sent, and was not asked for again
    assert set(stored(own_server)) == {"c/0.jpg", "c/1.jpg", "c/2.jpg", "a/3.jpg"}


def test_too_large_a_directory_is_refused_before_anything_is_changed(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.fs.changes.MAX_RENAMED_SAMPLES", 3)

    with refused(errno.EPERM):
        tree.rename("a", "b")

    assert shown(tree) == FILES == stored(own_server)


def test_a_rename_after_which_the_image_cannot_be_read_is_taken_back(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    own_server.faults.add(Status(status=404, target="storage.get"))
    with refused(errno.EIO):
        tree.rename("a/0.jpg", "a/new.jpg")
    own_server.faults.clear()
    assert shown(tree) == FILES == stored(own_server)

    # it could not be read under its old name either, which says nothing of renames
    tree.rename("a/1.jpg", "a/new.jpg")


def test_a_rename_that_was_cut_off_is_finished_by_the_first_mount_that_reaches_the_server(
    own_server: LocalServer, tmp_path: Path
) -> None:
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    ids = {document["fileName"]: document["id"] for document in own_server.samples()}
    with in_process(own_server, tmp_path / "tree") as subject:
        assert subject.parts.uploads is not None
        subject.names("a")
        subject.parts.uploads.journal.put_renames(
            [Planned(name, name.replace("a/", "b/"), sample_id) for name, sample_id in ids.items()]
        )
    own_server.faults.add(Status(status=503, target="get"))
    with in_process(own_server, tmp_path / "tree") as subject:
        pass
    own_server.faults.clear()

    with in_process(own_server, tmp_path / "tree") as subject:
        assert subject.parts.uploads is not None
        wait_until(lambda: stored(own_server) == moved("b"), 10)
        journal = subject.parts.uploads.journal
        wait_until(lambda: journal.renames() == [], 5)


def test_a_rename_that_was_cut_off_is_shown_once_it_is_finished(
    own_server: LocalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However long names are trusted, and with one that another machine has given away meanwhile."""
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    with in_process(own_server, tmp_path / "tree") as subject:
        assert subject.parts.uploads is not None
        subject.names("a")
        begun = [
            (name, name.replace("a/", "b/"), subject.xattr(name, "user.lightly.sample_id")) for name in FILES
        ]
        subject.parts.uploads.journal.put_renames(
            [Planned(old, new, one.decode()) for old, new, one in begun]
        )
    own_server.add_sample("b/3.jpg", b"of others")
    caplog.set_level(logging.INFO)

    with in_process(own_server, tmp_path / "tree", metadata_ttl="infinite") as subject:
        expected = {**moved("b"), "b/3.jpg": b"of others", "a/3.jpg": FILES["a/3.jpg"]}
        wait_until(lambda: is_finished(subject), 10)
        wait_until(lambda: shown(subject) == expected, 10)
        assert stored(own_server) == expected
        wait_until(lambda: "1 keep their names: a/3.jpg is not b/3.jpg" in caplog.text, 5)
        assert "finished what an earlier mount was renaming: 3 files of 4" in caplog.text


def plan(tree: InProcessTree, old: str, new: str) -> Journal:
    """The journal of a mount that is killed before the first of the renames that a directory takes."""
    assert tree.parts.uploads is not None
    planned = [Planned.of_directory(old, new)]
    for path in shown(tree, old):
        moved = new + path[len(old) :]
        local = tree.parts.uploads.local.get(path)
        if local is None:
            planned.append(Planned(path, moved, tree.xattr(path, "user.lightly.sample_id").decode()))
        else:
            planned.append(Planned.of_file(path, moved, local.record))
    journal = tree.parts.uploads.journal
    journal.put_renames(planned)
    return journal


def cut_off(server: LocalServer, tmp_path: Path) -> None:
    """What a mount leaves that was killed before the first rename of a directory with samples."""
    for name, data in FILES.items():
        server.add_sample(name, data)
    with in_process(server, tmp_path / "tree") as tree:
        plan(tree, "a", "b")


def is_finished(tree: InProcessTree) -> bool:
    assert tree.parts.uploads is not None
    return tree.parts.uploads.journal.renames() == []


def test_files_that_were_on_their_way_when_the_rename_began_are_renamed_by_the_next_mount_too(
    own_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads that had sent nothing yet were no part of what the next mount went on with."""
    waited_for, renamed = threading.Event(), iter(range(100))
    holder_of, hasten = UploadedSamples.holder_of, Uploader.hasten

    def ask_late(*args: Any, **options: Any) -> str | None:
        assert waited_for.wait(10)
        return holder_of(*args, **options)

    def note_wait(*args: Any) -> None:
        hasten(*args)
        waited_for.set()

    def update(*args: Any) -> None:
        if next(renamed) == 1:
            shutil.copytree(tmp_path / "tree", tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
        if (tmp_path / "killed").exists():
            raise Forbidden("the mount is dead", status=403)
        original(*args)

    with in_process(own_server, tmp_path / "tree", write_back="on") as tree, monkeypatch.context() as patched:
        original = tree.parts.client.update_sample
        tree.names()
        tree.mkdir("a")
        patched.setattr(UploadedSamples, "holder_of", ask_late)
        for name, data in FILES.items():
            tree.write(name, data)
        patched.setattr(Uploader, "hasten", note_wait)
        patched.setattr(tree.parts.client, "update_sample", update)
        with refused(errno.EACCES):
            tree.rename("a", "b")
        assert len([name for name in stored(own_server) if name.startswith("b/")]) == 1

    with in_process(own_server, tmp_path / "killed", write_back="on") as tree:
        wait_until(lambda: is_finished(tree), 10)
        assert stored(own_server) == moved("b")
        assert shown(tree) == moved("b")
        assert tree.names() == ["b"]


@pytest.mark.parametrize("refuses", ["withWriteUrls", "storage.put"])
def test_local_files_and_what_is_owed_go_along_when_a_rename_is_finished(
    own_server: LocalServer, tmp_path: Path, refuses: str
) -> None:
    """Whatever the server knows of what it is owed."""
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    with in_process(own_server, tmp_path / "tree") as tree:
        tree.mkdir("a/made")
        tree.write("a/made/x.tmp", b"x")
        tree.mkdir("a/empty")
        own_server.faults.add(Status(status=403, target=refuses))
        with refused(errno.EACCES):
            tree.write("a/owed.jpg", b"owed")
        plan(tree, "a", "b")
    own_server.faults.clear()

    with in_process(own_server, tmp_path / "tree") as tree:
        wait_until(lambda: is_finished(tree), 10)
        expected = {**moved("b"), "b/owed.jpg": b"owed"}
        wait_until(lambda: stored(own_server) == expected, 10)
        assert shown(tree) == {**expected, "b/made/x.tmp": b"x"}
        assert tree.names() == ["b"]
        assert tree.names("b") == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "empty", "made", "owed.jpg"]


def test_a_finished_rename_is_shown_before_any_listing_shows_it(
    own_server: LocalServer, tmp_path: Path
) -> None:
    cut_off(own_server, tmp_path)
    own_server.faults.add(Status(status=503, target="partial"))

    with in_process(own_server, tmp_path / "tree", sole_writer="on") as tree:
        wait_until(lambda: is_finished(tree), 10)
        assert tree.names() == ["b"]
        assert shown(tree) == moved("b") == stored(own_server)
        own_server.faults.clear()
        tree.refresh()
        assert shown(tree) == moved("b")


def test_a_rename_waits_in_the_next_mount_for_a_server_that_is_away(
    own_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(own_server, tmp_path)
    finish, fails = SampleEdits.finish_rename, iter([True, True, False])

    def away_at_first(*args: Any, **options: Any) -> bool:
        if next(fails, False):
            raise Unreachable("no network")
        return finish(*args, **options)

    monkeypatch.setattr(SampleEdits, "finish_rename", away_at_first)
    monkeypatch.setattr("lightlyfs.fs.renames_left._FIRST_PAUSE_S", 0.01)

    with in_process(own_server, tmp_path / "tree") as tree:
        wait_until(lambda: is_finished(tree), 10)
        assert shown(tree) == moved("b") == stored(own_server)


def test_a_mount_that_sends_nothing_leaves_a_rename_to_the_next(
    own_server: LocalServer, tmp_path: Path
) -> None:
    cut_off(own_server, tmp_path)

    with in_process(own_server, tmp_path / "tree", upload="none") as tree:
        assert shown(tree) == FILES
        assert not is_finished(tree)
    assert stored(own_server) == FILES

    with in_process(own_server, tmp_path / "tree") as tree:
        wait_until(lambda: is_finished(tree), 10)
        assert stored(own_server) == moved("b")


def test_a_sample_that_is_being_changed_stops_the_rename_before_its_beginning(
    own_server: LocalServer, tmp_path: Path
) -> None:
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    with in_process(own_server, tmp_path / "tree", allow_overwrite="on") as tree:
        with tree.writing("a/1.jpg", create=False) as file:
            file.write(0, b"X")
            with refused(errno.EPERM):
                tree.rename("a", "b")
            assert set(stored(own_server)) == set(FILES)
        tree.rename("a", "b")
        assert stored(own_server) == moved("b") | {"b/1.jpg": b"X" + FILES["a/1.jpg"][1:]}


def test_half_a_file_goes_along(own_server: LocalServer, tree: InProcessTree) -> None:
    """A disk was full when it was written; that keeps nothing else where it is."""
    with tree.writing("a/half.jpg") as file:
        file.write(0, b"half")
        assert tree.parts.uploads is not None
        local = tree.parts.uploads.local.get("a/half.jpg")
        assert local is not None
        tree.parts.uploads.local.note_broken_locked(local, OSError(errno.ENOSPC, "no room"))
        with refused(errno.ENOSPC):
            file.close()

    tree.rename("a", "b")

    assert stored(own_server) == moved("b")
    assert tree.read("b/half.jpg") == b"half"
