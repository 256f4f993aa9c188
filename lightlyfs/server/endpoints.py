"""The API endpoints: samples, datasets and tags."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

from .asgi import JSON, TEXT, ApiCall, ApiError, Reply, json_reply, malformed, not_found
from .request_checks import (
    PublicTokens,
    SampleCreateBody,
    SampleUpdateBody,
    TagCreateBody,
    boolean,
    choice,
    integer,
    object_id,
    parse_body,
    present_fields,
)
from .serve_options import ServeOptions
from .served_dataset import ServedDataset, now_ms
from .state_tables import INITIAL_TAG, Column, SampleRow, TagTable, Window, indices_of, mask_of

IMAGE_TYPES = ("full", "thumbnail")
INVALID_SAMPLE = "SAMPLE_CREATE_REQUEST_INVALID_FORMAT"
NAME_FORMATS = ("NAME", "DATASOURCE_FULL", "REDIRECTED_READ_URL")

OWNER = "local"
QUOTA_SAMPLES = "100000000"
CLIENT_VERSION = "1.5.22"
"""The last released client; also the minimum, so that no client asks for an update."""


def window_of(call: ApiCall, page_size_max: int | None) -> Window:
    """Return the page that a call requests, at most `page_size_max` samples."""
    size = integer(call.query, "pageSize", 1)
    if page_size_max is not None:
        size = page_size_max if size is None else min(size, page_size_max)
    return Window(integer(call.query, "pageOffset", 0) or 0, size)


def array_reply(texts: list[str], cap_bytes: int) -> Reply:
    """Return JSON texts as one array, or raise `ApiError` 413 if they exceed `cap_bytes`."""
    body = ("[" + ",".join(texts) + "]").encode("ascii")
    if len(body) > cap_bytes:
        raise ApiError(413, "PAYLOAD_TOO_LARGE", f"the answer has {len(body)} bytes, more than {cap_bytes}")
    return Reply(200, body)


async def see_new_objects(dataset: ServedDataset) -> None:
    """Import the objects that were added to the storage, if a scan is due."""
    if dataset.is_scan_due():
        await asyncio.to_thread(dataset.import_objects)


class SamplesApi:
    """Handlers of `/v1/datasets/{datasetId}/samples`. Runs on the server's loop."""

    def __init__(self, dataset: ServedDataset, options: ServeOptions) -> None:
        self._dataset = dataset
        self._options = options

    async def create(self, call: ApiCall) -> Reply:
        """POST: append a sample."""
        return json_reply({"id": (await self._created(call)).id}, 201)

    async def create_with_write_urls(self, call: ApiCall) -> Reply:
        """POST withWriteUrls: append a sample; the response has its write URLs."""
        row = await self._created(call)
        return json_reply({"id": row.id, "sampleWriteUrls": self._write_urls(row.id)}, 201)

    async def get(self, call: ApiCall) -> Reply:
        """GET one sample."""
        sample_id = self._sample_id(call)
        row = self._dataset.samples.get(sample_id)
        if row is None:
            raise unknown_sample(sample_id)
        return json_reply(row.document)

    async def update(self, call: ApiCall) -> Reply:
        """PUT: change the fields that were sent; the response is empty."""
        sample_id = self._sample_id(call)
        boolean(call.query, "enableDatasetUpdate", False)
        fields = present_fields(parse_body(await call.json(), SampleUpdateBody))
        if not self._dataset.samples.update(sample_id, fields, now_ms()):
            raise unknown_sample(sample_id)
        return Reply(200)

    async def read_url(self, call: ApiCall) -> Reply:
        """GET readurl: a signed URL as a JSON string."""
        image_type = choice(call.query, "type", IMAGE_TYPES, "full")
        return json_reply(await self._read_url(call, image_type))

    async def redirect(self, call: ApiCall) -> Reply:
        """GET readurlRedirect: a new signed URL in `Location`."""
        url = await self._read_url(call, choice(call.query, "type", IMAGE_TYPES))
        return Reply(307, headers=((b"location", url.encode("ascii")),))

    async def write_url(self, call: ApiCall) -> Reply:
        """GET writeurl: a signed PUT URL as a JSON string."""
        sample_id = self._sample_id(call)
        thumbnail = boolean(call.query, "isThumbnail")
        url = self._dataset.write_url(sample_id, thumbnail)
        if url is None:
            raise unknown_sample(sample_id)
        return json_reply(url)

    async def write_urls(self, call: ApiCall) -> Reply:
        """GET writeurls: both signed PUT URLs."""
        return json_reply(self._write_urls(self._sample_id(call)))

    async def list_full(self, call: ApiCall) -> Reply:
        """GET: a page of whole samples."""
        by_id = choice(call.query, "sortBy", ("_id", "index"), "index") == "_id"
        return await self._page(call, "full", by_id)

    async def list_partial(self, call: ApiCall) -> Reply:
        """GET partial: a page with the fields of `mode`."""
        mode: Column = "full"
        if choice(call.query, "mode", ("ids", "fileNames", "full"), "full") != "full":
            mode = "ids" if call.query["mode"] == "ids" else "fileNames"
        return await self._page(call, mode, False)

    async def _page(self, call: ApiCall, column: Column, by_id: bool) -> Reply:
        await see_new_objects(self._dataset)
        asked = window_of(call, self._options.page_size_max)
        window = Window(asked.offset, asked.limit, by_id)
        name, rule = call.query.get("fileName"), self._options.file_name_filter
        if name is None or rule == "ignored":
            texts = self._dataset.samples.page(column, window)
        else:
            texts = self._dataset.samples.page_named(column, name, rule == "prefix", window)
        return array_reply(texts, self._options.response_cap_bytes)

    async def _created(self, call: ApiCall) -> SampleRow:
        fields = present_fields(parse_body(await call.json(), SampleCreateBody, INVALID_SAMPLE))
        # finding a free key can be a request to S3
        return await asyncio.to_thread(self._dataset.create, fields)

    async def _read_url(self, call: ApiCall, image_type: str) -> str:
        sample_id = self._sample_id(call)
        if image_type == "thumbnail":
            # the check for a thumbnail can be a request to S3, which must not block the loop
            url = await asyncio.to_thread(self._dataset.read_url, sample_id, True)
        else:
            url = self._dataset.read_url(sample_id, False)
        if url is None:
            raise unknown_sample(sample_id)
        return url

    def _write_urls(self, sample_id: str) -> dict[str, str]:
        full = self._dataset.write_url(sample_id, False)
        thumb = self._dataset.write_url(sample_id, True)
        if full is None or thumb is None:
            raise unknown_sample(sample_id)
        return {"full": full, "thumb": thumb}

    def _sample_id(self, call: ApiCall) -> str:
        return object_id(call.path["sampleId"], "sampleId")


