"""Decoding forgives what does no harm and names what does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightlyfs import errors
from lightlyfs.api import models
from lightlyfs.api.models import ListedSample, Sample, SampleCreate, SampleMetaData, SampleUpdate

OID = "5f7c1d0e9b2a4c6d8e0f1a2b"
FULL: dict[str, Any] = {
    "id": OID,
    "type": "IMAGE",
    "fileName": "car/green/frame0.png",
    "datasetId": "6" * 24,
    "thumbName": "car/green/frame0_thumb.webp",
    "exif": {"Make": "Canon", "FNumber": 2.8},
    "index": 3,
    "createdAt": 1660000000000,
    "lastModifiedAt": 1660000000001,
    "metaData": {
        "custom": {"a": 1},
        "dynamic": None,
        "sharpness": 1,
        "sizeInBytes": 12345,
        "snr": 0.5,
        "mean": [0.1, 0.2, 1],
        "shape": [480, 640, 3],
        "std": [0, 0, 0],
        "sumOfSquares": [1.0, 2.0, 3.0],
        "sumOfValues": [1.0, 2.0, 3.0],
        "luminance": 50,
        "uniformRowRatio": 0.1,
    },
    "customMetaData": {"weather": {"rain": True}},
    "videoFrameData": {"sourceVideo": "v.mp4", "sourceVideoFrameIndex": 1.0},
    "cropData": {
        "parentId": "7" * 24,
        "predictionUUIDTimestamp": 1,
        "predictionIndex": 0,
        "predictionTaskName": "a/b",
        "predictionTaskCategoryId": 2,
        "predictionTaskScore": 0.5,
    },
}


def sample(**changes: Any) -> Sample:
    return models.decode_one(json.dumps({**FULL, **changes}).encode(), Sample, "sample")


def listing(*rows: Any) -> list[ListedSample]:
    return models.decode_listing(json.dumps(rows).encode())


def test_a_full_sample_is_read() -> None:
    found = sample()
    assert (found.id, found.type, found.file_name, found.index) == (OID, "IMAGE", "car/green/frame0.png", 3)
    assert (found.created_at, found.last_modified_at) == (1660000000000, 1660000000001)
    assert found.exif == {"Make": "Canon", "FNumber": 2.8}
    assert found.meta_data is not None
    assert (found.meta_data.size_in_bytes, found.meta_data.shape) == (12345, [480, 640, 3])
    assert found.video_frame_data is not None
    assert found.video_frame_data.source_video == "v.mp4"
    assert found.crop_data is not None
    assert (found.crop_data.prediction_uuid_timestamp, found.crop_data.prediction_task_name) == (1, "a/b")


def test_only_the_id_is_needed() -> None:
    found = models.decode_one(b'{"id": "%s"}' % OID.encode(), Sample, "sample")
    assert found == Sample(id=OID)


OPTIONAL = sorted(set(FULL) - {"id"})


@pytest.mark.parametrize("field", OPTIONAL)
def test_every_optional_field_may_be_null(field: str) -> None:
    assert sample(**{field: None}).id == OID


WRONG = [17, -1.5, "text", True, [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("value", WRONG, ids=json.dumps)
@pytest.mark.parametrize("field", sorted(set(OPTIONAL) - {"fileName"}))
def test_a_wrong_type_costs_that_field_alone(field: str, value: Any) -> None:
    found = sample(**{field: value})
    assert (found.id, found.file_name) == (OID, FULL["fileName"])
    others = [name for name in ("created_at", "index", "exif") if models_name(field) != name]
    assert all(getattr(found, name) is not None for name in others)


def models_name(field: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in field)


@pytest.mark.parametrize("field", sorted(FULL["metaData"]))
def test_a_wrong_type_inside_the_meta_data_costs_that_field_alone(field: str) -> None:
    found = sample(metaData={**FULL["metaData"], field: "wrong"}).meta_data
    assert found is not None
    assert getattr(found, models_name(field)) is None
    assert (found.size_in_bytes == 12345) == (field != "sizeInBytes")


def test_unknown_fields_are_ignored() -> None:
    assert sample(new={"a": [1]}, metaData={"sizeInBytes": 5, "new": 1}).meta_data == SampleMetaData(
        size_in_bytes=5
    )


def test_whole_numbers_may_come_as_floats() -> None:
    body = json.dumps({**FULL, "index": 7.0}).replace("1660000000000", "1.66e12").encode()
    found = models.decode_one(body, Sample, "sample")
    assert (found.created_at, found.index) == (1660000000000, 7)
    assert isinstance(found.created_at, int)
    assert sample(index=7.5).index is None


def test_nan_is_no_number() -> None:
    body = json.dumps({**FULL, "metaData": {"snr": float("nan"), "sizeInBytes": 1}}).encode()
    assert models.decode_one(body, Sample, "sample").meta_data == SampleMetaData(size_in_bytes=1)


@pytest.mark.parametrize(
    "oid", ["", "abc", OID.upper(), OID + "0", "../../../../etc/passwd/x", OID[:-1] + "\n"]
)
def test_a_record_with_an_id_that_is_none_costs_itself(oid: str) -> None:
    body = json.dumps([FULL, {**FULL, "id": oid}]).encode()
    first, second = models.decode_listing(body)
    assert first.id == OID
    assert second.id == ""  # it keeps its place, for pages are counted
    assert "not 24 hex digits" in str(second.file_name)
    assert [one.id for one in models.decode_many(body, Sample, "samples")] == [OID]
    with pytest.raises(errors.MalformedAnswer, match=r"sample\.id is not 24 hex digits"):
        sample(id=oid)


def test_two_ids_cannot_hide_in_one() -> None:
    first, _ = listing({"id": f"{OID}\n{OID}"}, FULL)
    assert first.id == ""


@pytest.mark.parametrize("row", [{"id": None}, {"id": 17}, {"fileName": "x"}, None, 1, "x", []])
def test_a_row_that_is_no_record_costs_itself(row: Any) -> None:
    first, second, third = listing(FULL, row, FULL)
    assert (first.id, second.id, third.id) == (OID, "", OID)
    body = json.dumps([FULL, row]).encode()
    assert len(models.decode_many(body, Sample, "samples")) == 1


@pytest.mark.parametrize("value", [17, [], {}, True])
def test_a_name_that_is_no_string_costs_its_record(value: Any) -> None:
    rows = [FULL] * 17 + [{**FULL, "fileName": value}]
    found = listing(*rows)
    assert [row.id for row in found] == [OID] * 17 + [""]
    assert "fileName: Expected" in str(found[-1].file_name)


@pytest.mark.parametrize("row", [{"id": "x"}, {"id": None}, {"code": "X"}, None, 1])
def test_an_answer_without_a_record_is_malformed(row: Any) -> None:
    body = json.dumps([row] * 21).encode()
    for decode in (models.decode_listing, lambda body: models.decode_many(body, Sample, "samples")):
        with pytest.raises(errors.MalformedAnswer, match="samples"):
            decode(body)


def test_a_few_rows_without_a_record_are_the_end_of_a_list() -> None:
    assert [row.id for row in listing({"id": "x"}, None)] == ["", ""]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "samples: the answer is an empty body"),
        (b" \n", "samples: the answer is an empty body"),
        (b"<html><body>hi</body></html>", "samples: the answer is an HTML or XML page"),
        (b'[{"id": ', "samples: the answer is no JSON"),
        (b"OK", "samples: the answer is no JSON"),
        (b"\xff\xfe\xfd", "samples: the answer is no JSON"),
        (b'{"code": "X"}', "samples is not an array"),
        (b'"x"', "samples is not an array"),
        (b"null", "samples is not an array"),
        (b"[" * 100_000, "samples: the answer is no JSON"),
    ],
)
def test_what_is_no_listing_is_named(body: bytes, text: str) -> None:
    with pytest.raises(errors.MalformedAnswer) as caught:
        models.decode_listing(body)
    assert str(caught.value).startswith(text)


def test_an_unpaired_surrogate_in_a_name_is_kept() -> None:
    body = json.dumps([{"id": OID, "fileName": "a\ud800b"}, {"id": OID, "fileName": "\U0001f600"}]).encode()
    assert [row.file_name for row in models.decode_listing(body)] == ["a\ud800b", "\U0001f600"]
    assert models.decode_many(body, Sample, "samples")[0].file_name == "a\ud800b"


def test_a_listing_row_holds_what_the_catalogue_keeps() -> None:
    assert listing(FULL) == [ListedSample(OID, "car/green/frame0.png", 1660000000000, 1660000000001, 12345)]


@pytest.mark.parametrize("row", [{"id": OID}, {"id": OID, "metaData": None, "fileName": None}])
def test_a_listing_row_of_ids_alone(row: dict[str, Any]) -> None:
    assert listing(row) == [ListedSample(OID)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"metaData": {"sizeInBytes": 5.0}}, ListedSample(OID, size_in_bytes=5)),
        ({"metaData": {"sizeInBytes": "5"}}, ListedSample(OID)),
        ({"metaData": [5], "createdAt": 1.5}, ListedSample(OID)),
        ({"createdAt": 1e12, "exif": 5}, ListedSample(OID, created_at=10**12)),
        ({"lastModifiedAt": "2020", "fileName": "x"}, ListedSample(OID, "x")),
    ],
)
def test_a_listing_row_forgives(row: dict[str, Any], expected: ListedSample) -> None:
    assert listing(FULL, {"id": OID, **row})[1] == expected


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FULL)), values, max_size=6))
def test_any_json_gives_rows_or_a_named_malformation(changes: dict[str, Any]) -> None:
    body = json.dumps([{**FULL, **changes}]).encode()
    for decode in (models.decode_listing, lambda body: models.decode_many(body, Sample, "samples")):
        try:
            (row,) = decode(body)
        except errors.MalformedAnswer as exc:
            assert str(exc).startswith("samples")  # noqa: PT017
        else:
            assert models.is_oid(row.id) or (row.id == "" and decode is models.decode_listing)
            assert row.file_name is None or isinstance(row.file_name, str)


def test_only_set_fields_are_sent() -> None:
    assert json.loads(models.encode(SampleUpdate(file_name="y"))) == {"fileName": "y"}
    assert json.loads(models.encode(SampleUpdate())) == {}
    assert json.loads(models.encode(SampleUpdate(custom_meta_data=None))) == {"customMetaData": None}
    created = SampleCreate(
        file_name="a.jpg",
        thumb_name="a_thumb.webp",
        exif={"Make": "x"},
        meta_data=SampleMetaData(size_in_bytes=5, shape=[1, 2, 3], custom={"u": "1"}),
        custom_meta_data={},
    )
    assert json.loads(models.encode(created)) == {
        "fileName": "a.jpg",
        "thumbName": "a_thumb.webp",
        "exif": {"Make": "x"},
        "metaData": {"sizeInBytes": 5, "shape": [1, 2, 3], "custom": {"u": "1"}},
        "customMetaData": {},
    }


def test_a_surrogate_in_a_name_can_be_sent_back() -> None:
    sent = models.encode(SampleUpdate(file_name="a\ud800b", custom_meta_data=None))
    assert json.loads(sent) == {"fileName": "a\ud800b", "customMetaData": None}


@pytest.mark.parametrize(
    ("text", "fine"), [(OID, True), (OID.upper(), False), ("", False), (None, False), (5, False)]
)
def test_what_an_id_is(text: object, fine: bool) -> None:
    assert models.is_oid(text) is fine


def test_signed_addresses_are_not_in_a_repr() -> None:
    urls = models.SampleWriteUrls(full="https://h/?sig=secret", thumb="https://h/?sig=secret")
    assert "secret" not in repr(models.CreatedSampleWithWriteUrls(OID, urls))
