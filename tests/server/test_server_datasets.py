"""Datasets, mappings and tags."""

from pathlib import Path

import pytest
from serverkit import FILES, Api

from lightlyfs.testing import LocalServer, ServerOptions

SORTED = sorted(FILES, key=str.encode)


def test_the_dataset_says_how_much_there_is(api: Api) -> None:
    document = api.json(api.dataset)
    assert document["nSamples"] == len(FILES)
    assert document["sizeInBytes"] == sum(map(len, FILES.values()))
    assert (document["id"], document["name"]) == (api.server.dataset_id, api.server.dataset_name)
    api.create("more", metaData={"sizeInBytes": 7})
    after = api.json(api.dataset)
    assert after["sizeInBytes"] == document["sizeInBytes"] + 7
    assert after["lastModifiedAt"] >= document["lastModifiedAt"]


def test_datasets_are_found_by_name_exactly_or_by_prefix(shared: Api) -> None:
    name = shared.server.dataset_name
    by_name = "/v1/datasets/query/name"
    assert [one["name"] for one in shared.json(f"{by_name}/{name}", exact=True)] == [name]
    assert shared.json(f"{by_name}/{name[:3]}", exact="true") == []
    assert len(shared.json(f"{by_name}/{name[:3]}")) == 1
    assert shared.json(f"{by_name}/{name}", exact=True, shared=True) == []
    assert shared.json(f"{by_name}/{name}", exact=True, getAssetsOfTeam=True) == []
    assert len(shared.json("/v1/datasets", shared=False)) == 1
    assert shared.json("/v1/datasets", pageOffset=1) == []


def test_mappings_of_ids_and_names_share_one_order(shared: Api) -> None:
    names = shared.json(f"{shared.dataset}/mappings", field="fileName")
    ids = shared.json(f"{shared.dataset}/mappings", field="_id", pageSize=2, pageOffset=1)
    assert names == SORTED
    assert ids == [shared.id_of(name) for name in SORTED[1:3]]
    shared.refused(400, "MALFORMED_REQUEST", "GET", f"{shared.dataset}/mappings")


def test_quota_and_datasource(shared: Api) -> None:
    assert int(shared.json("/v1/quota")) > 0
    shared.refused(404, "DATASET_DATASOURCE_UNKNOWN", "GET", f"{shared.dataset}/datasource")


def test_the_initial_tag_holds_what_was_there_at_the_start(api: Api) -> None:
    api.create("later.jpg")
    (tag,) = api.json(f"{api.dataset}/tags")
    assert (tag["name"], tag["bitMaskData"], tag["totSize"], tag["prevTagId"]) == (
        "initial-tag",
        "0x1f",
        5,
        None,
    )
    assert api.json(f"{api.dataset}/tags/{tag['id']}") == tag


def test_an_empty_dataset_has_no_tag_until_one_is_asked_for(tmp_path: Path) -> None:
    with LocalServer(ServerOptions(source=tmp_path)) as server:
        api = Api(server)
        assert api.json(f"{api.dataset}/tags") == []
        api.create("x")
        api.create("y")
        body = {"name": "initial-tag", "imgType": "full"}
        assert api.call("POST", f"{api.dataset}/tags/initial", json=body).status_code == 201
        assert api.json(f"{api.dataset}/tags")[0]["bitMaskData"] == "0x3"
        api.refused(400, "TAG_INITIAL_EXISTS", "POST", f"{api.dataset}/tags/initial", json=body)


def test_a_tag_comes_from_a_mask_or_from_names(api: Api) -> None:
    body = {"name": "some", "bitMaskData": "0x5", "totSize": 2}
    first = api.call("POST", f"{api.dataset}/tags", json=body)
    assert first.status_code == 201
    second = api.call("POST", f"{api.dataset}/tags", json={"name": "named", "fileNames": SORTED[1:3]}).json()[
        "id"
    ]
    third = api.server.add_tag("seeded", [api.id_of(SORTED[4])])
    tags = api.json(f"{api.dataset}/tags")
    assert [tag["id"] for tag in tags[:3]] == [third, second, first.json()["id"]], "newest first"
    assert [tag["bitMaskData"] for tag in tags] == ["0x10", "0x6", "0x5", "0x1f"]
    assert tags[0]["prevTagId"] == tags[3]["id"]
    text = api.call("GET", f"{api.dataset}/tags/{second}/export/basic/filenames").text
    assert text.split("\n") == SORTED[1:3]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "initial-tag", "bitMaskData": "0x1"}, "TAG_NAME_EXISTS"),
        ({"name": "wide", "bitMaskData": "0x20"}, "DATASET_TAG_INVALID"),
        ({"name": "a/b", "bitMaskData": "0x1"}, "MALFORMED_REQUEST"),
        ({"name": "none"}, "MALFORMED_REQUEST"),
    ],
)
def test_a_tag_that_makes_no_sense_is_refused(shared: Api, body: dict[str, str], code: str) -> None:
    shared.refused(400, code, "POST", f"{shared.dataset}/tags", json=body)


def test_exports_share_one_order_and_page(shared: Api) -> None:
    export = f"{shared.dataset}/tags/{shared.json(f'{shared.dataset}/tags')[0]['id']}/export/basic"
    assert shared.json(f"{export}/filenames", format="JSON") == SORTED
    plain = shared.call("GET", f"{export}/filenames")
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.content.decode().split("\n") == SORTED
    assert shared.json(f"{export}/filenames", format="JSON", pageSize=2, pageOffset=3) == SORTED[3:5]
    rows = shared.json(f"{export}/filenamesAndReadUrls")
    assert [row["fileName"] for row in rows] == SORTED
    assert shared.session.get(rows[0]["readUrl"], timeout=5).content == FILES[SORTED[0]]
    full = shared.json(f"{export}/filenames", format="JSON", fileNameFormat="DATASOURCE_FULL")
    assert [path.endswith("/" + name) for path, name in zip(full, SORTED, strict=True)] == [True] * 5


def test_redirect_links_of_an_export_work_without_a_token_until_they_expire(shared: Api) -> None:
    export = f"{shared.dataset}/tags/{shared.json(f'{shared.dataset}/tags')[0]['id']}/export/basic/filenames"
    links = shared.json(export, format="JSON", fileNameFormat="REDIRECTED_READ_URL")
    assert all("publicToken=" in link and shared.server.token not in link for link in links)
    assert shared.session.get(links[0], timeout=5).content == FILES[SORTED[0]]
    dead = shared.json(export, format="JSON", fileNameFormat="REDIRECTED_READ_URL", expiresIn=0)
    assert shared.session.get(dead[0], timeout=5).status_code == 401


def test_an_unknown_tag_is_404(shared: Api) -> None:
    shared.refused(404, "TAG_UNKNOWN", "GET", f"{shared.dataset}/tags/{'0' * 24}")
    shared.refused(404, "TAG_UNKNOWN", "GET", f"{shared.dataset}/tags/{'0' * 24}/export/basic/filenames")
