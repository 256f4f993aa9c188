"""What Lightly keeps of an image: statistics, EXIF and a thumbnail, computed as its own uploader did.

The statistics are those of `lightly_utils` 0.0.2 (per channel on pixels from 0 to 1), from histograms, so no
copy of the image in floating point is needed. Images that are not 3-channel are converted to RGB for them;
`shape` is that of the file as decoded. The size in bytes is the file's.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, ImageFilter

# above this only the header is used: decoded it would take 200 MB and more
MAX_PIXELS = 64_000_000
_THUMBNAIL_PIXELS = 128
_THUMBNAIL_QUALITY = 90
_LAPLACIAN = ImageFilter.Kernel((3, 3), (-1, -1, -1, -1, 8, -1, -1, -1, -1), 1, 0)
_LEVELS = 256
# EXIF goes into the sample's record: notes and profiles of cameras would take it over the API's limit
MAX_EXIF_BYTES = 16 << 10
_MAX_VALUE_BYTES = 2 << 10
_MAX_INTEGER = 1 << 53  # JSON's, where numbers are doubles
# decoders that run other programs on what they read, or read what it points to
_NEVER_DECODED = {"EPS", "WMF", "FPX", "MIC"}


@dataclass(frozen=True)
class ImageFacts:
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
        """The reverse of `as_json`."""
        thumbnail = values["thumbnail"]
        return ImageFacts(
            values["meta"], values["exif"], None if thumbnail is None else base64.b64decode(thumbnail)
        )


def thumbnail_name(file_name: str) -> str:
    """The name under which a sample's thumbnail goes: without the last extension, with `_thumb.webp`."""
    directory, slash, name = file_name.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return f"{directory}{slash}{stem if dot else name}_thumb.webp"


def facts_of(path: str | os.PathLike[str]) -> ImageFacts:
    """The facts of a file, whatever is in it.

    Raises OSError where the file itself cannot be read. A damaged or hostile image is treated as no image;
    it may still exhaust memory or time, so callers run this apart.
    """
    size = os.stat(path).st_size
    try:
        with Image.open(path, formats=_formats()) as image:
            return _facts_of_image(image, size)
    except Exception:
        # Pillow's decoders raise whatever they like on bytes that are not what they claim
        os.stat(path)
        return no_image(size)


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in _NEVER_DECODED]


def no_image(size: int) -> ImageFacts:
    """The facts of a file that is no image."""
    return ImageFacts({"sizeInBytes": size}, {}, None)


def _facts_of_image(image: Image.Image, size: int) -> ImageFacts:
    width, height = image.size
    meta: dict[str, Any] = {"sizeInBytes": size, "shape": [height, width, len(image.getbands())]}
    if width * height > MAX_PIXELS:
        return ImageFacts(meta, {}, None)
    image.load()
    exif = _exif_of(image)
    thumbnail = _thumbnail_of(image)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return ImageFacts(meta | _statistics(rgb), exif, thumbnail)


def _statistics(rgb: Image.Image) -> dict[str, Any]:
    histogram = rgb.histogram()
    bands = [histogram[start : start + _LEVELS] for start in range(0, 3 * _LEVELS, _LEVELS)]
    pixels = sum(bands[0])
    sums = [_moment(band, 1) for band in bands]
    squares = [_moment(band, 2) for band in bands]
    mean, std = _mean_std([sum(levels) for levels in zip(*bands, strict=True)])
    _, sharpness = _mean_std(rgb.convert("L").filter(_LAPLACIAN).histogram())
    return {
        "mean": [value / pixels / 255 for value in sums],
        "std": [_mean_std(band)[1] / 255 for band in bands],
        "sumOfValues": [value / 255 for value in sums],
        "sumOfSquares": [value / 255**2 for value in squares],
        "snr": mean / std if std else 0.0,
        "sharpness": sharpness,
    }


def _moment(histogram: Sequence[int], power: int) -> int:
    return sum(count * level**power for level, count in enumerate(histogram))


def _mean_std(histogram: Sequence[int]) -> tuple[float, float]:
    count = sum(histogram)
    mean = _moment(histogram, 1) / count
    # exact integers first: the difference of two large floats would lose the small variances
    variance = (_moment(histogram, 2) * count - _moment(histogram, 1) ** 2) / count**2
    return mean, math.sqrt(variance)


def _thumbnail_of(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    if small.mode not in ("RGB", "RGBA"):
        small = small.convert("RGBA" if "A" in small.getbands() or "transparency" in small.info else "RGB")
    out = io.BytesIO()
    small.save(out, "WEBP", quality=_THUMBNAIL_QUALITY)
    return out.getvalue()


def _exif_of(image: Image.Image) -> dict[str, Any]:
    """EXIF by tag name; where the picture was taken is nobody's business."""
    try:
        tags = dict(image.getexif())
        tags.update(image.getexif().get_ifd(ExifTags.IFD.Exif))
    except Exception:
        return {}  # damaged EXIF in a sound image
    hidden = {"GPSInfo", "ExifOffset", "MakerNote"}
    found: dict[str, Any] = {}
    room = MAX_EXIF_BYTES
    for tag, value in tags.items():
        name = ExifTags.TAGS.get(tag, str(tag))
        plain = None if name in hidden else _plain(value)
        size = len(json.dumps({name: plain}))
        if plain is not None and size <= min(room, _MAX_VALUE_BYTES):
            found[name] = plain
            room -= size
    return found


def _plain(value: object) -> Any:
    """A value that JSON can hold, or None where there is none."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0").decode("ascii", "replace")
        return text if text.isprintable() and "\ufffd" not in text else None
    if isinstance(value, str):
        return value.rstrip("\0").encode("utf-8", "replace").decode()
    if isinstance(value, bool | int):
        return value if abs(value) <= _MAX_INTEGER else None
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value] if len(value) <= _MAX_VALUE_BYTES else None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None
