"""A cheap other end: READY_FILE API_URL COUNT SIZE DELAY_S PER_FOLDER. It writes its port into READY_FILE.

One object server for all who are compared, at some 0.1 ms of CPU a request: as S3 (path style, any signature,
bucket `bucket`), and behind the read URLs that it gives itself; everything else it passes on to the API, a
`lightlyfs.testing` of COUNT generated samples. Objects are JPEGs of some SIZE bytes, answered DELAY_S late.
`GET /bench/stats` counts objects, bytes and read URLs.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BUCKET = "bucket"
# pictures that differ; the objects take them in turns
_PICTURES = 16
_PER_PAGE = 1_000
_URL = re.compile(rb"^GET /v1/datasets/[0-9a-f]{24}/samples/([0-9a-f]{24})/readurl[? ]")
_OBJECT = re.compile(rb"^(GET|HEAD) /(?:o/|bucket/(?=[^ ?]+\.jpg))([^ ?]+)")
_NO_OBJECT = re.compile(rb"^[A-Z]+ /bucket")
_LIST = re.compile(rb"^GET (/bucket/?(?:\?[^ ]*)?) ")
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)
_DATE = b"Mon, 01 Jun 2026 10:00:00 GMT"


def key_of(number: int, per_folder: int = 1000) -> str:
    """The name of an object, as generated samples are called."""
    return f"fake/{number // per_folder:04d}/img_{number:07d}.jpg"


def pictures(size: int) -> list[bytes]:
    """JPEGs of smooth noise, filled up to a size behind their ends."""
    from PIL import Image

    found = []
    side = int((size * 8 / 2.8) ** 0.5)
    for number in range(_PICTURES):
        noise = random.Random(number).randbytes((side // 4) ** 2 * 3)
        small = Image.frombytes("RGB", (side // 4, side // 4), noise)
        held = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(held, "JPEG", quality=75)
        if len(held.getvalue()) > size:
            raise ValueError(f"a picture of {side} pixels has {len(held.getvalue())} bytes, not {size}")
        found.append(held.getvalue().ljust(size, b"\0"))
    return found


class Objects:
    """What is served, and how often it was."""

    def __init__(self, count: int, size: int, per_folder: int) -> None:
        self.count, self.per_folder = count, per_folder
        self.bodies = pictures(size)
        self.stats = {"objects": 0, "bytes": 0, "urls": 0}
        self.base = b""

    def answer(self, head: bytes) -> bytes | None:
        """The answer to a request; None where the API has it."""
        if found := _OBJECT.match(head):
            return self._object(head, found[1] == b"HEAD", found[2])
        if (found := _URL.match(head)) and b"type=thumbnail" not in head.split(b"\r\n", 1)[0]:
            self.stats["urls"] += 1
            url = self.base + b"/o/" + found[1] + b"?X-Amz-Expires=3600&X-Amz-Signature=abc"
            return _whole(b"application/json", b'"' + url + b'"')
        if found := _LIST.match(head):
            return _whole(b"application/xml", self._page(found[1].decode()))
        if _NO_OBJECT.match(head):
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if head.startswith(b"GET /bench/stats"):
            return _whole(b"application/json", json.dumps(self.stats).encode())
        return None

    def _object(self, head: bytes, head_only: bool, name: bytes) -> bytes:
        body = self.bodies[sum(name[-10:]) % len(self.bodies)]
        first, last, status, extra = 0, len(body) - 1, b"200 OK", b""
        if asked := _RANGE.search(head):
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            status = b"206 Partial Content"
            extra = b"Content-Range: bytes %d-%d/%d\r\n" % (first, last, len(body))
        length = last + 1 - first
        if not head_only:
            self.stats["objects"] += 1
            self.stats["bytes"] += length
        return (
            b'HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nETag: "%s"\r\nAccept-Ranges: bytes\r\n'
            b"Last-Modified: %s\r\n%sContent-Length: %d\r\n\r\n"
            % (status, name.replace(b"/", b"-"), _DATE, extra, length)
        ) + (b"" if head_only else body[first : last + 1])

    def _page(self, target: str) -> bytes:
        """A page of names, below a prefix and up to a delimiter, as ListObjectsV2 has it."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        start = int(asked.get("continuation-token", "0"))
        rows, folders = [], set()
        number = start
        while number < self.count and len(rows) < _PER_PAGE:
            key = key_of(number, self.per_folder)
            number += 1
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
                continue
            rows.append(
                f"<Contents><Key>{key}</Key><Size>{len(self.bodies[0])}</Size>"
                "<LastModified>2026-06-01T10:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        more = number < self.count
        token = f"<NextContinuationToken>{number}</NextContinuationToken>" if more else ""
        found = [f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{BUCKET}</Name>'
            f"<Prefix>{prefix}</Prefix><KeyCount>{len(rows) + len(found)}</KeyCount>"
            f"<MaxKeys>{_PER_PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(rows)}{''.join(found)}</ListBucketResult>"
        ).encode()


def _whole(kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(body)) + body


class Connection(asyncio.Protocol):
    """A connection; one whose request is for the API is the API's from then on."""

    def __init__(self, objects: Objects, api: tuple[str, int], delay_s: float) -> None:
        self._objects, self._api, self._delay_s = objects, api, delay_s
        self._held = b""
        self._passed: asyncio.Queue[bytes | None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._passed is not None:
            self._passed.put_nowait(None)

    def data_received(self, data: bytes) -> None:
        if self._passed is not None:
            self._passed.put_nowait(data)
            return
        self._held += data
        loop = asyncio.get_running_loop()
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head, self._held = self._held[: end + 4], self._held[end + 4 :]
            answer = self._objects.answer(head)
            if answer is None:
                head = re.sub(rb"\r\nconnection:[^\r]*", b"", head[:-2], flags=re.IGNORECASE)
                self._passed = asyncio.Queue()
                self._passed.put_nowait(head + b"Connection: close\r\n\r\n" + self._held)
                self._task = loop.create_task(self._pass_on())
                return
            loop.call_later(self._delay_s, self._write, answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)

    async def _pass_on(self) -> None:
        assert self._passed is not None
        passed = self._passed
        reader, writer = await asyncio.open_connection(*self._api)

        async def send() -> None:
            while (data := await passed.get()) is not None:
                writer.write(data)

        sending = asyncio.create_task(send())
        await asyncio.sleep(self._delay_s)
        while data := await reader.read(1 << 18):
            self._transport.write(data)
        sending.cancel()
        writer.close()
        self._transport.close()


async def main(ready: Path, api: str, objects: Objects, delay_s: float) -> None:
    """Serve until ended."""
    where = urlsplit(api)
    upstream = (where.hostname or "", where.port or 0)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(objects, upstream, delay_s), "127.0.0.1", 0, backlog=1024
    )
    port = server.sockets[0].getsockname()[1]
    objects.base = b"http://127.0.0.1:%d" % port
    ready.write_text(f"{port}\n")
    await server.serve_forever()


if __name__ == "__main__":
    served = Objects(int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[6]))
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], served, float(sys.argv[5])))