def unknown_sample(sample_id: str) -> ApiError:
    """Return the error for an id that no sample has."""
    return not_found("SAMPLE_UNKNOWN", f"sample {sample_id}")


class DatasetsApi:
    """Handlers outside `/samples` and `/tags`. Runs on the server's loop."""

    def __init__(self, dataset: ServedDataset, options: ServeOptions) -> None:
        self._dataset = dataset
        self._options = options

    async def get(self, call: ApiCall) -> Reply:
        """GET one dataset."""
        await see_new_objects(self._dataset)
        return json_reply(self._data())

    async def list_all(self, call: ApiCall) -> Reply:
        """GET all datasets: the one dataset, unless only shared ones are requested."""
        return json_reply(self._visible(call, True))

    async def by_name(self, call: ApiCall) -> Reply:
        """GET by name: equality with `exact`, else a prefix."""
        asked, name = call.path["name"], self._dataset.facts.name
        exact = boolean(call.query, "exact", False)
        return json_reply(self._visible(call, name == asked if exact else name.startswith(asked)))

    async def mappings(self, call: ApiCall) -> Reply:
        """GET mappings: ids or names in the order of tag bits."""
        field = choice(call.query, "field", ("_id", "fileName"))
        window = window_of(call, None)
        texts = self._dataset.samples.page("id" if field == "_id" else "name", window)
        return array_reply(texts, self._options.response_cap_bytes)

    async def datasource(self, call: ApiCall) -> Reply:
        """GET datasource: 404, because none is configured."""
        raise not_found("DATASET_DATASOURCE_UNKNOWN", "a datasource of this dataset")

    async def quota(self, call: ApiCall) -> Reply:
        """GET quota: the limit of samples per dataset, a number in a JSON string."""
        return json_reply(QUOTA_SAMPLES)

    async def version(self, call: ApiCall) -> Reply:
        """GET the latest or the minimum client version; needs no token."""
        return json_reply(CLIENT_VERSION)

    def _visible(self, call: ApiCall, wanted: bool) -> list[dict[str, Any]]:
        shared = boolean(call.query, "shared", False)
        of_team = boolean(call.query, "getAssetsOfTeam", False)
        boolean(call.query, "getAssetsOfTeamInclusiveSelf", False)
        boolean(call.query, "excludePlayground", False)
        window = window_of(call, None)
        found = [self._data()] if wanted and not shared and not of_team else []
        return found[window.offset :][: window.limit]

    def _data(self) -> dict[str, Any]:
        facts = self._dataset.facts
        return {
            "id": facts.id,
            "name": facts.name,
            "userId": OWNER,
            "type": "Images",
            "imgType": "full",
            "nSamples": self._dataset.samples.count(),
            "sizeInBytes": self._dataset.samples.total_bytes(),
            "createdAt": facts.created_ms,
            "lastModifiedAt": max(facts.created_ms, self._dataset.samples.modified_ms()),
        }


