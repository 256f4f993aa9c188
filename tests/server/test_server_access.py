"""Tokens, ids, and parameters."""

import base64
import json
from pathlib import Path

import pytest
from serverkit import Api

from lightlyfs.server.request_checks import PublicTokens
from lightlyfs.testing import LocalServer, ServerOptions

ENDPOINTS = [
    ("GET", ""),
    ("POST", ""),
    ("GET", "/partial"),
    ("POST", "/withWriteUrls"),
    ("GET", f"/{'0' * 24}"),
    ("PUT", f"/{'0' * 24}"),
    ("GET", f"/{'0' * 24}/readurl"),
    ("GET", f"/{'0' * 24}/readurlRedirect"),
    ("GET", f"/{'0' * 24}/writeurl"),
    ("GET", f"/{'0' * 24}/writeurls"),
]


@pytest.mark.parametrize(("method", "tail"), ENDPOINTS)
@pytest.mark.parametrize("token", [None, "", "wrong", "ünicode"])
def test_every_samples_endpoint_needs_a_token(shared: Api, method: str, tail: str, token: str | None) -> None:
    params = {} if token is None else {"token": token, "publicToken": token}
    shared.refused(401, "UNAUTHORIZED", method, shared.samples + tail, token=False, params=params)


def test_a_bearer_is_as_good_as_the_query_token(shared: Api) -> None:
    bearer = {"Authorization": f"Bearer {shared.server.token}"}
    assert shared.call("GET", shared.samples, token=False, headers=bearer).status_code == 200
    wrong = {"Authorization": f"Bearer {shared.server.token}x"}
    assert shared.call("GET", shared.samples, token=False, headers=wrong).status_code == 401


def test_redirect_refuses_the_api_token_and_other_endpoints_refuse_the_public_one(shared: Api) -> None:
    sample = f"{shared.samples}/{shared.id_of('a/one.jpg')}"
    shared.refused(401, "UNAUTHORIZED", "GET", f"{sample}/readurlRedirect", params={"type": "full"})
    swapped = {"type": "full", "publicToken": shared.server.token}
    shared.refused(401, "UNAUTHORIZED", "GET", f"{sample}/readurlRedirect", token=False, params=swapped)
    for carried in ({"publicToken": shared.server.public_token}, {"token": shared.server.public_token}):
        shared.refused(401, "UNAUTHORIZED", "GET", f"{sample}/readurl", token=False, params=carried)


def test_public_tokens_end_and_cannot_be_altered() -> None:
    now = [1000.0]
    tokens = PublicTokens(b"secret", "d" * 24, lambda: now[0])
    token = tokens.mint(expires_in_s=10)
    assert tokens.accepts(token)
    head, _, signature = token.split(".")
    forged = base64.urlsafe_b64encode(json.dumps({"datasetId": "d" * 24}).encode()).rstrip(b"=").decode()
    assert not tokens.accepts(f"{head}.{forged}.{signature}")
    now[0] += 10
    assert not tokens.accepts(token)


@pytest.mark.parametrize("bad", ["zz", "A" * 24, "0" * 23, "0" * 25, "%0A" + "0" * 23, "0" * 24 + "%0A"])
def test_a_malformed_id_quotes_the_pattern(shared: Api, bad: str) -> None:
    assert "/^[a-f0-9]{24}$/" in shared.refused(400, "MALFORMED_REQUEST", "GET", f"{shared.samples}/{bad}")
    assert "datasetId" in shared.refused(400, "MALFORMED_REQUEST", "GET", f"/v1/datasets/{bad}/samples")


@pytest.mark.parametrize("tail", ["", "/readurl", "/writeurls", "/writeurl?isThumbnail=False"])
def test_an_unknown_sample_is_404(shared: Api, tail: str) -> None:
    shared.refused(404, "SAMPLE_UNKNOWN", "GET", f"{shared.samples}/{'0' * 24}{tail}")


def test_an_unknown_dataset_is_404(shared: Api) -> None:
    shared.refused(404, "DATASET_UNKNOWN", "GET", f"/v1/datasets/{'0' * 24}/samples")


def test_unknown_paths_and_methods_have_error_bodies(shared: Api) -> None:
    shared.refused(404, "NOT_FOUND", "GET", "/v2/nothing")
    shared.refused(404, "NOT_FOUND", "GET", shared.dataset + "/samples/a/b/c/d")
    shared.refused(405, "BAD_REQUEST", "DELETE", f"{shared.samples}/{'0' * 24}")


@pytest.mark.parametrize(
    ("text", "status"), [("True", 200), ("true", 200), ("False", 200), ("false", 200), ("x", 400)]
)
def test_booleans_in_both_spellings(shared: Api, text: str, status: int) -> None:
    path = f"{shared.samples}/{shared.id_of('a/one.jpg')}/writeurl"
    assert shared.call("GET", path, params={"isThumbnail": text}).status_code == status


def test_required_parameters(shared: Api) -> None:
    sample = f"{shared.samples}/{shared.id_of('a/one.jpg')}"
    assert "isThumbnail" in shared.refused(400, "MALFORMED_REQUEST", "GET", f"{sample}/writeurl")
    public = {"publicToken": shared.server.public_token}
    refused = shared.refused(
        400, "MALFORMED_REQUEST", "GET", f"{sample}/readurlRedirect", token=False, params=public
    )
    assert "type" in refused


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("", {"pageSize": "0"}),
        ("", {"pageSize": "-1"}),
        ("", {"pageSize": "1.5"}),
        ("", {"pageSize": "²"}),
        ("", {"pageOffset": "-1"}),
        ("", {"pageOffset": "9" * 30}),
        ("", {"sortBy": "name"}),
        ("/partial", {"mode": "all"}),
    ],
)
def test_odd_values_are_malformed(shared: Api, path: str, query: dict[str, str]) -> None:
    shared.refused(400, "MALFORMED_REQUEST", "GET", shared.samples + path, params=query)


def test_a_token_can_be_given(folder: Path) -> None:
    with LocalServer(ServerOptions(source=folder, token="mine")) as server:
        assert server.token == "mine"
        api = Api(server)
        assert api.json(api.dataset)["nSamples"] == 5


def test_versions_need_no_token(shared: Api) -> None:
    for which in ("latest", "minimum"):
        assert shared.call("GET", f"/v1/versions/pip/{which}", token=False).json() == "1.5.22"
