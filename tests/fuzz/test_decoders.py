"""Every decoder of what comes from outside: any bytes give a value or the one documented error, soon."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightlyfs import control, errors
from lightlyfs.api import models
from lightlyfs.api.contract import BodyMemory, BodySink, Request, Response, StopTransfer, wire_url
from lightlyfs.api.retry import raise_for_status, retry_after_s
from lightlyfs.app.exported_index import _checked_copy
from lightlyfs.blocks import ContentId, Span, parse_content_range
from lightlyfs.catalog.remote import ApiRemote
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tags import members_of
from lightlyfs.cli.cache import listed_names
from lightlyfs.errors import MalformedAnswer, StartError
from lightlyfs.fetch.answers import BlockSink, RangeUnusable
from lightlyfs.fetch.urls import expiry_of
from lightlyfs.fs.changes import _json_object
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import FIELDS

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")  # of large examples

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FIELD_NAMES = [
    "id",
    "fileName",
    "createdAt",
    "lastModifiedAt",
    "metaData",
    "sizeInBytes",
    "name",
    "bitMaskData",
]
FIELD_NAMES += [
    "code",
    "error",
    "message",
    "requestId",
    "nSamples",
    "full",
    "thumb",
    "sampleWriteUrls",
    "custom",
]
OID = "5f2c4a3b9d8e7f6a5b4c3d2e"

text = st.text(st.characters(codec=None), max_size=30)
numbers = st.integers() | st.floats() | st.sampled_from([2**53, 2**63, 2**64, 10**400, -(2**63) - 1, 1e308])
plain = st.none() | st.booleans() | numbers | text | st.sampled_from([OID, OID + "\n", "0x" + "f" * 99, ""])
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELD_NAMES) | text, inner, max_size=6)
    ),
    max_leaves=25,
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a piece cut out and another put there."""
    data = draw(whole)
    start = draw(st.integers(0, len(data)))
    return data[:start] + draw(st.binary(max_size=6)) + data[start + draw(st.integers(0, 8)) :]


documents = values.map(lambda value: json.dumps(value).encode())
bodies = (
    documents
    | damaged(documents)
    | st.binary(max_size=200)
    | st.sampled_from(
        [
            b"[" * 5_000,
            b'{"error":' * 5_000,
            b'[{"id":"' + OID.encode() + b'","metaData":' + b'{"custom":' * 5_000 + b"1",
            b"9" * 10_000,
            b'{"code":' + b"9" * 10_000 + b"}",
            b'[{"id":"' + OID.encode() + b'","createdAt":' + b"9" * 10_000 + b"}]",
            b'[{"id":"' + OID.encode() + b'","fileName":"' + b"\\ud800" * 20_000 + b'"}]',
            b'"' + b"\xff" * 1000,
        ]
    )
)
# as the transports decode them: latin-1, in which some letters are digits to Python
header = st.text(st.characters(max_codepoint=255), max_size=40)
counts = st.integers(0, 2**70).map(str) | st.sampled_from(
    ["9" * 5000, "\xb2", "1\xb2", "-1", "+1", "0x1", "1_0", ""]
)
ranges = st.builds("bytes {}-{}/{}".format, counts, counts, counts | st.just("*")) | counts.map(
    "bytes */{}".format
)
HEADERS = {
    "content-length": counts | header,
    "content-range": ranges | header,
    "content-encoding": st.sampled_from(["gzip", "deflate", "br", "identity", "gzip, gzip"]) | header,
    "content-type": st.sampled_from(["text/html", "image/jpeg"]) | header,
    "etag": header,
    "last-modified": header,
    "retry-after": counts
    | header
    | st.sampled_from(["nan", "-inf", "1e999", "Mon, 01 Jan 0001 00:00:00 +9999"]),
    "transfer-encoding": header,
    "x-request-id": header,
}
headers = st.fixed_dictionaries({}, optional=HEADERS)


