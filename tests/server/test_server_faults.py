"""Each fault does what its name says, to the requests it targets, for as long as it is armed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from serverkit import FILES, Api

from lightlyfs.testing import (
    BrokenJson,
    ChangedEtag,
    Chunked,
    DropReply,
    Expired,
    Gzip,
    Html,
    IgnoreRange,
    Latency,
    LocalServer,
    NoVersion,
    ServerOptions,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
)

NAME = "b/c/deep.bin"
DATA = FILES[NAME]


@pytest.fixture(autouse=True)
def _disarmed(shared: Api) -> Iterator[None]:
    yield
    shared.server.faults.clear()


@pytest.fixture
def url(shared: Api) -> str:
    """Return a signed URL made before any fault is armed."""
    return shared.read_url(shared.id_of(NAME))


def get(url: str, **headers: str) -> requests.Response:
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return requests.get(url, headers=names, timeout=(5, 1))


def drained(answer: requests.Response) -> tuple[bytes, Exception | None]:
    """Return what arrives of a body, and what ended it."""
    received = bytearray()
    try:
        for piece in answer.iter_content(64):
            received += piece
    except requests.RequestException as error:
        return bytes(received), error
    return bytes(received), None


def test_a_status_storm_ends_after_its_count(shared: Api, url: str) -> None:
    shared.server.faults.add(Status(status=429, retry_after_s=3, count=2, target="list"))
    answers = [shared.call("GET", shared.samples) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "3"
    assert set(answers[0].json()) == {"code", "error", "requestId"}
    assert get(url).status_code == 200
    assert shared.server.faults.armed() == []


def test_a_refused_upload_gets_its_answer_not_a_broken_connection(shared: Api) -> None:
    write_url, read_url = shared.write_url(shared.id_of(NAME)), shared.read_url(shared.id_of(NAME))
    shared.server.faults.add(Status(status=503, count=1, target="storage.put"))
    body = bytes(20_000_000)
    assert requests.put(write_url, data=body, timeout=10).status_code == 503
    assert requests.put(read_url, data=body, timeout=10).status_code == 403


def test_a_status_storm_ends_after_its_seconds(shared: Api, url: str) -> None:
    shared.server.faults.add(Status(status=503, seconds=0.5, target="storage"))
    answer = get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/xml")
    deadline = time.monotonic() + 5
    while get(url).status_code == 503:
        assert time.monotonic() < deadline


def test_probability_hits_some(shared: Api, url: str) -> None:
    shared.server.faults.add(Status(status=500, probability=0.5, target="storage.get"))
    assert {get(url).status_code for _ in range(40)} == {200, 500}


def test_latency_targets_one_side(shared: Api, url: str) -> None:
    shared.server.faults.add(Latency(delay_s=0.5, target="storage"))
    started = time.monotonic()
    shared.json(shared.samples)
    between = time.monotonic()
    get(url)
    assert between - started < 0.5 <= time.monotonic() - between


def test_standing_latency_is_an_option(tmp_path: Path) -> None:
    with LocalServer(ServerOptions(source=tmp_path, api_latency_s=0.1)) as server:
        started = time.monotonic()
        Api(server).json("/v1/quota")
        assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("at", ["accept", "headers", "half"])
def test_a_stall_sends_that_far_and_hangs(shared: Api, url: str, at: str) -> None:
    shared.server.faults.add(Stall(at=at, target="storage", count=1))  # type: ignore[arg-type]
    if at == "accept":
        with pytest.raises(requests.ReadTimeout):
            requests.get(url, timeout=(5, 0.2))
        return
    with requests.get(url, timeout=(5, 0.2), stream=True) as answer:
        assert answer.status_code == 200
        received, ending = drained(answer)
    assert isinstance(ending, requests.ConnectionError)
    assert received == (DATA[: len(DATA) // 2] if at == "half" else b"")


def test_a_stalled_request_does_not_hold_up_the_end(folder: Path) -> None:
    server = LocalServer(ServerOptions(source=folder)).start()
    server.faults.add(Stall())
    outcome: list[str] = []

    def ask() -> None:
        try:
            outcome.append(str(requests.get(f"{server.url}/v1/quota", timeout=10).status_code))
        except requests.RequestException as error:
            outcome.append(type(error).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    while server.stats.snapshot()["in_flight"] == 0:
        time.sleep(0.01)
    started = time.monotonic()
    server.stop()
    asking.join()
    assert time.monotonic() - started < 3
    assert len(outcome) == 1


def test_truncate_announces_more_than_it_sends(shared: Api, url: str) -> None:
    shared.server.faults.add(Truncate(target="storage", count=1, fraction=0.25))
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="512 bytes read, 1536 more"):
        get(url)


def test_ignore_range_answers_everything(shared: Api, url: str) -> None:
    shared.server.faults.add(IgnoreRange(target="storage", count=1))
    answer = get(url, Range="bytes=1-2")
    assert (answer.status_code, answer.content) == (200, DATA)
    assert get(url, Range="bytes=1-2").status_code == 206


def test_wrong_content_range_names_other_bytes(shared: Api, url: str) -> None:
    shared.server.faults.add(WrongContentRange(count=1, target="storage"))
    answer = get(url, Range="bytes=1-2")
    assert (answer.headers["content-range"], answer.content) == (f"bytes 2-3/{len(DATA)}", DATA[1:3])


def test_gzip_encodes_unasked(shared: Api, url: str) -> None:
    shared.server.faults.add(Gzip(target="storage", count=1))
    answer = get(url, Accept_Encoding="identity")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content == DATA
    assert int(answer.headers["content-length"]) != len(DATA)


def test_chunked_has_no_length(shared: Api, url: str) -> None:
    shared.server.faults.add(Chunked(target="storage", count=1))
    answer = get(url)
    assert "content-length" not in answer.headers
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.content == DATA


def test_expired_once_then_fine(shared: Api, url: str) -> None:
    shared.server.faults.add(Expired(count=1))
    answer = get(url)
    assert answer.status_code == 403
    assert "Request has expired" in answer.text
    assert get(url).status_code == 200


def test_a_changed_etag_refuses_the_old_one(shared: Api, url: str) -> None:
    etag = get(url).headers["etag"]
    shared.server.faults.add(ChangedEtag())
    assert get(url, If_Match=etag).status_code == 412
    changed = get(url).headers["etag"]
    assert changed != etag
    answer = get(url, If_Match=changed, Range="bytes=0-1")
    assert (answer.status_code, answer.content) == (206, DATA[:2])


def test_no_version_leaves_the_rest_as_it_is(shared: Api, url: str) -> None:
    shared.server.faults.add(NoVersion())
    answer = get(url, Range="bytes=0-1")
    assert (answer.status_code, answer.content) == (206, DATA[:2])
    assert not {"etag", "last-modified"} & {name.lower() for name in answer.headers}


def test_html_with_200(shared: Api, url: str) -> None:
    shared.server.faults.add(Html(count=2))
    for answer in (shared.call("GET", shared.samples), get(url)):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")


def test_broken_json_is_a_complete_answer(shared: Api) -> None:
    shared.server.faults.add(BrokenJson(count=1))
    answer = shared.call("GET", shared.samples)
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_a_lost_reply_leaves_the_work_done(api: Api) -> None:
    api.server.faults.add(DropReply(target="create", count=1), DropReply(target="storage.put", count=1))
    with pytest.raises(requests.ConnectionError):
        api.create("lost.jpg")
    sample_id = api.id_of("lost.jpg")
    with pytest.raises(requests.ConnectionError):
        requests.put(api.write_url(sample_id), data=b"kept", timeout=5)
    assert api.server.object_bytes(sample_id) == b"kept"
    assert api.server.stats.count("create", 0) == 1


def test_faults_stack_in_the_order_they_were_armed(shared: Api, url: str) -> None:
    shared.server.faults.add(Latency(delay_s=0.1, target="storage"), Status(status=500, target="storage"))
    started = time.monotonic()
    assert get(url).status_code == 500
    assert time.monotonic() - started >= 0.1


def test_the_control_endpoint_arms_counts_and_resets(api: Api) -> None:
    body = [{"kind": "status", "status": 503, "count": 1, "target": "list"}, {"kind": "expired"}]
    assert api.call("POST", "/__control__/faults", json=body).json() == {"armed": 2}
    assert api.call("GET", api.samples).status_code == 503
    stats = api.json("/__control__/stats")
    assert stats["requests"] == {"list": {"503": 1}}
    assert stats["connections"] == 1
    assert api.call("POST", "/__control__/reset").status_code == 200
    assert api.server.faults.armed() == []
    assert api.json("/__control__/stats")["requests"] == {}


@pytest.mark.parametrize(
    "body", [{}, [{"kind": "nonsense"}], [{"kind": "stall", "at": "dawn"}], [{"kind": "html", "x": 1}]]
)
def test_the_control_endpoint_refuses_what_is_no_fault(shared: Api, body: object) -> None:
    shared.refused(400, "MALFORMED_REQUEST", "POST", "/__control__/faults", json=body)


@pytest.mark.parametrize("path", ["/__control__/stats", "/__control__/faults", "/__control__/reset"])
def test_the_control_endpoint_needs_the_token(shared: Api, path: str) -> None:
    method = "GET" if path.endswith("stats") else "POST"
    shared.refused(401, "UNAUTHORIZED", method, path, token=False)


def test_storage_requests_are_counted_by_key(api: Api) -> None:
    url = api.read_url(api.id_of(NAME))
    for _ in range(3):
        get(url, Range="bytes=0-9")
    stats = api.server.stats.snapshot()
    assert stats["storage_paths"] == {NAME: 3}
    assert stats["requests"]["storage.get"] == {"206": 3}


def test_the_most_requests_in_flight_are_remembered(api: Api) -> None:
    url = api.read_url(api.id_of(NAME))
    api.server.faults.add(Stall(target="storage"))
    threads = [threading.Thread(target=_ask, args=(url,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while api.server.stats.snapshot()["in_flight"] < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    api.server.stop()
    for thread in threads:
        thread.join()
    assert api.server.stats.snapshot()["in_flight_max"] == 4


def _ask(url: str) -> None:
    with pytest.raises(requests.RequestException):
        requests.get(url, timeout=20).raise_for_status()


def test_a_fault_around_one_that_hangs_up_hangs_up(
    server: LocalServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for outer in (Truncate(), Gzip(), BrokenJson(), Chunked()):
        server.faults.add(outer, DropReply())
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{server.url}/v1/datasets", params={"token": server.token}, timeout=5)
        server.faults.clear()
    assert "Traceback" not in capfd.readouterr().err
