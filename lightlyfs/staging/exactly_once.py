"""Idempotent uploads: one name and one content make one sample, however many processes send it how often.

The journal is not used: a process that dies owes nothing, because its scheduler runs the task, and so this
call, again. The repeated call finds an unfinished upload on the server by its mark, which depends on name and
content alone, and resumes it. Processes of one machine take turns at a name.

API: POST create accepts a name that already exists, so only a lookup before it prevents a duplicate.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightlyfs.api.contract import Request, Response, Transport, whole_number
from lightlyfs.api.models import Sample
from lightlyfs.api.retry import raise_for_status
from lightlyfs.errors import FileExists
from lightlyfs.staging.local_files import Ticket
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.upload_steps import Steps, UploadedSamples, mark_of

_COPY_BYTES = 4 << 20
# a storage that may not tell that an object is missing says that it is forbidden
_NO_OBJECT = (403, 404)


class Once:
    """Takes files to the server, each name and content once; any thread may call.

    `steps` reads the file that a record's key names. `directory` is shared by the processes of this machine.
    """

    def __init__(
        self,
        steps: Steps,
        samples: UploadedSamples,
        storage: Transport,
        resolve: Callable[[str], str],
        directory: Path,
    ) -> None:
        self._steps = steps
        self._samples = samples
        self._storage = storage
        self._resolve = resolve
        self._directory = directory

    def put(self, local: Path, name: str) -> bool:
        """Make the sample `name` hold the bytes of a file; return False if it already did.

        Waits for another process of this machine that puts the name. Raises FileExists where the sample holds
        other bytes, and what the last try of a request raised. The file must not change meanwhile.
        """
        digest, size = _digest_of(local)
        mark = "once-" + hashlib.sha256(f"{name}\0{digest}".encode("utf-8", "surrogateescape")).hexdigest()
        with self._turn(name, mark) as turn:
            found = self._samples.named(name)  # whatever this process has listed is older
            mine = next((sample for sample in found if mark_of(sample) == mark), None)
            if mine is None and found:
                if self._holds(found[0], digest, size):
                    return False
                raise FileExists(f"{name} is on the server already, with other content")
            if mine is not None and self._size(mine) == size:
                turn.ended = True
                return False
            record = Record(
                key=str(local.absolute()),
                path=name,
                name=name,
                state=State.PENDING,
                size=size,
                sample_id=None if mine is None else mine.id,
                mark=mark,
                create_sent=mine is not None or turn.sent_before,
            )
            self._steps.upload(record, Ticket(), turn.note)
            turn.ended = True
        return True

    @contextmanager
    def _turn(self, name: str, mark: str) -> Iterator[_Turn]:
        """Exclude others from a name; a kill ends that, and what it was about to send is then known."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / hashlib.sha256(os.fsencode(name)).hexdigest()
        descriptor = _locked(path)
        try:
            turn = _Turn(descriptor, mark, sent_before=os.fstat(descriptor).st_size > 0)
            try:
                yield turn
            finally:
                if turn.ended or not turn.sent:
                    path.unlink()
        finally:
            os.close(descriptor)

    def _holds(self, sample: Sample, digest: str, size: int) -> bool:
        if self._size(sample) != size:
            return False
        found = hashlib.sha256()
        for start in range(0, size, _COPY_BYTES):
            response = self._read(sample, start, min(size, start + _COPY_BYTES))
            raise_for_status(response, what="the read of a sample to compare it", storage=True)
            found.update(response.body)
        return found.hexdigest() == digest

    def _size(self, sample: Sample) -> int | None:
        """Return the bytes that storage has of a sample; None without an object."""
        response = self._read(sample, 0, 1)
        if response.status in _NO_OBJECT:
            return None
        total = whole_number(response.headers.get("content-range", "").rpartition("/")[2])
        if total is None:
            raise_for_status(response, what="the look at the size of a sample", storage=True)
            return len(response.body)
        return total

    def _read(self, sample: Sample, start: int, end: int) -> Response:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        return self._storage.send(Request("GET", self._resolve(sample.id), headers=headers))


class _Turn:
    """The content of a name's lock file: whether a process sent a create of the name and did not finish."""

    def __init__(self, descriptor: int, mark: str, *, sent_before: bool) -> None:
        self._descriptor = descriptor
        self._mark = mark
        self.sent_before = self.sent = sent_before
        self.ended = False

    def note(self, *, durable: bool = False, **changes: object) -> None:
        """Write down that a create is about to be sent, or that it was refused."""
        if "create_sent" not in changes:
            return
        self.sent = bool(changes["create_sent"])
        os.ftruncate(self._descriptor, 0)
        if self.sent:
            os.pwrite(self._descriptor, self._mark.encode(), 0)


def _locked(path: Path) -> int:
    """Lock the file that is at this path, and return its descriptor; waits for the process that holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # the process that held it has finished
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _digest_of(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file and its size."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()
