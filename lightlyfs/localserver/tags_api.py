"""The tag endpoints: list, get, create, and the two exports of file names."""

import json
from typing import Any
from urllib.parse import quote

from .asgi import JSON, TEXT, Call, Reply, json_reply
from .dataset import Dataset, now_ms
from .errors import ApiError, malformed, not_found
from .models import TagCreate, parse
from .params import boolean, choice, integer, object_id
from .samples_api import window_of
from .signing import PublicTokens
from .tag_store import TagStore, indices_of, mask_of

NAME_FORMATS = ("NAME", "DATASOURCE_FULL", "REDIRECTED_READ_URL")


class TagsApi:
    """Handlers of `/v1/datasets/{datasetId}/tags`. Runs on the server's loop."""

    def __init__(
        self, dataset: Dataset, tags: TagStore, tokens: PublicTokens, base_url: str, cap_bytes: int
    ) -> None:
        self._dataset = dataset
        self._tags = tags
        self._tokens = tokens
        self._base_url = base_url
        self._cap_bytes = cap_bytes

    async def list_all(self, call: Call) -> Reply:
        """GET all tags, newest first."""
        return self._capped(json_reply(self._tags.list_all()))

    async def get(self, call: Call) -> Reply:
        """GET one tag."""
        return json_reply(self._tag(call))

    async def create(self, call: Call) -> Reply:
        """POST a tag from `bitMaskData`, or from `fileNames`."""
        wanted = parse(await call.json(), TagCreate)
        count = self._dataset.catalog.count()
        if wanted.bitMaskData is not None:
            mask = int(wanted.bitMaskData, 16)
        elif wanted.fileNames is not None:
            mask = mask_of(self._dataset.catalog.indices_of_names(wanted.fileNames), count)
        else:
            raise malformed("bitMaskData or fileNames is required")
        if mask.bit_length() > count:
            raise ApiError(400, "DATASET_TAG_INVALID", f"bitMaskData has a bit past the {count} samples")
        previous = wanted.prevTagId or self._tags.root_id()
        return json_reply({"id": self._tags.add(wanted.name, mask, previous, now_ms())}, 201)

    async def create_initial(self, call: Call) -> Reply:
        """POST tags/initial: the tag of all samples, possible while there is none."""
        document = await call.json()
        if self._tags.root_id() is not None:
            raise ApiError(400, "TAG_INITIAL_EXISTS", "the dataset has its initial tag already")
        name = document.get("name", "initial-tag") if isinstance(document, dict) else "initial-tag"
        tag = parse({"name": name}, TagCreate)
        mask = (1 << self._dataset.catalog.count()) - 1
        return json_reply({"id": self._tags.add(tag.name, mask, None, now_ms())}, 201)

    async def filenames(self, call: Call) -> Reply:
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

    async def filenames_and_read_urls(self, call: Call) -> Reply:
        """GET export/basic/filenamesAndReadUrls: names with signed URLs."""
        output = choice(call.query, "format", ("JSON", "PLAIN"), "JSON")
        rows: list[dict[str, Any]] = [
            {"fileName": name, "readUrl": self._dataset.read_url(sample_id, False)}
            for name, sample_id in self._members(call)
        ]
        content_type = JSON if output == "JSON" else TEXT
        return self._capped(Reply(200, json.dumps(rows).encode("ascii"), content_type))

    def _members(self, call: Call) -> list[tuple[str, str]]:
        window = window_of(call, None)
        if boolean(call.query, "previewExample", False):
            window = type(window)(0, 3)
        stop = None if window.limit is None else window.offset + window.limit
        indices = indices_of(int(self._tag(call)["bitMaskData"], 16))[window.offset : stop]
        return self._dataset.catalog.name_and_id(indices)

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

    def _tag(self, call: Call) -> dict[str, Any]:
        tag_id = object_id(call.path["tagId"], "tagId")
        tag = self._tags.get(tag_id)
        if tag is None:
            raise not_found("TAG_UNKNOWN", f"tag {tag_id}")
        return tag

    def _capped(self, reply: Reply) -> Reply:
        if len(reply.body) > self._cap_bytes:
            raise ApiError(413, "PAYLOAD_TOO_LARGE", f"the answer has {len(reply.body)} bytes")
        return reply
