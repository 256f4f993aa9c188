"""A cheap other end for writes: READY_FILE API_URL DELAY_S. It writes its port into READY_FILE.

One object server for all who are compared, at some 0.1 ms of CPU a request: as S3 (path style, any signature,
bucket `bucket`, whole and in parts), and behind the write URLs that it gives itself. Creates and questions by
name are answered here, everything else by the API, a `lightlyfs.testing` of no samples. Bodies are counted
and not kept; an answer comes DELAY_S after its request is complete. `GET /bench/stats` counts whole objects.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"
_LENGTH = re.compile(rb"\r\n(?:x-amz-decoded-)?content-length: *(\d+)", re.IGNORECASE)
_BODY = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_THUMB = "-thumb"
_CREATED_AT = 1_780_000_000_000
Answer = tuple[int, str, bytes]


class Store:
    """The samples and objects that there are: their names and sizes."""

    def __init__(self) -> None:
        self.base = ""
        self.samples: dict[str, str] = {}  # by name
        self.objects: dict[str, int] = {}
        self.parts: dict[str, int] = {}

    def answer(self, method: str, target: str, length: int, body: bytes) -> Answer | None:
        """The answer to a request; None where the API has it."""
        url = urlsplit(target)
        asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = url.path
        if path == "/bench/stats":
            sizes = [size for key, size in self.objects.items() if not key.endswith(_THUMB)]
            return 200, "application/json", json.dumps({"objects": len(sizes), "bytes": sum(sizes)}).encode()
        if path.startswith("/o/"):
            self.objects[path] = length
            return 200, "", b""
        if path.startswith(f"/{BUCKET}"):
            return self._s3(method, path, asked, length)
        if method == "POST" and path.endswith("/samples/withWriteUrls"):
            return self._created(json.loads(body)["fileName"])
        if path.endswith("/samples/partial") and "fileName" in asked:
            return self._named(asked["fileName"])
        return None

    def _created(self, name: str) -> Answer:
        sample_id = f"{len(self.samples) + 1:024x}"
        self.samples[name] = sample_id
        full = f"{self.base}/o/{sample_id}"
        signed = "?X-Amz-Expires=3600&X-Amz-Signature=abc"
        urls = {"full": full + signed, "thumb": full + _THUMB + signed}
        return 201, "application/json", json.dumps({"id": sample_id, "sampleWriteUrls": urls}).encode()

    def _named(self, name: str) -> Answer:
        found = self.samples.get(name)
        sample = {"id": found, "type": "IMAGES", "fileName": name, "createdAt": _CREATED_AT}
        return 200, "application/json", json.dumps([] if found is None else [sample]).encode()

    def _s3(self, method: str, path: str, asked: dict[str, str], length: int) -> Answer:
        key = unquote(path)
        if method == "POST" and "uploads" in asked:
            return 200, "application/xml", _xml("InitiateMultipartUploadResult", "UploadId", "1")
        if method == "PUT" and "partNumber" in asked:
            self.parts[key] = self.parts.get(key, 0) + length
            return 200, "", b""
        if method == "POST":
            self.objects[key] = self.parts.pop(key, 0)
            return 200, "application/xml", _xml("CompleteMultipartUploadResult", "ETag", '"e-1"')
        if method == "PUT":
            self.objects[key] = length
            return 200, "", b""
        if method == "HEAD":
            size = self.objects.get(key)
            return (404, "", b"") if size is None else (200, f"{size}", b"")
        return 200, "application/xml", _xml("ListBucketResult", "IsTruncated", "false")


def _xml(root: str, name: str, value: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{root}><{name}>{value}</{name}></{root}>'.encode()


def _packed(method: str, answer: Answer) -> bytes:
    status, kind, body = answer
    length, kind = (kind or "0", "") if method == "HEAD" else (f"{len(body)}", kind)
    lines = [f"HTTP/1.1 {status} OK", f"Content-Length: {length}", 'ETag: "e-1"']
    lines += ["Last-Modified: Mon, 01 Jun 2026 10:00:00 GMT", *([f"Content-Type: {kind}"] if kind else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """A connection; requests come one after the other."""

    def __init__(self, store: Store, api: tuple[str, int], delay_s: float) -> None:
        self._store, self._api, self._delay_s = store, api, delay_s
        self._held = bytearray()
        self._needed = 0  # bytes of a request that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while len(self._held) >= self._needed and (end := self._held.find(b"\r\n\r\n") + 4) > 3:
            head = bytes(self._held[: end - 2])
            found = _BODY.search(head)
            self._needed = end + (int(found[1]) if found else 0)
            if len(self._held) < self._needed:
                if b"100-continue" in head and len(self._held) == end:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self._held[end : self._needed])
            del self._held[: self._needed]
            self._needed = 0
            self._take(head, body)

    def _take(self, head: bytes, body: bytes) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        # in chunks that are signed there is more than the object
        length = min((int(found) for found in _LENGTH.findall(head)), default=0)
        answer = self._store.answer(method, target, length, body)
        loop = asyncio.get_running_loop()
        if answer is None:
            self._task = loop.create_task(self._pass_on(head, body))
        else:
            loop.call_later(self._delay_s, self._write, _packed(method, answer))

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)

    async def _pass_on(self, head: bytes, body: bytes) -> None:
        reader, writer = await asyncio.open_connection(*self._api)
        head = re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.IGNORECASE)
        writer.write(head + b"Connection: close\r\n\r\n" + body)
        await asyncio.sleep(self._delay_s)
        while data := await reader.read(1 << 18):
            self._transport.write(data)
        writer.close()
        self._transport.close()


async def main(ready: Path, api: str, delay_s: float) -> None:
    """Serve until ended."""
    store = Store()
    where = urlsplit(api)
    upstream = (where.hostname or "", where.port or 0)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(store, upstream, delay_s), "127.0.0.1", 0, backlog=1024
    )
    port = server.sockets[0].getsockname()[1]
    store.base = f"http://127.0.0.1:{port}"
    ready.write_text(f"{port}\n")
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
