"""The requests of an upload from every state a crash can leave it in."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from contentkit import Clock

from lightlyfs.api.contract import Request, Response, put_headers
from lightlyfs.api.models import (
    CreatedSampleWithWriteUrls,
    DatasetRecord,
    Sample,
    SampleCreate,
    SampleMetaData,
    SampleUpdate,
    SampleWriteUrls,
)
from lightlyfs.api.retry import Retrier
from lightlyfs.errors import (
    Conflict,
    FileExists,
    Forbidden,
    MalformedAnswer,
    NotFound,
    QuotaExceeded,
    RequestError,
    ServerFault,
    TimedOut,
    Unreachable,
)
from lightlyfs.staging.image_facts import ImageFacts
from lightlyfs.staging.record import Leftover, Record, State
from lightlyfs.staging.upload_steps import (
    BLANK_THUMBNAIL,
    MARK,
    Steps,
    StoredObjects,
    UploadConfig,
    UploadedSamples,
)

SAMPLE = "a" * 24
IMAGE = ImageFacts({"sizeInBytes": 5, "shape": [1, 1, 3]}, {"Make": "x"}, b"thumb")
OTHER = ImageFacts({"sizeInBytes": 5}, {}, None)


class Server:
    """The API and the storage of a test: a log of calls, and what to fail next."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, list[RequestError]] = {}
        self.samples: list[Sample] = []
        self.created: list[SampleCreate] = []
        self.updates: list[SampleUpdate] = []
        self.statuses: list[int] = []
        self.stored: dict[str, bytes] = {}
        self.clamp = 1_000
        self.ignores_paging = False
        self.before = Sample(id=SAMPLE, meta_data=SampleMetaData(custom={"mine": 1}))
        # samples that are there once a create was sent
        self.rivals: list[Sample] = []
        # what lists do not show yet: names by id
        self.renamed: dict[str, str] = {}
        # the first create shows from this question for its name on
        self.shows_after = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.failing.get(name):
            raise self.failing[name].pop(0)

    def create_sample_with_write_urls(
        self, _: str, sample: SampleCreate, **__: Any
    ) -> CreatedSampleWithWriteUrls:
        self.created.append(sample)
        self._called("withWriteUrls")
        self.samples += self.rivals
        urls = SampleWriteUrls(full="https://s/full", thumb="https://s/thumb")
        return CreatedSampleWithWriteUrls(SAMPLE, urls)

    def create_sample(self, _: str, sample: SampleCreate, **__: Any) -> str:
        self.created.append(sample)
        self._called("create")
        return SAMPLE

    def get_sample_write_urls(self, *_: str) -> SampleWriteUrls:
        self._called("writeurls")
        return SampleWriteUrls(full="https://s/full", thumb="https://s/thumb")

    def get_sample_write_url(self, *_: str, is_thumbnail: bool) -> str:
        self._called(f"writeurl {'thumb' if is_thumbnail else 'full'}")
        return f"https://s/{'thumb' if is_thumbnail else 'full'}"

    def list_samples_partial(self, *_: str, offset: int, size: int, **__: Any) -> list[Sample]:
        self._called("find")
        if self.created and self.calls.count("find") == self.shows_after:
            name, meta = self.created[0].file_name, self.created[0].meta_data
            assert isinstance(meta, SampleMetaData)
            self.samples.append(Sample(id=SAMPLE, file_name=name, meta_data=meta))
        page = self.samples[offset : offset + min(size, self.clamp)]
        return self.samples[:size] if self.ignores_paging else page

    def get_dataset(self, _: str) -> DatasetRecord:
        return DatasetRecord(id="d" * 24, n_samples=len(self.samples))

    def list_samples(self, _: str, *, offset: int, size: int) -> list[Sample]:
        assert offset >= 0  # a server refuses others
        assert size > 0
        page = self.samples[offset : offset + min(size, self.clamp)]
        return self.samples[:size] if self.ignores_paging else page

    def get_sample(self, _: str, sample_id: str) -> Sample:
        self._called("get")
        if sample_id in self.renamed:
            return Sample(id=sample_id, file_name=self.renamed[sample_id])
        return next((sample for sample in self.samples if sample.id == sample_id), self.before)

    def update_sample(self, _: str, __: str, update: SampleUpdate) -> None:
        self.updates.append(update)
        self._called("update")

    def send(self, request: Request) -> Response:
        self._called(f"PUT {request.url.rpartition('/')[2]}")
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            body = request.body
            data = body if isinstance(body, bytes) else body.open().read()  # type: ignore[union-attr]
            self.stored[request.url] = data
        return Response(status, {"etag": '"e1"'}, b"")

    def close(self) -> None:
        """Nothing is open."""


