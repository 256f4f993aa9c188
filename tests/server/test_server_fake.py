"""Generated datasets: any size, no files, the same every time."""

from collections.abc import Iterator

import pytest
import requests
from serverkit import Api

from lightlyfs.testing import LocalServer, ServerOptions

COUNT, SIZE = 2500, 3_000


@pytest.fixture(scope="module")
def fake() -> Iterator[Api]:
    """Return a client of a small generated dataset."""
    with LocalServer(ServerOptions(fake_samples=COUNT, fake_bytes=SIZE)) as server:
        api = Api(server)
        yield api
        api.session.close()


def test_three_pages_hold_every_sample_once(fake: Api) -> None:
    rows = [
        row for offset in (0, 1000, 2000) for row in fake.json(fake.samples, pageSize=1000, pageOffset=offset)
    ]
    assert len({row["id"] for row in rows}) == len(rows) == COUNT
    assert (rows[0]["fileName"], rows[-1]["fileName"]) == (
        "fake/0000/img_0000000.jpg",
        "fake/0002/img_0002499.jpg",
    )
    assert fake.json(fake.samples, pageSize=1000, pageOffset=3000) == []


@pytest.mark.parametrize("mode", ["ids", "fileNames", "full"])
def test_pages_agree_with_single_samples(fake: Api, mode: str) -> None:
    row = fake.json(f"{fake.samples}/partial", mode=mode, pageSize=1, pageOffset=1234)[0]
    single = fake.json(f"{fake.samples}/{row['id']}")
    assert row == {key: single[key] for key in row}
    assert (mode != "full") or row == single


def test_bytes_are_reproducible_and_differ_between_samples(fake: Api) -> None:
    first, second = (row["id"] for row in fake.json(f"{fake.samples}/partial", mode="ids", pageSize=2))
    data = requests.get(fake.read_url(first), timeout=5).content
    assert len(data) == SIZE
    assert data == requests.get(fake.read_url(first), timeout=5).content
    assert data != requests.get(fake.read_url(second), timeout=5).content
    part = requests.get(fake.read_url(first), headers={"Range": "bytes=10-99"}, timeout=5)
    assert (part.status_code, part.content) == (206, data[10:100])


def test_large_generated_objects_wrap_around_the_noise() -> None:
    with LocalServer(ServerOptions(fake_samples=3, fake_bytes=3_000_000)) as server:
        api = Api(server)
        sample_id = server.samples()[2]["id"]
        data = requests.get(api.read_url(sample_id), timeout=5).content
        assert data == server.object_bytes(sample_id)
        for start in (0, 50, 1_048_500, 2_999_999):
            part = requests.get(
                api.read_url(sample_id), headers={"Range": f"bytes={start}-{start + 200}"}, timeout=5
            )
            assert part.content == data[start : start + 201]


def test_all_in_one_directory_and_other_layouts() -> None:
    with LocalServer(ServerOptions(fake_samples=3, fake_per_directory=None, fake_prefix="x")) as server:
        assert server.samples()[2]["fileName"] == "x/img_0000002.jpg"
    with LocalServer(ServerOptions(fake_samples=3, fake_per_directory=2, reported_sizes="omitted")) as server:
        assert server.samples()[2]["fileName"] == "fake/0001/img_0000002.jpg"
        assert "metaData" not in server.samples()[2]


def test_a_generated_dataset_can_be_changed() -> None:
    with LocalServer(ServerOptions(fake_samples=10, fake_bytes=50)) as server:
        api = Api(server)
        third = server.samples()[2]["id"]
        api.call("PUT", f"{api.samples}/{third}", json={"fileName": "mine.jpg"})
        added = api.create("added.jpg")
        assert requests.put(api.write_url(added), data=b"new", timeout=5).status_code == 200
        assert requests.put(api.write_url(third), data=b"over", timeout=5).status_code == 200
        rows = api.json(api.samples, pageOffset=2, pageSize=20)
        assert [rows[0]["fileName"], rows[-1]["fileName"], len(rows)] == ["mine.jpg", "added.jpg", 9]
        assert (server.object_bytes(added), server.object_bytes(third)) == (b"new", b"over")
        assert api.json(api.samples, fileName="fake/0000/img_0000002.jpg") == [], "the old name is gone"
        assert [row["id"] for row in api.json(api.samples, fileName="mine.jpg")] == [third]
        assert [row["id"] for row in api.json(api.samples, sortBy="_id")] == [
            row["id"] for row in server.samples()
        ]
        assert api.json(api.dataset)["nSamples"] == 11


def test_names_are_found(fake: Api) -> None:
    found = fake.json(fake.samples, fileName="fake/0001/img_0001999.jpg")
    assert [row["index"] for row in found] == [1999]
    assert fake.json(fake.samples, fileName="fake/0000/img_0001999.jpg") == []


def test_the_initial_tag_covers_all(fake: Api) -> None:
    (tag,) = fake.json(f"{fake.dataset}/tags")
    assert tag["totSize"] == COUNT
    names = fake.call("GET", f"{fake.dataset}/tags/{tag['id']}/export/basic/filenames").text.split("\n")
    assert names == fake.json(f"{fake.dataset}/mappings", field="fileName")


def test_an_unknown_id_with_the_right_prefix_is_404(fake: Api) -> None:
    last = fake.server.samples()[-1]["id"]
    fake.refused(404, "SAMPLE_UNKNOWN", "GET", f"{fake.samples}/{int(last, 16) + 1:024x}")
