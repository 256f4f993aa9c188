"""Writers that a signal ends: half an image is never sent, and one that they wrote over is whole again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared_mount
from shared_mount import OVERWRITE, SharedMount, run_tool
from trees import soon, wait_until

from lightlyfs.testing import Latency

pytestmark = pytest.mark.fuse

ROUNDS = [12, pytest.param(50, marks=pytest.mark.long)]
SIGNALS = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGSEGV]
PIECE, PIECES = 50_000, 10  # a piece fits into a pipe

# Each writes a piece of `data` to `path` for each byte of its input, answers with a byte, and closes at the
# end of its input. Signals end it as they end a program that a shell started, whatever pytest did about them.
START = """
import mmap, os, signal, sys, threading
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV):
    signal.signal(number, signal.SIG_DFL)
path, source, piece = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = open(source, "rb").read()
starts = list(range(0, len(data), piece))
"""
OPEN = """
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
os.write(1, b"o")
"""
WRITERS = {
    "cp": START + 'os.execvp("cp", ["cp", "/dev/stdin", path])',
    "python": START
    + OPEN
    + """
while os.read(0, 1):
    start = starts.pop(0)
    os.write(file, data[start : start + piece])
    os.write(1, b".")
os.close(file)
""",
    "mapping": START
    + """
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
os.ftruncate(file, len(data))
mapped = mmap.mmap(file, len(data))
os.write(1, b"o")
while os.read(0, 1):
    start = starts.pop(0)
    mapped[start : start + piece] = data[start : start + piece]
    os.write(1, b".")
mapped.close()
os.close(file)
""",
    "threads": START
    + OPEN
    + """
turn = threading.Lock()

