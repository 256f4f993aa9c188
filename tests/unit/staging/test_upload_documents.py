"""The documents and URLs of one upload: what is sent, what stays of others, what is asked for once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightlyfs.api.contract import Request, Response
from lightlyfs.api.models import Sample, SampleMetaData, SampleWriteUrls
from lightlyfs.api.retry import Retrier
from lightlyfs.staging.image_facts import ImageFacts
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.upload_steps import (
    MARK,
    Image,
    StoredObjects,
    UploadConfig,
    WriteUrls,
    mark_of,
)

SAMPLE = "a" * 24
FACTS = ImageFacts({"sizeInBytes": 5, "shape": [1, 2, 3], "snr": 0.5}, {"Make": "x"}, b"thumb")
RECORD = Record("k", "d/x.jpg", "d/x.jpg", State.PENDING, mark="m1")


def test_a_new_sample_has_its_facts_and_its_mark() -> None:
    new = Image(Path("k.0"), FACTS).as_new_sample(RECORD)
    assert (new.file_name, new.thumb_name, new.exif) == ("d/x.jpg", "d/x_thumb.webp", {"Make": "x"})
    assert new.meta_data == SampleMetaData(custom={MARK: "m1"}, size_in_bytes=5, shape=[1, 2, 3], snr=0.5)


def test_a_new_sample_without_facts_sends_none() -> None:
    new = Image(Path("k.0"), ImageFacts({"sizeInBytes": 5}, {}, None)).as_new_sample(RECORD)
    assert new.thumb_name is new.exif is msgspec.UNSET
    assert new.meta_data == SampleMetaData(custom={MARK: "m1"}, size_in_bytes=5)


def test_an_update_keeps_what_others_keep_in_a_sample() -> None:
    before = SampleMetaData(custom={"mine": 1, MARK: "m0"}, dynamic={"d": 2}, size_in_bytes=9, sharpness=0.25)
    update = Image(Path("k.0"), FACTS).as_update(RECORD, Sample(id=SAMPLE, meta_data=before))
    assert update.meta_data == SampleMetaData(
        custom={"mine": 1}, dynamic={"d": 2}, size_in_bytes=5, shape=[1, 2, 3], snr=0.5
    )
    assert (update.thumb_name, update.exif) == ("d/x_thumb.webp", {"Make": "x"})
    assert update.file_name is msgspec.UNSET
    bare = Image(Path("k.0"), ImageFacts({"sizeInBytes": 5}, {}, None)).as_update(RECORD, Sample(id=SAMPLE))
    assert bare.thumb_name is msgspec.UNSET
    assert bare.exif == {}  # that of the image before goes
    assert bare.meta_data == SampleMetaData(size_in_bytes=5)


def test_a_create_was_sent_at_most_a_day_before_its_bytes_changed_by_any_clock(tmp_path: Path) -> None:
    path = tmp_path / "k.0"
    path.write_bytes(b"image")
    os.utime(path, (1_700_000_000.25, 1_700_000_000.25))
    assert Image(path, FACTS).staged_ms() == (1_700_000_000 - 86_400) * 1000 + 250


@pytest.mark.parametrize(
    ("custom", "mark"),
    [(None, None), ({}, None), ({MARK: "m"}, "m"), ({MARK: 5}, None), ({"other": "m"}, None)],
)
def test_the_mark_of_a_sample_is_what_its_create_carried(custom: Any, mark: str | None) -> None:
    assert mark_of(Sample(id=SAMPLE, meta_data=SampleMetaData(custom=custom))) == mark
    assert mark_of(Sample(id=SAMPLE)) is None


# write URLs


class Api:
    """Gives out numbered write URLs and read URLs."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get_sample_write_urls(self, dataset: str, sample: str) -> SampleWriteUrls:
        self.asked.append("both")
        return SampleWriteUrls(full=f"full{len(self.asked)}", thumb=f"thumb{len(self.asked)}")

    def get_sample_write_url(self, dataset: str, sample: str, *, is_thumbnail: bool) -> str:
        self.asked.append("thumb" if is_thumbnail else "full")
        return f"https://s.test/{self.asked[-1]}{len(self.asked)}"

    def get_sample_read_url(self, dataset: str, sample: str, kind: str) -> str:
        self.asked.append(f"read {kind}")
        return f"https://s.test/read/{kind}"


