"""The Lightly API, one typed method per endpoint: requests built, answers checked, failures retried.

Owns where credentials go: to the API host alone, the token as the last query parameter, the bearer
token as a header, the public token only to the redirect endpoint.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, urljoin

from lightlyfs import errors
from lightlyfs.api import models
from lightlyfs.api.contract import Request, Response, Transport, wire_url
from lightlyfs.api.lenient import parse, shown
from lightlyfs.api.models import (
    CreatedSample,
    CreatedSampleWithWriteUrls,
    Dataset,
    ListedSample,
    Sample,
    SampleCreate,
    SampleUpdate,
    SampleWriteUrls,
    Tag,
)
from lightlyfs.api.retry import RetryPolicy, call_with_retries
from lightlyfs.api.status import raise_for_status

Kind = Literal["full", "thumbnail"]
Mode = Literal["ids", "fileNames", "full"]
MappingField = Literal["_id", "fileName"]
Query = Sequence[tuple[str, str | int | bool]]

DEFAULT_SERVER = "https://api.lightly.ai"
_REDIRECTS = (301, 302, 303, 307, 308)
# What the official client asks for; a page of records stays far below the API's 32 MB.
_DATASETS_PER_PAGE = 5000


@dataclass(frozen=True, slots=True)
class Credentials:
    """What opens the API; at least `token` or `bearer` for all but the redirect. Its repr shows nothing."""

    token: str | None = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)
    public_token: str | None = field(default=None, repr=False)

    def secrets(self) -> tuple[str, ...]:
        """Return every credential that is set: what no text may hold."""
        return tuple(secret for secret in (self.token, self.bearer, self.public_token) if secret)


class LightlyClient:
    """Calls the Lightly v1 API; any number of threads may share one.

    Every method raises `errors.RequestError`: by status (see `status.raise_for_status`), what the
    transport raises, and `MalformedAnswer` for an answer that is not what the API promises. All but the
    creates are tried again under the policy (`policy=` overrides it for one call). GETs go over
    `hot_transport` where one is given. `on_request(method, operation, seconds)` is called after each
    attempt, failed ones too, in the calling thread.
    """

    def __init__(
        self,
        server: str,
        credentials: Credentials,
        transport: Transport,
        *,
        hot_transport: Transport | None = None,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_module.random,
        on_request: Callable[[str, str, float], None] | None = None,
    ) -> None:
        self.server = server.strip().rstrip("/")
        wire_url(self.server)
        self._credentials = credentials
        self._transport = transport
        self._hot = hot_transport or transport
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._on_request = on_request

    def __repr__(self) -> str:
        return f"LightlyClient({self.server!r})"

    def create_sample(
        self, dataset_id: str, sample: SampleCreate, *, policy: RetryPolicy | None = None
    ) -> str:
        """Create a sample and return its id. API: POST /v1/datasets/{id}/samples.

        Not idempotent: tried again only after 429 or where surely nothing was sent. After any other
        failure (see `RequestError.request_sent`) the sample may exist.
        """
        body = self._create("create_sample", _samples(dataset_id), sample, policy)
        return models.decode_one(body, CreatedSample, "created sample").id

    def create_sample_with_write_urls(
        self, dataset_id: str, sample: SampleCreate, *, policy: RetryPolicy | None = None
    ) -> CreatedSampleWithWriteUrls:
        """Create a sample and return its id and write URLs; as `create_sample`.

        API: POST /v1/datasets/{id}/samples/withWriteUrls.
        """
        path = f"{_samples(dataset_id)}/withWriteUrls"
        body = self._create("create_sample_with_write_urls", path, sample, policy)
        created = models.decode_one(body, CreatedSampleWithWriteUrls, "created sample")
        _check_write_urls(created.sample_write_urls)
        return created

    def get_sample(self, dataset_id: str, sample_id: str, *, policy: RetryPolicy | None = None) -> Sample:
        """Return one sample. API: GET /v1/datasets/{id}/samples/{sampleId}."""
        body = self._get("get_sample", _sample(dataset_id, sample_id), (), policy).body
        return models.decode_one(body, Sample, f"sample {sample_id}")

    def get_sample_read_url(
        self, dataset_id: str, sample_id: str, kind: Kind = "full", *, policy: RetryPolicy | None = None
    ) -> str:
        """Return a signed address of the image or its thumbnail. API: GET .../samples/{sampleId}/readurl.

        Raises `errors.UnsafeUrl` unless it is http or https. A secret: never show it.
        """
        path = f"{_sample(dataset_id, sample_id)}/readurl"
        body = self._get("get_sample_read_url", path, [("type", kind)], policy).body
        return _url(body, f"read URL of {sample_id}")

    def get_sample_redirect_url(
        self, dataset_id: str, sample_id: str, kind: Kind = "full", *, policy: RetryPolicy | None = None
    ) -> str:
        """Return where the redirect endpoint points, not following it, with the public token alone.

        API: GET .../samples/{sampleId}/readurlRedirect, 307. Raises as `get_sample_read_url`.
        """
        path = f"{_sample(dataset_id, sample_id)}/readurlRedirect"
        query: list[tuple[str, str]] = [("type", kind)]
        if self._credentials.public_token:
            query.append(("publicToken", self._credentials.public_token))
        answer = self._get("get_sample_redirect_url", path, query, policy, redirect=True)
        location = answer.headers.get("location", "").strip()
        if not location:
            raise errors.MalformedAnswer(
                f"the redirect of {sample_id} names no Location", status=answer.status
            )
        return _checked_url(urljoin(self.server + path, location))

    def get_sample_write_url(
        self, dataset_id: str, sample_id: str, *, is_thumbnail: bool, policy: RetryPolicy | None = None
    ) -> str:
        """Return a signed address to PUT to. API: GET .../samples/{sampleId}/writeurl. A secret."""
        path = f"{_sample(dataset_id, sample_id)}/writeurl"
        body = self._get("get_sample_write_url", path, [("isThumbnail", is_thumbnail)], policy).body
        return _url(body, f"write URL of {sample_id}")

    def get_sample_write_urls(
        self, dataset_id: str, sample_id: str, *, policy: RetryPolicy | None = None
    ) -> SampleWriteUrls:
        """Return both addresses to PUT to. API: GET .../samples/{sampleId}/writeurls. Secrets."""
        body = self._get(
            "get_sample_write_urls", f"{_sample(dataset_id, sample_id)}/writeurls", (), policy
        ).body
        urls = models.decode_one(body, SampleWriteUrls, f"write URLs of {sample_id}")
        _check_write_urls(urls)
        return urls

    def list_samples(
        self,
        dataset_id: str,
        *,
        offset: int,
        size: int,
        file_name: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> list[Sample]:
        """Return up to `size` samples from `offset` (in samples). API: GET /v1/datasets/{id}/samples.

        The server may return fewer before the end: only an empty page is the end. `file_name` is a hint
        that the server may read as a prefix or ignore.
        """
        query = _page(offset, size, file_name)
        body = self._get("list_samples", _samples(dataset_id), query, policy).body
        return models.decode_many(body, Sample, "samples")

    def list_samples_partial(
        self,
        dataset_id: str,
        *,
        mode: Mode,
        offset: int,
        size: int,
        file_name: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> list[Sample]:
        """Return samples with as much as `mode` says. API: GET /v1/datasets/{id}/samples/partial.

        `ids` gives ids, `fileNames` names too, `full` all; else as `list_samples`.
        """
        query = [("mode", mode), *_page(offset, size, file_name)]
        body = self._get("list_samples_partial", f"{_samples(dataset_id)}/partial", query, policy).body
        return models.decode_many(body, Sample, "samples")

    def list_page(
        self,
        dataset_id: str,
        offset: int,
        size: int,
        *,
        partial: bool = True,
        mode: Mode = "full",
        policy: RetryPolicy | None = None,
    ) -> list[ListedSample]:
        """Return one page as catalogue rows, decoded three times as fast as `list_samples`.

        API: GET /v1/datasets/{id}/samples/partial, without `partial` (servers before August 2022) GET
        /v1/datasets/{id}/samples. The end is an empty page.
        """
        path = f"{_samples(dataset_id)}/partial" if partial else _samples(dataset_id)
        query: Query = [*([("mode", mode)] if partial else []), *_page(offset, size, None)]
        return models.decode_listing(self._get("list_page", path, query, policy).body)

    def update_sample(
        self, dataset_id: str, sample_id: str, update: SampleUpdate, *, policy: RetryPolicy | None = None
    ) -> None:
        """Change the set fields of a sample. API: PUT /v1/datasets/{id}/samples/{sampleId}."""
        path = _sample(dataset_id, sample_id)
        self._retried("update_sample", lambda: self._once("update_sample", "PUT", path, (), update), policy)

    def get_dataset(self, dataset_id: str, *, policy: RetryPolicy | None = None) -> Dataset:
        """Return one dataset. API: GET /v1/datasets/{id}."""
        body = self._get("get_dataset", _dataset(dataset_id), (), policy).body
        return models.decode_one(body, Dataset, f"dataset {dataset_id}")

    def find_datasets(self, name: str, *, policy: RetryPolicy | None = None) -> list[Dataset]:
        """Return every dataset of exactly this name that the token may see: own, shared, the team's.

        API: GET /v1/datasets/query/name/{name}, three times, as names are unique per owner only.
        """
        path = f"/v1/datasets/query/name/{quote(name, safe='')}"
        pages = []
        for scope in _SCOPES:
            body = self._get("find_datasets", path, [("exact", True), scope], policy).body
            pages += models.decode_many(body, Dataset, "datasets")
        return [dataset for dataset in _distinct(pages) if dataset.name == name]

    def list_datasets(self, *, policy: RetryPolicy | None = None) -> list[Dataset]:
        """Return every dataset the token may see. API: GET /v1/datasets, paged."""
        found: list[Dataset] = []
        for scope in _SCOPES:
            offset = 0
            while True:
                query = [scope, ("pageSize", _DATASETS_PER_PAGE), ("pageOffset", offset)]
                body = self._get("list_datasets", "/v1/datasets", query, policy).body
                page = models.decode_many(body, Dataset, "datasets")
                known = {dataset.id for dataset in found}
                # A server that ignores paging answers the same page for ever.
                if not any(dataset.id not in known for dataset in page):
                    break
                found += page
                offset += len(page)
        return _distinct(found)

    def get_mappings(
        self,
        dataset_id: str,
        field: MappingField,
        offset: int,
        size: int,
        *,
        policy: RetryPolicy | None = None,
    ) -> list[str]:
        """Return ids or names in the order of the tag bits. API: GET /v1/datasets/{id}/mappings."""
        query = [("field", field), *_page(offset, size, None)]
        body = self._get("get_mappings", f"{_dataset(dataset_id)}/mappings", query, policy).body
        return models.decode_strings(body, "mappings")

    def get_tags(self, dataset_id: str, *, policy: RetryPolicy | None = None) -> list[Tag]:
        """Return all tags of a dataset. API: GET /v1/datasets/{id}/tags."""
        body = self._get("get_tags", f"{_dataset(dataset_id)}/tags", (), policy).body
        return models.decode_many(body, Tag, "tags")

    def get_quota(self, *, policy: RetryPolicy | None = None) -> int:
        """Return how many samples one dataset may have. API: GET /v1/quota."""
        said = parse(self._get("get_quota", "/v1/quota", (), policy).body, "quota")
        try:
            return int(said)
        except (TypeError, ValueError) as exc:
            raise errors.MalformedAnswer(f"quota is not a number: {shown(said)}") from exc

    def _create(self, operation: str, path: str, sample: SampleCreate, policy: RetryPolicy | None) -> bytes:
        def may_retry(exc: errors.Retryable) -> bool:
            return isinstance(exc, errors.Throttled) or not exc.request_sent

        answer = self._retried(
            operation, lambda: self._once(operation, "POST", path, (), sample), policy, may_retry
        )
        return answer.body

    def _get(
        self, operation: str, path: str, query: Query, policy: RetryPolicy | None, *, redirect: bool = False
    ) -> Response:
        return self._retried(
            operation, lambda: self._once(operation, "GET", path, query, redirect=redirect), policy
        )

    def _retried(
        self,
        operation: str,
        once: Callable[[], Response],
        policy: RetryPolicy | None,
        may_retry: Callable[[errors.Retryable], bool] | None = None,
    ) -> Response:
        return call_with_retries(
            policy or self._policy,
            once,
            clock=self._clock,
            sleep=self._sleep,
            random=self._random,
            may_retry=may_retry,
        )

    def _once(
        self,
        operation: str,
        method: str,
        path: str,
        query: Query,
        body: SampleCreate | SampleUpdate | None = None,
        *,
        redirect: bool = False,
    ) -> Response:
        headers = {"Accept": "application/json"}
        pairs = [*query]
        if not redirect:
            self._authorize(headers, pairs)
        data = None
        if body is not None:
            data = models.encode(body)
            headers["Content-Type"] = "application/json"
        request = Request(method, self.server + path + _encoded(pairs), headers, data)
        started_s = self._clock()
        try:
            answer = (self._hot if method == "GET" else self._transport).send(request)
        finally:
            if self._on_request is not None:
                self._on_request(method, operation, self._clock() - started_s)
        if not (redirect and answer.status in _REDIRECTS):
            what = f"{operation} {path}"
            raise_for_status(answer, what=what, secrets=self._credentials.secrets())
            if redirect:
                raise errors.MalformedAnswer(
                    f"{what}: {answer.status} instead of a redirect", status=answer.status
                )
        return answer

    def _authorize(self, headers: dict[str, str], query: list[tuple[str, str | int | bool]]) -> None:
        if self._credentials.bearer:
            headers["Authorization"] = f"Bearer {self._credentials.bearer}"
        if self._credentials.token:
            query.append(("token", self._credentials.token))


_SCOPES: tuple[tuple[str, bool], ...] = (("shared", False), ("shared", True), ("getAssetsOfTeam", True))


def _encoded(pairs: Query) -> str:
    if not pairs:
        return ""
    # Booleans go as True and False, blanks as %20, `/` as it is: as the official client sends them.
    return "?" + "&".join(f"{name}={quote(str(value), errors='surrogatepass')}" for name, value in pairs)


def _page(offset: int, size: int, file_name: str | None) -> list[tuple[str, str | int | bool]]:
    if size < 1 or offset < 0:
        raise errors.BadRequest(f"no such page: size {size}, offset {offset}", request_sent=False)
    query: list[tuple[str, str | int | bool]] = [("fileName", file_name)] if file_name is not None else []
    return [*query, ("pageSize", size), ("pageOffset", offset)]


def _oid(value: str, what: str) -> str:
    if not models.is_oid(value):
        raise errors.BadRequest(
            f"{shown(value)} is no {what} id: it has to be 24 hex digits", request_sent=False
        )
    return value


def _dataset(dataset_id: str) -> str:
    return f"/v1/datasets/{_oid(dataset_id, 'dataset')}"


def _samples(dataset_id: str) -> str:
    return f"{_dataset(dataset_id)}/samples"


def _sample(dataset_id: str, sample_id: str) -> str:
    return f"{_samples(dataset_id)}/{_oid(sample_id, 'sample')}"


def _url(body: bytes, where: str) -> str:
    """Return the address of an answer that is a JSON string or, from older servers, raw text."""
    text = body.strip()
    found = parse(text, where) if text[:1] == b'"' else text.decode("utf-8", "replace")
    if not isinstance(found, str) or "://" not in found or found[:1] in "<{[":
        raise errors.MalformedAnswer(f"{where} is not an address: {shown(str(found)[:40])}")
    return _checked_url(found)


def _checked_url(url: str) -> str:
    wire_url(url)
    return url


def _check_write_urls(urls: SampleWriteUrls) -> None:
    wire_url(urls.full)
    wire_url(urls.thumb)


def _distinct(datasets: Iterable[Dataset]) -> list[Dataset]:
    found: Mapping[str, Dataset] = {dataset.id: dataset for dataset in datasets}
    return list(found.values())
