"""Names are not validated: whatever JSON can carry is a sample, and none of it leaves the folder."""

import json
from pathlib import Path

import pytest
from serverkit import Api

from lightlyfs.testing import LocalServer

HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "a//b",
    "../x",
    "a/../../x",
    "..",
    ".",
    "./a",
    "nul\0byte",
    "line\nbreak",
    "\ud800",
    "x\udfffy/\ud800",
    "p" * 300,
    "q" * 200 + "/" + "r" * 255,
    "d/" * 600 + "end",
    ".lightly/thumbnails/evil",
    ".lightly/uploads",
    "a/one.jpg/below",
    "a",
    "a/one.jpg",
    "ends/",
    "back\\slash",
    "😀 emoji/ü.jpg",
    "%2e%2e/x",
    "C:\\x",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_comes_back_as_sent_and_its_bytes_stay_inside(
    api: Api, folder: Path, name: str
) -> None:
    around = sorted(path for path in folder.parent.rglob("*") if folder not in path.parents)
    known = {one["id"]: api.server.object_bytes(one["id"]) for one in api.server.samples()}
    sample_id = api.create(name)
    assert api.session.put(api.write_url(sample_id), data=b"payload", timeout=5).status_code == 200
    assert api.session.get(api.read_url(sample_id), timeout=5).content == b"payload"
    for row in (
        api.json(f"{api.samples}/{sample_id}"),
        api.json(f"{api.samples}/partial", mode="fileNames")[-1],
    ):
        assert row["fileName"] == name
    assert api.json(f"{api.dataset}/mappings", field="fileName")[-1] == name
    assert {one: api.server.object_bytes(one) for one in known} == known, "no other object changed"
    assert sorted(path for path in folder.parent.rglob("*") if folder not in path.parents) == around


def test_hostile_names_can_be_seeded_without_a_request(server: LocalServer) -> None:
    ids = {
        name: server.add_sample(name, ascii(name).encode(), {"customMetaData": {"k": 1}}) for name in HOSTILE
    }
    for name, sample_id in ids.items():
        assert server.sample(sample_id)["fileName"] == name
        assert server.sample(sample_id)["customMetaData"] == {"k": 1}
        assert server.sample(sample_id)["metaData"] == {"sizeInBytes": len(ascii(name))}
        assert server.object_bytes(sample_id) == ascii(name).encode()


def test_a_name_can_be_filtered_and_updated_to_anything(api: Api) -> None:
    sample_id = api.create("plain")
    body = json.dumps({"fileName": "\ud800\n\0"}).encode()
    assert api.call("PUT", f"{api.samples}/{sample_id}", data=body).status_code == 200
    assert api.server.sample(sample_id)["fileName"] == "\ud800\n\0"


def test_a_file_and_a_folder_of_one_name_live_together(api: Api) -> None:
    below, above = api.create("n/m/below.jpg"), api.create("n/m")
    for sample_id, data in ((above, b"above"), (below, b"below")):
        assert api.session.put(api.write_url(sample_id), data=data, timeout=5).status_code == 200
    assert (api.server.object_bytes(above), api.server.object_bytes(below)) == (b"above", b"below")


def test_an_upload_does_not_follow_a_link_out_of_the_folder(api: Api, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    sample_id = api.create("link/x.jpg")
    assert api.session.put(api.write_url(sample_id), data=b"1", timeout=5).status_code == 200
    assert list(outside.iterdir()) == []
    assert api.server.object_bytes(sample_id) == b"1"
