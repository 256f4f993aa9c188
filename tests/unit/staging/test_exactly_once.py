"""One name and one content make one sample, however often it is sent; other content is an error."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from lightlyfs.api.contract import Request, Response
from lightlyfs.api.models import Sample, SampleMetaData
from lightlyfs.errors import FileExists, ServerFault, Unreachable
from lightlyfs.staging.exactly_once import Once
from lightlyfs.staging.local_files import Ticket
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.upload_steps import MARK, Note

BYTES = bytes(range(256)) * 40
NAME = "run/1.png"


class Server:
    """Samples by name, objects by id; the storage, and the steps of an upload."""

    def __init__(self, directory: Path) -> None:
        self.samples: list[Sample] = []
        self.objects: dict[str, bytes] = {}
        self.sent: list[Record] = []
        self.ranges: list[str] = []
        self.fails: Exception | None = None
        self.ignores_ranges = False
        self.missing = 404
        self.locks = directory / "once" / "locks"
        self.during = lambda: None

    def once(self) -> Once:
        return Once(self, self, self, lambda sample: f"https://bucket.test/{sample}", self.locks)  # type: ignore[arg-type]

    def named(self, name: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.file_name == name]

    def upload(self, record: Record, moving: Ticket, note: Note) -> Record:
        self.sent.append(record)
        if record.sample_id is None:
            note(create_sent=True, durable=True)
        self.during()
        if self.fails is not None:
            raise self.fails
        sample = record.sample_id or f"{len(self.samples):024x}"
        if record.sample_id is None:
            self.add(sample, record.name, record.mark)
        self.objects[sample] = Path(record.key).read_bytes()
        return record.changed(state=State.UPLOADED)

    def add(self, sample: str, name: str, mark: str | None = None, data: bytes | None = None) -> None:
        meta = SampleMetaData(custom={MARK: mark}) if mark else None
        self.samples.append(Sample(id=sample, file_name=name, meta_data=meta))
        if data is not None:
            self.objects[sample] = data

    def send(self, request: Request) -> Response:
        data = self.objects.get(request.url.rpartition("/")[2])
        self.ranges.append(request.headers["Range"])
        if data is None:
            return Response(self.missing, {}, b"")
        first, last = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        if self.ignores_ranges:
            return Response(200, {}, data)
        if first >= len(data):
            return Response(416, {"content-range": f"bytes */{len(data)}"}, b"")
        part = data[first : last + 1]
        return Response(206, {"content-range": f"bytes {first}-{last}/{len(data)}"}, part)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local.png"
    path.write_bytes(BYTES)
    return path


def locks(server: Server) -> list[Path]:
    return list(server.locks.iterdir())


def test_a_file_is_sent_once(server: Server, local: Path) -> None:
    assert server.once().put(local, NAME)
    assert not server.once().put(local, NAME)
    (record,) = server.sent
    assert (record.key, record.path, record.name, record.size) == (str(local), NAME, NAME, len(BYTES))
    assert (record.state, record.sample_id, record.create_sent) == (State.PENDING, None, False)
    assert record.mark.startswith("once-")
    assert locks(server) == []


def test_another_name_or_another_content_has_another_mark(server: Server, local: Path) -> None:
    server.once().put(local, NAME)
    server.once().put(local, "run/2.png")
    server.samples.clear()
    local.write_bytes(BYTES + b"more")
    server.once().put(local, NAME)
    local.write_bytes(BYTES)
    server.samples.clear()
    server.once().put(local, NAME)
    marks = [record.mark for record in server.sent]
    assert len(set(marks)) == 3
    assert marks[0] == marks[3]


@pytest.mark.parametrize("ignores", [False, True])
def test_a_sample_that_has_the_content_already_is_left_alone(
    server: Server, local: Path, monkeypatch: pytest.MonkeyPatch, ignores: bool
) -> None:
    server.ignores_ranges = ignores
    if not ignores:
        monkeypatch.setattr("lightlyfs.staging.exactly_once._COPY_BYTES", 4_000)
    server.add("a" * 24, NAME, data=BYTES)
    assert not server.once().put(local, NAME)
    assert server.sent == []
    if not ignores:
        assert server.ranges == [
            "bytes=0-0",
            "bytes=0-3999",
            "bytes=4000-7999",
            f"bytes=8000-{len(BYTES) - 1}",
        ]
    assert locks(server) == []


@pytest.mark.parametrize(
    "data", [BYTES[:-1] + b"?", BYTES[:-1], BYTES + b"?", None], ids=["other", "short", "long", "none"]
)
def test_a_sample_with_other_content_is_an_error_and_stays(
    server: Server, local: Path, data: bytes | None
) -> None:
    server.add("a" * 24, NAME, data=data)
    server.add("b" * 24, "other.png", data=BYTES)
    with pytest.raises(FileExists):
        server.once().put(local, NAME)
    assert server.sent == []
    assert locks(server) == []


@pytest.mark.parametrize("missing", [403, 404])
@pytest.mark.parametrize("data", [None, BYTES[:100]], ids=["none", "cut"])
def test_an_upload_that_was_cut_off_is_finished(
    server: Server, local: Path, missing: int, data: bytes | None
) -> None:
    server.fails = Unreachable("down")
    with pytest.raises(Unreachable):
        server.once().put(local, NAME)
    server.fails, server.missing = None, missing
    server.add("a" * 24, NAME, server.sent[0].mark, data)
    assert server.once().put(local, NAME)
    record = server.sent[-1]
    assert (record.sample_id, record.create_sent) == ("a" * 24, True)
    assert server.objects["a" * 24] == BYTES
    assert len(server.samples) == 1
    assert locks(server) == []


def test_an_empty_file_is_sent_once_too(server: Server, local: Path) -> None:
    local.write_bytes(b"")
    assert server.once().put(local, NAME)
    assert not server.once().put(local, NAME)
    server.samples[0] = Sample(id=server.samples[0].id, file_name=NAME)  # without our mark
    assert not server.once().put(local, NAME)


def test_the_first_of_several_samples_of_the_name_counts_unless_one_is_ours(
    server: Server, local: Path
) -> None:
    server.once().put(local, NAME)
    mine = server.samples.pop()
    server.add("a" * 24, NAME, data=b"other")
    server.samples.append(mine)
    assert not server.once().put(local, NAME)


def test_a_storage_that_fails_is_no_other_content(server: Server, local: Path) -> None:
    server.missing = 503
    server.add("a" * 24, NAME)
    with pytest.raises(ServerFault):
        server.once().put(local, NAME)
    assert locks(server) == []


def test_a_create_that_may_have_been_sent_is_known_to_the_next_try(server: Server, local: Path) -> None:
    """Its reply was lost, and lists lag: the next try looks for it before it sends another."""
    noted: list[bytes] = []
    server.during = lambda: noted.extend(path.read_bytes() for path in locks(server))
    server.fails = Unreachable("down")
    for _ in range(2):
        with pytest.raises(Unreachable):
            server.once().put(local, NAME)
    assert [record.create_sent for record in server.sent] == [False, True]
    assert noted == [server.sent[0].mark.encode()] * 2
    assert len(locks(server)) == 1
    server.fails = None
    assert server.once().put(local, NAME)
    assert server.sent[-1].create_sent
    assert locks(server) == []


def test_a_create_that_was_refused_leaves_nothing_to_look_for(
    server: Server, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(record: Record, moving: Ticket, note: Note) -> Record:
        server.sent.append(record)
        note(create_sent=True)
        note(thumbnail_done=True)
        note(create_sent=False)
        raise ServerFault("refused", status=500)

    monkeypatch.setattr(server, "upload", refused)
    for _ in range(2):
        with pytest.raises(ServerFault):
            server.once().put(local, NAME)
        assert locks(server) == []
    assert [record.create_sent for record in server.sent] == [False, False]


def test_a_lock_file_that_its_holder_deleted_is_made_again(
    server: Server, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for it holds a file that nobody else would find."""
    flock, stale = fcntl.flock, [1, 2]

    def lock(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        if stale:
            (path,) = locks(server)
            path.unlink()
            if stale.pop() == 1:
                os.close(os.open(path, os.O_CREAT))

    monkeypatch.setattr(fcntl, "flock", lock)
    server.during = lambda: seen.extend(locks(server))
    seen: list[Path] = []
    assert server.once().put(local, NAME)
    assert len(seen) == 1
    assert locks(server) == []


def test_two_names_have_locks_of_their_own_for_our_eyes_only(server: Server, local: Path) -> None:
    server.fails = Unreachable("down")
    for name in (NAME, "run/2.png", "odd\udcff.png"):
        with pytest.raises(Unreachable):
            server.once().put(local, name)
    assert len(locks(server)) == 3
    assert {path.stat().st_mode & 0o777 for path in locks(server)} == {0o600}
    assert server.locks.stat().st_mode & 0o777 == 0o700
