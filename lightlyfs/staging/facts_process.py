"""Image facts computed in processes apart, so that no image can take the mount down with it.

The process may use a bounded amount of memory and time; one that crashes, hangs or runs out is replaced, and
the file counts as no image. Run as `python -m lightlyfs.staging.facts_process` it is that process.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import resource
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lightlyfs.staging.image_facts import ImageFacts, facts_of, looks_like_image, no_image

log = logging.getLogger(__name__)

# enough for the largest image that is decoded, with its copies
MAX_MEMORY_BYTES = 1500 << 20
MAX_SECONDS = 30.0
MAX_PROCESSES = 4
# what Pillow keeps for the next image, in blocks of 16 MB: those of one of 12 megapixels
_KEPT_BLOCKS = 5
_IDLE_MS = 1000


class FactsPool:
    """Computes facts in a few processes, started as they are needed; any thread may call."""

    def __init__(self, processes: int | None = None) -> None:
        count = processes or min(MAX_PROCESSES, os.cpu_count() or 1)
        # last in, first out: where one keeps up, the others are never started
        self._idle: queue.LifoQueue[_FactsProcess] = queue.LifoQueue()
        self._all = [_FactsProcess() for _ in range(count)]
        for process in self._all:
            self._idle.put(process)

    def facts_of(self, path: Path) -> ImageFacts:
        """The facts of a file; those of no image where they cannot be computed within the limits.

        A file that does not even begin as an image costs no process a question.
        """
        if not _may_be_image(path):
            return no_image(os.stat(path).st_size)
        process = self._idle.get()
        try:
            return process.ask(path)
        except (OSError, ValueError, KeyError) as error:
            log.warning("the facts of an image could not be computed, so it goes without: %s", error)
            process.stop()
        finally:
            self._idle.put(process)
        return no_image(os.stat(path).st_size)

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

    def ask(self, path: Path) -> ImageFacts:
        """Send a path, wait for the facts; OSError, ValueError or KeyError where there is no good answer."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        process.stdin.flush()
        poll = select.poll()  # not `select`, which knows 1,024 descriptors only
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(MAX_SECONDS * 1000):
            raise OSError(f"no answer within {MAX_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise OSError("the process that computes them ended")
        return ImageFacts.from_json(json.loads(line))

    def stop(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # what it did not read any more

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightlyfs.staging.facts_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process


def serve() -> None:
    """Answer one line with one line until the mount that asks has gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.nice(5)
    # allocating fresh pages for each large image would take a tenth of its time
    os.environ.setdefault("PILLOW_BLOCKS_MAX", str(_KEPT_BLOCKS))
    from lightlyfs.staging import image_decoding

    for line in _lines(when_idle=image_decoding.release_memory):
        try:
            facts = facts_of(json.loads(line))
        except (OSError, MemoryError):
            break
        sys.stdout.buffer.write(json.dumps(facts.as_json()).encode() + b"\n")
        sys.stdout.buffer.flush()


def _lines(when_idle: Callable[[], None]) -> Iterator[bytes]:
    """The lines of standard input, each of which comes after the answer to the one before."""
    poll = select.poll()
    poll.register(sys.stdin.buffer, select.POLLIN)
    while True:
        if not poll.poll(_IDLE_MS):
            when_idle()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        yield line


if __name__ == "__main__":
    serve()
