"""Image facts computed in a process apart, so that no image can take the mount down with it.

The process may use a bounded amount of memory and time; one that crashes, hangs or runs out is replaced, and
the file counts as no image. Run as `python -m lightlyfs.upload.facts_process` it is that process.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import subprocess
import sys
import threading
from pathlib import Path

from lightlyfs.upload.image_facts import ImageFacts, facts_of, no_image

log = logging.getLogger(__name__)

# enough for the largest image that is decoded, with its copies
MAX_MEMORY_BYTES = 1500 << 20
MAX_SECONDS = 30.0


class FactsProcess:
    """Computes facts, one file at a time; any thread may call and waits for its turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def facts_of(self, path: Path) -> ImageFacts:
        """The facts of a file; those of no image where they cannot be computed within the limits."""
        with self._lock:
            try:
                return self._ask_locked(path)
            except (OSError, ValueError, KeyError) as error:
                log.warning("the facts of an image could not be computed, so it goes without: %s", error)
                self._stop_locked()
        return no_image(os.stat(path).st_size)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop_locked()

    def _ask_locked(self, path: Path) -> ImageFacts:
        process = self._running_locked()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], MAX_SECONDS)
        if not ready:
            raise OSError(f"no answer within {MAX_SECONDS:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise OSError("the process that computes them ended")
        return ImageFacts.from_json(json.loads(line))

    def _running_locked(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightlyfs.upload.facts_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _stop_locked(self) -> None:
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


def serve() -> None:
    """Answer one line with one line until the mount that asks has gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.nice(5)
    for line in sys.stdin.buffer:
        try:
            facts = facts_of(json.loads(line))
        except (OSError, MemoryError):
            break
        sys.stdout.buffer.write(json.dumps(facts.as_json()).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
