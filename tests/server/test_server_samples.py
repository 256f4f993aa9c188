"""The samples endpoints."""

import hashlib
import time
from pathlib import Path

import pytest
from serverkit import FILES, Api

from lightlyfs.testing import LocalServer, ServerOptions

FULL_KEYS = {"id", "type", "datasetId", "fileName", "index", "createdAt", "lastModifiedAt", "metaData"}


def test_the_import_lists_every_file_in_sorted_order_with_its_true_size(shared: Api) -> None:
    rows = shared.json(shared.samples)
    assert [row["fileName"] for row in rows] == sorted(FILES, key=str.encode)
    assert [row["metaData"]["sizeInBytes"] for row in rows] == [len(FILES[row["fileName"]]) for row in rows]
    assert all(set(row) == FULL_KEYS for row in rows)
    assert {row["type"] for row in rows} == {"IMAGE"}


def test_an_imported_id_is_the_hash_of_the_path(shared: Api) -> None:
    assert shared.id_of("a/one.jpg") == hashlib.sha256(b"a/one.jpg").hexdigest()[:24]


@pytest.mark.parametrize(("sizes", "expected"), [("omitted", None), ("wrong", 12)])
def test_reported_sizes_can_be_missing_or_wrong(folder: Path, sizes: str, expected: int | None) -> None:
    with LocalServer(ServerOptions(source=folder, reported_sizes=sizes)) as server:  # type: ignore[arg-type]
        assert server.samples()[0].get("metaData", {}).get("sizeInBytes") == expected


def test_create_appends_and_get_returns_what_was_sent(api: Api) -> None:
    fields = {
        "metaData": {"sizeInBytes": 5, "shape": [1, 2, 3], "mean": [0, 0.5, 1], "is_corrupted": False},
        "exif": {"Make": "x"},
        "customMetaData": {"k": [None, "ü"]},
        "thumbName": "n_thumb.webp",
    }
    sample_id = api.create("new/n.jpg", **fields)
    got = api.json(f"{api.samples}/{sample_id}")
    assert got["metaData"] == {"sizeInBytes": 5, "shape": [1, 2, 3], "mean": [0, 0.5, 1]}, (
        "stray keys are dropped"
    )
    assert (got["exif"], got["customMetaData"], got["thumbName"]) == (
        {"Make": "x"},
        {"k": [None, "ü"]},
        "n_thumb.webp",
    )
    assert api.json(api.samples)[-1] == got
    assert got["index"] == len(FILES)


def test_nulls_of_a_request_are_never_sent_back(api: Api) -> None:
    sample_id = api.create("n", thumbName=None, exif=None, metaData=None, customMetaData=None, cropData=None)
    assert set(api.json(f"{api.samples}/{sample_id}")) == FULL_KEYS - {"metaData"}


def test_the_server_decides_the_type(api: Api) -> None:
    crop = {
        "parentId": "a" * 24,
        "predictionUUIDTimestamp": 1,
        "predictionIndex": 0,
        "predictionTaskName": "a/b",
        "predictionTaskCategoryId": 0,
        "predictionTaskScore": 0.5,
    }
    assert api.server.sample(api.create("c", cropData=crop))["type"] == "CROP"
    assert api.server.sample(api.create("f", videoFrameData={"sourceVideo": "v"}))["type"] == "VIDEO_FRAME"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"fileName": 3},
        {"fileName": "a", "type": "CROP"},
        {"fileName": "a", "metaData": {"sizeInBytes": -1}},
        {"fileName": "a", "metaData": {"mean": [0, 0, 2]}},
        {"fileName": "a", "cropData": {}},
        [],
    ],
)
def test_create_refuses_what_the_model_refuses(shared: Api, body: object) -> None:
    shared.refused(400, "SAMPLE_CREATE_REQUEST_INVALID_FORMAT", "POST", shared.samples, json=body)