class TagsApi:
    """Handlers of `/v1/datasets/{datasetId}/tags`. Runs on the server's loop."""

    def __init__(
        self, dataset: ServedDataset, tags: TagTable, tokens: PublicTokens, base_url: str, cap_bytes: int
    ) -> None:
        self._dataset = dataset
        self._tags = tags
        self._tokens = tokens
        self._base_url = base_url
        self._cap_bytes = cap_bytes

    async def list_all(self, call: ApiCall) -> Reply:
        """GET all tags, newest first."""
        return self._capped(json_reply(self._tags.list_all()))

    async def get(self, call: ApiCall) -> Reply:
        """GET one tag."""
        return json_reply(self._tag(call))

    async def create(self, call: ApiCall) -> Reply:
        """POST a tag from `bitMaskData`, or from `fileNames`."""
        wanted = parse_body(await call.json(), TagCreateBody)
        count = self._dataset.samples.count()
        if wanted.bitMaskData is not None:
            mask = int(wanted.bitMaskData, 16)
        elif wanted.fileNames is not None:
            mask = mask_of(self._dataset.samples.indices_of_names(wanted.fileNames), count)
        else:
            raise malformed("bitMaskData or fileNames is required")
        if mask.bit_length() > count:
            raise ApiError(400, "DATASET_TAG_INVALID", f"bitMaskData has a bit past the {count} samples")
        previous = wanted.prevTagId or self._tags.root_id()
        return json_reply({"id": self._tags.add(wanted.name, mask, previous, now_ms())}, 201)

    async def create_initial(self, call: ApiCall) -> Reply:
        """POST tags/initial: the tag of all samples; 400 if there is a tag."""
        document = await call.json()
        if self._tags.root_id() is not None:
            raise ApiError(400, "TAG_INITIAL_EXISTS", "the dataset has its initial tag already")
        name = document.get("name", INITIAL_TAG) if isinstance(document, dict) else INITIAL_TAG
        tag = parse_body({"name": name}, TagCreateBody)
        mask = (1 << self._dataset.samples.count()) - 1
        return json_reply({"id": self._tags.add(tag.name, mask, None, now_ms())}, 201)

    async def filenames(self, call: ApiCall) -> Reply:
        """GET export/basic/filenames: one line per sample, or a JSON array with `format=JSON`."""
        name_format = choice(call.query, "fileNameFormat", NAME_FORMATS, "NAME")
        output = choice(call.query, "format", ("PLAIN", "JSON"), "PLAIN")
        expires_in_s = integer(call.query, "expiresIn", 0)
        boolean(call.query, "includeMetaData", False)
        names = self._written(self._members(call), name_format, expires_in_s)
        if output == "JSON":
            return self._capped(json_reply(names))
        text = "\n".join(names).encode("utf-8", "replace")
        return self._capped(Reply(200, text, TEXT))

    async def filenames_and_read_urls(self, call: ApiCall) -> Reply:
        """GET export/basic/filenamesAndReadUrls: names with signed URLs."""
        output = choice(call.query, "format", ("JSON", "PLAIN"), "JSON")
        rows: list[dict[str, Any]] = [
            {"fileName": name, "readUrl": self._dataset.read_url(sample_id, False)}
            for name, sample_id in self._members(call)
        ]
        content_type = JSON if output == "JSON" else TEXT
        return self._capped(Reply(200, json.dumps(rows).encode("ascii"), content_type))

    def _members(self, call: ApiCall) -> list[tuple[str, str]]:
        window = window_of(call, None)
        if boolean(call.query, "previewExample", False):
            window = Window(0, 3)
        stop = None if window.limit is None else window.offset + window.limit
        indices = indices_of(int(self._tag(call)["bitMaskData"], 16))[window.offset : stop]
        return self._dataset.samples.name_and_id(indices)

    def _written(
        self, members: list[tuple[str, str]], name_format: str, expires_in_s: int | None
    ) -> list[str]:
        if name_format == "NAME":
            return [name for name, _ in members]
        if name_format == "DATASOURCE_FULL":
            return [self._dataset.storage.location(name) for name, _ in members]
        samples = f"{self._base_url}/v1/datasets/{self._dataset.facts.id}/samples"
        token = quote(self._tokens.mint(expires_in_s))
        return [f"{samples}/{sample}/readurlRedirect?type=full&publicToken={token}" for _, sample in members]

    def _tag(self, call: ApiCall) -> dict[str, Any]:
        tag_id = object_id(call.path["tagId"], "tagId")
        tag = self._tags.get(tag_id)
        if tag is None:
            raise not_found("TAG_UNKNOWN", f"tag {tag_id}")
        return tag

    def _capped(self, reply: Reply) -> Reply:
        if len(reply.body) > self._cap_bytes:
            raise ApiError(413, "PAYLOAD_TOO_LARGE", f"the answer has {len(reply.body)} bytes")
        return reply