def work():
    while True:
        with turn:
            if not os.read(0, 1):
                return
            start = starts.pop(0)
        os.pwrite(file, data[start : start + piece], start)
        os.write(1, b".")

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
os.close(file)
""",
}


class Writing:
    """A program that writes a file piece by piece, as it is told to."""

    def __init__(self, kind: str, path: Path, source: Path) -> None:
        self._is_cp = kind == "cp"
        self._path = path
        self._data = source.read_bytes()
        self._written = 0
        command = [sys.executable, "-c", WRITERS[kind], str(path), str(source), str(PIECE)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=source.parent,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._wait_opened()

    def write(self, pieces: int) -> None:
        """Write so many pieces more."""
        for _ in range(pieces):
            start = self._written
            self._written += PIECE
            if self._is_cp:
                os.write(self._input, self._data[start : self._written])
                wait_until(lambda: self._path.stat().st_size == self._written, 20)
            else:
                os.write(self._input, b"g")
                assert os.read(self._answers, 1) == b"."

    def close(self) -> None:
        """Tell it that this was all."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self, number: signal.Signals) -> int:
        """End it by a signal; how it ended."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return code

    def _wait_opened(self) -> None:
        if self._is_cp:
            wait_until(lambda: self._path.exists() and self._path.stat().st_size == 0, 20)
        else:
            assert os.read(self._answers, 1) == b"o"


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedMount]:
    """A mount that makes new samples."""
    with shared_mount.shared_mount(tmp_path_factory.mktemp("default"), {}) as subject:
        yield subject


@pytest.fixture(scope="module")
def overwriting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedMount]:
    """A mount that may replace images, and one sample for each test."""
    names = [f"{test}/{case}.jpg" for test in ("over", "closing") for case in WRITERS]
    names += [f"ends/{case}.jpg" for case in (*ENDINGS, *DEATHS)]
    samples = {name: content(name) for name in names}
    with shared_mount.shared_mount(tmp_path_factory.mktemp("overwriting"), samples, OVERWRITE) as subject:
        yield subject


def content(seed: str, size: int = PIECE * PIECES) -> bytes:
    """Bytes that no other seed has; no picture, so that each goes in one request."""
    return random.Random(seed).randbytes(size)


def left_by(kind: str, data: bytes, pieces: int) -> bytes:
    """What a killed writer had in the file."""
    written = data[: pieces * PIECE]
    return written.ljust(len(data), b"\0") if kind == "mapping" else written


def upload_state(path: Path) -> bytes:
    """What a file says of its upload."""
    return os.getxattr(path, "user.lightly.upload")


@pytest.mark.parametrize("kind", WRITERS)
def test_on_a_local_disk_a_killed_writer_leaves_what_it_wrote(tmp_path: Path, kind: str) -> None:
    """The oracle of what an interrupted file holds."""
    path, source, data = tmp_path / "x.jpg", tmp_path / "source.jpg", content(kind)
    source.write_bytes(data)
    for number, pieces in enumerate((0, 1, 5, PIECES)):
        path.unlink(missing_ok=True)
        writing = Writing(kind, path, source)
        writing.write(pieces)
        assert writing.end(SIGNALS[number]) == -SIGNALS[number]
        assert path.read_bytes() == left_by(kind, data, pieces)
    writing = Writing(kind, path, source)
    writing.write(PIECES)
    writing.close()
    assert writing.process.wait(30) == 0
    assert path.read_bytes() == data


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", WRITERS)
def test_of_a_new_image_nothing_is_sent_until_it_is_copied_again(
    default: SharedMount, tmp_path: Path, kind: str, rounds: int
) -> None:
    """It stays here as interrupted, and can be read, removed and written over like any local file."""
    directory = f"{kind}-{rounds}"
    moments = random.Random(directory)
    source = tmp_path / "source.jpg"
    expected: dict[str, bytes] = {}
    for number in range(rounds):
        data = content(f"{directory}-{number}")
        source.write_bytes(data)
        path = default.path(directory) / f"{number}.jpg"
        pieces = moments.randint(0, PIECES)
        default.server.stats.reset()
        writing = Writing(kind, path, source)
        writing.write(pieces)

        assert writing.end(SIGNALS[number % 4]) == -SIGNALS[number % 4]

        assert default.samples(directory) == expected
        assert path.read_bytes() == left_by(kind, data, pieces)
        if pieces:
            assert upload_state(path).startswith(b"interrupted")
        if moments.random() < 0.5:
            path.unlink()
            assert not path.exists()
        assert default.server.stats.count("storage.put") == 0
        assert default.server.stats.count("withWriteUrls") == 0
        assert run_tool("cp", source, path).returncode == 0
        expected[path.name] = data
        assert default.samples(directory) == expected
        assert upload_state(path) == b"uploaded"
    default.remember(directory)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", WRITERS)
def test_an_image_that_was_written_over_is_whole_again(
    overwriting: SharedMount, tmp_path: Path, kind: str, rounds: int
) -> None:
    name = f"over/{kind}.jpg"
    moments = random.Random(kind)
    path, source = overwriting.tree.mountpoint / name, tmp_path / "source.jpg"
    sample_id = overwriting.ids[name]
    for number in range(rounds):
        old = overwriting.server.object_bytes(sample_id)
        assert old is not None
        data = content(f"{kind}-{rounds}-{number}", PIECE * PIECES + number)
        source.write_bytes(data)
        count = overwriting.count()
        overwriting.server.stats.reset()
        writing = Writing(kind, path, source)
        writing.write(moments.randint(0, PIECES))

        assert writing.end(SIGNALS[number % 4]) == -SIGNALS[number % 4]

        assert overwriting.server.object_bytes(sample_id) == old
        soon(lambda old=old: path.read_bytes() == old and path.stat().st_size == len(old))
        assert overwriting.server.stats.count("storage.put") == 0
        assert run_tool("cp", source, path).returncode == 0
        assert overwriting.server.object_bytes(sample_id) == data
        assert path.read_bytes() == data
        assert overwriting.server.sample(sample_id)["fileName"] == name
        assert overwriting.count() == count


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_killed_while_it_closes_leaves_the_old_image_or_the_new_one(
    overwriting: SharedMount, tmp_path: Path, kind: str, rounds: int
) -> None:
    """All was written, so both are right; half of it is not, and neither is a second sample."""
    moments = random.Random(kind)
    over, source = f"closing/{kind}.jpg", tmp_path / "source.jpg"
    overwriting.server.faults.add(Latency(delay_s=0.1, target="storage.put"))
    try:
        for number in range(rounds):
            name = over if number % 2 else f"closing-{kind}-{rounds}/{number}.jpg"
            path = overwriting.tree.mountpoint / name
            path.parent.mkdir(exist_ok=True)
            data = content(f"{name}-{rounds}-{number}")
            source.write_bytes(data)
            held = bytes_of(overwriting, name)
            writing = Writing(kind, path, source)
            writing.write(PIECES)
            writing.close()
            time.sleep(moments.uniform(0, 0.25))
            assert writing.end(SIGNALS[number % 4]) in (0, -SIGNALS[number % 4])

            wait_until(lambda path=path: is_settled(upload_state(path)), 30)
            assert bytes_of(overwriting, name) in (held, data)
            assert run_tool("cp", source, path).returncode == 0
            assert bytes_of(overwriting, name) == data
    finally:
        overwriting.server.faults.clear()
    overwriting.check_old("closing")


def is_settled(state: bytes) -> bool:
    """Whether nothing is under way any more."""
    return state.startswith((b"uploaded", b"interrupted"))


def bytes_of(place: SharedMount, name: str) -> bytes | None:
    """What the one sample of a name holds, None without one."""
    directory, _, file = name.rpartition("/")
    return place.samples(directory).get(file)


# programs that end on their own, with a file open

FILE = """
    import os, sys, threading, time
    path, data = sys.argv[1], sys.stdin.buffer.read()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(file, data)
