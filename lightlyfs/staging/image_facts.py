"""What Lightly keeps of an image: statistics, EXIF and a thumbnail, computed as its own uploader did.

The files that count as images are those of a fixed list of raster formats, told by their first bytes. Nothing
else is handed to a decoder. `shape` is that of the file as decoded, whichever way up its EXIF says it is; the
thumbnail is the right way up. An image of too many pixels has its shape and no more. The size in bytes is the
file's.

`image_statistics` has the statistics of 8 bits a channel, `deep_images` those of more and how their values
count, `image_decoding` what opens a file and reads its EXIF. A process that asks for no facts of an image
loads none of them, nor Pillow.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import math
import os
from dataclasses import dataclass
from typing import IO, Any

from PIL import ExifTags, Image

from lightlyfs.staging import image_statistics as deep_images
from lightlyfs.staging.image_statistics import statistics_of

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


def no_image(size: int) -> ImageFacts:
    """The facts of a file that is no image."""
    return ImageFacts({"sizeInBytes": size}, {}, None)


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image does; reads 32 bytes. Raises OSError where it cannot be read."""
    with open(path, "rb", buffering=0) as file:
        return _format_of(file.read(_HEAD_BYTES)) is not None


def facts_of(path: str | os.PathLike[str]) -> ImageFacts:
    """The facts of a file, whatever is in it.

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
        from lightlyfs.staging import image_facts as image_decoding

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


# Opens an image, and makes of it what is kept: its statistics, its EXIF and a thumbnail.

_PLUGINS = {
    "AVIF": "PIL.AvifImagePlugin",  # not in every Pillow
    "BMP": "PIL.BmpImagePlugin",
    "GIF": "PIL.GifImagePlugin",
    "JPEG": "PIL.JpegImagePlugin",
    "PNG": "PIL.PngImagePlugin",
    "PPM": "PIL.PpmImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
}
# all that is opened: no format that starts a program (EPS) or draws by commands (PDF, SVG, WMF)
RASTER_FORMATS = (*_PLUGINS, "HEIF")
# what is decoded at most: a megabyte may claim to be a picture that fills all memory
_MAX_PICTURE_PIXELS = 32 << 20
_THUMBNAIL_PIXELS = 128
_THUMBNAIL_QUALITY = 90
# of the encoder's effort, 0 to 6: from 3 on it takes half as long again, for 2 % fewer bytes
_THUMBNAIL_METHOD = 2
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_VALUE_BYTES = 2 << 10
_MAX_INTEGER = 1 << 53  # JSON's, where numbers are doubles


def opened(kind: str, file: IO[bytes]) -> Image.Image:
    """The image in a file that begins as one of a format, by Pillow's name of it; only its header is read.

    Raises whatever Pillow raises on a file that is none, or KeyError where Pillow does not know the format.
    An image of any size is opened: Pillow's own limit is not asked.
    """
    _register(kind)
    factory, _ = Image.OPEN[kind]
    return factory(file, "")


def _register(kind: str) -> None:
    # this format alone, where `Image.open` and `Image.save` would load all that Pillow has
    if kind in _PLUGINS:
        importlib.import_module(_PLUGINS[kind])


def png_of(picture: IO[bytes], side_pixels: int) -> bytes:
    """Return a picture as PNG, made small where it is larger; raises whatever Pillow raises."""
    for kind in _PLUGINS:
        try:
            _register(kind)
        except ImportError:
            continue  # this Pillow goes without it
    with Image.open(picture, formats=[kind for kind in RASTER_FORMATS if kind in Image.OPEN]) as image:
        if image.width * image.height > _MAX_PICTURE_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels")
        image.draft("RGB", (side_pixels, side_pixels))  # a large JPEG is decoded small
        transparent = "A" in image.getbands() or "transparency" in image.info
        image.thumbnail((side_pixels, side_pixels))
        out = io.BytesIO()
        _register("PNG")
        image.convert("RGBA" if transparent else "RGB").save(out, "PNG", compress_level=3)
    return out.getvalue()


def release_memory() -> None:
    """Give back what Pillow keeps for the next image; see its `PILLOW_BLOCKS_MAX`."""
    Image.core.clear_cache()  # type: ignore[attr-defined]


def statistics_and_thumbnail(image: Image.Image) -> tuple[dict[str, Any], bytes]:
    """The statistics under the API's names, and a thumbnail, the right way up; the image is used up."""
    turn = _UPRIGHT.get(_orientation_of(image))
    if deep_images.is_deep(image):
        statistics, small = deep_images.statistics_and_small(image, _THUMBNAIL_PIXELS)
    else:
        statistics, small = statistics_of(image), _small(image)
    if small.mode not in ("RGB", "RGBA"):
        small = small.convert("RGBA" if "A" in small.getbands() or "transparency" in small.info else "RGB")
    if turn is not None:
        small = small.transpose(turn)
    out = io.BytesIO()
    _register("WEBP")
    small.save(out, "WEBP", quality=_THUMBNAIL_QUALITY, method=_THUMBNAIL_METHOD)
    return statistics, out.getvalue()


def _small(image: Image.Image) -> Image.Image:
    """The image, made small in place: a copy of a large one costs as much as its reduction."""
    premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(image.mode)
    if premultiplied is not None:
        # as Pillow does too, but after the reduction, which it then goes without
        mode, image = image.mode, image.convert(premultiplied)
        return _reduced(image).convert(mode)
    return _reduced(image)


def _reduced(image: Image.Image) -> Image.Image:
    # averaged to less than twice its size first, which is a fifth of the work for four times that
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS, reducing_gap=1.0)
    return image


def _orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # damaged EXIF in a sound image


def exif_of(image: Image.Image, max_bytes: int) -> dict[str, Any]:
    """EXIF by tag name, without the place where the picture was taken."""
    try:
        tags = dict(image.getexif())
        tags.update(image.getexif().get_ifd(ExifTags.IFD.Exif))
    except Exception:
        return {}  # damaged EXIF in a sound image
    hidden = {"GPSInfo", "ExifOffset", "MakerNote"}
    found: dict[str, Any] = {}
    room = max_bytes
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
