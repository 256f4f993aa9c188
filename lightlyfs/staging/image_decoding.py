"""Opens an image, and computes its statistics, its EXIF and a thumbnail."""

from __future__ import annotations

import importlib
import io
import json
import math
from typing import IO, Any

from PIL import ExifTags, Image

from lightlyfs.staging import image_statistics
from lightlyfs.staging.image_statistics import statistics_of

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
    """Open an image file whose first bytes are those of a format, by Pillow's name; reads only the header.

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
    """Return the statistics under the API's names and an upright thumbnail; consumes the image."""
    turn = _UPRIGHT.get(_orientation_of(image))
    if image_statistics.is_deep(image):
        statistics, small = image_statistics.statistics_and_small(image, _THUMBNAIL_PIXELS)
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
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS, reducing_gap=1.5)
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
