"""Kill -9 at any moment: no acknowledged file is lost, none is doubled, none is half there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from trees import MountedTree, environment, lightlyfs, need_fuse, start_mount, wait_until

from lightlyfs import mountpoints
from lightlyfs.testing import DropReply, LocalServer, ServerOptions

pytestmark = pytest.mark.fuse

SHORT_ROUNDS = 5
LONG_ROUNDS = 200


class Crashing:
    """A dataset whose mount is killed again and again while files are written to it."""

    def __init__(self, server: LocalServer, directory: Path, *options: str) -> None:
        self.server = server
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir(parents=True)
        self.environ = environment(server, directory / "cache")
        self.environ["XDG_STATE_HOME"] = str(directory / "state")
        self.log = directory / "log"
        self.options = options
        self.acknowledged: dict[str, bytes] = {}
        self.attempted: dict[str, bytes] = {}

    def start(self) -> MountedTree:
        """Mount, clearing what the last kill left."""
        return start_mount(self.server.dataset_id, self.mountpoint, self.environ, self.log, *self.options)

    def write_until_killed(self, tree: MountedTree, prefix: str, after_s: float) -> None:
        """Write files, by close or by rename from a scratch name, and kill the mount meanwhile."""
        killer = threading.Timer(after_s, tree.process.kill)
        killer.start()
        try:
            for number in range(10_000):
                self._write_one(f"{prefix}-{number}.bin", number)
        except OSError:
            pass
        killer.join()
        tree.process.wait()
        tree.ended = True

    def _write_one(self, name: str, number: int) -> None:
        data = random.Random(name).randbytes(number * 977 % 40_000 + 1)
        self.attempted[name] = data
        target = self.mountpoint / name
        scratch = self.mountpoint / f".{name}.Ab12Cd" if number % 3 == 0 else target
        with scratch.open("wb", buffering=0) as file:
            file.write(data)
        if scratch != target:
            scratch.rename(target)
        self.acknowledged[name] = data

    def settle(self) -> None:
        """Mount once more and wait until nothing is owed."""
        tree = self.start()
        try:
            tree.run("uploads", "retry")
            self.drain()
            for name, data in self.acknowledged.items():
                assert (self.mountpoint / name).read_bytes() == data
        finally:
            tree.end()

    def drain(self) -> None:
        """Wait until nothing is owed, as long as it gets less: 200 rounds leave thousands of files."""
        while (pending := self.status()["uploads"]["pending"]) > 0:
            wait_until(lambda before=pending: self.status()["uploads"]["pending"] < before, 60)

    def status(self) -> dict[str, dict[str, int]]:
        """What the mount says of itself."""
        done = lightlyfs("status", str(self.mountpoint), "--json", environ=self.environ)
        return dict(json.loads(done.stdout))

    def check(self) -> None:
        """The server has every acknowledged file once, and nothing that nobody wrote."""
        documents = self.server.samples()
        names = [document["fileName"] for document in documents]
        assert len(names) == len(set(names)), "doubled"
        held = {document["fileName"]: self.server.object_bytes(document["id"]) for document in documents}
        assert set(self.acknowledged) <= set(held), "lost"
        wrong = [name for name, data in held.items() if data != self.attempted.get(name)]
        assert wrong == [], "half there"


@contextlib.contextmanager
def crashing(tmp_path: Path, *options: str, kind: type[Crashing] = Crashing) -> Iterator[Crashing]:
    """A dataset to crash on; no mount outlives the test."""
    need_fuse("3")
    images = tmp_path / "images"
    images.mkdir()
    with LocalServer(ServerOptions(source=images)) as server:
        subject = kind(server, tmp_path / "tree", *options)
        try:
            yield subject
        finally:
            if mountpoints.mount_at(subject.mountpoint) is not None:
                mountpoints.unmount(subject.mountpoint, lazy=True)


def run_rounds(subject: Crashing, rounds: int, seed: int) -> None:
    """Kill the mount `rounds` times at random moments, then settle and compare."""
    moments = random.Random(seed)
    for number in range(rounds):
        subject.write_until_killed(subject.start(), f"r{number}", moments.uniform(0.0, 0.5))
    subject.settle()
    subject.check()


@pytest.mark.parametrize("options", [(), ("--write-back",)], ids=["close-waits", "write-back"])
def test_killing_the_mount_loses_and_doubles_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    with crashing(tmp_path, *options) as subject:
        run_rounds(subject, SHORT_ROUNDS, 1)
        assert subject.acknowledged


def test_killing_the_mount_while_replies_are_lost_doubles_nothing(tmp_path: Path) -> None:
    with crashing(tmp_path) as subject:
        subject.server.faults.add(
            DropReply(target="withWriteUrls", probability=0.1),
            DropReply(target="storage.put", probability=0.1),
        )
        moments = random.Random(2)
        for number in range(SHORT_ROUNDS):
            subject.write_until_killed(subject.start(), f"r{number}", moments.uniform(0.0, 0.5))
        subject.server.faults.clear()
        subject.settle()
        subject.check()


class Rewriting(Crashing):
    """A few files that are written again and again, so that a kill meets every step of an overwrite."""

    def __init__(self, server: LocalServer, directory: Path, *options: str) -> None:
        super().__init__(server, directory, *options)
        self.possible: dict[str, set[bytes]] = {}  # what a crash may have left, by name

    def _write_one(self, name: str, number: int) -> None:
        data = random.Random(name).randbytes(number * 977 % 40_000 + 1)
        target = f"{number % 4}.bin"
        self.possible.setdefault(target, set()).add(data)
        with (self.mountpoint / target).open("wb", buffering=0) as file:
            file.write(data)
        self.acknowledged[target] = data
        self.possible[target] = {data}

    def settle(self) -> None:
        """Mount once more and wait until nothing is owed."""
        tree = self.start()
        try:
            tree.run("uploads", "retry")
            self.drain()
        finally:
            tree.end()

    def check(self) -> None:
        """Each file is once on the server, and is what was acknowledged last, or was written since."""
        held: dict[str, list[bytes | None]] = {}
        for document in self.server.samples():
            held.setdefault(document["fileName"], []).append(self.server.object_bytes(document["id"]))
        assert set(self.acknowledged) <= set(held), "lost"
        assert [name for name, found in held.items() if len(found) > 1] == [], "doubled"
        wrong = [name for name, (data,) in held.items() if data not in self.possible[name]]
        assert wrong == [], "an older one, or half there"


@pytest.mark.parametrize("options", [(), ("--write-back",)], ids=["close-waits", "write-back"])
def test_killing_the_mount_while_files_are_rewritten_leaves_the_last_or_a_later_one(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with crashing(tmp_path, "--allow-overwrite", *options, kind=Rewriting) as subject:
        run_rounds(subject, SHORT_ROUNDS, 5)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", [(), ("--write-back",)], ids=["close-waits", "write-back"])
def test_killing_the_mount_200_times_loses_and_doubles_nothing(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with crashing(tmp_path, *options) as subject:
        run_rounds(subject, LONG_ROUNDS, 3)


def test_a_file_that_was_being_written_is_not_uploaded_but_can_be_read(tmp_path: Path) -> None:
    with crashing(tmp_path) as subject:
        tree = subject.start()
        with contextlib.suppress(OSError), (subject.mountpoint / "half.bin").open("wb", buffering=0) as file:
            file.write(b"half of it")
            tree.process.send_signal(signal.SIGKILL)
            tree.process.wait()
            tree.ended = True

        tree = subject.start()
        try:
            assert subject.server.samples() == []
            assert (subject.mountpoint / "half.bin").read_bytes() == b"half of it"
            state = os.getxattr(subject.mountpoint / "half.bin", "user.lightly.upload")
            assert state.startswith(b"interrupted")
            listed = lightlyfs("uploads", "list", environ=subject.environ).stdout
            assert listed.startswith("half.bin\tinterrupted")
            (subject.mountpoint / "half.bin").unlink()
        finally:
            tree.end()
        assert lightlyfs("uploads", "list", environ=subject.environ).stdout == ""


def test_an_end_of_the_mount_waits_for_what_is_under_way(tmp_path: Path) -> None:
    with crashing(tmp_path, "--write-back") as subject:
        tree = subject.start()
        for number in range(50):
            (subject.mountpoint / f"{number}.bin").write_bytes(os.urandom(10_000))
        started = time.monotonic()
        tree.end()
        assert time.monotonic() - started < 30
        assert len(subject.server.samples()) == 50


def test_a_server_that_goes_and_comes_back_holds_every_file_once(tmp_path: Path) -> None:
    need_fuse("3")
    (tmp_path / "images").mkdir()
    options = ServerOptions(source=tmp_path / "images", state=tmp_path / "server", token="t" * 32)
    server = LocalServer(options).start()
    subject = Crashing(server, tmp_path / "tree")
    tree = subject.start()
    try:
        writer = threading.Thread(target=_write_many, args=(subject, 120))
        writer.start()
        wait_until(lambda: len(subject.acknowledged) >= 20, 60)
        server.stop()
        port = int(server.url.rpartition(":")[2])
        subject.server = LocalServer(replace(options, port=port)).start()
        writer.join(90)
        assert not writer.is_alive()
        tree.run("uploads", "retry")
        wait_until(lambda: subject.status()["uploads"]["pending"] == 0, 60)
        assert len(subject.acknowledged) >= 20
        subject.check()
        assert set(subject.attempted) == {document["fileName"] for document in subject.server.samples()}
    finally:
        tree.end()
        subject.server.stop()


def _write_many(subject: Crashing, count: int) -> None:
    for number in range(count):
        with contextlib.suppress(OSError):
            subject._write_one(f"file-{number}.bin", number * 3 + 1)