def test_both_urls_are_asked_for_at_once_where_both_are_owed() -> None:
    api = Api()
    urls = WriteUrls(api, "d")  # type: ignore[arg-type]
    urls.for_sample(SAMPLE, thumbnail=True)
    assert (urls.get(False), urls.get(True)) == ("full1", "thumb1")
    urls.for_sample(SAMPLE, thumbnail=True)
    assert api.asked == ["both"]


def test_one_url_is_asked_for_where_one_is_owed_and_the_other_if_need_be() -> None:
    api = Api()
    urls = WriteUrls(api, "d")  # type: ignore[arg-type]
    urls.for_sample(SAMPLE, thumbnail=False)
    assert urls.get(False) == urls.get(False) == "https://s.test/full1"
    assert urls.get(True) == "https://s.test/thumb2"
    assert urls.renewed(False) == urls.get(False) == "https://s.test/full3"
    assert api.asked == ["full", "thumb", "full"]


def test_urls_that_came_with_the_create_are_used() -> None:
    api = Api()
    urls = WriteUrls(api, "d")  # type: ignore[arg-type]
    urls.keep("f", "t")
    urls.for_sample(SAMPLE, thumbnail=True)
    assert (urls.get(False), urls.get(True), api.asked) == ("f", "t", [])


# what storage says


class Storage:
    """Answers as it is told, and notes what it was sent."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.sent: list[Request] = []

    def send(self, request: Request) -> Response:
        self.sent.append(request)
        return self.answers.pop(0)

    def close(self) -> None:
        """Nothing is open."""


def put(storage: Storage, body: bytes = b"12345") -> str:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    retrier = Retrier(clock=lambda: now[0], sleep=sleep, random=lambda: 0.5)
    objects = StoredObjects(Api(), "d", storage, retrier, UploadConfig())  # type: ignore[arg-type]
    urls = objects.urls()
    urls.for_sample(SAMPLE, thumbnail=False)
    return objects.put(urls, False, body)


def part(total: int | str, status: int = 206) -> Response:
    return Response(status, {"content-range": f"bytes 0-0/{total}"}, b"1")


def test_a_put_that_names_a_version_is_the_confirmation() -> None:
    storage = Storage(Response(200, {"etag": '"v1"'}, b""))
    assert put(storage) == '"v1"'
    (request,) = storage.sent
    assert (request.method, request.url, request.body) == ("PUT", "https://s.test/full1", b"12345")


@pytest.mark.parametrize(
    "answer",
    [part(5), Response(200, {"content-length": "5"}, b""), Response(200, {}, b"12345")],
    ids=["part", "length", "body"],
)
def test_where_no_version_is_named_storage_is_asked_whether_it_has_the_bytes(answer: Response) -> None:
    storage = Storage(Response(200, {}, b""), answer)
    assert put(storage) == ""
    request = storage.sent[1]
    assert (request.method, request.headers["Range"], request.fresh) == ("GET", "bytes=0-0", True)
    assert request.url == "https://s.test/read/full"


@pytest.mark.parametrize(
    "answer",
    [part(4), part(6), part("*"), Response(404, {}, b""), Response(200, {"content-length": "6"}, b"")],
    ids=["short", "long", "unknown", "none", "whole"],
)
def test_bytes_that_storage_does_not_have_are_sent_again(answer: Response) -> None:
    storage = Storage(Response(200, {}, b""), answer, Response(200, {"etag": "v2"}, b""))
    assert put(storage) == "v2"
    assert [request.method for request in storage.sent] == ["PUT", "GET", "PUT"]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_write_url_is_renewed_at_once(status: int) -> None:
    storage = Storage(Response(status, {}, b""), Response(200, {"etag": "v"}, b""))
    assert put(storage) == "v"
    assert [request.url[-5:] for request in storage.sent] == ["full1", "full2"]


@pytest.mark.parametrize("status", [400, 403])
def test_a_url_that_was_refused_is_not_used_by_the_next_try(status: int) -> None:
    refused = Response(status, {}, b"")
    storage = Storage(refused, refused, Response(200, {"etag": "v"}, b""))
    assert put(storage) == "v"
    assert [request.url[-5:] for request in storage.sent] == ["full1", "full2", "full3"]