class Moving:
    moved = 0


class InThisThread(Executor):
    """Does what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Bench:
    """One file to upload, and the notes taken on the way; names are asked for only without `sole_writer`."""

    def __init__(self, tmp_path: Path, facts: ImageFacts = IMAGE, **config: bool) -> None:
        self.leftovers: list[Leftover] = []
        self.fresh = False
        self.server = Server()
        self.notes: list[Record] = []
        self.naps: list[float] = []
        (tmp_path / "k.0").write_bytes(b"image")
        clock = Clock()

        def nap(seconds: float) -> None:
            self.naps.append(seconds)
            clock.sleep(seconds)

        limits = UploadConfig(**{"sole_writer": True, **config})  # type: ignore[arg-type]
        retrier = Retrier(clock=clock, sleep=nap, random=lambda: 0.5, cancelled=lambda: False)
        samples = UploadedSamples(
            self.server,  # type: ignore[arg-type]
            "d" * 24,
            retrier,
            limits.policy,
            self.leftovers.append,
        )
        self.steps = Steps(
            samples,
            StoredObjects(self.server, "d" * 24, self.server, retrier, limits),  # type: ignore[arg-type]
            lambda path: facts,
            lambda key, generation: tmp_path / f"{key}.{generation}",
            limits,
            side=InThisThread(),
            knows_no=lambda _: self.fresh,
        )
        self.record = Record("k", "cars/x.jpg", "cars/x.jpg", State.PENDING)

    def note(self, *, durable: bool = False, **changes: Any) -> None:
        self.record = self.record.changed(**changes)
        self.notes.append(self.record)

    def upload(self, **state: Any) -> Record:
        self.record = self.record.changed(**state)
        return self.steps.upload(self.record, Moving(), self.note)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_new_image_takes_a_create_and_two_puts(bench: Bench) -> None:
    record = bench.upload()

    assert bench.server.calls == ["withWriteUrls", "PUT thumb", "PUT full"]
    assert bench.server.stored == {"https://s/thumb": b"thumb", "https://s/full": b"image"}
    (created,) = bench.server.created
    assert (created.file_name, created.thumb_name) == ("cars/x.jpg", "cars/x_thumb.webp")
    assert isinstance(created.meta_data, SampleMetaData)
    assert created.meta_data.custom == {MARK: record.mark}
    assert (record.state, record.sample_id, record.etag) == (State.UPLOADED, SAMPLE, '"e1"')


def test_a_file_that_is_no_image_takes_one_put(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OTHER)

    bench.upload()

    assert bench.server.calls == ["withWriteUrls", "PUT full"]


def test_the_journal_knows_of_a_create_before_it_is_sent(bench: Bench) -> None:
    sent_with: list[Record] = []
    original = bench.server.create_sample_with_write_urls

    def create(dataset: str, sample: SampleCreate, **_: Any) -> CreatedSampleWithWriteUrls:
        sent_with.append(bench.notes[-1])
        return original(dataset, sample)

    bench.server.create_sample_with_write_urls = create  # type: ignore[method-assign]
    record = bench.upload()

    assert sent_with[0].create_sent
    assert sent_with[0].mark == record.mark != ""


def test_an_old_server_is_asked_in_the_old_way(bench: Bench) -> None:
    bench.server.failing["withWriteUrls"] = [NotFound("no such route", status=404)]

    bench.upload()

    assert bench.server.calls == ["withWriteUrls", "create", "writeurls", "PUT thumb", "PUT full"]


def marked(mark: str) -> Sample:
    return Sample(id=SAMPLE, file_name="cars/x.jpg", meta_data=SampleMetaData(custom={MARK: mark}))


def test_a_lost_reply_leads_to_the_sample_that_bears_the_mark(bench: Bench) -> None:
    bench.server.samples = [Sample(id="b" * 24, file_name="cars/x.jpg"), marked("m")]

    bench.upload(mark="m", create_sent=True)

    assert bench.server.created == []
    assert bench.server.calls == ["find", "writeurls", "PUT thumb", "PUT full"]


def many(count: int, name: str = "cars/x.jpg", created_at: int | None = None) -> list[Sample]:
    return [Sample(id=f"{number:024x}", file_name=name, created_at=created_at) for number in range(count)]


def test_the_mark_is_found_behind_short_pages_of_a_common_name(bench: Bench) -> None:
    bench.server.samples = [*many(2_500), marked("m"), *many(1_500)]
    bench.server.clamp = 40

    bench.upload(mark="m", create_sent=True)

    assert bench.server.created == []


def test_the_mark_is_found_though_the_sample_was_renamed_and_many_came_after_it(bench: Bench) -> None:
    now_ms = int(time.time() * 1000)
    renamed = Sample(id=SAMPLE, file_name="y.jpg", meta_data=SampleMetaData(custom={MARK: "m"}))
    bench.server.samples = [*many(5_000, "o.jpg", 5), renamed, *many(3_500, "o.jpg", now_ms)]
    bench.server.clamp = 400

    bench.upload(mark="m", create_sent=True)

    assert bench.server.created == []


def test_a_server_that_ignores_paging_is_not_asked_for_ever(bench: Bench) -> None:
    bench.server.samples = many(10)
    bench.server.ignores_paging = True

    bench.upload(mark="m", create_sent=True)

    assert len(bench.server.created) == 1


def test_a_create_with_a_broken_reply_is_looked_for_at_once(bench: Bench) -> None:
    bench.server.failing["withWriteUrls"] = [MalformedAnswer("no JSON", status=201)]
    original = bench.server.list_samples_partial

    def find(*args: str, **kwargs: Any) -> list[Sample]:
        bench.server.samples = [marked(bench.notes[-1].mark)]
        return original(*args, **kwargs)

    bench.server.list_samples_partial = find  # type: ignore[method-assign]

    assert bench.upload().state is State.UPLOADED
    assert len(bench.server.created) == 1


def test_where_nothing_bears_the_mark_another_create_is_sent(bench: Bench) -> None:
    bench.server.samples = [marked("other")]

    bench.upload(mark="m", create_sent=True)

    assert len(bench.server.created) == 1
    assert len(bench.naps) == 2


def test_a_create_whose_reply_is_lost_is_looked_for_before_the_next(bench: Bench) -> None:
    bench.server.failing["withWriteUrls"] = [TimedOut("no answer")]
    original = bench.server.list_samples_partial

    def find(*args: str, **kwargs: Any) -> list[Sample]:
        bench.server.samples = [marked(bench.notes[-1].mark)]
        return original(*args, **kwargs)

    bench.server.list_samples_partial = find  # type: ignore[method-assign]
    bench.upload()

    assert len(bench.server.created) == 1


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("no", status=403),
        QuotaExceeded("full", status=402),
        Unreachable("no route", request_sent=False),
    ],
)
def test_a_create_that_surely_failed_is_noted_as_not_sent(bench: Bench, error: RequestError) -> None:
    bench.server.failing["withWriteUrls"] = [
        type(error)(str(error), status=error.status, request_sent=error.request_sent) for _ in range(100)
    ]

    with pytest.raises(type(error)):
        bench.upload()

    assert not bench.notes[-1].create_sent
    assert "find" not in bench.server.calls


def test_a_server_fault_at_the_create_is_tried_again_after_a_look(bench: Bench) -> None:
    bench.server.failing["withWriteUrls"] = [ServerFault("busy", status=503)]

    bench.upload()

    assert bench.server.calls == ["withWriteUrls", "find", "withWriteUrls", "PUT thumb", "PUT full"]


@pytest.mark.parametrize("status", [408, 502, 504])
def test_a_create_that_a_gateway_gave_up_is_looked_for_as_long_as_one_whose_reply_is_lost(
    bench: Bench, status: int
) -> None:
    """The server behind it may still be at work, and its lists lag."""
    bench.server.failing["withWriteUrls"] = [ServerFault("gave up", status=status)]
    bench.server.shows_after = 3

    bench.upload()

    assert len(bench.server.created) == 1


def test_a_create_that_is_refused_for_the_name_of_its_own_sample_is_that_sample(bench: Bench) -> None:
    """Lists show a create, whose reply was lost, only when the next one is refused by now."""
    bench.server.failing["withWriteUrls"] = [TimedOut("no answer"), Conflict("exists", status=409)]
    bench.server.shows_after = 5

    record = bench.upload()

    assert (record.state, record.sample_id, record.create_sent) == (State.UPLOADED, SAMPLE, True)
    assert bench.server.stored["https://s/full"] == b"image"


def test_a_create_that_is_refused_for_a_name_is_unknown_until_the_list_shows_whose_it_is(
    bench: Bench,
) -> None:
    bench.server.failing["withWriteUrls"] = [TimedOut("no answer")] + [
        Conflict("exists", status=409) for _ in range(100)
    ]

    with pytest.raises(Conflict):
        bench.upload()

    assert bench.record.create_sent


@pytest.mark.parametrize("allow_overwrite", [False, True])
def test_a_server_that_refuses_a_name_has_it_for_another_sample(
    tmp_path: Path, allow_overwrite: bool
) -> None:
    """Created by another machine since the list was asked for the name."""
    bench = Bench(tmp_path, allow_overwrite=allow_overwrite)
    bench.server.samples = [named("b")]
    bench.server.failing["withWriteUrls"] = [Conflict("exists", status=409) for _ in range(100)]

    if allow_overwrite:
        record = bench.upload()
        assert (record.sample_id, record.replaces) == ("b" * 24, True)
    else:
        with pytest.raises(FileExists):
            bench.upload()
        assert not bench.record.create_sent
    assert len(bench.server.created) == 1
    assert bench.naps == []


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        ({"sample_id": SAMPLE}, ["writeurls", "PUT thumb", "PUT full"]),
        ({"sample_id": SAMPLE, "thumbnail_done": True}, ["writeurl full", "PUT full"]),
    ],
)
def test_an_upload_goes_on_where_it_was_cut_off(
    bench: Bench, state: dict[str, Any], calls: list[str]
) -> None:
    assert bench.upload(**state).state is State.UPLOADED
    assert bench.server.calls == calls


def test_an_overwrite_is_confirmed_and_keeps_other_peoples_metadata(bench: Bench) -> None:
    bench.upload(sample_id=SAMPLE, replaces=True)

    assert bench.server.calls == ["writeurls", "PUT thumb", "PUT full", "get", "update"]
    (update,) = bench.server.updates
    assert isinstance(update.meta_data, SampleMetaData)
    assert (update.meta_data.size_in_bytes, update.meta_data.custom) == (5, {"mine": 1})


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_write_url_is_renewed_once(bench: Bench, status: int) -> None:
    bench.server.statuses = [status]

    bench.upload()

    assert bench.server.calls == ["withWriteUrls", "PUT thumb", "writeurl thumb", "PUT thumb", "PUT full"]


def test_a_write_url_that_is_refused_for_seconds_is_an_error(bench: Bench) -> None:
    bench.server.statuses = [403] * 5
    bench.upload()
    assert bench.server.calls.count("writeurl thumb") == 5

    bench.server.statuses = [403] * 100

    with pytest.raises(Forbidden):
        bench.upload()

    assert bench.notes[-1].sample_id == SAMPLE


@pytest.mark.parametrize(
    ("url", "key", "headers"),
    [
        ("https://b.s3.eu-west-1.amazonaws.com/k?X-Amz-Signature=1", "", {}),
        (
            "https://b.s3.amazonaws.com/k?X-Amz-Signature=1",
            "true",
            {"x-amz-server-side-encryption": "AES256"},
        ),
        (
            "https://b.s3.amazonaws.com/k?x-amz-signature=1",
            "key-id",
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "key-id",
            },
        ),
        ("https://storage.googleapis.com/b/k?X-Goog-Signature=1", "true", {}),
        ("https://a.blob.core.windows.net/c/k?sig=1", "true", {"x-ms-blob-type": "BlockBlob"}),
        ("http://127.0.0.1/storage/k?sig=1", "true", {}),
    ],
)
def test_a_put_has_the_headers_its_storage_wants(url: str, key: str, headers: dict[str, str]) -> None:
    assert put_headers(url, key) == headers


def test_progress_is_told(tmp_path: Path) -> None:
    bench, moving = Bench(tmp_path), Moving()

    bench.steps.upload(bench.record, moving, bench.note)

    assert moving.moved >= 3


def named(sample_id: str, created_at: int = 0) -> Sample:
    return Sample(id=sample_id * 24, file_name="cars/x.jpg", created_at=created_at)


def test_the_server_is_asked_for_a_name_before_a_create_and_after_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False)

    bench.upload()

    assert bench.server.calls == ["find", "withWriteUrls", "find", "PUT thumb", "PUT full"]


def test_a_catalogue_that_was_compared_just_now_saves_the_first_question(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False)
    bench.fresh = True

    bench.upload()

    assert bench.server.calls == ["withWriteUrls", "find", "PUT thumb", "PUT full"]


@pytest.mark.parametrize(
    ("shown", "questions"), [([], 1), ([named("a")], 1), ([named("a"), named("b", 1)], 2)]
)
def test_a_sample_that_is_alone_is_asked_for_once(
    tmp_path: Path, shown: list[Sample], questions: int
) -> None:
    """A page with another sample on it may be a short one."""
    bench = Bench(tmp_path, sole_writer=False)
    bench.fresh, bench.server.rivals = True, shown

    bench.upload()

    assert bench.server.calls.count("find") == questions


def test_after_a_failed_image_the_thumbnail_is_not_sent_again(bench: Bench) -> None:
    error = Unreachable("gone")
    error.settled = True
    bench.server.failing["PUT full"] = [error]
    with pytest.raises(Unreachable):
        bench.upload()
    assert bench.record.thumbnail_done

    bench.upload()

    assert bench.server.calls.count("PUT thumb") == 1


def test_a_name_that_is_taken_by_now_is_not_created_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False)
    bench.server.samples = [named("b")]

    with pytest.raises(FileExists):
        bench.upload()

    assert bench.server.created == []
    assert not bench.record.create_sent


@pytest.mark.parametrize("allow_overwrite", [False, True])
def test_a_sample_that_lists_show_under_its_old_name_does_not_have_it(
    tmp_path: Path, allow_overwrite: bool
) -> None:
    """Its image would be replaced by another one."""
    bench = Bench(tmp_path, sole_writer=False, allow_overwrite=allow_overwrite)
    bench.server.samples, bench.server.renamed = [named("0")], {"0" * 24: "cars/moved.jpg"}
    bench.server.rivals = [named("a")]

    assert bench.upload().sample_id == SAMPLE
    assert len(bench.server.created) == 1
    assert bench.leftovers == []


def test_where_images_may_be_replaced_the_sample_that_has_the_name_gets_this_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False, allow_overwrite=True)
    bench.server.samples = [named("b")]

    record = bench.upload()

    assert (record.sample_id, record.replaces) == ("b" * 24, True)
    assert bench.server.created == []
    assert bench.server.calls[-2:] == ["get", "update"]


@pytest.mark.parametrize("rival", [named("b", created_at=-1), named("0", created_at=0)])
def test_of_two_creates_of_one_name_the_later_gives_way(tmp_path: Path, rival: Sample) -> None:
    bench = Bench(tmp_path, sole_writer=False)
    bench.server.rivals = [rival, named("a")]

    with pytest.raises(FileExists):
        bench.upload()

    away = f".lightlyfs-replaced/{SAMPLE}-x.jpg"
    assert bench.leftovers == [Leftover(SAMPLE, "cars/x.jpg", away)]
    assert [update.file_name for update in bench.server.updates] == [away]
    assert (bench.record.sample_id, bench.record.create_sent) == (None, False)


def test_of_two_creates_of_one_name_the_earlier_stands(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False)
    bench.server.rivals = [named("b", created_at=1), named("a")]

    assert bench.upload().sample_id == SAMPLE
    assert bench.leftovers == []


def test_a_create_that_a_crash_cut_off_gives_way_all_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False)
    bench.server.samples = [named("0"), named("a")]

    with pytest.raises(FileExists):
        bench.upload(sample_id=SAMPLE, create_sent=True, mark="m")

    assert [leftover.sample_id for leftover in bench.leftovers] == [SAMPLE]


def test_a_sample_that_others_renamed_meanwhile_is_no_rival_of_its_old_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False)
    bench.server.samples = [named("0")]

    assert bench.upload(sample_id=SAMPLE, create_sent=True, mark="m").sample_id == SAMPLE
    assert bench.leftovers == []


def test_the_later_of_two_creates_replaces_the_other_image_where_that_is_allowed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sole_writer=False, allow_overwrite=True)
    bench.server.rivals = [named("0"), named("a")]

    assert bench.upload().sample_id == "0" * 24
    assert [leftover.sample_id for leftover in bench.leftovers] == [SAMPLE]


def test_what_is_no_image_over_an_image_leaves_no_picture_of_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OTHER)
    bench.server.before = Sample(
        id=SAMPLE, thumb_name="x_thumb.webp", meta_data=SampleMetaData(shape=[1, 1, 3])
    )

    bench.upload(sample_id=SAMPLE, replaces=True)

    assert bench.server.stored["https://s/thumb"] == BLANK_THUMBNAIL
    (update,) = bench.server.updates
    assert isinstance(update.meta_data, SampleMetaData)
    assert (update.meta_data.shape, update.exif) == (None, {})
