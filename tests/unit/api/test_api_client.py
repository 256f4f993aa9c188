"""Each endpoint's exact request, and what odd answers become."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import responses
from contentkit import Clock

from lightlyfs import errors
from lightlyfs.api.calls import _encoded
from lightlyfs.api.client import Credentials, LightlyClient
from lightlyfs.api.contract import Request, Response, TransportConfig
from lightlyfs.api.models import ListedSample, Sample, SampleCreate, SampleUpdate, SampleWriteUrls
from lightlyfs.api.over_requests import RequestsTransport
from lightlyfs.api.retry import Retrier, RetryPolicy

SERVER = "https://api.test"
D, S = "d" * 24, "5" * 24
DATASET = f"/v1/datasets/{D}"
SAMPLES = f"{DATASET}/samples"
SAMPLE = f"{SAMPLES}/{S}"
SIGNED = "https://bucket.test/a%2bb.jpg?X-Amz-Signature=ab%2b"


class Scripted:
    """A transport that answers from a list and notes every request."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    def send(self, request: Request) -> Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing to close."""


def ok(body: Any, status: int = 200, **headers: str) -> Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, headers, data)


def client(transport: Any, **more: Any) -> LightlyClient:
    """A client that doubts no refusal, in time that passes only while it waits."""
    credentials = more.pop("credentials", Credentials(token="t0k&n", public_token="pub"))
    clock = Clock()
    policy = more.pop("policy", RetryPolicy(doubt_s=0.0))
    retrier = Retrier(policy, clock=clock, sleep=clock.sleep, random=lambda: 0.0)
    return LightlyClient(SERVER, credentials, transport, retrier=retrier, **more)


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


Call = Callable[[LightlyClient], Any]
CREATED = {"id": S}
URLS = {"full": SIGNED, "thumb": SIGNED}
ENDPOINTS: list[tuple[str, Call, str, str, str, Any, Any]] = [
    (
        "create",
        lambda api: api.create_sample(D, SampleCreate(file_name="a/b.jpg")),
        "POST",
        SAMPLES,
        "",
        CREATED,
        S,
    ),
    (
        "get",
        lambda api: api.get_sample(D, S),
        "GET",
        SAMPLE,
        "",
        {"id": S, "fileName": "x"},
        Sample(id=S, file_name="x"),
    ),
    (
        "read url",
        lambda api: api.get_sample_read_url(D, S),
        "GET",
        f"{SAMPLE}/readurl",
        "type=full&",
        SIGNED,
        SIGNED,
    ),
    (
        "read url of the thumbnail",
        lambda api: api.get_sample_read_url(D, S, "thumbnail"),
        "GET",
        f"{SAMPLE}/readurl",
        "type=thumbnail&",
        SIGNED,
        SIGNED,
    ),
    (
        "write url",
        lambda api: api.get_sample_write_url(D, S, is_thumbnail=True),
        "GET",
        f"{SAMPLE}/writeurl",
        "isThumbnail=True&",
        SIGNED,
        SIGNED,
    ),
    (
        "write url of the image",
        lambda api: api.get_sample_write_url(D, S, is_thumbnail=False),
        "GET",
        f"{SAMPLE}/writeurl",
        "isThumbnail=False&",
        SIGNED,
        SIGNED,
    ),
    (
        "write urls",
        lambda api: api.get_sample_write_urls(D, S),
        "GET",
        f"{SAMPLE}/writeurls",
        "",
        URLS,
        SampleWriteUrls(full=SIGNED, thumb=SIGNED),
    ),
    (
        "list",
        lambda api: api.list_samples(D, offset=10, size=5),
        "GET",
        SAMPLES,
        "pageSize=5&pageOffset=10&",
        [CREATED],
        [Sample(id=S)],
    ),
    (
        "list by name",
        lambda api: api.list_samples(D, offset=0, size=5, file_name="a b/c&d+ä.jpg"),
        "GET",
        SAMPLES,
        "fileName=a%20b/c%26d%2B%C3%A4.jpg&pageSize=5&pageOffset=0&",
        [],
        [],
    ),
    (
        "partial",
        lambda api: api.list_samples_partial(D, mode="fileNames", offset=0, size=25000),
        "GET",
        f"{SAMPLES}/partial",
        "mode=fileNames&pageSize=25000&pageOffset=0&",
        [{"id": S, "fileName": "x"}],
        [Sample(id=S, file_name="x")],
    ),
    (
        "page",
        lambda api: api.list_page(D, 5000, 5000),
        "GET",
        f"{SAMPLES}/partial",
        "mode=full&pageSize=5000&pageOffset=5000&",
        [{"id": S, "fileName": "x", "metaData": {"sizeInBytes": 5}}],
        [ListedSample(S, "x", size_in_bytes=5)],
    ),
    (
        "page of an old server",
        lambda api: api.list_page(D, 0, 5000, partial=False),
        "GET",
        SAMPLES,
        "pageSize=5000&pageOffset=0&",
        [],
        [],
    ),
    (
        "update",
        lambda api: api.update_sample(D, S, SampleUpdate(file_name="y")),
        "PUT",
        SAMPLE,
        "",
        b"",
        None,
    ),
    ("dataset", lambda api: api.get_dataset(D).n_samples, "GET", DATASET, "", {"id": D, "nSamples": 3}, 3),
    (
        "tags",
        lambda api: [tag.tot_size for tag in api.get_tags(D)],
        "GET",
        f"{DATASET}/tags",
        "",
        [{"id": S, "totSize": 3}],
        [3],
    ),
    (
        "mappings",
        lambda api: api.get_mappings(D, "_id", 0, 10),
        "GET",
        f"{DATASET}/mappings",
        "field=_id&pageSize=10&pageOffset=0&",
        ["a", "b"],
        ["a", "b"],
    ),
    ("quota", lambda api: api.get_quota(), "GET", "/v1/quota", "", "25000", 25000),
]


