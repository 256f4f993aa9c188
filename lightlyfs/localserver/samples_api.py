"""The samples endpoints: the nine of the published API, and create with write URLs."""

import asyncio

from .asgi import Call, Reply, json_reply
from .catalog import Column, Row, Window
from .dataset import Dataset, now_ms
from .errors import ApiError, not_found
from .models import SampleCreate, SampleUpdate, parse, present_fields
from .options import ServerOptions
from .params import boolean, choice, integer, object_id

IMAGE_TYPES = ("full", "thumbnail")
INVALID_SAMPLE = "SAMPLE_CREATE_REQUEST_INVALID_FORMAT"


def window_of(call: Call, page_size_max: int | None) -> Window:
    """Return the page a call asks for, clamped if the server is told to."""
    size = integer(call.query, "pageSize", 1)
    if page_size_max is not None:
        size = page_size_max if size is None else min(size, page_size_max)
    return Window(integer(call.query, "pageOffset", 0) or 0, size)


def array_reply(texts: list[str], cap_bytes: int) -> Reply:
    """Return JSON texts as one array, or refuse an answer that is too large."""
    body = ("[" + ",".join(texts) + "]").encode("ascii")
    if len(body) > cap_bytes:
        raise ApiError(413, "PAYLOAD_TOO_LARGE", f"the answer has {len(body)} bytes, more than {cap_bytes}")
    return Reply(200, body)


async def see_new_objects(dataset: Dataset) -> None:
    """Take in what was added to the storage, where it is time to look."""
    if dataset.is_scan_due():
        await asyncio.to_thread(dataset.import_objects)


class SamplesApi:
    """Handlers of `/v1/datasets/{datasetId}/samples`. Runs on the server's loop."""

    def __init__(self, dataset: Dataset, options: ServerOptions) -> None:
        self._dataset = dataset
        self._options = options

    async def create(self, call: Call) -> Reply:
        """POST: append a sample."""
        return json_reply({"id": (await self._created(call)).id}, 201)

    async def create_with_write_urls(self, call: Call) -> Reply:
        """POST withWriteUrls: append a sample and say where its bytes go."""
        row = await self._created(call)
        return json_reply({"id": row.id, "sampleWriteUrls": self._write_urls(row.id)}, 201)

    async def get(self, call: Call) -> Reply:
        """GET one sample."""
        sample_id = self._sample_id(call)
        row = self._dataset.catalog.get(sample_id)
        if row is None:
            raise unknown_sample(sample_id)
        return json_reply(row.document)

    async def update(self, call: Call) -> Reply:
        """PUT: change the fields that were sent; the answer is empty."""
        sample_id = self._sample_id(call)
        boolean(call.query, "enableDatasetUpdate", False)
        fields = present_fields(parse(await call.json(), SampleUpdate))
        if not self._dataset.catalog.update(sample_id, fields, now_ms()):
            raise unknown_sample(sample_id)
        return Reply(200)

    async def read_url(self, call: Call) -> Reply:
        """GET readurl: a signed URL as a JSON string."""
        image_type = choice(call.query, "type", IMAGE_TYPES, "full")
        return json_reply(await self._read_url(call, image_type))

    async def redirect(self, call: Call) -> Reply:
        """GET readurlRedirect: a fresh signed URL in `Location`."""
        url = await self._read_url(call, choice(call.query, "type", IMAGE_TYPES))
        return Reply(307, headers=((b"location", url.encode("ascii")),))

    async def write_url(self, call: Call) -> Reply:
        """GET writeurl: a signed PUT URL as a JSON string."""
        sample_id = self._sample_id(call)
        thumbnail = boolean(call.query, "isThumbnail")
        url = self._dataset.write_url(sample_id, thumbnail)
        if url is None:
            raise unknown_sample(sample_id)
        return json_reply(url)

    async def write_urls(self, call: Call) -> Reply:
        """GET writeurls: both signed PUT URLs."""
        return json_reply(self._write_urls(self._sample_id(call)))

    async def list_full(self, call: Call) -> Reply:
        """GET: a page of whole samples."""
        by_id = choice(call.query, "sortBy", ("_id", "index"), "index") == "_id"
        return await self._page(call, "full", by_id)

    async def list_partial(self, call: Call) -> Reply:
        """GET partial: a page with the fields of `mode`."""
        mode: Column = "full"
        if choice(call.query, "mode", ("ids", "fileNames", "full"), "full") != "full":
            mode = "ids" if call.query["mode"] == "ids" else "fileNames"
        return await self._page(call, mode, False)

    async def _page(self, call: Call, column: Column, by_id: bool) -> Reply:
        await see_new_objects(self._dataset)
        asked = window_of(call, self._options.page_size_max)
        window = Window(asked.offset, asked.limit, by_id)
        name, rule = call.query.get("fileName"), self._options.file_name_filter
        if name is None or rule == "ignored":
            texts = self._dataset.catalog.page(column, window)
        else:
            texts = self._dataset.catalog.page_named(column, name, rule == "prefix", window)
        return array_reply(texts, self._options.response_cap_bytes)

    async def _created(self, call: Call) -> Row:
        fields = present_fields(parse(await call.json(), SampleCreate, INVALID_SAMPLE))
        # Finding a free key can be a request to S3.
        return await asyncio.to_thread(self._dataset.create, fields)

    async def _read_url(self, call: Call, image_type: str) -> str:
        sample_id = self._sample_id(call)
        if image_type == "thumbnail":
            # Whether a thumbnail exists can be a request to S3, which must not stop the loop.
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

    def _sample_id(self, call: Call) -> str:
        return object_id(call.path["sampleId"], "sampleId")


def unknown_sample(sample_id: str) -> ApiError:
    """Return the answer to an id that no sample has."""
    return not_found("SAMPLE_UNKNOWN", f"sample {sample_id}")
