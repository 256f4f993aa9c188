"""Calls that meet: each ends as if one had come after the other, and no bytes are lost."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_writing import stored
from trees import InProcessFile, InProcessTree, in_process, refused, wait_until

from lightlyfs.api.models import SampleUpdate
from lightlyfs.errors import Cancelled
from lightlyfs.fs.handles import WriteHandle
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import State
from lightlyfs.testing import Latency, LocalServer, Status

REFUSED = Status(status=403, target="withWriteUrls")


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[InProcessTree]:
    with in_process(own_server, tmp_path / "tree") as subject:
        yield subject


@pytest.fixture
def behind(own_server: LocalServer, tmp_path: Path) -> Iterator[InProcessTree]:
    """A mount that uploads behind."""
    with in_process(own_server, tmp_path / "tree", write_back="on") as subject:
        yield subject


@pytest.fixture
def overwriting(own_server: LocalServer, tmp_path: Path) -> Iterator[InProcessTree]:
    own_server.add_sample("old.jpg", b"0123456789")
    with in_process(own_server, tmp_path / "tree", allow_overwrite="on") as subject:
        yield subject


def records(tree: InProcessTree) -> dict[str, State]:
    """What the journal holds."""
    assert tree.parts.uploads is not None
    return {record.path: record.state for record in tree.parts.uploads.journal.records()}


def test_a_file_is_rewritten_while_it_uploads(own_server: LocalServer, behind: InProcessTree) -> None:
    own_server.faults.add(Latency(delay_s=0.2, target="storage.put"))
    for number in range(5):
        behind.write("x.jpg", b"generation %d" % number)

    wait_until(lambda: records(behind).get("x.jpg") in (None, State.UPLOADED), 10)

    assert stored(own_server) == {"x.jpg": b"generation 4"}
    assert behind.read("x.jpg") == b"generation 4"
    assert behind.parts.uploads is not None
    wait_until(lambda: behind.parts.uploads.spool.generations() == [], 5)  # type: ignore[union-attr]


def test_a_second_close_waits_for_what_it_wrote(own_server: LocalServer, tree: InProcessTree) -> None:
    own_server.faults.add(Latency(delay_s=0.3, target="storage.put"))
    errors: list[BaseException] = []

    def write(data: bytes) -> None:
        try:
            with tree.writing("x.jpg", create=False) as file:
                file.write(0, data)
        except BaseException as error:
            errors.append(error)

    with tree.writing("x.jpg") as first:
        first.write(0, b"first")
        threads = [threading.Thread(target=write, args=(b"%d...." % n,)) for n in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join()

    assert errors == []
    assert stored(own_server)["x.jpg"] == tree.read("x.jpg")


def test_a_file_that_is_uploaded_between_lookup_and_open_is_read_as_a_sample(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    with tree.writing("x.jpg") as file:
        file.write(0, b"content")
        assert tree.parts.uploads is not None
        looked_up = tree.parts.uploads.local.get("x.jpg")
    assert looked_up is not None

    writer = tree.parts.uploads.writer
    handle = writer.open_local(looked_up, os.O_RDONLY)

    assert writer.read(handle, 0, 100) == b"content"
    writer.release(handle)


def test_two_that_change_one_sample_change_one_file(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    with (
        overwriting.writing("old.jpg", create=False) as one,
        overwriting.writing("old.jpg", create=False) as two,
    ):
        threads = [
            threading.Thread(target=one.write, args=(0, b"AA")),
            threading.Thread(target=two.write, args=(8, b"BB")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert stored(own_server) == {"old.jpg": b"AA234567BB"}
    assert overwriting.read("old.jpg") == b"AA234567BB"


def test_nobody_sees_a_sample_half_copied(own_server: LocalServer, overwriting: InProcessTree) -> None:
    own_server.faults.add(Status(status=404, target="storage.get"))
    with overwriting.writing("old.jpg", create=False) as file, refused(errno.ENODATA):
        file.write(0, b"A")
    own_server.faults.clear()

    assert records(overwriting) == {}
    assert overwriting.read("old.jpg") == b"0123456789"


def test_cutting_a_sample_away_fetches_nothing(own_server: LocalServer, overwriting: InProcessTree) -> None:
    own_server.faults.add(Status(status=503, target="storage.get"))

    with overwriting.writing("old.jpg", create=False) as file:
        file.truncate(0)
        file.write(0, b"new")

    assert stored(own_server) == {"old.jpg": b"new"}


def test_a_listing_does_not_take_a_file_from_whoever_writes_it(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    with tree.writing("x.jpg") as file:
        file.write(0, b"one")
        tree._call(tree.parts.filesystem.fsync, file._handle)
        assert stored(own_server) == {"x.jpg": b"one"}
        tree.refresh()
        file.write(3, b" two")
        tree.refresh()
        assert records(tree) == {"x.jpg": State.OPEN}
        assert tree.read("x.jpg") == b"one two"

    assert stored(own_server) == {"x.jpg": b"one two"}


def test_a_file_of_ones_own_may_be_opened_again_while_it_is_open(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    with tree.writing("x.jpg") as file:
        file.write(0, b"one")
        tree._call(tree.parts.filesystem.fsync, file._handle)
        with tree.writing("x.jpg", create=False) as second:
            second.write(3, b" two")
    with refused(errno.EPERM):
        tree.writing("x.jpg", create=False).__enter__()

    assert stored(own_server) == {"x.jpg": b"one two"}


def test_the_last_writer_uploads_though_a_reader_is_still_there(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    fs = tree.parts.filesystem
    writer = fs.create("x.jpg", os.O_RDWR).handle
    fs.write(writer, 0, b"one")
    fs.flush(writer)
    assert tree.parts.uploads is not None
    local = tree.parts.uploads.local.get("x.jpg")
    assert local is not None
    still_open = tree.parts.uploads.writer.open_local(local, os.O_RDONLY)
    fs.write(writer, 3, b" mapped")  # a mapping writes after the descriptor is closed

    fs.release(writer)

    wait_until(lambda: stored(own_server) == {"x.jpg": b"one mapped"}, 5)
    tree.parts.uploads.writer.release(still_open)


def test_a_listing_shows_what_was_written_so_far(tree: InProcessTree) -> None:
    fs = tree.parts.filesystem
    with tree.writing("x.tmp") as file:
        before = fs.list_directory("").generation
        file.write(0, b"12345")
        assert fs.current_generation() != before
        assert [attr.size for _, attr in fs.list_directory("").entries] == [5]


def test_a_rename_that_fails_leaves_what_it_would_have_replaced(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    own_server.faults.add(REFUSED)
    with refused(errno.EACCES):
        tree.write("x.jpg", b"owed")
    tree.write("x.tmp", b"other")

    with refused(errno.EACCES):
        tree.rename("x.tmp", "x.jpg")

    assert (tree.read("x.jpg"), tree.read("x.tmp")) == (b"owed", b"other")
    own_server.faults.clear()
    tree.retry_uploads()
    wait_until(lambda: stored(own_server) == {"x.jpg": b"owed"}, 10)
    assert sorted(records(tree)) == ["x.jpg", "x.tmp"]


def test_what_is_removed_or_renamed_after_a_refusal_is_not_sent_under_its_old_name(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    own_server.faults.add(REFUSED)
    for name in ("gone.jpg", "moved.jpg", "kept.jpg"):
        with refused(errno.EACCES):
            tree.write(name, name.encode())
    tree.unlink("gone.jpg")
    tree.rename("kept.jpg", "kept.tmp")
    own_server.faults.clear()
    tree.rename("moved.jpg", "there.jpg")
    tree.retry_uploads()

    wait_until(lambda: stored(own_server) == {"there.jpg": b"moved.jpg"}, 5)
    time.sleep(0.3)
    assert stored(own_server) == {"there.jpg": b"moved.jpg"}
    assert records(tree)["kept.tmp"] is State.LOCAL
    assert "gone.jpg" not in records(tree)


def test_an_empty_file_is_renamed_while_it_is_open_and_written_then(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    with tree.writing("x.tmp") as file:
        tree._call(tree.parts.filesystem.fsync, file._handle)
        tree.rename("x.tmp", "x.jpg")
        assert stored(own_server) == {}
        file.write(0, b"now")

    assert stored(own_server) == {"x.jpg": b"now"}


def test_a_sample_with_a_scratch_name_is_replaced_like_any(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    own_server.add_sample("x.tmp", b"old")
    overwriting.refresh()

    overwriting.write("x.tmp", b"new")

    assert stored(own_server)["x.tmp"] == b"new"


def test_a_sample_that_is_being_changed_is_not_renamed_here_alone(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    with overwriting.writing("old.jpg", create=False) as file:
        file.truncate(0)
        with refused(errno.EPERM):
            overwriting.rename("old.jpg", "new.jpg")
        file.write(0, b"x")
    overwriting.rename("old.jpg", "new.jpg")

    assert stored(own_server) == {"new.jpg": b"x"}


def test_a_sample_that_is_gone_before_any_listing_is_shown_until_the_api_says_so(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    tree.write("x.jpg", b"x")
    assert tree.parts.uploads is not None
    completion = tree.parts.uploads.completion
    for file in tree.parts.uploads.local.all():
        file.uploaded_at = float("-inf")  # long ago

    for _ in range(10):
        completion.listed()
    assert tree.names() == ["x.jpg"]

    own_server.faults.add(Status(status=404, target="get"))
    completion.listed()

    assert tree.names() == []
    assert records(tree) == {}


def test_the_next_of_thousands_of_local_files_costs_no_more_than_the_first(tree: InProcessTree) -> None:
    tree.mkdir("d")
    assert tree.parts.uploads is not None
    local = tree.parts.uploads.local
    started = time.process_time()
    for number in range(3_000):
        file = local.new(f"d/{number}.tmp", 0o644)
        local.unstage_locked(file)
        tree.stat("d")
        tree.stat(f"d/{number}.tmp")
    assert len(tree.names("d")) == 3_000
    assert time.process_time() - started < 6


def test_a_file_that_is_removed_while_open_stays_removed_whatever_is_done_with_it(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    own_server.faults.add(REFUSED)
    fs = tree.parts.filesystem
    with refused(errno.EACCES):
        tree.write("x.jpg", b"owed")
    handle = fs.open("x.jpg", os.O_RDWR).handle
    tree.unlink("x.jpg")

    fs.write(handle, 4, b" more")
    fs.set_times(None, handle, atime_ns=None, mtime_ns=5 * 10**9)
    fs.truncate(None, handle, 2)
    assert fs.read(handle, 0, 10) == b"ow"
    fs.flush(handle)
    fs.release(handle)

    assert tree.names() == []
    assert records(tree) == {}
    own_server.faults.clear()
    tree.retry_uploads()
    assert stored(own_server) == {}


def test_an_open_sample_that_is_renamed_is_changed_at_its_new_path(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    with overwriting.writing("old.jpg", create=False) as file:
        overwriting.rename("old.jpg", "d/new.jpg")
        file.write(0, b"AB")

    assert stored(own_server) == {"d/new.jpg": b"AB23456789"}
    assert overwriting.names() == ["d"]
    assert overwriting.read("d/new.jpg") == b"AB23456789"


def test_a_file_that_is_replaced_is_not_sent_when_it_is_closed(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    tree.write("x.tmp", b"new")
    with tree.writing("x.jpg") as replaced:
        replaced.write(0, b"old")
        tree.rename("x.tmp", "x.jpg")

    assert stored(own_server) == {"x.jpg": b"new"}
    assert tree.read("x.jpg") == b"new"


def test_whatever_eight_threads_do_to_a_few_names_each_file_stays_in_view(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """No kernel orders these calls, and yet each file that is owed or kept here has a path of its own."""
    names = [stem + ending for stem in "abcd" for ending in (".jpg", ".tmp")]

    def work(tree: InProcessTree, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            one, other = chance.choice(names), chance.choice(names)
            try:
                if chance.random() < 0.5:
                    tree.write(one, chance.randbytes(chance.choice([0, 10, 1000])))
                elif chance.random() < 0.7:
                    tree.rename(one, other)
                else:
                    tree.unlink(one)
            except OSError:
                pass  # what another thread did meanwhile may make it impossible

    with in_process(own_server, tmp_path / "tree", write_back="on", allow_overwrite="on") as tree:
        threads = [threading.Thread(target=work, args=(tree, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tree.parts.uploads is not None
        tree.parts.uploads.uploader.wait_idle(20)

        local = tree.parts.uploads.local
        shown = {file.record.key for file in local.all()}
        hidden = [record for record in tree.parts.uploads.journal.records() if record.key not in shown]
        assert hidden == []


def test_a_renamed_sample_that_is_changed_is_listed_as_it_is_now(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    """The kernel takes sizes from listings: with the old one it would cut what it reads."""
    overwriting.rename("old.jpg", "new.jpg")
    with overwriting.writing("new.jpg", create=False) as file:
        file.write(10, b"longer")
        assert sizes(overwriting) == {"new.jpg": 16}

    assert sizes(overwriting) == {"new.jpg": 16}
    assert overwriting.read("new.jpg") == stored(own_server)["new.jpg"] == b"0123456789longer"
    overwriting.refresh()
    assert sizes(overwriting) == {"new.jpg": 16}


def sizes(tree: InProcessTree) -> dict[str, int]:
    """What a listing of the top directory says."""
    return {name: attr.size for name, attr in tree.parts.filesystem.list_directory("").entries}


@pytest.mark.parametrize("data", [b"second, and longer", b""], ids=["rewritten", "emptied"])
def test_a_file_that_is_rewritten_while_it_waits_is_sent_as_it_is_in_the_end(
    own_server: LocalServer, overwriting: InProcessTree, data: bytes
) -> None:
    """The moment that a temporary name waits for may end in the middle of the second write."""
    overwriting.write("x.tmp.jpg", b"first")
    assert overwriting.parts.uploads is not None
    with overwriting.writing("x.tmp.jpg", create=False) as file:
        file.truncate(0)
        # its moment is over
        overwriting.parts.uploads.uploader.retry_all()
        wait_until(lambda: "x.tmp.jpg" in stored(own_server), 5)
        file.write(0, data)
    overwriting.parts.uploads.uploader.wait_idle(10)
    overwriting.refresh()

    assert overwriting.names() == ["old.jpg", "x.tmp.jpg"]
    assert overwriting.read("x.tmp.jpg") == data
    if data:
        wait_until(lambda: stored(own_server)["x.tmp.jpg"] == data, 10)
    assert overwriting.parts.uploads.uploader.stats().failed == 0
    assert len(own_server.samples()) == 2


def test_a_file_that_is_emptied_while_it_waits_is_not_sent(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    overwriting.write("x.tmp.jpg", b"first")
    overwriting.write("x.tmp.jpg", b"")
    assert overwriting.parts.uploads is not None

    assert overwriting.parts.uploads.uploader.retry_all() == 0
    assert overwriting.read("x.tmp.jpg") == b""
    assert list(stored(own_server)) == ["old.jpg"]


def test_a_renamed_sample_that_is_changed_stays_so_when_its_file_is_forgotten(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """The catalogue has the sample under its old name, until it is listed again."""
    own_server.add_sample("old.jpg", b"0123456789")
    with in_process(own_server, tmp_path / "tree", allow_overwrite="on", write_back="on") as tree:
        assert tree.read("old.jpg") == b"0123456789"
        tree.rename("old.jpg", "new.jpg")
        tree.write("new.jpg", b"longer than before")
        wait_until(lambda: records(tree) == {}, 10)

        assert sizes(tree) == {"new.jpg": 18}
        assert (tree.stat("new.jpg").size, tree.read("new.jpg")) == (18, b"longer than before")
        tree.refresh()
        assert (tree.stat("new.jpg").size, tree.read("new.jpg")) == (18, b"longer than before")


def test_a_program_that_has_a_replaced_sample_open_changes_nothing_any_more(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    """As on a disk: its descriptor has a file without a name."""
    assert overwriting.read("old.jpg") == b"0123456789"
    with (
        overwriting.writing("old.jpg", create=False) as untouched,
        overwriting.writing("old.jpg", create=False) as written,
    ):
        written.write(0, b"AB")
        overwriting.write("new.tmp", b"of the rename")
        overwriting.rename("new.tmp", "old.jpg")
        untouched.write(2, b"CD")
        written.truncate(3)
        assert (untouched.read(2, 4), written.read(0, 9)) == (b"CD45", b"AB2")

    assert stored(own_server) == {"old.jpg": b"of the rename"}
    assert overwriting.read("old.jpg") == b"of the rename"
    overwriting.refresh()
    assert overwriting.read("old.jpg") == b"of the rename"
    assert overwriting.parts.uploads is not None
    assert overwriting.parts.uploads.spool.generations() == []


@pytest.mark.parametrize("disks", [1, 2])
def test_what_was_uploaded_is_read_from_the_cache(
    own_server: LocalServer, tree: InProcessTree, monkeypatch: pytest.MonkeyPatch, disks: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if disks == 2:
        monkeypatch.setattr(os, "link", refuse)
    contents = {"small.jpg": os.urandom(100_000), "large.jpg": os.urandom((2 << 20) + 5)}
    for name, data in contents.items():
        tree.write(name, data)
    own_server.faults.add(Status(status=404, target="storage.get"))

    assert {name: tree.read(name) for name in contents} == contents


def test_a_descriptor_of_a_replaced_file_does_not_write_into_the_cache(
    own_server: LocalServer, overwriting: InProcessTree, tmp_path: Path
) -> None:
    """The cache has taken over the file that was staged for the upload."""
    with overwriting.writing("new.jpg") as first:
        assert isinstance(first, InProcessFile)
        first.write(0, b"0123456789")
        first.flush()
        (cached,) = (tmp_path / "tree").glob("**/blocks/*/*")
        assert cached.read_bytes() == b"0123456789"
        overwriting.write("new.tmp", b"of the rename")
        overwriting.rename("new.tmp", "new.jpg")
        first.write(2, b"ABCDEFGHIJ")
        first.truncate(11)

        assert first.read(0, 20) == b"01ABCDEFGHI"
        assert cached.read_bytes() == b"0123456789"
    assert stored(own_server)["new.jpg"] == b"of the rename"


def test_a_sample_is_changed_as_it_is_when_it_is_written_not_when_it_was_opened(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    with overwriting.writing("old.jpg", create=False) as early:
        with overwriting.writing("old.jpg", create=False) as other:
            other.write(10, b"appended")
        early.write(0, b"AB")

    assert stored(own_server) == {"old.jpg": b"AB23456789appended"}


def test_an_open_sample_whose_name_a_new_file_took_changes_nothing_and_does_not_wait(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    """Others renamed the sample, and the new file of its name is on the server and still open."""
    sample_id = overwriting.xattr("old.jpg", "user.lightly.sample_id").decode()
    client, dataset_id = overwriting.parts.client, overwriting.parts.dataset_id
    with overwriting.writing("old.jpg", create=False) as first:
        client.update_sample(dataset_id, sample_id, SampleUpdate(file_name="elsewhere.jpg"))
        overwriting.refresh()
        with overwriting.writing("old.jpg") as second:
            assert isinstance(second, InProcessFile)
            second.write(0, b"new")
            second.flush()
            for change in (lambda: first.write(0, b"X"), lambda: first.truncate(0)):
                with refused(errno.EPERM):
                    change()

    assert stored(own_server) == {"elsewhere.jpg": b"0123456789", "old.jpg": b"new"}


def test_a_writer_that_meets_a_rename_under_way_waits_no_longer_than_any_call(
    overwriting: InProcessTree,
) -> None:
    overwriting.names()
    with overwriting.writing("old.jpg", create=False) as emptied:
        emptied.truncate(0)
    assert overwriting.parts.uploads is not None
    local = overwriting.parts.uploads.local.get("old.jpg")
    assert local is not None
    assert local.record.sample_id is not None
    listed = overwriting.parts.catalog.by_id(local.record.sample_id)
    assert listed is not None
    writer = overwriting.parts.uploads.writer
    writer.set_aside(local)  # as a rename does, which then waits for the server
    handle = WriteHandle("old.jpg", None, listed[1], True, 0)
    overwriting.parts.stop_waiting()

    with pytest.raises(Cancelled):
        writer.takeover.take(handle, copy=False)


@pytest.mark.parametrize("is_open", [False, True])
def test_an_emptied_sample_is_replaced_by_a_rename(
    own_server: LocalServer, overwriting: InProcessTree, is_open: bool
) -> None:
    (sample,) = own_server.samples()
    overwriting.write("new.tmp", b"new")
    with overwriting.writing("old.jpg", create=False) as file:
        file.truncate(0)
        if not is_open:
            file.close()
        overwriting.rename("new.tmp", "old.jpg")

    assert stored(own_server) == {"old.jpg": b"new"}
    assert [one["id"] for one in own_server.samples()] == [sample["id"]]
    assert overwriting.read("old.jpg") == b"new"
    assert overwriting.names() == ["old.jpg"]


def test_a_rename_that_the_journal_cannot_note_is_shown_as_the_server_has_it(
    own_server: LocalServer, overwriting: InProcessTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, and the server has the new name already."""

    def is_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    overwriting.mkdir("d")
    overwriting.write("d/x.jpg", b"x")
    with monkeypatch.context() as patched:
        for method in ("put", "put_directories", "remove"):
            patched.setattr(Journal, method, is_full)
        overwriting.rename("d/x.jpg", "d/y.jpg")

    assert stored(own_server)["d/y.jpg"] == b"x"
    assert overwriting.names("d") == ["y.jpg"]
    overwriting.rename("d/y.jpg", "d/x.jpg")
    assert {name for name in stored(own_server) if "/" in name} == {"d/x.jpg"}


