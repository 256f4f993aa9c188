"""Signed URLs and what they answer."""

import os
import socket
from pathlib import Path

import pytest
import requests
from serverkit import FILES, Api

from lightlyfs.testing import LocalServer, ServerOptions

SMALL, BIG = "b/c/deep.bin", "big.bin"


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(
        url, headers={key.replace("_", "-"): value for key, value in headers.items()}, timeout=5
    )


@pytest.mark.parametrize("name", list(FILES))
def test_a_get_url_returns_the_bytes(shared: Api, name: str) -> None:
    answer = get(shared.read_url(shared.id_of(name)))
    assert (answer.status_code, answer.content) == (200, FILES[name])
    assert answer.headers["content-length"] == str(len(FILES[name]))


@pytest.mark.parametrize("method", ["HEAD", "PUT"])
def test_a_get_url_is_good_for_get_only(shared: Api, method: str) -> None:
    answer = requests.request(method, shared.read_url(shared.id_of(SMALL)), data=b"", timeout=5)
    assert answer.status_code == 403
    assert shared.server.object_bytes(shared.id_of(SMALL)) == FILES[SMALL]


def test_a_put_url_is_not_good_for_get(shared: Api) -> None:
    answer = get(shared.write_url(shared.id_of(SMALL)))
    assert answer.status_code == 403
    assert "<Code>SignatureDoesNotMatch</Code>" in answer.text


def test_a_url_cannot_be_altered(shared: Api) -> None:
    url = shared.read_url(shared.id_of(SMALL))
    later = url.replace("expires=1", "expires=2")
    for changed in (url.replace("deep", "other"), later, url[:-1], url.partition("?")[0], url + "é"):
        assert changed != url
        assert get(changed).status_code == 403


def test_an_expired_url_is_403_with_s3s_words(folder: Path) -> None:
    with LocalServer(ServerOptions(source=folder, url_lifetime_s=0)) as server:
        answer = get(Api(server).read_url(server.samples()[0]["id"]))
    assert answer.status_code == 403
    assert "Request has expired" in answer.text


@pytest.mark.parametrize("name", [SMALL, BIG])
@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=2000-", 2000, None),
        ("bytes=-3", -3, None),
        ("bytes=2000-99999999", 2000, None),
        ("bytes=-99999999", 0, None),
    ],
)
def test_one_range_is_206(shared: Api, name: str, header: str, start: int, stop: int | None) -> None:
    data = FILES[name]
    answer = get(shared.read_url(shared.id_of(name)), Range=header)
    assert (answer.status_code, answer.content) == (206, data[start:stop])
    first = start % len(data)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(data)}"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("header", ["bytes=0-1,4-5", "bytes=9-5", "bytes=-", "bytes=x-", "lines=0-1", ""])
def test_a_range_that_cannot_be_read_means_everything(shared: Api, header: str) -> None:
    answer = get(shared.read_url(shared.id_of(SMALL)), Range=header)
    assert (answer.status_code, answer.content) == (200, FILES[SMALL])


@pytest.mark.parametrize(
    ("name", "header"),
    [(SMALL, "bytes=2048-"), (SMALL, "bytes=-0"), ("a/two.png", "bytes=0-0"), ("a/two.png", "bytes=-1")],
)
def test_a_range_past_the_end_is_416_with_the_size(shared: Api, name: str, header: str) -> None:
    answer = get(shared.read_url(shared.id_of(name)), Range=header)
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(FILES[name])}"


def test_conditions_by_etag(shared: Api) -> None:
    url = shared.read_url(shared.id_of(SMALL))
    etag = get(url).headers["etag"]
    assert etag.startswith('"'), "a strong one"
    assert get(url, If_Match=etag).status_code == 200
    assert get(url, If_Match='"other"').status_code == 412
    assert get(url, If_None_Match=etag).status_code == 304
    assert get(url, If_None_Match='"other"').status_code == 200
    assert get(url, If_Range=etag, Range="bytes=0-1").status_code == 206
    assert get(url, If_Range='"other"', Range="bytes=0-1").status_code == 200


def test_the_etag_follows_the_bytes(api: Api, folder: Path) -> None:
    url = api.read_url(api.id_of(SMALL))
    before = get(url).headers["etag"]
    (folder / SMALL).write_bytes(b"z" * len(FILES[SMALL]))
    assert get(url).headers["etag"] != before
    assert get(url, If_Match=before).status_code == 412


def test_a_put_replaces_the_object_in_one_step_and_names_its_etag(api: Api, folder: Path) -> None:
    sample_id = api.id_of(SMALL)
    with open(folder / SMALL, "rb") as reader:
        answer = requests.put(api.write_url(sample_id), data=b"new", timeout=5)
        assert reader.read() == FILES[SMALL], "a reader keeps the version it opened"
    assert answer.status_code == 200
    assert answer.headers["etag"] == get(api.read_url(sample_id)).headers["etag"]
    assert (folder / SMALL).read_bytes() == b"new"


@pytest.mark.parametrize("chunked", [False, True])
def test_large_and_chunked_uploads(api: Api, chunked: bool) -> None:
    sample_id = api.create("up/load.bin")
    data = FILES[BIG]
    body = (data[i : i + 70_000] for i in range(0, len(data), 70_000)) if chunked else data
    assert requests.put(api.write_url(sample_id), data=body, timeout=5).status_code == 200
    assert api.server.object_bytes(sample_id) == data


def test_an_upload_cut_short_leaves_nothing(api: Api, folder: Path) -> None:
    sample_id = api.create("cut.bin")
    url = api.write_url(sample_id)
    host, port = api.server.url.removeprefix("http://").split(":")
    path = url.removeprefix(api.server.url)
    with socket.create_connection((host, int(port))) as connection:
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head.encode() + b"only this")
    api.server.stop()
    assert not (folder / "cut.bin").exists()
    assert list((folder / ".lightly" / "uploads").iterdir()) == []


def test_serving_changes_nothing_in_the_folder(api: Api, folder: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        facts = {str(path): path.stat() for path in folder.rglob("*")}
        return {path: (one.st_mtime_ns, one.st_size) for path, one in facts.items()}

    before = state()
    for sample in api.json(api.samples):
        get(api.read_url(sample["id"]))
        api.json(f"{api.samples}/{sample['id']}/writeurls")
    assert state() == before


def test_a_folder_that_cannot_be_written_answers_503(api: Api, folder: Path) -> None:
    (folder / ".lightly" / "uploads").write_bytes(b"in the way")
    answer = requests.put(api.write_url(api.create("x.jpg")), data=b"1", timeout=5)
    assert answer.status_code == 503
    assert "<Code>SlowDown</Code>" in answer.text


def test_names_that_are_not_utf8_are_served(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"bytes")
    except OSError as error:
        pytest.skip(f"this file system takes only UTF-8 names: {error}")
    with LocalServer(ServerOptions(source=tmp_path)) as server:
        api = Api(server)
        (row,) = api.json(api.samples)
        assert row["fileName"] == "\udcff.jpg"
        assert get(api.read_url(row["id"])).content == b"bytes"
