"""Random changes to a tree against a model of what a user may see and what the server must hold."""

from __future__ import annotations

import errno
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from trees import in_process

from lightlyfs.testing import LocalServer, ServerOptions

REAL = ["a.jpg", "b.jpg", "d/c.jpg", "d/e/f.jpg"]
SCRATCH = [".a.jpg.Xy12Ab", "d/part.tmp"]
PATHS = st.sampled_from(REAL + SCRATCH)
DATA = st.binary(max_size=40)


class WritingATree(RuleBasedStateMachine):
    """The file system object, the server behind it, and two dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.samples: dict[str, bytes] = {}  # what the server must hold
        self.here: dict[str, bytes] = {}  # what is on this machine only

    @initialize()
    def begin(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="lightlyfs-model-"))
        self.stack.callback(shutil.rmtree, directory)
        (directory / "images").mkdir()
        self.server = self.stack.enter_context(LocalServer(ServerOptions(source=directory / "images")))
        self.tree = self.stack.enter_context(
            in_process(self.server, directory / "tree", allow_overwrite="on")
        )

    def teardown(self) -> None:
        self.stack.close()

    def seen(self) -> dict[str, bytes]:
        return {**self.samples, **self.here}

    def is_scratch(self, path: str) -> bool:
        return path in SCRATCH

    def settle(self, path: str, data: bytes) -> None:
        """What becomes of a file that is closed with this content."""
        if path in self.samples:
            if data:
                self.samples[path] = data
            else:
                self.here[path] = data  # shown empty, and not sent before it has content
                return
            self.here.pop(path, None)
        elif data and not self.is_scratch(path):
            self.samples[path] = data
            self.here.pop(path, None)
        else:
            self.here[path] = data

    @rule(path=PATHS, data=DATA)
    def write_whole(self, path: str, data: bytes) -> None:
        self.tree.write(path, data)
        self.settle(path, data)

    @rule(path=PATHS, offset=st.integers(0, 50), data=st.binary(min_size=1, max_size=20))
    def write_into(self, path: str, offset: int, data: bytes) -> None:
        before = self.seen().get(path)
        with self.tree.writing(path, create=True) as file:
            file.write(offset, data)
        before = before or b""
        padded = before.ljust(offset, b"\0")
        self.settle(path, padded[:offset] + data + padded[offset + len(data) :])

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        outcome = self.attempt(lambda: self.tree.unlink(path))
        if path in self.samples:
            assert outcome == errno.EPERM
        elif path in self.here:
            assert outcome == 0
            del self.here[path]
        else:
            assert outcome == errno.ENOENT

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        seen = self.seen()
        outcome = self.attempt(lambda: self.tree.rename(old, new))
        if old not in seen:
            assert outcome == errno.ENOENT
        elif old == new:
            assert outcome == 0
        elif old in self.samples:
            if new in seen or self.is_scratch(new) or old in self.here:
                assert outcome == errno.EPERM
            else:
                assert outcome == 0
                self.samples[new] = self.samples.pop(old)
        elif new in self.samples and new in self.here:
            assert outcome == errno.EPERM
        else:
            assert outcome == 0
            self.settle(new, self.here.pop(old))

    @rule()
    def refresh(self) -> None:
        self.tree.refresh()

    @invariant()
    def the_server_holds_every_sample_once(self) -> None:
        if not hasattr(self, "server"):
            return
        documents = self.server.samples()
        held = {d["fileName"]: self.server.object_bytes(d["id"]) for d in documents}
        assert len(held) == len(documents)
        assert held == self.samples

    @invariant()
    def the_tree_shows_both(self) -> None:
        if not hasattr(self, "tree"):
            return
        found: dict[str, bytes] = {}
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            for name in self.tree.names(directory):
                path = f"{directory}/{name}" if directory else name
                if self.tree.stat(path).is_directory:
                    waiting.append(path)
                else:
                    found[path] = self.tree.read(path)
        assert found == self.seen()

    @staticmethod
    def attempt(action: object) -> int:
        try:
            action()  # type: ignore[operator]
        except OSError as error:
            return error.errno or 0
        return 0


TestWritingATree = WritingATree.TestCase
TestWritingATree.settings = settings(
    max_examples=15,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
