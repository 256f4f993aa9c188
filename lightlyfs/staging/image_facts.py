"""Facts of an image as Lightly stores them: statistics, EXIF, a thumbnail, computed as its own uploader did.

Files of a fixed list of raster formats count as images, recognized by their first bytes. No other file is
passed to a decoder. `shape` is the shape as decoded, without the EXIF orientation; the thumbnail has the
orientation applied. An image with too many pixels has only its shape. The size in bytes is the file's.

`facts_process` runs `serve` in processes of its own, so what is imported here costs each of them its start.
`image_decoding` opens a file and computes what is in it; a process that asks for no facts of an image imports
neither that module nor Pillow.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import resource
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

# above this only the header is used: decoded it would take 200 MB and more
MAX_PIXELS = 64_000_000
# EXIF goes into the sample's record: notes and profiles of cameras would take it over the API's limit
MAX_EXIF_BYTES = 16 << 10
_HEAD_BYTES = 32

_FORMATS_BY_START = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # with offsets of 64 bits
    b"MM\0+": "TIFF",
}
_BITMAP_HEADER_SIZES = {12, 40, 52, 56, 64, 108, 124}
_PORTABLE_KINDS = {b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"}
_FORMATS_BY_BRAND = {b"avif": "AVIF", b"avis": "AVIF", b"mif1": "AVIF", b"msf1": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIF"
)


class ImageFacts(NamedTuple):
    """Facts of one file; `meta` and `exif` as the API takes them, `thumbnail` WebP or None.

    A file that is no image has its size in `meta` and nothing else.
    """

    meta: dict[str, Any]
    exif: dict[str, Any]
    thumbnail: bytes | None

    def as_json(self) -> dict[str, Any]:
        """Plain values, for another process."""
        thumbnail = None if self.thumbnail is None else base64.b64encode(self.thumbnail).decode()
        return {"meta": self.meta, "exif": self.exif, "thumbnail": thumbnail}

    @staticmethod
    def from_json(values: dict[str, Any]) -> ImageFacts:
        """Convert the result of `as_json` back."""
        thumbnail = values["thumbnail"]
        return ImageFacts(
            values["meta"], values["exif"], None if thumbnail is None else base64.b64decode(thumbnail)
        )


def thumbnail_name(file_name: str) -> str:
    """Return the file name of a sample's thumbnail: the last extension replaced by `_thumb.webp`."""
    directory, slash, name = file_name.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return f"{directory}{slash}{stem if dot else name}_thumb.webp"


def no_image(size: int) -> ImageFacts:
    """Return the facts of a file that is no image."""
    return ImageFacts({"sizeInBytes": size}, {}, None)


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as an image does; reads 32 bytes. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return _format_of(file.read(_HEAD_BYTES)) is not None


def facts_of(path: str | os.PathLike[str]) -> ImageFacts:
    """Return the facts of a file, whatever is in it.

    Raises OSError where the file itself cannot be read. A damaged or hostile image is treated as no image;
    it may still exhaust memory or time, so callers run this apart.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD_BYTES)
        kind = _format_of(head)
        if kind is None:
            return no_image(size)
        shape = _shape_of_webp(head) if kind == "WEBP" else None
        if shape is not None and shape[0] * shape[1] > MAX_PIXELS:
            # its decoder takes memory for all pixels before it says how many there are
            return ImageFacts({"sizeInBytes": size, "shape": shape}, {}, None)
        from lightlyfs.staging import image_decoding

        file.seek(0)
        try:
            image = image_decoding.opened(kind, file)
            width, height = image.size
            meta = {"sizeInBytes": size, "shape": [height, width, len(image.getbands())]}
            if width * height > MAX_PIXELS:
                return ImageFacts(meta, {}, None)
            image.load()
            exif = image_decoding.exif_of(image, MAX_EXIF_BYTES)
            statistics, thumbnail = image_decoding.statistics_and_thumbnail(image)
            return ImageFacts(meta | statistics, exif, thumbnail)
        except Exception:
            # Pillow's decoders raise whatever they like on bytes that are not what they claim
            return no_image(size)


def _format_of(head: bytes) -> str | None:
    """Pillow's name of the format that a file begins as; None for what is no image or none of the list."""
    for start, name in _FORMATS_BY_START.items():
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _FORMATS_BY_BRAND.get(head[8:12])
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BITMAP_HEADER_SIZES:
        return "BMP"
    if head[:2] in _PORTABLE_KINDS and head[2:3].isspace():
        return "PPM"
    return None


def _shape_of_webp(head: bytes) -> list[int] | None:
    """Height, width and channels of an extended, a lossless or a lossy WebP, by its first 30 bytes."""
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        return [height, width, 4 if head[20] & 0x10 else 3]
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return [(bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 4 if bits >> 28 & 1 else 3]
    if head[12:16] == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return [height, width, 3]
    return None


# enough for the largest image that is decoded, with its copies
MAX_MEMORY_BYTES = 1500 << 20
# what Pillow keeps for the next image, in blocks of 16 MB: those of one of 12 megapixels
_KEPT_BLOCKS = 5
_IDLE_MS = 1000
# malloc.h: above this it would map pages for each block, and give them back with it; the most that counts
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20
# linux/sched.h
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000


def serve() -> None:
    """Answer one line with one line until the mount that asks has gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    _limit_itself(libc)
    # allocating fresh pages for each image would take a tenth of its time
    os.environ.setdefault("PILLOW_BLOCKS_MAX", str(_KEPT_BLOCKS))
    with suppress(AttributeError):  # not in every C library
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    from lightlyfs.staging import image_decoding

    def release_memory() -> None:
        image_decoding.release_memory()
        with suppress(AttributeError):
            libc.malloc_trim(0)

    for line in _lines(when_idle=release_memory):
        question = json.loads(line)
        try:
            answer = _picture(question) if isinstance(question, dict) else facts_of(question).as_json()
        except (OSError, MemoryError):
            break
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_itself(libc: ctypes.CDLL) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    # without the right to do so alone, with a user namespace of its own, if those are allowed
    if libc.unshare(_CLONE_NEWNET):
        libc.unshare(_CLONE_NEWNET | _CLONE_NEWUSER)


def _picture(question: dict[str, Any]) -> dict[str, str]:
    from lightlyfs.staging import image_decoding

    try:
        with open(question["picture"], "rb", closefd=False) as file:
            file.seek(0)
            png = image_decoding.png_of(file, question["side"])
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever its decoders raise
        return {"error": str(error)[:200] or type(error).__name__}
    return {"png": base64.b64encode(png).decode()}


def _lines(when_idle: Callable[[], None]) -> Iterator[bytes]:
    """Yield the lines of standard input, each of which comes after the answer to the one before."""
    poll = select.poll()
    poll.register(sys.stdin.buffer, select.POLLIN)
    while True:
        if not poll.poll(_IDLE_MS):
            when_idle()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        yield line
