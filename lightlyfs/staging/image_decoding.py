"""Opens an image, and computes its statistics, its EXIF and a thumbnail; the only module that decodes images.

The statistics are those of `lightly_utils` 0.0.2, per channel on pixels from 0 to 1, computed from histograms
and exact integers in Pillow's C loops, so they need no copy of the image in floating point. Images that are
not 3-channel are converted to RGB. Images of more than 8 bits get statistics and a small picture scaled to
their own range; Pillow has only greyscale ones.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import mul
from typing import IO, Any, NamedTuple

from PIL import ExifTags, Image, ImageChops, ImageFilter, ImageMath

_LEVELS = range(256)
_SQUARES = [level * level for level in _LEVELS]
_LAPLACIAN = ImageFilter.Kernel((3, 3), (-1, -1, -1, -1, 8, -1, -1, -1, -1), 1, 0)
# few enough for a strip and what is made of it to stay in a core's own cache, many enough for few calls
_STRIP_PIXELS = 1 << 17


class Moments(NamedTuple):
    """How many levels there are, their sum and that of their squares: exact, whatever their number."""

    levels: int
    total: int
    squares: int

    @property
    def mean(self) -> float:
        """The mean level."""
        return self.total / self.levels

    @property
    def std(self) -> float:
        """The standard deviation of the levels."""
        # exact integers first: the difference of two large floats would lose the small variances
        return math.sqrt((self.squares * self.levels - self.total**2) / self.levels**2)


def moments_of(histogram: Sequence[int]) -> Moments:
    """Return the moments of 256 levels."""
    return Moments(sum(histogram), sum(map(mul, histogram, _LEVELS)), sum(map(mul, histogram, _SQUARES)))


def moments_in(planes: Iterable[Image.Image]) -> Moments:
    """Return the moments of images of one channel of 8 bits together."""
    return moments_of([*map(sum, zip(*chain.from_iterable(map(_histograms_of, planes)), strict=True))])


def _histograms_of(plane: Image.Image) -> list[list[int]]:
    """Return the histogram of an image of one channel of 8 bits, in parts.

    Pillow counts it as four channels of a quarter of the pixels: one counter after the other waits where many
    pixels in a row have the same level.
    """
    data = plane.tobytes()
    quarter = len(data) // 4
    if not quarter:
        return [plane.histogram()]
    four = Image.frombuffer("RGBA", (quarter, 1), data, "raw", "RGBA", 0, 1).histogram()
    rest = [0] * 256
    for level in data[4 * quarter :]:
        rest[level] += 1
    return [rest, *(four[start : start + 256] for start in (0, 256, 512, 768))]


def added(parts: Iterable[Moments]) -> Moments:
    """Return the moments of several parts together."""
    return Moments(*map(sum, zip(*((part.levels, part.total, part.squares) for part in parts), strict=True)))


def described(
    channels: Sequence[Moments], sharpness: float, step: float, origin: float = 0.0
) -> dict[str, Any]:
    """Return the statistics under the API's names; level n of a channel means `origin + n * step`."""
    everything = added(channels)
    noise = everything.std * step
    return {
        "mean": [min(1.0, origin + channel.mean * step) for channel in channels],
        "std": [channel.std * step for channel in channels],
        "sumOfValues": [channel.levels * origin + channel.total * step for channel in channels],
        "sumOfSquares": [
            channel.levels * origin**2 + 2 * origin * step * channel.total + channel.squares * step**2
            for channel in channels
        ],
        "snr": (origin + everything.mean * step) / noise if noise else 0.0,
        "sharpness": sharpness,
    }


def statistics_of(image: Image.Image) -> dict[str, Any]:
    """Return the statistics of an image of 8 bits a channel."""
    if image.mode == "L":
        channels = [moments_in([image])] * 3
    else:
        image = image if image.mode == "RGB" else image.convert("RGB")
        histogram = image.histogram()
        channels = [moments_of(histogram[start : start + 256]) for start in (0, 256, 512)]
    return described(channels, _edges_of(image).std, 1 / 255)


class Strip(NamedTuple):
    """Some rows of an image: those from `top` to before `bottom`, between those that are `padded` around."""

    top: int
    bottom: int
    padded: tuple[int, int]

    def padded_rows_of(self, image: Image.Image) -> Image.Image:
        """Return the rows and, where the image has one, one more above and one more below."""
        return image.crop((0, self.padded[0], image.width, self.padded[1]))

    def without_padding(self, image: Image.Image) -> Image.Image:
        """Return the rows alone, of what was made of the padded ones."""
        if self.padded == (self.top, self.bottom):
            return image
        return image.crop((0, self.top - self.padded[0], image.width, self.bottom - self.padded[0]))


