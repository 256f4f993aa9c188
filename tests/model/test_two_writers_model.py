"""Two machines and a script of the API change one dataset at random; in the end all see the same."""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trees import InProcessTree, in_process

from lightlyfs import app
from lightlyfs.api.models import SampleUpdate
from lightlyfs.settings import Secrets, resolve
from lightlyfs.testing import LocalServer, ServerOptions

REPLACED = ".lightlyfs-replaced/"
NAMES = ["a.jpg", "b.jpg", "d/c.jpg", "d/e/f.jpg"]
PATHS = st.sampled_from(NAMES)
MACHINES = st.integers(0, 1)
# what a machine may answer that does not know of a change yet
LATE = (errno.EEXIST, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE)
SETTLE_S = 20.0


class TwoMachines(RuleBasedStateMachine):
    """Two file system objects with caches of their own, the server, and what it must hold in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.trees: list[InProcessTree] = []
        self.written: set[bytes] = set()
        self.made = 0

    @initialize()
    def begin(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="lightlyfs-two-"))
        self.stack.callback(shutil.rmtree, directory)
        (directory / "images").mkdir()
        self.server = self.stack.enter_context(LocalServer(ServerOptions(source=directory / "images")))
        environ = {"LIGHTLY_SERVER_LOCATION": self.server.url}
        secrets = Secrets(self.server.token, None, None)
        self.client = app.connect(resolve({}, environ), secrets, environ).client
        for name in ("one", "two"):
            tree = in_process(self.server, directory / name, allow_overwrite="on", upload="images")
            self.trees.append(self.stack.enter_context(tree))

    def teardown(self) -> None:
        try:
            if len(self.trees) == 2:
                self.all_see_the_same()
        finally:
            self.stack.close()

    def new_bytes(self) -> bytes:
        """Content that was never written before."""
        self.made += 1
        data = b"content %d" % self.made + b"." * (self.made % 7)
        self.written.add(data)
        return data

    def named(self) -> dict[str, list[str]]:
        """The ids of the samples of each name, but for what was put away."""
        found: dict[str, list[str]] = {}
        for document in self.server.samples():
            name = document["fileName"]
            if not name.startswith(REPLACED):
                found.setdefault(name, []).append(document["id"])
        return found

    def check_stored(self, data: bytes) -> None:
        """One sample has the bytes, perhaps under the name that others have given it meanwhile."""
        held = [self.server.object_bytes(sample_id) for (sample_id,) in self.named().values()]
        assert held.count(data) == 1

    @rule(machine=MACHINES, path=PATHS)
    def write(self, machine: int, path: str) -> None:
        """A new file, or a new image for a sample, whether or not the machine knows of it."""
        data = self.new_bytes()
        self.trees[machine].write(path, data)
        self.check_stored(data)

    @rule(machine=MACHINES, path=PATHS)
    def save_by_rename(self, machine: int, path: str) -> None:
        """A scratch file that is renamed to the name, as editors save."""
        data, scratch = self.new_bytes(), f"{path}.part"
        self.trees[machine].write(scratch, data)
        self.trees[machine].rename(scratch, path)
        self.check_stored(data)

    @rule(machine=MACHINES, old=PATHS, new=PATHS)
    def rename(self, machine: int, old: str, new: str) -> None:
        """A rename by a machine that knows what is there."""
        self.trees[machine].refresh()
        before = self.named()
        outcome = attempt(lambda: self.trees[machine].rename(old, new))
        if old not in before:
            assert outcome == errno.ENOENT
        elif old == new:
            assert outcome == 0
        elif new in before:
            # a sample that this machine has just made gives the other its bytes; else it is refused
            assert outcome in (0, errno.EPERM)
        else:
            assert outcome == 0
            assert self.named()[new] == before[old]

    @rule(path=PATHS)
    def add_by_api(self, path: str) -> None:
        """A colleague's script creates a sample, where none is: scripts look first."""
        if path not in self.named():
            self.server.add_sample(path, self.new_bytes())

    @rule(old=PATHS, new=PATHS)
    def rename_by_api(self, old: str, new: str) -> None:
        """A colleague's script renames a sample to a free name."""
        found = self.named()
        if old in found and new not in found:
            update = SampleUpdate(file_name=new)
            self.client.update_sample(self.server.dataset_id, found[old][0], update)

    @rule(machine=MACHINES)
    def refresh(self, machine: int) -> None:
        """A machine learns what the others did."""
        self.trees[machine].refresh()

    @rule(machine=MACHINES, path=PATHS)
    def read(self, machine: int, path: str) -> None:
        """Bytes are those that somebody wrote, whoever is behind the times."""
        try:
            data = self.trees[machine].read(path)
        except OSError as error:
            assert error.errno in LATE  # noqa: PT017
        else:
            assert data in self.written

    @invariant()
    def no_name_is_there_twice(self) -> None:
        if hasattr(self, "server"):
            assert all(len(ids) == 1 for ids in self.named().values()), self.named()

    def all_see_the_same(self) -> None:
        """No sample lost, none doubled, and the same names and bytes on both machines."""
        held = {name: self.server.object_bytes(ids[0]) for name, ids in self.named().items()}
        end = time.monotonic() + SETTLE_S
        for tree in self.trees:
            tree.refresh()
            while (found := shown(tree)) != held:
                assert time.monotonic() < end, (found, held)
                time.sleep(0.1)
            assert tree.parts.uploads is not None
            stats = tree.parts.uploads.uploader.stats()
            assert (stats.under_way, stats.waiting, stats.failed) == (0, 0, 0)


def attempt(action: object) -> int:
    """The errno that an action fails with, or 0."""
    try:
        action()  # type: ignore[operator]
    except OSError as error:
        return error.errno or -1
    return 0


def shown(tree: InProcessTree) -> dict[str, bytes]:
    """Every file of a tree with its bytes."""
    found: dict[str, bytes] = {}
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        for name in tree.names(directory):
            path = f"{directory}/{name}" if directory else name
            if tree.stat(path).is_directory:
                waiting.append(path)
            else:
                found[path] = tree.read(path)
    return found


TestTwoMachines = TwoMachines.TestCase
TestTwoMachines.settings = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