@pytest.mark.parametrize(
    ("call", "method", "path", "query", "reply", "expected"),
    [row[1:] for row in ENDPOINTS],
    ids=[row[0] for row in ENDPOINTS],
)
def test_the_exact_request_of_each_endpoint(
    server: responses.RequestsMock, call: Call, method: str, path: str, query: str, reply: Any, expected: Any
) -> None:
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    server.add(method, SERVER + path, body=body, status=201 if method == "POST" else 200)
    credentials = Credentials(token="t0k&n", bearer="jwt", public_token="pub")
    api = client(RequestsTransport(TransportConfig()), credentials=credentials)
    assert call(api) == expected
    sent = server.calls[0].request
    assert (sent.method, sent.url) == (method, f"{SERVER}{path}?{query}token=t0k%26n")
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Authorization": "Bearer jwt",
        "User-Agent": "lightlyfs/0.1",
    }
    if method != "GET":
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(sent.body))}
    assert dict(sent.headers) == headers


def test_create_with_write_urls() -> None:
    transport = Scripted(ok({"id": S, "sampleWriteUrls": URLS}, 201))
    created = client(transport).create_sample_with_write_urls(D, SampleCreate(file_name="ä"))
    assert (created.id, created.sample_write_urls.full) == (S, SIGNED)
    request = transport.requests[0]
    assert (request.method, request.url) == ("POST", f"{SERVER}{SAMPLES}/withWriteUrls?token=t0k%26n")
    assert request.body == '{"fileName":"ä"}'.encode()


