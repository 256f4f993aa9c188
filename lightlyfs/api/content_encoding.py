"""Undoes a Content-Encoding that a server, or a proxy before it, applied although none was asked for."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from lightlyfs.errors import MalformedAnswer, ShortBody, TooLarge


def content_encoding_of(headers: Mapping[str, str]) -> str:
    """Return the encodings that an answer names, with its lower-case headers; "" where it has none."""
    # aws-chunked is left behind by uploads and says nothing of the stored bytes
    named = [part.strip().lower() for part in headers.get("content-encoding", "").split(",")]
    return ", ".join(part for part in named if part not in ("", "identity", "aws-chunked"))


class Inflater:
    """Decompresses one body, of any number of gzip members.

    `sender` is who sends it, for errors. A body that comes to more than `max_bytes` at once is TooLarge, a
    damaged one a ShortBody, an encoding other than gzip or deflate a MalformedAnswer.
    """

    def __init__(self, encoding: str, sender: str, max_bytes: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise MalformedAnswer(f"{sender} sends its bodies in an encoding we did not ask for: {encoding}")
        self._encoding = encoding
        self._sender = sender
        self._max_bytes = max_bytes
        self._stream = _new_stream()

    def inflate(self, chunk: bytes | memoryview) -> bytes:
        """Return what the next bytes of the body stand for."""
        parts = []
        rest = bytes(chunk)
        while rest:
            if self._stream.eof:
                # a gzip body may have several members, and zeros behind the last one
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                self._stream = _new_stream()
            try:
                parts.append(self._stream.decompress(rest, self._max_bytes))
            except zlib.error as error:
                raise ShortBody(f"{self._sender} sent a damaged {self._encoding} body") from error
            if self._stream.unconsumed_tail:
                raise TooLarge(
                    f"{self._sender} sends a compressed body that is over {self._max_bytes >> 20} MiB"
                )
            rest = self._stream.unused_data
        return b"".join(parts)

    def check_end(self) -> None:
        """Raise ShortBody unless the body is complete."""
        if not self._stream.eof:
            raise ShortBody(f"{self._sender} sent a {self._encoding} body that breaks off")


def _new_stream() -> zlib._Decompress:
    return zlib.decompressobj(wbits=47)  # detects gzip or zlib
