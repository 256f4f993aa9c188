"""No request makes the server fail: what does not fit is refused with a 4xx, and the next one is answered."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serverkit import Api, fill

from lightlyfs.server.application import Handlers, api_table
from lightlyfs.testing import LocalServer, ServerOptions
from lightlyfs.testing.instrumentation import Instruments

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BIG = [2**53, 2**63 - 1, 2**63, 2**64, 10**100, -1, -(2**63) - 1]


class Raw:
    """Sends what no client library would."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        api = Api(server)
        self.targets = {
            row["fileName"]: api.read_url(row["id"]).removeprefix(server.url) for row in server.samples()
        }
        api.session.close()
        self._host = urlsplit(server.url).netloc

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Return status and body; the target goes out as it is, the token beside it."""
        connection = http.client.HTTPConnection(self._host, timeout=10)
        connection.putrequest(method, "/", skip_accept_encoding=True)
        connection._buffer[0] = f"{method} {target} HTTP/1.1".encode("latin-1")  # type: ignore[attr-defined]
        for name, value in {"Authorization": f"Bearer {self.server.token}", **headers}.items():
            connection.putheader(name, value.encode("latin-1"))
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raw]:
    """A server that all tests here use, and that none of them may break."""
    root = fill(tmp_path_factory.mktemp("hostile"))
    os.utime(root / "a/one.jpg", ns=(2**62, 2**62))
    with LocalServer(ServerOptions(source=root, state=tmp_path_factory.mktemp("state"))) as server:
        yield Raw(server)


@pytest.mark.parametrize(
    "segment", ["{}", "{*}", "{*key}", "{datasetId}", "%20GET", "", "%00", "%ED%A0%80", "..;"]
)
@pytest.mark.parametrize(
    "path", ["/{}", "/v1/{}", "/v1/datasets/{}/samples", "/storage/{}", "/v1/datasets/x/samples/{}"]
)
def test_a_path_of_any_segment_is_answered(raw: Raw, path: str, segment: str) -> None:
    status, body = raw.ask("GET", path.replace("{}", segment))
    assert 400 <= status < 500, body


@pytest.mark.parametrize(
    ("header", "status", "length"),
    [
        ("bytes=0-" + "9" * 5000, 206, 11),
        ("bytes=-" + "9" * 5000, 206, 11),
        ("bytes=" + "0" * 5000 + "1-2", 206, 2),
        ("bytes=" + "9" * 5000 + "-", 416, None),
        ("bytes=" + "9" * 5000 + "-" + "9" * 5001, 416, None),
        ("bytes=\xb2-\xb3", 200, 11),
    ],
    ids=lambda value: str(value)[:16],
)
def test_a_range_of_thousands_of_digits_is_a_range(
    raw: Raw, header: str, status: int, length: int | None
) -> None:
    found, body = raw.ask("GET", raw.targets["a/one.jpg"], Range=header)
    assert found == status
    assert length is None or len(body) == length


@pytest.mark.parametrize("size", BIG)
def test_a_size_of_any_number_is_kept_or_refused(raw: Raw, size: int) -> None:
    body = json.dumps({"fileName": "big", "metaData": {"sizeInBytes": size}}).encode()
    samples = Api(raw.server).samples
    for _ in range(3):  # and their sum is not too large either
        status, text = raw.ask("POST", samples, body)
        assert status == (201 if size >= 0 else 400), text
    status, text = raw.ask("GET", Api(raw.server).dataset)
    assert status == 200, text
    assert json.loads(text)["sizeInBytes"] >= 0


@pytest.mark.parametrize(
    "value",
    ["Infinity", "-Infinity", "NaN", "1e999", "-1e400", "[" * 900 + "]" * 900, "[" * 10**5, "9" * 5000],
)
@pytest.mark.parametrize(
    "where", ['{"fileName":"x","customMetaData":{"k":%s}}', '{"fileName":"x","metaData":{"snr":%s}}']
)
def test_what_json_does_not_have_is_refused_and_nothing_is_kept(raw: Raw, where: str, value: str) -> None:
    before = len(raw.server.samples())
    status, text = raw.ask("POST", Api(raw.server).samples, (where % value).encode())
    assert status in (400, 201), text
    if status == 400:
        assert len(raw.server.samples()) == before
    for row in raw.server.samples():
        json.dumps(row, allow_nan=False)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(BIG),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["fileName", "metaData", "sizeInBytes", "custom", "name", "bitMaskData", "fileNames", "kind"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
segments = st.sampled_from(["{}", "{*}", "..", ".", "", "%00", "%2e%2e", "%ff", "%ED%A0%80"]) | st.binary(
    max_size=20
).map(quote_from_bytes)
NAMES = [
    "pageSize",
    "pageOffset",
    "fileName",
    "mode",
    "type",
    "isThumbnail",
    "field",
    "sortBy",
    "exact",
    "format",
]
NAMES += ["publicToken", "token", "expiresIn", "fileNameFormat", "expires", "sig", "previewExample", "shared"]
values = (
    st.sampled_from(["", "1", "-1", "9" * 15, "9" * 5000, "true", "full", "_id", "JSON", "ids", "²", "{}"])
    | st.text()
)
queries = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), values, max_size=4)


def routes() -> list[tuple[str, str]]:
    """Method and template of every endpoint there is."""

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

    anything: Any = Anything()
    handlers = Handlers(anything, anything, anything, anything)
    found = [(row[0], row[1]) for row in api_table(handlers, anything)]
    found += [(row[0], row[1]) for row in Instruments(anything, anything).routes()]
    return [*found, *((method, "/storage/{*key}") for method in ("GET", "HEAD", "PUT"))]


@FUZZ
@given(st.data(), st.sampled_from(routes()), queries)
def test_an_endpoint_called_with_anything_does_not_fail(
    raw: Raw, data: st.DataObject, route: tuple[str, str], query: dict[str, str]
) -> None:
    known = {"datasetId": raw.server.dataset_id, "sampleId": raw.server.samples()[0]["id"]}

    def filled(match: re.Match[str]) -> str:
        return known[match[1]] if match[1] in known and data.draw(st.booleans()) else data.draw(segments)

    method, template = route
    path = re.sub(r"{\*?(\w+)}", filled, template)
    text = "&".join(
        f"{quote(k, errors='surrogatepass')}={quote(v, errors='surrogatepass')}" for k, v in query.items()
    )
    body = None
    if method in ("POST", "PUT"):
        body = data.draw(json_values.map(lambda value: json.dumps(value).encode()) | st.binary())
    status, answer = raw.ask(method, f"{path}?{text}"[:60_000], body)
    raw.server.faults.clear()
    assert status < 500, answer


headers = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
dates = st.from_regex(
    r"(Mon|Sun), [0-9]{1,2} (Jan|Feb|Dec) [0-9]{1,6} [0-9]{2}:[0-9]{2}:[0-9]{2} (GMT|[+-][0-9]{4,6})",
    fullmatch=True,
)


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["Range", "If-Range", "If-Match", "If-None-Match"]), headers | dates, min_size=1
    ),
    st.sampled_from(["a/one.jpg", "a/two.png", "big.bin"]),
)
def test_an_object_asked_for_with_any_headers_is_answered(raw: Raw, given: dict[str, str], name: str) -> None:
    status, body = raw.ask("GET", raw.targets[name], **{key: value.strip() for key, value in given.items()})
    assert status in (200, 206, 304, 412, 416), body


def test_a_file_of_any_time_is_served(tmp_path: Path) -> None:
    for number, seconds in enumerate((-(2**40), -1, 2**33, 2**39)):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(b"x")
        try:
            os.utime(path, (seconds, seconds))
        except OSError:
            path.unlink()
    with LocalServer(ServerOptions(source=tmp_path)) as server:
        api = Api(server)
        for row in server.samples():
            assert api.session.get(api.read_url(row["id"]), timeout=5).content == b"x"
        api.session.close()