def test_an_update_sends_only_what_is_set() -> None:
    transport = Scripted(ok(b""), ok(b"", 204))
    client(transport).update_sample(D, S, SampleUpdate(custom_meta_data=None))
    client(transport).update_sample(D, S, SampleUpdate(file_name="y"))
    assert [request.body for request in transport.requests] == [
        b'{"customMetaData":null}',
        b'{"fileName":"y"}',
    ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_redirect_takes_the_public_token_alone(status: int) -> None:
    transport = Scripted(ok(b"", status, location=SIGNED))
    credentials = Credentials(token="tok", bearer="jwt", public_token="pub")
    assert client(transport, credentials=credentials).get_sample_redirect_url(D, S, "thumbnail") == SIGNED
    request = transport.requests[0]
    assert request.url == f"{SERVER}{SAMPLE}/readurlRedirect?type=thumbnail&publicToken=pub"
    assert dict(request.headers) == {"Accept": "application/json"}


def test_a_relative_redirect_is_resolved() -> None:
    transport = Scripted(ok(b"", 307, location="/files/a%2b.jpg"))
    assert client(transport).get_sample_redirect_url(D, S) == f"{SERVER}/files/a%2b.jpg"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (ok(b"", 307), errors.MalformedAnswer),
        (ok(b"jpeg", 200), errors.MalformedAnswer),
        (ok(b"", 307, location="ftp://x/"), errors.UnsafeUrl),
        (ok(b"", 307, location="file:///etc/passwd"), errors.UnsafeUrl),
        (ok(b"", 307, location="http://storage.test/a"), errors.UnsafeUrl),
        (ok(b"", 307, location="HTTP://storage.test/a"), errors.UnsafeUrl),
        (ok(b"", 307, location="//user:pw@storage.test/a"), errors.UnsafeUrl),
        (ok(b"", 401), errors.Unauthorized),
        (ok(b"", 304), errors.Refused),
    ],
)
def test_odd_redirects(answer: Response, kind: type[errors.RequestError]) -> None:
    with pytest.raises(kind):
        client(Scripted(answer)).get_sample_redirect_url(D, S)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(SIGNED).encode(),
        SIGNED.encode(),
        f" {SIGNED}\n".encode(),
        SIGNED.replace("/", "\\/").join('""').encode(),
        json.dumps(SIGNED).encode("utf-8-sig"),
        SIGNED.encode("utf-8-sig"),
    ],
)
def test_a_read_url_may_be_quoted_or_raw(body: bytes) -> None:
    assert client(Scripted(ok(body))).get_sample_read_url(D, S) == SIGNED


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", errors.MalformedAnswer),
        (b"null", errors.MalformedAnswer),
        (b'""', errors.MalformedAnswer),
        (b'"unfinished', errors.MalformedAnswer),
        (b'{"url": "https://x/"}', errors.MalformedAnswer),
        (b"<html>https://x/</html>", errors.MalformedAnswer),
        (b"/relative", errors.MalformedAnswer),
        (b'"ftp://x/a"', errors.UnsafeUrl),
        (b"file:///etc/passwd", errors.UnsafeUrl),
        (b'"https://x/\\r\\nX: y"', errors.UnsafeUrl),
    ],
)
def test_odd_read_urls(body: bytes, kind: type[errors.RequestError]) -> None:
    with pytest.raises(kind):
        client(Scripted(ok(body))).get_sample_read_url(D, S)


@pytest.mark.parametrize(
    "urls", [{"full": SIGNED}, {"full": SIGNED, "thumb": None}, {"full": 5, "thumb": SIGNED}]
)
def test_odd_write_urls(urls: Any) -> None:
    with pytest.raises(errors.MalformedAnswer):
        client(Scripted(ok(urls))).get_sample_write_urls(D, S)
    with pytest.raises(errors.UnsafeUrl):
        client(Scripted(ok({"full": SIGNED, "thumb": "ftp://x/"}))).get_sample_write_urls(D, S)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>login</html>", "samples: the answer is an HTML or XML page"),
        (b"[{", "samples: the answer is no JSON"),
        (b"", "samples: the answer is an empty body"),
        (b"{}", "samples is not an array: {}"),
        (b"[" + b", ".join([b'{"id": "x"}'] * 30) + b"]", "samples"),
    ],
)
def test_a_listing_that_is_none_is_malformed(body: bytes, text: str) -> None:
    for call in (
        lambda api: api.list_page(D, 0, 10),
        lambda api: api.list_samples(D, offset=0, size=10),
    ):
        with pytest.raises(errors.MalformedAnswer) as caught:
            call(client(Scripted(ok(body))))
        assert str(caught.value).startswith(text)