def strips_of(size: tuple[int, int], multiple: int = 1) -> Iterator[Strip]:
    """Yield the strips of an image from top to bottom, of a multiple of rows each but for the last."""
    width, height = size
    # never one row alone: its neighbours would no longer count as the edge of the image
    rows = max(2, _STRIP_PIXELS // width // multiple) * multiple
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        yield Strip(top, bottom, (max(0, top - 1), min(height, bottom + 1)))


def edges_in(padded: Image.Image) -> Image.Image:
    """Return the unclipped 3x3 Laplacian of an image in 32-bit integers; the outermost pixels are unchanged.

    Pillow's filter takes a sixth of the time on them that it takes on 8 bits, where it clips every pixel.
    """
    return padded.filter(_LAPLACIAN)


def _edges_of(image: Image.Image) -> Moments:
    """Return the moments of the Laplacian of a grey or RGB image, in grey, which keeps to 0 to 255."""
    edges = (
        # cut to 8 bits first, and then to its rows: a quarter of the bytes to copy
        strip.without_padding(edges_in(strip.padded_rows_of(image).convert("I")).convert("L"))
        for strip in strips_of(image.size)
    )
    return moments_in(edges)


_MODES_OF_16_BITS = {"I;16", "I;16L", "I;16B", "I;16N"}
_TOP_OF_16_BITS = 65_535
# levels of what is not 16-bit: as many as Pillow's floats round to without a bias
_TOP_OF_SCALED = (1 << 22) - 1
_SAMPLE_FORMAT_TAG = 339
_UNSIGNED = 1
_SAMPLED_PIXELS = 1 << 16
_DARKEST, _BRIGHTEST = 0.005, 0.995


def is_deep(image: Image.Image) -> bool:
    """Return whether the image is one for this module."""
    return image.mode in ("I", "F") or image.mode in _MODES_OF_16_BITS


def statistics_and_small(image: Image.Image, pixels: int) -> tuple[dict[str, Any], Image.Image]:
    """Return the statistics of a deep image, and an 8-bit picture with the given longest side."""
    scale = _scale_of(image)
    small = _Small(image.size, pixels)
    everything, edges = [], []
    for strip in strips_of(image.size, small.rows):
        padded = scale.levels_of(strip.padded_rows_of(image))
        # not clipped by the filter, and by the way to 16 bits and back
        laplacian = edges_in(scale.of_16_bits(padded)).convert("I;16").convert("I")
        edges.append(_moments(strip.without_padding(laplacian)))
        levels = strip.without_padding(padded)
        everything.append(_moments(levels))
        small.add(levels, strip.top)
    # 8-bit levels, as those of any other image
    sharpness = added(edges).std * 255 / _TOP_OF_16_BITS
    return described([added(everything)] * 3, sharpness, scale.step, scale.origin), small.picture(scale)


class _Scale(NamedTuple):
    """How the values of an image become levels, integers from 0; level n stands for `origin + n * step`."""

    origin: float
    step: float
    slope: float | None = None  # of values to levels; None where values are levels
    least: float = 0.0
    wraps: bool = False  # above the largest signed integer, to negative ones

    def levels_of(self, part: Image.Image) -> Image.Image:
        """Return the levels of a part of the image."""
        if self.slope is None:
            return part.convert("I")
        values: Image.Image = part.convert("F")
        if self.wraps:
            values = ImageMath.lambda_eval(lambda a: a["v"] + a["float"](a["v"] < 0) * 2.0**32, v=values)
        slope, start = self.slope, -self.least * self.slope
        values = values.point(lambda value: value * slope + start)
        # in this order NaN, which is not greater than anything, becomes 0
        values = ImageMath.lambda_eval(lambda a: a["min"](a["max"](a["v"], 0.0), _TOP_OF_SCALED), v=values)
        return values.point(lambda value: value * 1 + 0.5).convert("I")

    def of_16_bits(self, levels: Image.Image) -> Image.Image:
        """Levels such that 65535 stands for 1."""
        if self.slope is None:
            return levels
        slope, start = self.step * _TOP_OF_16_BITS, self.origin * _TOP_OF_16_BITS + 0.5
        return levels.point(lambda level: level * slope + start)


def _scale_of(image: Image.Image) -> _Scale:
    if image.mode in _MODES_OF_16_BITS:
        return _Scale(0.0, 1 / _TOP_OF_16_BITS)
    least, greatest = _extrema(image)
    if image.mode == "F":
        start, end = (0.0, 1.0) if least >= 0 and greatest <= 1 else (least, greatest)
        return _scaled(least, greatest, start, end)
    if least >= 0 and greatest <= _TOP_OF_16_BITS:
        return _Scale(0.0, 1 / _TOP_OF_16_BITS)
    if getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT_TAG, 0) in (_UNSIGNED, (_UNSIGNED,)):
        end = 2.0**32 - 1
        return _scaled(0.0, end, 0.0, end, wraps=True) if least < 0 else _scaled(least, greatest, 0.0, end)
    if least >= 0:
        return _scaled(least, greatest, 0.0, 2.0**31 - 1)
    bits = 16 if least >= -(2**15) and greatest < 2**15 else 32
    return _scaled(least, greatest, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def _scaled(least: float, greatest: float, start: float, end: float, *, wraps: bool = False) -> _Scale:
    """Return the scale of values from `least` to `greatest` of which `start` stands for 0 and `end` for 1."""
    if start == end:
        return _Scale(0.0, 0.0, 0.0)
    origin = (least - start) / (end - start)
    if least == greatest:
        return _Scale(origin, 0.0, 0.0)
    width = greatest - least
    return _Scale(origin, width / (end - start) / _TOP_OF_SCALED, _TOP_OF_SCALED / width, least, wraps)


def _extrema(image: Image.Image) -> tuple[float, float]:
    """Return the least and the greatest finite value; 0 and 0 where there is none."""
    least, greatest = image.getextrema()
    assert isinstance(least, int | float)
    assert isinstance(greatest, int | float)
    if math.isfinite(least) and math.isfinite(greatest):
        return least, greatest
    ends = [end for part in _finite_values(image) if part for end in (min(part), max(part))]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _finite_values(image: Image.Image) -> Iterator[list[float]]:
    for strip in strips_of(image.size):
        part = image.crop((0, strip.top, image.width, strip.bottom))
        yield [value for value in memoryview(part.tobytes()).cast("f") if math.isfinite(value)]


def _moments(levels: Image.Image) -> Moments:
    """Return the moments of levels below 2**24, exactly, from the histograms of their bytes.

    A product of two bytes is half of what their squares exceed the square of their difference by.
    """
    packed = Image.frombuffer("RGBA", levels.size, levels.tobytes(), "raw", "RGBA", 0, 1)
    planes = packed.split()[:: 1 if sys.byteorder == "little" else -1]
    weighed = [(256**n, plane) for n, plane in enumerate(planes) if plane.getbbox()]
    total = squares = 0
    seen: list[tuple[int, Image.Image, Moments]] = []
    for weight, plane in weighed:
        found = moments_in([plane])
        total += weight * found.total
        squares += weight**2 * found.squares
        for other_weight, other_plane, other in seen:
            apart = moments_in([ImageChops.difference(plane, other_plane)])
            squares += weight * other_weight * (found.squares + other.squares - apart.squares)
        seen.append((weight, plane, found))
    return Moments(levels.width * levels.height, total, squares)


class _Small:
    """A small picture of an image that comes in strips of `rows` rows or a multiple of them."""

    def __init__(self, size: tuple[int, int], pixels: int) -> None:
        width, height = size
        longest = max(pixels, width, height)
        self._size = (max(1, round(width * pixels / longest)), max(1, round(height * pixels / longest)))
        # what is left is twice as large, as much as a good filter needs
        self._columns, self.rows = max(1, width // (2 * pixels)), max(1, height // (2 * pixels))
        self._box = (0.0, 0.0, width / self._columns, height / self.rows)
        self._reduced = Image.new("I", (math.ceil(self._box[2]), math.ceil(self._box[3])))
        # with no divisor that a row has, it takes pixels of all columns
        self._stride = max(1, width * height // _SAMPLED_PIXELS)
        while math.gcd(self._stride, width) > 1:
            self._stride += 1
        self._sample: list[int] = []

    def add(self, levels: Image.Image, top: int) -> None:
        """Take a strip that begins at that row."""
        self._reduced.paste(levels.reduce((self._columns, self.rows)), (0, top // self.rows))
        self._sample += memoryview(levels.tobytes()).cast("i")[:: self._stride].tolist()

    def picture(self, scale: _Scale) -> Image.Image:
        """Return the picture, of 8 bits; one of a single level is as bright as that."""
        self._sample.sort()
        last = len(self._sample) - 1
        black, white = self._sample[int(_DARKEST * last)], self._sample[math.ceil(_BRIGHTEST * last)]
        if black == white:
            black, white = self._sample[0], self._sample[-1]
        if black == white:
            return Image.new("L", self._size, round(255 * min(1.0, scale.origin + black * scale.step)))
        small = self._reduced.resize(self._size, Image.Resampling.LANCZOS, box=self._box)
        slope = 255 / (white - black)
        start = 0.5 - black * slope
        return small.point(lambda level: level * slope + start).convert("L")


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
# the formats that are opened: none that starts a program (EPS) or draws by commands (PDF, SVG, WMF)
RASTER_FORMATS = (*_PLUGINS, "HEIF")
# what is decoded at most: a megabyte may claim to be a picture that fills all memory
_MAX_PICTURE_PIXELS = 32 << 20
_THUMBNAIL_PIXELS = 128
_THUMBNAIL_QUALITY = 90
# of the encoder's effort, 0 to 6: 2 takes a third longer, for 1 % fewer bytes
_THUMBNAIL_METHOD = 1
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
    if is_deep(image):
        statistics, small = statistics_and_small(image, _THUMBNAIL_PIXELS)
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
    """Return the image, made small in place: a copy of a large one costs as much as its reduction."""
    premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(image.mode)
    if premultiplied is not None:
        # as Pillow does too, but after the reduction, which it then goes without
        mode, image = image.mode, image.convert(premultiplied)
        return _reduced(image).convert(mode)
    return _reduced(image)


def _reduced(image: Image.Image) -> Image.Image:
    # averaged to a quarter more than its size first: a fifth of the work, and no channel is off by two levels
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS, reducing_gap=1.25)
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
    """Return a value that JSON can hold, or None where there is none."""
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
