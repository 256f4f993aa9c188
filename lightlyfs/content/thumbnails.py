"""The server's small picture of a sample, as PNG; never made by fetching the image itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Executor, Future

from lightlyfs.api.transport import Request, Transport, raise_for_status
from lightlyfs.errors import Cancelled, MalformedAnswer, NotFound, TooLarge

# a thumbnail of 128 pixels has some 10 KB; where the server gives the image instead, it is not one
MAX_THUMBNAIL_BYTES = 1 << 20
_SIDE_PIXELS = 256
# what is decoded at most: a megabyte may claim to be a picture that fills all memory
_MAX_PIXELS = 32 << 20


class Thumbnails:
    """Fetches thumbnails; `resolve(sample_id)` asks the API for the read URL of type thumbnail."""

    def __init__(self, resolve: Callable[[str], str], transport: Transport, executor: Executor) -> None:
        self._resolve = resolve
        self._transport = transport
        self._executor = executor

    def png(self, sample_id: str) -> Future[bytes]:
        """The thumbnail, at most 256 pixels wide and high; NotFound where the server has none."""
        try:
            return self._executor.submit(self._fetch, sample_id)
        except RuntimeError:
            refused: Future[bytes] = Future()
            refused.set_exception(Cancelled("the mount is being taken down", request_sent=False))
            return refused

    def _fetch(self, sample_id: str) -> bytes:
        request = Request("GET", self._resolve(sample_id), max_body_bytes=MAX_THUMBNAIL_BYTES)
        try:
            response = self._transport.send(request)
        except TooLarge as error:
            raise NotFound("the server has the image itself in place of a thumbnail") from error
        if response.status in (400, 401, 403):
            # a fresh URL that is refused names an object that is not there, or not for us
            raise NotFound("storage refuses the thumbnail", status=response.status)
        raise_for_status(response, what="the read of a thumbnail from storage", storage=True)
        return _to_png(response.body)


def _to_png(picture: bytes) -> bytes:
    from PIL import Image  # a tenth of a second to import, and few mounts are asked for a picture

    try:
        with Image.open(io.BytesIO(picture)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            transparent = "A" in image.getbands() or "transparency" in image.info
            image.thumbnail((_SIDE_PIXELS, _SIDE_PIXELS))
            out = io.BytesIO()
            image.convert("RGBA" if transparent else "RGB").save(out, "PNG")
    except Exception as error:
        # Pillow raises whatever its decoders raise, and a server may send anything
        raise MalformedAnswer(f"the thumbnail is not a picture: {error}") from error
    return out.getvalue()