@pytest.mark.parametrize("body", [b"[1]", b'"many"', b"null", b"{}"])
def test_odd_quotas(body: bytes) -> None:
    with pytest.raises(errors.MalformedAnswer, match="quota is not a number"):
        client(Scripted(ok(body))).get_quota()
    with pytest.raises(errors.MalformedAnswer, match=r"mappings\[1\] is not a string"):
        client(Scripted(ok(["a", 5]))).get_mappings(D, "_id", 0, 5)


def test_a_created_sample_without_a_proper_id_is_malformed() -> None:
    with pytest.raises(errors.MalformedAnswer, match="created sample"):
        client(Scripted(ok({"id": "x"}, 201))).create_sample(D, SampleCreate(file_name="x"))


@pytest.mark.parametrize("oid", ["", "x", D.upper(), f"{D}/../x", D + "\n"])
def test_a_bad_id_never_leaves(oid: str) -> None:
    api = client(Scripted())
    with pytest.raises(errors.BadRequest, match="is no dataset id"):
        api.get_dataset(oid)
    with pytest.raises(errors.BadRequest, match="is no sample id"):
        api.get_sample(D, oid)


@pytest.mark.parametrize(("offset", "size"), [(-1, 5), (0, 0)])
def test_a_page_that_makes_no_sense_never_leaves(offset: int, size: int) -> None:
    with pytest.raises(errors.BadRequest):
        client(Scripted()).list_page(D, offset, size)


def dataset(number: int, name: str = "my set") -> dict[str, Any]:
    return {"id": f"{number:024x}", "name": name}


def test_datasets_are_found_by_name_in_all_scopes() -> None:
    transport = Scripted(ok([dataset(1)]), ok([dataset(2), dataset(1)]), ok([dataset(3, "my set 2")]))
    found = client(transport).find_datasets("my set")
    assert [item.id for item in found] == [f"{number:024x}" for number in (1, 2)]
    path = f"{SERVER}/v1/datasets/query/name/my%20set?exact=True"
    assert [request.url for request in transport.requests] == [
        f"{path}&shared=False&token=t0k%26n",
        f"{path}&shared=True&token=t0k%26n",
        f"{path}&getAssetsOfTeam=True&token=t0k%26n",
    ]


def test_a_name_cannot_leave_its_path() -> None:
    transport = Scripted(*[ok([])] * 3)
    assert client(transport).find_datasets("../a?b") == []
    assert transport.requests[0].url.startswith(f"{SERVER}/v1/datasets/query/name/..%2Fa%3Fb?exact=True&")


def test_a_name_nobody_knows_gives_no_dataset() -> None:
    unknown = ok({"code": "DATASET_UNKNOWN", "error": "x"}, 404)
    assert client(Scripted(unknown, ok([]), unknown)).find_datasets("x") == []
    with pytest.raises(errors.NotFound):
        client(Scripted(ok(b"<html>no such page", 404))).find_datasets("x")


def test_all_datasets_are_listed_page_by_page() -> None:
    first = [dataset(number) for number in range(3)]
    transport = Scripted(ok(first), ok([dataset(3)]), ok([]), ok([dataset(4)]), ok([dataset(4)]), ok([]))
    found = client(transport).list_datasets()
    assert len(found) == 5
    assert [request.url.split("?")[1].replace("&token=t0k%26n", "") for request in transport.requests] == [
        "shared=False&pageSize=5000&pageOffset=0",
        "shared=False&pageSize=5000&pageOffset=3",
        "shared=False&pageSize=5000&pageOffset=4",
        "shared=True&pageSize=5000&pageOffset=0",
        "shared=True&pageSize=5000&pageOffset=1",
        "getAssetsOfTeam=True&pageSize=5000&pageOffset=0",
    ]


def test_a_get_is_tried_again() -> None:
    transport = Scripted(errors.TimedOut("x"), ok(b"", 503), ok(b"", 429), ok({"id": D}))
    assert client(transport).get_dataset(D).id == D
    assert len(transport.requests) == 4


def test_an_update_is_tried_again() -> None:
    transport = Scripted(ok(b"", 500), ok(b""))
    client(transport).update_sample(D, S, SampleUpdate(file_name="x"))
    assert len(transport.requests) == 2