def test_a_sample_that_shows_under_two_names_does_not_replace_itself(
    own_server: LocalServer, overwriting: InProcessTree
) -> None:
    overwriting.write("x.jpg", b"x")
    fs = overwriting.parts.filesystem
    entry = fs.sample("x.jpg")
    assert entry is not None
    assert fs._writing is not None

    fs._writing.changes._rename_sample(entry, "x.jpg", "y.jpg", entry, fs._patience.turn())

    assert stored(own_server) == {"old.jpg": b"0123456789", "y.jpg": b"x"}
    assert overwriting.names() == ["old.jpg", "y.jpg"]


def test_a_new_file_replaces_another_while_both_are_on_their_way(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """As `mv` does between two files that a mount uploads behind."""
    own_server.faults.add(Latency(delay_s=0.5, target="storage.put"))
    with in_process(own_server, tmp_path / "tree", write_back="on", allow_overwrite="on") as tree:
        tree.write("b.jpg", b"first")
        tree.write("a.jpg", b"second")
        wait_until(lambda: len(own_server.samples()) == 2, 10)
        kept = next(one["id"] for one in own_server.samples() if one["fileName"] == "b.jpg")

        tree.rename("a.jpg", "b.jpg")

        assert tree.names() == ["b.jpg"]
        assert tree.read("b.jpg") == b"second"
        assert own_server.object_bytes(kept) == b"second"


def test_a_sample_is_renamed_over_a_file_that_stays_here(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    """An empty one here; where the server refuses the rename, both stay where they were."""
    tree.write("a.jpg", b"sample")
    tree.write("b.jpg", b"")
    own_server.faults.add(Status(status=403, target="update"))
    with refused(errno.EACCES):
        tree.rename("a.jpg", "b.jpg")
    assert (tree.read("a.jpg"), tree.read("b.jpg")) == (b"sample", b"")

    own_server.faults.clear()
    tree.rename("a.jpg", "b.jpg")

    assert tree.names() == ["b.jpg"]
    assert tree.read("b.jpg") == b"sample"
    assert stored(own_server) == {"b.jpg": b"sample"}
    assert set(records(tree)) <= {"b.jpg"}


def test_a_sample_is_not_renamed_to_a_name_that_others_took_meanwhile(
    own_server: LocalServer, tree: InProcessTree
) -> None:
    tree.write("mine.jpg", b"mine")
    own_server.add_sample("taken.jpg", b"theirs")

    with refused(errno.EEXIST):
        tree.rename("mine.jpg", "taken.jpg")

    assert stored(own_server) == {"mine.jpg": b"mine", "taken.jpg": b"theirs"}
    wait_until(lambda: tree.names() == ["mine.jpg", "taken.jpg"], 5)


def test_what_was_sent_is_shown_where_its_next_writer_was_killed(
    own_server: LocalServer, behind: InProcessTree
) -> None:
    """Before the next listing, too; the half is kept out of view."""
    own_server.faults.add(Latency(delay_s=0.5, target="storage.put"))
    behind.write("x.jpg", b"whole")
    fs = behind.parts.filesystem
    handle = fs.open("x.jpg", os.O_RDWR | os.O_TRUNC).handle
    fs.write(handle, 0, b"half")
    fs.abandon(handle)
    assert behind.parts.uploads is not None
    behind.parts.uploads.uploader.wait_idle(10)

    assert stored(own_server) == {"x.jpg": b"whole"}
    for _ in range(2):
        assert behind.names() == ["x.jpg"]
        assert behind.read("x.jpg") == b"whole"
        behind.refresh()
    assert [file.record.state for file in behind.parts.uploads.local.aside()] == [State.INTERRUPTED]
    wait_until(lambda: State.UPLOADED not in records(behind).values(), 5)