"""
ENDINGS = {
    # how it ends, and the code
    "end-of-program": ("", 0),
    "exit-at-once": ("os._exit(0)", 0),
    "exit-at-once-with-error": ("os._exit(7)", 7),
    "uncaught-exception": ("raise ValueError('x')", 1),
    "sys-exit": ("sys.exit(3)", 3),
    # the threads that are still there are ended by a signal of the kernel's; the program is not
    "sys-exit-beside-threads": (
        """
    for _ in range(8):
        threading.Thread(target=time.sleep, args=(0.2,)).start()
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    sys.exit(3)
    """,
        3,
    ),
    "exit-from-a-thread": (
        """
    threading.Thread(target=os._exit, args=(4,)).start()
    time.sleep(60)
    """,
        4,
    ),
    # closed in the middle of exec: whoever reads /proc/PID/stat then waits until the close is answered
    "becomes-another-program": ("os.execvp('true', ['true'])", 0),
    "hands-on-to-another-program": ("os.set_inheritable(file, True); os.execvp('true', ['true'])", 0),
    "signal-that-it-handles": (
        """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    """,
        5,
    ),
    "child-that-is-killed": (
        """
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(file)
    """,
        0,
    ),
}
DEATHS = {
    "abort": "os.abort()",
    "segmentation-fault": "import ctypes; ctypes.string_at(0)",
    "alarm": "import signal; signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(60)",
    "broken-pipe": """
    import signal
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    ours, theirs = os.pipe()
    os.close(ours)
    os.write(theirs, b"x")
    """,
    "killed-by-a-thread": "threading.Thread(target=os.kill, args=(os.getpid(), 9)).start(); time.sleep(60)",
}


def run_ending(ending: str, path: Path, data: bytes, cwd: Path) -> int:
    """Write a file with Python and end like this; the code."""
    program = textwrap.dedent(FILE) + textwrap.dedent(ending)
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(
        command, input=data, cwd=cwd, stderr=subprocess.DEVNULL, timeout=60, check=False
    ).returncode


@pytest.mark.parametrize("name", ENDINGS)
def test_what_a_program_left_open_is_sent_when_it_ends(
    overwriting: SharedMount, tmp_path: Path, name: str
) -> None:
    """The kernel closes for it; whether the program was content with itself is its own affair."""
    ending, code = ENDINGS[name]
    old, new = f"ends/{name}.jpg", f"ends/new-{name}.jpg"
    for path in (old, new):
        data = content(f"ended {path}", 70_000)

        assert run_ending(ending, overwriting.tree.mountpoint / path, data, tmp_path) == code

        wait_until(lambda path=path, data=data: bytes_of(overwriting, path) == data, 5)
        assert (overwriting.tree.mountpoint / path).read_bytes() == data
    overwriting.check_old("ends")


@pytest.mark.parametrize("name", DEATHS)
def test_what_a_program_wrote_that_killed_itself_is_not_sent(
    overwriting: SharedMount, tmp_path: Path, name: str
) -> None:
    old, new = f"ends/{name}.jpg", f"ends/new-{name}.jpg"
    data = content("dead", 70_000)
    for path in (old, new):
        assert run_ending(DEATHS[name], overwriting.tree.mountpoint / path, data, tmp_path) < 0

    assert bytes_of(overwriting, old) == content(old)
    assert bytes_of(overwriting, new) is None
    soon(lambda: (overwriting.tree.mountpoint / old).read_bytes() == content(old))
    left = overwriting.tree.mountpoint / new
    assert left.read_bytes() == data
    assert upload_state(left).startswith(b"interrupted")
    left.unlink()
    overwriting.check_old("ends")


def test_a_shell_that_holds_the_file_sends_all_of_it(overwriting: SharedMount, tmp_path: Path) -> None:
    """The programs in between close their copies of the descriptor, and end: the shell is the writer."""
    source = tmp_path / "source"
    source.write_bytes(content("shell", 70_000))
    path = overwriting.path("ends") / "shell.jpg"
    script = 'exec 3> "$1"; cat "$2" >&3; cat "$2" >&3; true'
    assert run_tool("sh", "-c", script, "sh", path, source).returncode == 0
    wait_until(lambda: bytes_of(overwriting, "ends/shell.jpg") == source.read_bytes() * 2, 5)
    overwriting.check_old("ends")


def test_nothing_else_is_sent_a_moment_later(default: SharedMount) -> None:
    """What was interrupted is not sent behind anybody's back."""
    default.check_nothing_came_later()