@contextlib.contextmanager
def only(*documented: type[BaseException]) -> Iterator[None]:
    """The block ends, or raises what is documented; within the time one may wait for a decoder."""
    started = time.process_time()
    try:
        yield
    except documented:
        pass
    assert time.process_time() - started < 5


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "listing": models.decode_listing,
    "samples": lambda body: models.decode_many(body, models.Sample, "samples"),
    "sample": lambda body: models.decode_one(body, models.Sample, "sample"),
    "dataset": lambda body: models.decode_one(body, models.DatasetRecord, "dataset"),
    "tags": lambda body: models.decode_many(body, models.Tag, "tags"),
    "created": lambda body: models.decode_one(body, models.CreatedSample, "created"),
    "urls": lambda body: models.decode_one(body, models.CreatedSampleWithWriteUrls, "created"),
    "strings": lambda body: models.decode_strings(body, "mappings"),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@FUZZ
@given(body=bodies)
def test_an_answer_is_decoded_or_called_malformed(decoder: Callable[[bytes], Any], body: bytes) -> None:
    with only(MalformedAnswer):
        repr(decoder(body))


class Pages:
    """The API, of which only one page is asked for."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def list_page(self, *_: Any, **__: Any) -> list[models.ListedSample]:
        return models.decode_listing(self._body)

    def get_tags(self, *_: Any) -> list[models.Tag]:
        return models.decode_many(self._body, models.Tag, "tags")


@FUZZ
@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.just(OID) | plain, "fileName": text | st.lists(text).map("/".join)},
            optional=dict.fromkeys(FIELD_NAMES[2:4], plain) | {"metaData": values},
        ),
        min_size=1,
        max_size=5,
    )
)
def test_listed_rows_become_rows_of_the_catalogue(rows: list[dict[str, Any]]) -> None:
    remote = ApiRemote(Pages(json.dumps(rows).encode()), OID)  # type: ignore[arg-type]
    with only(MalformedAnswer):
        assert len(remote.page(0, 1000)) == len(rows)


@FUZZ
@given(st.integers(100, 599), headers, bodies, st.booleans(), st.booleans())
@example(503, {"retry-after": "9" * 5000}, b'{"error":' * 5_000, False, True)
def test_an_error_body_becomes_an_error_of_one_line(
    status: int, found: dict[str, str], body: bytes, storage: bool, reads: bool
) -> None:
    retry_after_s(found, lambda: 0.0)
    caught: errors.RequestError | None = None
    try:
        with only():
            raise_for_status(Response(status, found, body), what="asking", storage=storage, reads=reads)
    except errors.RequestError as error:
        caught = error
    assert (caught is None) == (200 <= status < 300)
    assert str(caught).isprintable()
    assert len(str(caught)) < 1000


class Taker:
    """Takes all blocks there are."""

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        return Span(first, last) if last >= first else None

    def block(self, index: int, data: bytes) -> None:
        assert index >= 0


payloads = st.binary(max_size=3000)
stored = (
    payloads
    | payloads.map(gzip.compress)
    | payloads.map(zlib.compress)
    | damaged(payloads.map(gzip.compress))
)


@FUZZ
@given(
    st.sampled_from([200, 201, 206, 416, 304]),
    headers,
    st.lists(stored, max_size=3),
    st.sampled_from([0, 1 << 20]),
)
def test_an_answer_of_storage_becomes_blocks_or_a_known_error(
    status: int, found: dict[str, str], chunks: list[bytes], start: int
) -> None:
    with only(errors.LightlyFsError, RangeUnusable, StopTransfer):
        sink = BlockSink(OID, start, None, Taker())
        sink.headers(status, found)
        for chunk in chunks:
            sink.write(chunk)
        sink.finish().key()


@FUZZ
@given(
    st.sampled_from(["GET", "HEAD", "PUT"]), st.integers(100, 599), headers, st.lists(st.binary(max_size=200))
)
def test_any_headers_are_taken_by_a_transport(
    method: str, status: int, found: dict[str, str], chunks: list[bytes]
) -> None:
    with only(errors.RequestError):
        sink = BodySink(Request(method, "https://a.test/", max_body_bytes=300), BodyMemory())
        if sink.start(status, found):
            all(sink.write(chunk) for chunk in chunks)
        sink.missing()
        sink.response()


@FUZZ
@given(ranges | header)
def test_a_content_range_is_parsed_or_none(value: str) -> None:
    found = parse_content_range(value)
    assert found is None or found.start is None or (found.end or 0) > found.start >= 0


@FUZZ
@given(
    text
    | st.builds("https://h/?{}={}&{}={}".format, text, counts, text, counts)
    | st.text("htps:/?&=[]@.%#", max_size=30)
)
@example("https://h/?X-Amz-Date=20240101T000000Z&X-Amz-Expires=" + "9" * 5000)
@example("https://h/?X-Amz-Date=20240101T000000Z&X-Amz-Expires=inf")
@example("https://h/?se=9999-12-31T23:59:59Z")
def test_an_address_is_refused_or_sent_and_ends_or_not(url: str) -> None:
    with only(errors.UnsafeUrl):
        wire_url(url)
    assert not (expiry_of(url) or 0) < 0


masks = text | counts | st.from_regex("0x[0-9a-fA-F]{1,40}", fullmatch=True) | st.just("0x" + "f" * 5_000)


@FUZZ
@given(
    st.lists(st.fixed_dictionaries({"id": st.just(OID), "name": text, "bitMaskData": masks})),
    st.binary(max_size=50),
)
def test_a_tag_of_any_mask_has_members_of_the_mapping(tags: list[dict[str, Any]], mapping: bytes) -> None:
    with only(MalformedAnswer):
        remote = ApiRemote(Pages(json.dumps(tags).encode()), OID)  # type: ignore[arg-type]
        for tag in remote.tags():
            assert all(len(member) == 12 and member in mapping for member in members_of(tag.mask, mapping))


@FUZZ
@given(
    st.binary()
    | text.map(lambda one: one.encode("utf-16", "surrogatepass"))
    | damaged(st.just(b"\xff\xfea\0\n\0"))
)
def test_a_list_of_names_is_read_whatever_it_is_written_in(data: bytes) -> None:
    with only(errors.LightlyFsError):
        assert all(isinstance(name, str) for name in listed_names(data))


@FUZZ
@given(bodies)
def test_what_is_set_as_metadata_is_an_object_or_refused(value: bytes) -> None:
    with only(errors.InvalidArgument):
        _json_object(value)


class Line:
    """A socket that has one message."""

    def __init__(self, data: bytes) -> None:
        self._left = [data, b""]

    def recvmsg(self, *_: int) -> tuple[bytes, list[Any], int, None]:
        return self._left.pop(0), [], 0, None

    def close(self) -> None:
        """Nothing to close."""


@FUZZ
@given(bodies)
def test_a_message_to_a_mount_is_an_object_or_a_value_error(body: bytes) -> None:
    with only(ValueError):
        control.Channel(Line(body.replace(b"\n", b"") + b"\n")).receive()  # type: ignore[arg-type]


# files that others may have written

cells = (
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=20) | st.text(max_size=20)
)


@FUZZ
@given(
    st.dictionaries(st.sampled_from(FIELDS), cells | st.sampled_from(["pending", "local", b"x\xff.jpg"])),
    cells,
)
def test_journal_rows_of_any_kind_are_read_or_name_the_file(row: dict[str, Any], other: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "journal.db")
        Journal(path).close()
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            row["key"] = row.get("key") or "k"
            names = ", ".join(row)
            with contextlib.suppress(sqlite3.IntegrityError):
                db.execute(
                    f"INSERT INTO file ({names}) VALUES ({', '.join('?' * len(row))})", list(row.values())
                )
            for table in ("directory", "leftover", "time", "rename"):
                width = len(db.execute(f"PRAGMA table_info({table})").fetchall())
                with contextlib.suppress(sqlite3.IntegrityError):
                    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", [other] * width)
        with only(StartError):
            Journal(path).close()
        journal = Journal(path, rescue=True)
        try:
            for read in (
                journal.records,
                journal.directories,
                journal.leftovers,
                journal.times,
                journal.renames,
            ):
                with only(StartError):
                    read()
        finally:
            journal.close()


@FUZZ
@given(st.binary(max_size=60), st.integers(0, 40_000), cells, cells)
def test_a_file_that_is_no_index_is_called_so(noise: bytes, at: int, checked: Any, of: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "index")
        store = CatalogStore(path)
        store.close()
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for key, value in (("checked_at", checked), ("index_of", of)):
                with contextlib.suppress(sqlite3.IntegrityError):
                    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        data = path.read_bytes()
        path.write_bytes(data[:at] + noise + data[at + len(noise) :])
        with only(StartError), _checked_copy(path, path.parent):
            pass