@pytest.mark.parametrize("answer", [b"", b"null", b'"unfinished', b"<html>https://x/</html>", b'"ftp://x/y"'])
def test_an_odd_answer_is_asked_for_again(answer: bytes) -> None:
    transport = Scripted(ok(answer), ok(b"", 403), ok(SIGNED))
    assert client(transport, policy=RetryPolicy()).get_sample_read_url(D, S) == SIGNED


def test_an_odd_answer_to_a_create_is_none_to_another_create() -> None:
    transport = Scripted(ok(b"{", 201))
    with pytest.raises(errors.MalformedAnswer):
        client(transport, policy=RetryPolicy()).create_sample(D, SampleCreate(file_name="x"))


@pytest.mark.parametrize(
    "failure", [ok(b"", 429), ok(b"", 403), ok(b"", 400), errors.Unreachable("x", request_sent=False)]
)
def test_a_create_that_surely_did_nothing_is_tried_again(failure: Any) -> None:
    transport = Scripted(failure, ok(CREATED, 201))
    assert client(transport, policy=RetryPolicy()).create_sample(D, SampleCreate(file_name="x")) == S


@pytest.mark.parametrize(
    "failure",
    [ok(b"", 500), ok(b"", 408), errors.Unreachable("x"), errors.TimedOut("x"), errors.ShortBody("x")],
)
def test_a_create_that_may_have_worked_is_not_tried_again(failure: Any) -> None:
    transport = Scripted(failure)
    with pytest.raises(errors.Retryable):
        client(transport).create_sample(D, SampleCreate(file_name="x"))
    assert len(transport.requests) == 1


def test_a_policy_of_one_call_overrides_that_of_the_client() -> None:
    transport = Scripted(ok(b"", 500))
    with pytest.raises(errors.ServerFault):
        client(transport).get_dataset(D, policy=RetryPolicy(attempts=1))


def test_no_attempt_outlasts_the_budget() -> None:
    now_s = 0.0

    def slow(seconds: float) -> None:
        nonlocal now_s
        now_s += 25.0

    transport = Scripted(ok(b"", 500), ok(b"", 500), ok({"id": D}))
    retrier = Retrier(clock=lambda: now_s, sleep=slow, random=lambda: 0.0)
    api = LightlyClient(SERVER, Credentials(token="t"), transport, retrier=retrier)
    api.get_dataset(D)
    assert [request.timeouts.total_s for request in transport.requests] == [57.0, 32.0, 7.0]


def test_gets_go_over_the_hot_transport_and_writes_do_not() -> None:
    cold, hot = Scripted(ok(CREATED, 201), ok(b"")), Scripted(ok(SIGNED), ok([]))
    api = client(cold, hot_transport=hot)
    api.get_sample_read_url(D, S)
    api.list_page(D, 0, 5)
    api.create_sample(D, SampleCreate(file_name="x"))
    api.update_sample(D, S, SampleUpdate())
    assert [request.method for request in cold.requests] == ["POST", "PUT"]
    assert [request.method for request in hot.requests] == ["GET", "GET"]


def test_every_attempt_is_reported() -> None:
    seen: list[tuple[str, str, float, str]] = []
    transport = Scripted(errors.Unreachable("x"), ok(b"", 500), ok({"id": D}))
    client(transport, on_request=lambda *row: seen.append(row)).get_dataset(D)
    assert seen == [("GET", "get_dataset", 0.0, outcome) for outcome in ("Unreachable", "500", "200")]


GZIPPED = {"content-encoding": "gzip"}


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress,
        lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:]),
        zlib.compress,
        bytes,
    ],
    ids=["gzip", "gzip of two members", "deflate", "named and not so"],
)
def test_an_answer_that_a_proxy_compressed_is_read(packed: Callable[[bytes], bytes]) -> None:
    body = packed(json.dumps({"id": D, "name": "my set"}).encode())
    assert client(Scripted(Response(200, GZIPPED, body))).get_dataset(D).name == "my set"


