"""What one mount leaves and the next one finds, wherever the first was cut off."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_writing import stored
from trees import InProcessTree, in_process, refused, wait_until

from lightlyfs import places
from lightlyfs.api.client import LightlyClient
from lightlyfs.app.uploading import _take_over
from lightlyfs.errors import Forbidden
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import Planned, Record, State
from lightlyfs.staging.spool import Spool
from lightlyfs.staging.upload_steps import StoredObjects
from lightlyfs.testing import LocalServer, Status

REFUSED = Status(status=403, target="withWriteUrls")
DATASET = "d" * 24


class Machine:
    """Mounts of one dataset on one machine, one after the other."""

    def __init__(self, server: LocalServer, directory: Path) -> None:
        self.server = server
        self.directory = directory / "tree"

    @contextmanager
    def mount(self, **flags: str) -> Iterator[InProcessTree]:
        with in_process(self.server, self.directory, **flags) as tree:
            yield tree

    @property
    def spool(self) -> Path:
        (found,) = self.directory.rglob("uploads/0")
        return found


@pytest.fixture
def machine(own_server: LocalServer, tmp_path: Path) -> Machine:
    return Machine(own_server, tmp_path)


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "no room")


def test_half_a_file_is_not_uploaded_by_the_next_mount(
    machine: Machine, own_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.mount() as tree:
        with refused(errno.ENOSPC), tree.writing("x.jpg") as file:
            file.write(0, b"half")
            with monkeypatch.context() as patched:
                patched.setattr("lightlyfs.staging.spool.StagedFile.write_at", full_disk)
                file.write(4, b"whole")
        assert tree.xattr("x.jpg", "user.lightly.upload").startswith(b"failed: a write failed")

    with machine.mount() as tree:
        tree.retry_uploads()
        assert tree.xattr("x.jpg", "user.lightly.upload").startswith(b"failed: a write failed")
        with refused(errno.ENOSPC):
            tree.rename("x.jpg", "y.jpg")
        assert stored(own_server) == {}

        tree.write("x.jpg", b"whole")

        assert stored(own_server) == {"x.jpg": b"whole"}


def test_a_file_that_is_owed_is_written_anew_without_a_copy_of_it(
    machine: Machine, own_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_server.faults.add(REFUSED)
    with machine.mount() as tree:
        with refused(errno.EACCES):
            tree.write("x.jpg", b"owed")
        own_server.faults.clear()
        monkeypatch.setattr("lightlyfs.staging.spool.Spool.copy", full_disk)

        tree.write("x.jpg", b"anew")

    assert stored(own_server) == {"x.jpg": b"anew"}


def test_a_failed_sync_keeps_a_file_from_being_called_whole(
    machine: Machine, own_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.mount() as tree:
        with (
            refused(errno.ENOSPC),
            monkeypatch.context() as patched,
            tree.writing("x.jpg") as file,
        ):
            file.write(0, b"data")
            patched.setattr("lightlyfs.staging.spool.StagedFile.sync", full_disk)
        assert stored(own_server) == {}
        assert tree.xattr("x.jpg", "user.lightly.upload").startswith(b"failed: a write failed")
        tree.unlink("x.jpg")
        assert tree.names() == []


def test_a_full_disk_under_the_journal_fails_each_step_and_the_mount_lives_on(
    machine: Machine, own_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.mount() as tree:
        for passing in range(5):
            with monkeypatch.context() as patched:
                patched.setattr(Journal, "put", puts_until_full(passing))
                try:
                    tree.write(f"{passing}.jpg", b"data")
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017
        tree.retry_uploads()
        for passing in range(5):
            tree.write(f"again{passing}.jpg", b"data")
        names = tree.names()
        assert [tree.read(name) for name in names] == [b"data"] * len(names)
    held = stored(own_server)
    assert set(held.values()) == {b"data"}
    assert {f"again{passing}.jpg" for passing in range(5)} <= held.keys()


def test_an_acknowledged_file_goes_up_though_the_mount_died_while_it_was_rewritten(
    machine: Machine, own_server: LocalServer
) -> None:
    own_server.faults.add(REFUSED)
    with machine.mount(write_back="on") as tree:
        tree.write("x.jpg", b"acknowledged")
        wait_until(lambda: b"403" in tree.xattr("x.jpg", "user.lightly.upload"), 20)
        handle = tree.parts.filesystem.open("x.jpg", os.O_RDWR | os.O_TRUNC).handle
        tree.parts.filesystem.write(handle, 0, b"half")
        # the mount ends without a release, as by a kill
    own_server.faults.clear()

    with machine.mount() as tree:
        wait_until(lambda: stored(own_server) == {"x.jpg": b"acknowledged"}, 10)
        assert tree.names() == ["x.jpg", "x~2.jpg"]
        assert tree.read("x~2.jpg") == b"half"
        assert tree.xattr("x~2.jpg", "user.lightly.upload").startswith(b"interrupted")


@pytest.mark.parametrize("existed", [False, True], ids=["new", "over a sample"])
def test_an_acknowledged_file_goes_up_though_its_next_writer_was_killed_before_the_mount(
    machine: Machine, own_server: LocalServer, existed: bool
) -> None:
    if existed:
        own_server.add_sample("x.jpg", b"before")
    own_server.faults.add(Status(status=503, target="storage.put"))
    with machine.mount(write_back="on", allow_overwrite="on") as tree:
        tree.write("x.jpg", b"acknowledged")
        fs = tree.parts.filesystem
        handle = fs.open("x.jpg", os.O_RDWR | os.O_TRUNC).handle
        fs.write(handle, 0, b"half")
        fs.abandon(handle)
        # the mount ends before storage takes the first one
    own_server.faults.clear()

    with machine.mount(allow_overwrite="on") as tree:
        wait_until(lambda: stored(own_server) == {"x.jpg": b"acknowledged"}, 10)
        tree.refresh()
        assert tree.read("x.jpg") == b"acknowledged"
        assert tree.names() == (["x.jpg"] if existed else ["x.jpg", "x~2.jpg"])
        assert tree.parts.uploads is not None
        states = {record.path: record.state for record in tree.parts.uploads.journal.records()}
        assert list(states.values()) == [State.INTERRUPTED]


def test_a_journal_that_cannot_be_read_costs_the_names_and_no_byte(
    machine: Machine, own_server: LocalServer
) -> None:
    with machine.mount() as tree:
        tree.write("x.tmp", b"scratch")
    journal = machine.spool / "journal.db"
    for path in machine.spool.glob("journal.db*"):
        path.unlink()
    journal.write_bytes(b"something else" * 500)

    with machine.mount() as tree:
        (name,) = tree.names()
        assert name.startswith("recovered-")
        assert tree.read(name) == b"scratch"

    assert journal.with_name("journal.db.damaged").read_bytes() == b"something else" * 500
    assert own_server.samples() == []


def test_discarding_a_failed_overwrite_brings_the_servers_version_back(
    machine: Machine, own_server: LocalServer
) -> None:
    own_server.add_sample("old.jpg", b"on the server")
    own_server.faults.add(Status(status=403, target="storage.put"))
    with machine.mount(allow_overwrite="on") as tree:
        with refused(errno.EACCES):
            tree.write("old.jpg", b"refused")
        assert tree.read("old.jpg") == b"refused"
        with refused(errno.EPERM):
            tree.unlink("old.jpg")
    journal = Journal(machine.spool / "journal.db")
    (record,) = journal.records()
    journal.remove(record.key)
    journal.close()

    with machine.mount(allow_overwrite="on") as tree:
        assert tree.read("old.jpg") == b"on the server"


def puts_until_full(passing: int) -> Callable[..., None]:
    """A `Journal.put` for which the disk is full after so many."""
    original = Journal.put
    calls = iter(range(100))

    def put(journal: Journal, record: Record, **options: bool) -> None:
        if next(calls) >= passing:
            full_disk()
        original(journal, record, **options)

    return put


class Spools:
    """Two places of what is owed; the second takes over the first."""

    def __init__(self, directory: Path) -> None:
        root = directory / DATASET / "uploads"
        for name in ("0", "1"):
            (root / name).mkdir(parents=True, mode=0o700)
        for path in (directory, directory / DATASET, root):
            path.chmod(0o700)
        self.source, self.target = root / "1", root / "0"
        journal = Journal(self.source / "journal.db")
        spool = Spool(self.source / "files")
        for number in range(3):
            key = f"{number:032x}"
            journal.put(Record(key, f"{number}.jpg", f"{number}.jpg", State.PENDING, generation=1))
            for generation in range(2):
                spool.path(key, generation).write_bytes(b"%d.%d" % (number, generation))
        journal.put_renames([Planned("old", "new", "c" * 24)])
        journal.close()
        self.place = places.SpoolPlace(directory, DATASET)
        assert self.place.path == self.target
        assert self.place.others == [self.source]

    def check(self) -> None:
        journal = Journal(self.target / "journal.db")
        try:
            assert [r.path for r in journal.records()] == ["0.jpg", "1.jpg", "2.jpg"]
            assert journal.renames() == [("old", "new", "c" * 24)]
        finally:
            journal.close()
        assert len(list((self.target / "files").iterdir())) == 6
        assert list((self.source / "files").iterdir()) == []
        left = Journal(self.source / "journal.db")
        assert (left.records(), left.renames()) == ([], [])
        left.close()


@pytest.mark.parametrize("step", ["put", "rename", "put_renames", "remove"])
@pytest.mark.parametrize("nth", [0, 1])
def test_taking_over_a_spool_may_be_cut_off_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    spools = Spools(tmp_path / "state")
    owner: object = os if step == "rename" else Journal
    original = getattr(owner, step)
    calls = iter(range(100))

    def cut_off(*args: object, **options: object) -> object:
        if next(calls) == nth:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, cut_off)
        try:
            _take_over(spools.source, spools.place)
        except KeyboardInterrupt:
            held = {path.name for path in tmp_path.rglob("files/*")}
            assert len(held) == 6
    _take_over(spools.source, spools.place)

    spools.check()
    spools.place.close()


def test_two_spools_with_files_of_one_path_both_reach_the_server(
    machine: Machine, own_server: LocalServer, tmp_path: Path
) -> None:
    own_server.faults.add(REFUSED)
    with machine.mount() as tree, refused(errno.EACCES):
        tree.write("x.jpg", b"one")
    kept = machine.spool.with_name("kept")
    machine.spool.rename(kept)
    with machine.mount() as tree, refused(errno.EACCES):
        tree.write("x.jpg", b"two")
    shutil.move(kept, kept.with_name("1"))
    own_server.faults.clear()

    with machine.mount() as tree:
        wait_until(lambda: len(own_server.samples()) == 2, 10)
        assert tree.names() == ["x.jpg", "x~2.jpg"]
        assert {tree.read("x.jpg"), tree.read("x~2.jpg")} == {b"one", b"two"}
    assert sorted(stored(own_server)) == ["x.jpg", "x~2.jpg"]


def test_a_state_directory_from_a_backup_takes_no_image_back(machine: Machine, tmp_path: Path) -> None:
    """What it owes was sent since, and replaced; its create was on its way when it was saved."""
    machine.server.faults.add(Status(status=403, target="storage.put"))
    with machine.mount() as tree, refused(errno.EACCES):
        tree.write("x.jpg", b"of the backup")
    shutil.copytree(machine.directory, tmp_path / "backup")
    machine.server.faults.clear()
    with machine.mount(allow_overwrite="on") as tree:
        wait_until(lambda: stored(machine.server) == {"x.jpg": b"of the backup"}, 10)
        tree.refresh()
        tree.write("x.jpg", b"newer")
    shutil.rmtree(machine.directory)
    shutil.copytree(tmp_path / "backup", machine.directory)
    lose_the_reply(machine)

    with machine.mount() as tree:
        wait_until(lambda: tree.names() == ["x.jpg", "x~2.jpg"], 10)
        assert (tree.read("x.jpg"), tree.read("x~2.jpg")) == (b"newer", b"of the backup")
    held = stored(machine.server)
    # a create may have been on its way, so that one more is sent and put out of view
    assert {name: held[name] for name in held if not name.startswith(".lightlyfs-replaced/")} == {
        "x.jpg": b"newer"
    }


def lose_the_reply(machine: Machine) -> None:
    """Have a journal hold what it does while the reply to a create is awaited."""
    journal = Journal(machine.spool / "journal.db")
    (record,) = journal.records()
    assert record.create_sent
    journal.put(record.changed(sample_id=None))
    journal.close()


class Killed:
    """A mount that is killed once the server has handled a request, before anything is noted of it."""

    def __init__(self, machine: Machine, patched: pytest.MonkeyPatch) -> None:
        self._machine = machine
        self._patched = patched
        self._left = machine.directory.with_name("left")
        self._kind: type = object
        self._method = ""
        for kind, methods in (
            (LightlyClient, ("create_sample_with_write_urls", "update_sample", "get_sample_write_urls")),
            (StoredObjects, ("put",)),
        ):
            for method in methods:
                self._watch(kind, method)

    def after(self, kind: type, method: str) -> None:
        """Choose the request; what the mount sends after it reaches no server."""
        self._kind, self._method = kind, method

    def _watch(self, kind: type, method: str) -> None:
        original = getattr(kind, method)

        def call(*args: Any, **options: Any) -> Any:
            if self._left.exists():
                raise Forbidden("the mount is dead", status=403)
            answer = original(*args, **options)
            if (kind, method) == (self._kind, self._method):
                shutil.copytree(self._machine.directory, self._left, ignore=shutil.ignore_patterns("*-shm"))
                raise Forbidden("the mount is dead", status=403)
            return answer

        self._patched.setattr(kind, method, call)

    def leave(self) -> None:
        """Put what the killed mount left in its place."""
        self._patched.undo()
        shutil.rmtree(self._machine.directory)
        self._left.rename(self._machine.directory)


@pytest.mark.parametrize(
    ("kind", "method"), [(LightlyClient, "create_sample_with_write_urls"), (StoredObjects, "put")]
)
@pytest.mark.parametrize("sole", ["on", "off"])
def test_a_kill_before_a_step_is_noted_loses_and_doubles_no_new_file(
    machine: Machine, kind: type, method: str, sole: str
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        killed = Killed(machine, patched)
        killed.after(kind, method)
        with machine.mount(sole_writer=sole) as tree, refused(errno.EACCES):
            tree.write("x.jpg", b"content")
        killed.leave()
    assert len(machine.server.samples()) == 1

    with machine.mount(sole_writer=sole) as tree:
        wait_until(lambda: tree.xattr("x.jpg", "user.lightly.upload") == b"uploaded", 10)
        assert stored(machine.server) == {"x.jpg": b"content"}
        assert tree.names() == ["x.jpg"]
        assert tree.read("x.jpg") == b"content"
    assert len(machine.server.samples()) == 1


@pytest.mark.parametrize(("kind", "method"), [(StoredObjects, "put"), (LightlyClient, "update_sample")])
def test_a_kill_before_a_step_is_noted_leaves_the_new_image(
    machine: Machine, kind: type, method: str
) -> None:
    sample_id = machine.server.add_sample("x.jpg", b"before")
    with pytest.MonkeyPatch.context() as patched:
        killed = Killed(machine, patched)
        killed.after(kind, method)
        with machine.mount(allow_overwrite="on") as tree, refused(errno.EACCES):
            tree.write("x.jpg", b"content")
        killed.leave()

    with machine.mount(allow_overwrite="on") as tree:
        wait_until(lambda: tree.xattr("x.jpg", "user.lightly.upload") == b"uploaded", 10)
        assert stored(machine.server) == {"x.jpg": b"content"}
        assert tree.read("x.jpg") == b"content"
    (sample,) = machine.server.samples()
    assert sample["id"] == sample_id
    assert sample["metaData"]["sizeInBytes"] == len(b"content")


@pytest.mark.parametrize("overwrite", ["on", "off"])
def test_a_kill_while_a_sample_gives_way_to_an_earlier_one_loses_no_byte(
    machine: Machine, overwrite: str
) -> None:
    """Its empty sample was renamed out of the way, and the journal still has it for the file's."""
    with pytest.MonkeyPatch.context() as patched:
        killed = Killed(machine, patched)
        create = LightlyClient.create_sample_with_write_urls

        def create_second(*args: Any, **options: Any) -> Any:
            machine.server.add_sample("x.jpg", b"of others")
            return create(*args, **options)

        patched.setattr(LightlyClient, "create_sample_with_write_urls", create_second)
        killed.after(LightlyClient, "update_sample")
        with machine.mount(allow_overwrite=overwrite) as tree, refused(errno.EACCES):
            tree.write("x.jpg", b"content")
        killed.leave()
    assert len(machine.server.samples()) == 2

    with machine.mount(allow_overwrite=overwrite) as tree:
        assert tree.parts.uploads is not None
        tree.parts.uploads.uploader.wait_idle(10)
        tree.refresh()
        held = {name: data for name, data in stored(machine.server).items() if "replaced/" not in name}
        if overwrite == "on":
            assert held == {"x.jpg": b"content"}
            assert tree.read("x.jpg") == b"content"
        else:
            assert held == {"x.jpg": b"of others"}
            assert [tree.read(name) for name in tree.names()] == [b"of others", b"content"]
    assert len(machine.server.samples()) == 2
