"""The server's small picture of a sample, as PNG; never made by fetching the image itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

from lightlyfs.api.contract import Request, Transport, whole_number
from lightlyfs.api.status import raise_for_status
from lightlyfs.content.pictures import PictureStore
from lightlyfs.errors import Cancelled, MalformedAnswer, NotFound, TooLarge

# one of 128 pixels has some 10 KB, one of 256 pixels up to 150; a server may give the image instead
MAX_THUMBNAIL_BYTES = 256 << 10
_NONE = "the server has the image itself in place of a thumbnail"
_SIDE_PIXELS = 256
# a picture of one pixel stands for none: an overwrite by what is no image cannot delete the old one
_BLANK_BYTES = 40


class Thumbnails:
    """Fetches thumbnails, and keeps them.

    `resolve(sample_id)` asks the API for the read URL of type thumbnail. `to_png(picture, side)` decodes one
    in a process of few rights; it raises MalformedAnswer. `original(sample_id)` gives the bytes of an image
    that is cached already, or None. `store` is None where nothing is to be kept.
    """

    def __init__(
        self,
        resolve: Callable[[str], str],
        transport: Transport,
        executor: Executor,
        *,
        to_png: Callable[[bytes, int], bytes],
        original: Callable[[str], bytes | None] = lambda _: None,
        store: PictureStore | None = None,
    ) -> None:
        self._resolve = resolve
        self._transport = transport
        self._executor = executor
        self._to_png = to_png
        self._original = original
        self._store = store

    def png(self, sample_id: str, version: str = "") -> Future[bytes]:
        """The thumbnail, at most 256 pixels wide and high; NotFound where there is none.

        `version` moves when the sample does; the picture of another one does not count.
        """
        try:
            return self._executor.submit(self.get, sample_id, version)
        except RuntimeError:
            refused: Future[bytes] = Future()
            refused.set_exception(Cancelled("the mount is being taken down", request_sent=False))
            return refused

    def get(self, sample_id: str, version: str) -> bytes:
        """As `png`, in the calling thread."""
        key = f"{sample_id}.{version}"
        kept = self._store.get(key) if self._store is not None else None
        if kept is not None:
            return kept
        try:
            fetched = self._fetch(sample_id)
            if len(fetched) <= _BLANK_BYTES:
                raise NotFound("the image has no thumbnail any more")
            png = self._to_png(fetched, _SIDE_PIXELS)
        except (NotFound, MalformedAnswer):
            original = self._original(sample_id)
            if original is None:
                raise
            png = self._to_png(original, _SIDE_PIXELS)
        if self._store is not None:
            self._store.put(key, png)
        return png

    def _fetch(self, sample_id: str) -> bytes:
        # a range, so that little of an image comes where the server has one in place of a thumbnail
        headers = {"Range": f"bytes=0-{MAX_THUMBNAIL_BYTES - 1}", "Accept-Encoding": "identity"}
        url = self._resolve(sample_id)
        try:
            response = self._transport.send(
                Request("GET", url, headers=headers, max_body_bytes=MAX_THUMBNAIL_BYTES)
            )
        except TooLarge as error:
            raise NotFound(_NONE) from error
        total = whole_number(response.headers.get("content-range", "").rpartition("/")[2])
        if total is not None and total > MAX_THUMBNAIL_BYTES:
            raise NotFound(_NONE)
        if response.status in (400, 401, 403):
            # a fresh URL that is refused names an object that is not there, or not for us
            raise NotFound("storage refuses the thumbnail", status=response.status)
        raise_for_status(response, what="the read of a thumbnail from storage", storage=True)
        return response.body