def test_an_error_that_a_proxy_compressed_says_why() -> None:
    body = gzip.compress(b'{"code": "DATASET_UNKNOWN", "error": "there is none"}')
    with pytest.raises(errors.NotFound, match="there is none"):
        client(Scripted(Response(404, GZIPPED, body))).get_dataset(D)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (gzip.compress(b'{"id": "' + D.encode() + b'"}')[:-9], errors.ShortBody),
        (gzip.compress(bytes(33 << 20)), errors.TooLarge),
        (b"\x0b\x02\x80no gzip", errors.MalformedAnswer),
    ],
    ids=["cut", "bomb", "another encoding"],
)
def test_an_odd_compressed_answer(body: bytes, kind: type[errors.RequestError]) -> None:
    once = RetryPolicy(attempts=1, doubt_s=0.0)
    with pytest.raises(kind):
        client(Scripted(Response(200, GZIPPED, body)), policy=once).get_dataset(D)


def test_an_error_names_the_call_and_hides_the_credentials() -> None:
    body = {"code": "JWT_INVALID", "error": "token t0ken123 is bad, publicToken=abc", "requestId": "R"}
    api = client(Scripted(ok(body, 401)), credentials=Credentials(token="t0ken123"))
    with pytest.raises(errors.Unauthorized) as caught:
        api.get_dataset(D)
    assert str(caught.value).startswith(f"get_dataset {DATASET}: 401 JWT_INVALID: ")
    assert "t0ken123" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_refused_token_is_asked_for_again_and_only_another_one_is_sent() -> None:
    """A token that was rotated costs no call; one that stays refused is not sent over and over."""
    asked: list[str | None] = []
    tokens = iter(["old", "new", "new", "wrong", "wrong"])

    def token(refused: str | None) -> str:
        asked.append(refused)
        return next(tokens)

    refusal = ok({"code": "JWT_INVALID"}, 401)
    transport = Scripted(refusal, ok({"id": D}), ok({"id": D}), refusal)
    api = client(transport, credentials=Credentials(token=token))
    api.get_dataset(D)
    api.get_dataset(D)
    with pytest.raises(errors.Unauthorized):
        api.get_dataset(D)
    assert asked == [None, "old", None, None, "wrong"]
    sent = [request.url.rpartition("token=")[2] for request in transport.requests]
    assert sent == ["old", "new", "new", "wrong"]


def test_no_repr_shows_a_credential() -> None:
    credentials = Credentials(token="s3cret", bearer="s3cret", public_token="s3cret")
    api = client(Scripted(), credentials=credentials)
    assert "s3cret" not in repr(credentials) + str(credentials) + repr(api) + repr(vars(api))


def test_a_call_given_up_neither_waits_nor_tries_again() -> None:
    gone = False

    def give_up(_seconds: float) -> None:
        nonlocal gone
        gone = True

    transport = Scripted(ok(b"", 503, **{"retry-after": "30"}))
    retrier = Retrier(clock=lambda: 0.0, sleep=give_up, cancelled=lambda: gone)
    api = LightlyClient(SERVER, Credentials(), transport, retrier=retrier)
    with pytest.raises(errors.Cancelled):
        api.get_dataset(D)
    assert transport.requests[0].cancelled is not None


def test_the_server_is_trimmed_and_checked() -> None:
    api = LightlyClient(" http://localhost:8000/ ", Credentials(), Scripted())
    assert api.server == "http://localhost:8000"
    with pytest.raises(errors.UnsafeUrl):
        LightlyClient("api.lightly.ai", Credentials(), Scripted())


def test_without_credentials_nothing_is_added() -> None:
    transport = Scripted(ok({"id": D}))
    client(transport, credentials=Credentials()).get_dataset(D)
    assert transport.requests[0].url == SERVER + DATASET
    assert "Authorization" not in transport.requests[0].headers


def test_true_and_one_are_told_apart_in_a_query() -> None:
    """They are one key of a dictionary, and so of a cache."""
    assert [_encoded([("a", value)]) for value in (True, 1, False, 0, "b /c")] == [
        *("?a=True", "?a=1", "?a=False", "?a=0"),
        "?a=b%20/c",
    ]