@pytest.mark.parametrize("body", [b"", b"{", b'{"fileName": NaN}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_not_json_is_malformed(shared: Api, body: bytes) -> None:
    shared.refused(400, "MALFORMED_REQUEST", "POST", shared.samples, data=body)


def test_duplicate_names_are_two_samples_with_two_objects(api: Api) -> None:
    first, second = api.create("same.jpg"), api.create("same.jpg")
    assert first != second
    for sample_id, data in ((first, b"1"), (second, b"22")):
        api.session.put(api.write_url(sample_id), data=data, timeout=5)
    assert (api.server.object_bytes(first), api.server.object_bytes(second)) == (b"1", b"22")


def test_update_changes_only_what_was_sent_and_moves_the_time(api: Api) -> None:
    sample_id = api.create("u.jpg", exif={"a": 1})
    before = api.server.sample(sample_id)
    params = {"enableDatasetUpdate": "True"}
    answer = api.call("PUT", f"{api.samples}/{sample_id}", json={"customMetaData": {"x": 1}}, params=params)
    assert (answer.status_code, answer.content) == (200, b"")
    after = api.server.sample(sample_id)
    assert after.pop("lastModifiedAt") > before.pop("lastModifiedAt")
    assert after == {**before, "customMetaData": {"x": 1}}


def test_a_rename_keeps_the_object(api: Api) -> None:
    sample_id = api.id_of("a/one.jpg")
    api.call("PUT", f"{api.samples}/{sample_id}", json={"fileName": "renamed.jpg"})
    assert api.session.get(api.read_url(sample_id), timeout=5).content == FILES["a/one.jpg"]
    assert api.json(f"{api.samples}/partial", mode="fileNames", fileName="renamed.jpg")[0]["id"] == sample_id


@pytest.mark.parametrize("body", [{"cropData": None}, {"fileName": None}, {"videoFrameData": {}}])
def test_update_takes_no_other_fields(api: Api, body: object) -> None:
    api.refused(400, "MALFORMED_REQUEST", "PUT", f"{api.samples}/{api.create('x')}", json=body)


@pytest.mark.parametrize(
    ("mode", "keys"),
    [("ids", {"id"}), ("fileNames", {"id", "fileName"}), ("full", FULL_KEYS), (None, FULL_KEYS)],
)
def test_partial_lists_the_fields_of_its_mode(shared: Api, mode: str | None, keys: set[str]) -> None:
    rows = shared.json(f"{shared.samples}/partial", **({"mode": mode} if mode else {}))
    assert all(set(row) == keys for row in rows)
    assert [row["id"] for row in rows] == [row["id"] for row in shared.server.samples()]


def test_pages_count_samples_and_end_with_an_empty_one(shared: Api) -> None:
    names: list[str] = []
    while page := shared.json(shared.samples, pageSize=2, pageOffset=len(names)):
        assert len(page) <= 2
        names += [row["fileName"] for row in page]
    assert names == sorted(FILES, key=str.encode)


def test_pages_are_clamped_if_the_server_is_told_to(folder: Path) -> None:
    with LocalServer(ServerOptions(source=folder, page_size_max=2)) as server:
        api = Api(server)
        assert len(api.json(api.samples, pageSize=5000)) == 2
        assert len(api.json(f"{api.samples}/partial", pageOffset=4)) == 1


@pytest.mark.parametrize(
    ("rule", "asked", "found"),
    [("exact", "a/one.jpg", 1), ("exact", "a/", 0), ("prefix", "a/", 2), ("ignored", "a/", len(FILES))],
)
def test_the_meaning_of_the_name_filter_is_an_option(folder: Path, rule: str, asked: str, found: int) -> None:
    with LocalServer(ServerOptions(source=folder, file_name_filter=rule)) as server:  # type: ignore[arg-type]
        api = Api(server)
        assert len(api.json(api.samples, fileName=asked)) == found
        assert len(api.json(f"{api.samples}/partial", fileName=asked, pageSize=1)) == min(found, 1)


def test_sort_by_id_and_index(shared: Api) -> None:
    by_id = [row["id"] for row in shared.json(shared.samples, sortBy="_id")]
    assert by_id == sorted(by_id)
    assert [row["index"] for row in shared.json(shared.samples, sortBy="index")] == list(range(len(FILES)))


def test_an_answer_over_the_cap_is_413(folder: Path) -> None:
    with LocalServer(ServerOptions(source=folder, response_cap_bytes=300)) as server:
        api = Api(server)
        api.refused(413, "PAYLOAD_TOO_LARGE", "GET", api.samples)
        assert len(api.json(api.samples, pageSize=1)) == 1


def test_redirect_is_a_307_to_a_fresh_signed_url(shared: Api) -> None:
    sample_id = shared.id_of("a/one.jpg")
    params = {"type": "full", "publicToken": shared.server.public_token}
    answer = shared.call("GET", f"{shared.samples}/{sample_id}/readurlRedirect", token=False, params=params)
    assert answer.status_code == 307
    assert shared.session.get(answer.headers["Location"], timeout=5).content == FILES["a/one.jpg"]


def test_a_thumbnail_is_the_uploaded_one_else_the_full_image(api: Api) -> None:
    sample_id = api.id_of("a/one.jpg")
    assert api.session.get(api.read_url(sample_id, type="thumbnail"), timeout=5).content == FILES["a/one.jpg"]
    api.session.put(api.write_url(sample_id, thumbnail=True), data=b"small", timeout=5)
    assert api.session.get(api.read_url(sample_id, type="thumbnail"), timeout=5).content == b"small"
    assert api.session.get(api.read_url(sample_id, type="full"), timeout=5).content == FILES["a/one.jpg"]
    assert len(api.json(api.samples)) == len(FILES), "a thumbnail is no sample"


def test_write_urls_and_create_with_write_urls(api: Api) -> None:
    answer = api.call("POST", f"{api.samples}/withWriteUrls", json={"fileName": "w.jpg"})
    assert answer.status_code == 201
    document = answer.json()
    assert set(document) == {"id", "sampleWriteUrls"}
    assert api.session.put(document["sampleWriteUrls"]["full"], data=b"whole", timeout=5).status_code == 200
    urls = api.json(f"{api.samples}/{document['id']}/writeurls")
    assert set(urls) == {"full", "thumb"}
    assert api.session.put(urls["thumb"], data=b"thumb", timeout=5).status_code == 200
    assert api.server.object_bytes(document["id"]) == b"whole"
    assert api.server.object_bytes(document["id"], thumbnail=True) == b"thumb"


def test_a_sample_without_bytes_has_a_read_url_that_is_404(api: Api) -> None:
    answer = api.session.get(api.read_url(api.create("empty.jpg")), timeout=5)
    assert answer.status_code == 404
    assert "<Code>NoSuchKey</Code>" in answer.text


def test_times_are_unix_milliseconds(api: Api) -> None:
    created = api.server.sample(api.create("t"))["createdAt"]
    assert abs(created - time.time() * 1000) < 10_000


def test_the_table_of_requests_is_counted(api: Api) -> None:
    api.json(api.samples)
    api.call("GET", api.samples, token=False)
    assert (api.server.stats.count("list"), api.server.stats.count("list", 401)) == (2, 1)
    assert api.server.stats.snapshot()["in_flight_max"] == 1
