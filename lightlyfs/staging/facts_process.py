"""Computes facts of images in separate processes, so that none can crash the mount or use its permissions.

Such a process has limits on memory and time, can write no file and, if the kernel supports it, has no
network. One that crashes, hangs or exceeds its limits is replaced, and its file counts as no image.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightlyfs.cores import all_cores
from lightlyfs.errors import MalformedAnswer
from lightlyfs.staging.image_facts import ImageFacts, looks_like_image, no_image

log = logging.getLogger(__name__)

MAX_SECONDS = 30.0
MAX_PROCESSES = 4
# without `site`, which is a third of its start, it has the paths of this process and no variable moves them
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from lightlyfs.staging.image_facts import serve; serve()"
_FLAGS = ("-I", "-S", *(["-B"] if sys.dont_write_bytecode else []))
_PACKAGE = str(Path(__file__).resolve().parents[2])


class FactsPool:
    """Computes facts in a few processes, started as they are needed; any thread may call."""

    def __init__(self, processes: int | None = None) -> None:
        count = processes or min(MAX_PROCESSES, os.cpu_count() or 1)
        # last in, first out: if one process keeps up, the others are never started
        self._idle: queue.LifoQueue[_FactsProcess] = queue.LifoQueue()
        self._all = [_FactsProcess() for _ in range(count)]
        for process in self._all:
            self._idle.put(process)

    def facts_of(self, path: Path) -> ImageFacts:
        """Return the facts of a file; those of no image where they cannot be computed within the limits.

        A file that does not even begin as an image is not passed to a process.
        """
        if not _may_be_image(path):
            return no_image(os.stat(path).st_size)
        process = self._idle.get()
        try:
            return ImageFacts.from_json(process.ask(str(path)))
        except (OSError, ValueError, KeyError) as error:
            log.warning("the facts of an image could not be computed, so it goes without: %s", error)
            process.stop()
        finally:
            self._idle.put(process)
        return no_image(os.stat(path).st_size)

    def png_of(self, picture: bytes, side_pixels: int) -> bytes:
        """Return a picture as a PNG of at most `side_pixels` a side; MalformedAnswer if it is no picture."""
        process = self._idle.get()
        try:
            answer = process.ask_of(picture, side_pixels)
            if "png" in answer:
                return base64.b64decode(answer["png"])
            raise MalformedAnswer(f"the thumbnail is not a picture: {answer.get('error')}")
        except (OSError, ValueError, KeyError) as error:
            process.stop()
            raise MalformedAnswer(f"the thumbnail could not be decoded: {error}") from error
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes; a call under way gets the facts of no image."""
        for process in self._all:
            process.stop()


def _may_be_image(path: Path) -> bool:
    try:
        return looks_like_image(path)
    except OSError:
        return False  # nor could the process read it


class _FactsProcess:
    """One process, used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        # the descriptor of the picture to convert, which the process inherits; in a user namespace of its own
        # it may not open /proc/PID/fd of this process. -1 without a process
        self._picture = -1

    def ask_of(self, picture: bytes, side_pixels: int) -> dict[str, Any]:
        """Ask for a picture as a PNG; raises as `ask` does."""
        self._running()
        os.ftruncate(self._picture, 0)
        with open(self._picture, "wb", closefd=False) as file:
            file.seek(0)
            file.write(picture)
        return self.ask({"picture": self._picture, "side": side_pixels})

    def ask(self, question: object) -> dict[str, Any]:
        """Send a question, wait for the answer; OSError or ValueError where there is no good one."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        poll = select.poll()  # not `select`, which knows 1,024 descriptors only
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(MAX_SECONDS * 1000):
            raise OSError(f"no answer within {MAX_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise OSError("the process that computes them ended")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no object")
        return answer

    def stop(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        self._close_picture()
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # what it did not read any more

    def _close_picture(self) -> None:
        picture, self._picture = self._picture, -1
        if picture >= 0:
            os.close(picture)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._close_picture()
            self._picture = os.memfd_create("picture", os.MFD_CLOEXEC)
            with all_cores():
                self._process = subprocess.Popen(
                    [sys.executable, *_FLAGS, "-c", _PROGRAM, _PACKAGE, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={name: value for name, value in os.environ.items() if not name.endswith("_TOKEN")},
                    start_new_session=True,
                    pass_fds=[self._picture],
                )
        return self._process
