"""The Lightly API, one typed method per endpoint: requests built, answers checked, failures retried.

Knows paths, parameters and models; how a call travels is `calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal, Protocol, TypeVar
from urllib.parse import quote, urljoin

from lightlyfs import errors
from lightlyfs.api import models
from lightlyfs.api.calls import (
    Attempt,
    Call,
    Caller,
    Credentials,
    Query,
    address_in,
    checked_url,
    surely_unsent,
)
from lightlyfs.api.contract import Response, Timeouts, Transport
from lightlyfs.api.models import (
    CreatedSample,
    CreatedSampleWithWriteUrls,
    DatasetRecord,
    ListedSample,
    Sample,
    SampleCreate,
    SampleUpdate,
    SampleWriteUrls,
    Tag,
    parse,
    shown,
)
from lightlyfs.api.retry import Retrier, RetryPolicy

__all__ = ["Credentials", "Kind", "LightlyClient", "MappingField", "Mode"]

Kind = Literal["full", "thumbnail"]
Mode = Literal["ids", "fileNames", "full"]
MappingField = Literal["_id", "fileName"]
T = TypeVar("T")

# What the official client asks for; a page of records stays far below the API's 32 MB.
_DATASETS_PER_PAGE = 5000


class ServerState(Protocol):
    """Says whether the API answers, and whether there is another token to try."""

    def outage(self) -> errors.Retryable | None:
        """Return the error of the requests if none was answered for some seconds; otherwise None."""

    def outage_s(self) -> float:
        """Return for how long no request was answered; 0 if the last one was."""
        ...

    def has_new_token(self) -> bool:
        """Return whether the token is another one than the last time this was asked."""
        ...


class LightlyClient:
    """Calls the Lightly v1 API; any number of threads may share one.

    Every method raises `errors.RequestError`: by status (see `status.raise_for_status`), what the
    transport raises, and `MalformedAnswer` for an answer that is not what the API promises. `retrier`
    repeats all but the creates (`policy=` overrides its policy for one call); once that is cancelled, calls
    and waits end with `errors.Cancelled` within a second or so. GETs go over `hot_transport` where one is
    given. `on_request(method, operation, seconds, outcome)` is called after each attempt, failed ones too,
    in the calling thread.
    """

    def __init__(
        self,
        server: str,
        credentials: Credentials,
        transport: Transport,
        *,
        hot_transport: Transport | None = None,
        retrier: Retrier | None = None,
        timeouts: Timeouts | None = None,
        on_request: Callable[[str, str, float, str], None] | None = None,
    ) -> None:
        # knows of outages, for all calls together
        self.retrier = retrier or Retrier()
        self._caller = Caller(
            server,
            credentials,
            transport,
            hot_transport or transport,
            self.retrier,
            timeouts=timeouts or Timeouts(),
            on_request=on_request,
        )

    @property
    def server(self) -> str:
        """The address of the API, without a trailing slash."""
        return self._caller.server

    def __repr__(self) -> str:
        return f"LightlyClient({self.server!r})"

    def create_sample(
        self, dataset_id: str, sample: SampleCreate, *, policy: RetryPolicy | None = None
    ) -> str:
        """Create a sample and return its id. API: POST /v1/datasets/{id}/samples.

        Not idempotent: tried again only after 429 or where surely nothing was sent. After any other
        failure (see `RequestError.request_sent`) the sample may exist.
        """

        def read(body: bytes) -> str:
            return models.decode_one(body, CreatedSample, "created sample").id

        return self._create("create_sample", _samples(dataset_id), sample, policy, read)

    def create_sample_with_write_urls(
        self, dataset_id: str, sample: SampleCreate, *, policy: RetryPolicy | None = None
    ) -> CreatedSampleWithWriteUrls:
        """Create a sample and return its id and write URLs; as `create_sample`.

        API: POST /v1/datasets/{id}/samples/withWriteUrls.
        """
        path = f"{_samples(dataset_id)}/withWriteUrls"

        def read(body: bytes) -> CreatedSampleWithWriteUrls:
            created = models.decode_one(body, CreatedSampleWithWriteUrls, "created sample")
            _check_write_urls(created.sample_write_urls)
            return created

        return self._create("create_sample_with_write_urls", path, sample, policy, read)

    def get_sample(self, dataset_id: str, sample_id: str, *, policy: RetryPolicy | None = None) -> Sample:
        """Return one sample. API: GET /v1/datasets/{id}/samples/{sampleId}."""
        return self._get(
            "get_sample",
            _sample(dataset_id, sample_id),
            (),
            policy,
            lambda body: models.decode_one(body, Sample, f"sample {sample_id}"),
        )

    def get_sample_document(
        self, dataset_id: str, sample_id: str, *, policy: RetryPolicy | None = None
    ) -> bytes:
        """Return one sample as the JSON text the API sends. API: GET /v1/datasets/{id}/samples/{sampleId}."""

        def checked(body: bytes) -> bytes:
            models.decode_one(body, Sample, f"sample {sample_id}")
            return body

        return self._get("get_sample", _sample(dataset_id, sample_id), (), policy, checked)

    def get_sample_read_url(
        self, dataset_id: str, sample_id: str, kind: Kind = "full", *, policy: RetryPolicy | None = None
    ) -> str:
        """Return a signed address of the image or its thumbnail. API: GET .../samples/{sampleId}/readurl.

        Raises `errors.UnsafeUrl` unless it is http or https. A secret: never show it.
        """
        return self._caller.send(*_read_url_call(dataset_id, sample_id, kind), policy)

    def get_sample_redirect_url(
        self, dataset_id: str, sample_id: str, kind: Kind = "full", *, policy: RetryPolicy | None = None
    ) -> str:
        """Return where the redirect endpoint points, not following it, with the public token alone.

        API: GET .../samples/{sampleId}/readurlRedirect, 307. Raises as `get_sample_read_url`, also for a way
        from https to http. It is the one redirect that is followed: one of storage is a refusal.
        """
        return self._caller.send(*self._redirect_url_call(dataset_id, sample_id, kind), policy)

    def read_url_attempt(self, dataset_id: str, sample_id: str, *, redirect: bool) -> Attempt[str]:
        """Return the request of the two methods above, for another part to send."""
        if redirect:
            return self._caller.attempt(*self._redirect_url_call(dataset_id, sample_id, "full"))
        return self._caller.attempt(*_read_url_call(dataset_id, sample_id, "full"))

    def _redirect_url_call(
        self, dataset_id: str, sample_id: str, kind: Kind
    ) -> tuple[Call, Callable[[Response], str]]:
        path = f"{_sample(dataset_id, sample_id)}/readurlRedirect"

        def read(answer: Response) -> str:
            location = answer.headers.get("location", "").strip()
            if not location:
                raise errors.MalformedAnswer(
                    f"the redirect of {sample_id} names no Location", status=answer.status
                )
            url = checked_url(urljoin(self.server + path, location))
            if self.server[:6].lower() == "https:" and url[:6].lower() != "https:":
                raise errors.UnsafeUrl(f"the redirect of {sample_id} leads from https to http")
            return url

        call = Call("get_sample_redirect_url", "GET", path, [("type", kind)], redirect=True)
        return call, read

    def get_sample_write_url(
        self, dataset_id: str, sample_id: str, *, is_thumbnail: bool, policy: RetryPolicy | None = None
    ) -> str:
        """Return a signed address to PUT to. API: GET .../samples/{sampleId}/writeurl. A secret."""
        path = f"{_sample(dataset_id, sample_id)}/writeurl"
        where = f"write URL of {sample_id}"
        query = [("isThumbnail", is_thumbnail)]
        return self._get("get_sample_write_url", path, query, policy, lambda body: address_in(body, where))

    def get_sample_write_urls(
        self, dataset_id: str, sample_id: str, *, policy: RetryPolicy | None = None
    ) -> SampleWriteUrls:
        """Return both addresses to PUT to. API: GET .../samples/{sampleId}/writeurls. Secrets."""
        path = f"{_sample(dataset_id, sample_id)}/writeurls"

        def read(body: bytes) -> SampleWriteUrls:
            urls = models.decode_one(body, SampleWriteUrls, f"write URLs of {sample_id}")
            _check_write_urls(urls)
            return urls

        return self._get("get_sample_write_urls", path, (), policy, read)

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
        return self._get("list_samples", _samples(dataset_id), query, policy, _read_samples)

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
        path = f"{_samples(dataset_id)}/partial"
        return self._get("list_samples_partial", path, query, policy, _read_samples)

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
        """Return one page as catalogue rows, decoded five times as fast as `list_samples`.

        API: GET /v1/datasets/{id}/samples/partial, without `partial` (servers before August 2022) GET
        /v1/datasets/{id}/samples. The end is an empty page.
        """
        path = f"{_samples(dataset_id)}/partial" if partial else _samples(dataset_id)
        query: Query = [*([("mode", mode)] if partial else []), *_page(offset, size, None)]
        operation = "list_page" if partial else "list_full_page"
        return self._get(operation, path, query, policy, models.decode_listing)

    def update_sample(
        self, dataset_id: str, sample_id: str, update: SampleUpdate, *, policy: RetryPolicy | None = None
    ) -> None:
        """Change the set fields of a sample. API: PUT /v1/datasets/{id}/samples/{sampleId}."""
        path = _sample(dataset_id, sample_id)
        call = Call("update_sample", "PUT", path, body=models.encode(update))
        self._caller.send(call, lambda _: None, policy)

    def get_dataset(self, dataset_id: str, *, policy: RetryPolicy | None = None) -> DatasetRecord:
        """Return one dataset. API: GET /v1/datasets/{id}."""
        return self._get(
            "get_dataset",
            _dataset(dataset_id),
            (),
            policy,
            lambda body: models.decode_one(body, DatasetRecord, f"dataset {dataset_id}"),
        )

    def find_datasets(self, name: str, *, policy: RetryPolicy | None = None) -> list[DatasetRecord]:
        """Return every dataset of exactly this name that the token may see: own, shared, the team's.

        API: GET /v1/datasets/query/name/{name}, three times, as names are unique per owner only.
        """
        path = f"/v1/datasets/query/name/{quote(name, safe='')}"
        pages: list[DatasetRecord] = []
        for scope in _SCOPES:
            try:
                pages += self._get("find_datasets", path, [("exact", True), scope], policy, _read_datasets)
            except errors.NotFound as exc:
                if exc.code != "DATASET_UNKNOWN":
                    raise
        return [dataset for dataset in _distinct(pages) if dataset.name == name]

    def list_datasets(self, *, policy: RetryPolicy | None = None) -> list[DatasetRecord]:
        """Return every dataset the token may see. API: GET /v1/datasets, paged."""
        found: list[DatasetRecord] = []
        for scope in _SCOPES:
            offset = 0
            while True:
                query = [scope, ("pageSize", _DATASETS_PER_PAGE), ("pageOffset", offset)]
                page = self._get("list_datasets", "/v1/datasets", query, policy, _read_datasets)
                known = {dataset.id for dataset in found}
                # A server that ignores paging returns the same page endlessly.
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
        path = f"{_dataset(dataset_id)}/mappings"
        return self._get(
            "get_mappings", path, query, policy, lambda body: models.decode_strings(body, "mappings")
        )

    def get_tags(self, dataset_id: str, *, policy: RetryPolicy | None = None) -> list[Tag]:
        """Return all tags of a dataset. API: GET /v1/datasets/{id}/tags."""
        path = f"{_dataset(dataset_id)}/tags"
        return self._get("get_tags", path, (), policy, lambda body: models.decode_many(body, Tag, "tags"))

    def get_quota(self, *, policy: RetryPolicy | None = None) -> int:
        """Return how many samples one dataset may have. API: GET /v1/quota."""
        return self._get("get_quota", "/v1/quota", (), policy, _read_quota)

    def _get(
        self,
        operation: str,
        path: str,
        query: Query,
        policy: RetryPolicy | None,
        read: Callable[[bytes], T],
    ) -> T:
        return self._caller.send(
            Call(operation, "GET", path, query), lambda answer: read(answer.body), policy
        )

    def _create(
        self,
        operation: str,
        path: str,
        sample: SampleCreate,
        policy: RetryPolicy | None,
        read: Callable[[bytes], T],
    ) -> T:
        call = Call(operation, "POST", path, body=models.encode(sample))
        return self._caller.send(call, lambda answer: read(answer.body), policy, surely_unsent)


_SCOPES: tuple[tuple[str, bool], ...] = (("shared", False), ("shared", True), ("getAssetsOfTeam", True))


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


def _read_url_call(dataset_id: str, sample_id: str, kind: Kind) -> tuple[Call, Callable[[Response], str]]:
    where = f"read URL of {sample_id}"
    call = Call("get_sample_read_url", "GET", f"{_sample(dataset_id, sample_id)}/readurl", [("type", kind)])
    return call, lambda answer: address_in(answer.body, where)


@lru_cache(64)
def _samples(dataset_id: str) -> str:
    return f"{_dataset(dataset_id)}/samples"


def _sample(dataset_id: str, sample_id: str) -> str:
    return f"{_samples(dataset_id)}/{_oid(sample_id, 'sample')}"


def _check_write_urls(urls: SampleWriteUrls) -> None:
    checked_url(urls.full)
    checked_url(urls.thumb)


def _distinct(datasets: Iterable[DatasetRecord]) -> list[DatasetRecord]:
    return list({dataset.id: dataset for dataset in datasets}.values())


def _read_samples(body: bytes) -> list[Sample]:
    return models.decode_many(body, Sample, "samples")


def _read_datasets(body: bytes) -> list[DatasetRecord]:
    return models.decode_many(body, DatasetRecord, "datasets")


def _read_quota(body: bytes) -> int:
    said = parse(body, "quota")
    try:
        return int(said)
    except (TypeError, ValueError) as exc:
        raise errors.MalformedAnswer(f"quota is not a number: {shown(said)}") from exc
