"""The parts of what is computed from an image: strips, moments, small pictures, EXIF that JSON can hold."""

from __future__ import annotations

import io
import json
import math
import random
import statistics
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from lightlyfs.staging.image_decoding import (
    Moments,
    Strip,
    _moments,
    added,
    described,
    exif_of,
    moments_in,
    moments_of,
    png_of,
    statistics_and_small,
    statistics_and_thumbnail,
    strips_of,
)

DICE = random.Random(5)
STRIP = 1 << 17


@pytest.mark.parametrize("multiple", [1, 3, 50])
@pytest.mark.parametrize("size", [(1, 1), (100, 1), (100, 2_000), (4_000, 1_000), (STRIP, 5), (2 * STRIP, 7)])
def test_strips_cover_an_image_and_are_no_larger_than_a_cache(size: tuple[int, int], multiple: int) -> None:
    width, height = size
    strips = list(strips_of(size, multiple))
    assert [strip.top for strip in strips] == [0, *(strip.bottom for strip in strips[:-1])]
    assert strips[-1].bottom == height
    for strip in strips:
        rows = strip.bottom - strip.top
        assert rows % multiple == 0 or strip is strips[-1]
        assert rows * width <= STRIP or rows <= 2 * multiple
        assert strip.padded == (max(0, strip.top - 1), min(height, strip.bottom + 1))
    if len(strips) > 1:
        first = strips[0].bottom
        assert first == 2 * multiple or (first + multiple) * width > STRIP


def test_a_strip_is_cut_out_with_a_row_around_it_and_without() -> None:
    image = Image.frombytes("L", (3, 6), bytes(range(18)))
    strip = Strip(2, 4, (1, 5))
    padded = strip.padded_rows_of(image)
    assert padded.tobytes() == bytes(range(3, 15))
    assert strip.without_padding(padded).tobytes() == bytes(range(6, 12))
    whole = Strip(0, 6, (0, 6))
    assert whole.without_padding(image) is image


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 2), (5, 1), (7, 1), (11, 13), (64, 64)])
def test_moments_are_those_of_the_levels(size: tuple[int, int]) -> None:
    levels = DICE.randbytes(size[0] * size[1])
    found = moments_in([Image.frombytes("L", size, levels)])
    assert found == Moments(len(levels), sum(levels), sum(level * level for level in levels))
    assert found.mean == pytest.approx(statistics.fmean(levels))
    assert found.std == pytest.approx(statistics.pstdev(levels))
    histogram = [levels.count(level) for level in range(256)]
    assert moments_of(histogram) == found


def test_moments_of_parts_are_added() -> None:
    parts = [Image.frombytes("L", (9, 5), DICE.randbytes(45)) for _ in range(3)]
    together = b"".join(part.tobytes() for part in parts)
    expected = Moments(135, sum(together), sum(level * level for level in together))
    assert moments_in(parts) == added(moments_in([part]) for part in parts) == expected


@pytest.mark.parametrize("top", [200, 60_000, 1 << 22, (1 << 24) - 1])
def test_moments_of_deep_levels_are_exact(top: int) -> None:
    levels = [DICE.randint(0, top) for _ in range(77)] + [top]
    image = Image.new("I", (13, 6))
    image.putdata(levels)
    assert _moments(image) == Moments(78, sum(levels), sum(level * level for level in levels))


@pytest.mark.parametrize(("step", "origin"), [(1 / 255, 0.0), (0.5, -3.0), (0.0, 0.25)])
def test_levels_are_described_by_what_they_stand_for(step: float, origin: float) -> None:
    channels = [[DICE.randrange(256) for _ in range(50)] for _ in range(3)]
    moments = [Moments(50, sum(one), sum(level * level for level in one)) for one in channels]
    found = described(moments, 0.75, step, origin)
    values = [[origin + step * level for level in one] for one in channels]
    assert found["mean"] == pytest.approx([min(1.0, statistics.fmean(one)) for one in values])
    assert found["std"] == pytest.approx([statistics.pstdev(one) for one in values])
    assert found["sumOfValues"] == pytest.approx([sum(one) for one in values])
    assert found["sumOfSquares"] == pytest.approx([sum(value**2 for value in one) for one in values])
    everything = [value for one in values for value in one]
    noise = statistics.pstdev(everything)
    assert found["snr"] == pytest.approx(statistics.fmean(everything) / noise if step else 0.0)
    assert found["sharpness"] == 0.75


# small pictures


def webp_of(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(statistics_and_thumbnail(image)[1]))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "I;16"])
@pytest.mark.parametrize(
    ("size", "small"),
    [((256, 128), (128, 64)), ((100, 50), (100, 50)), ((128, 129), (127, 128)), ((1000, 3), (128, 1))],
)
def test_the_longest_side_of_a_thumbnail_is_128(
    mode: str, size: tuple[int, int], small: tuple[int, int]
) -> None:
    made = webp_of(Image.new(mode, size))
    assert (made.format, made.size) == ("WEBP", small)


def test_transparency_stays_in_a_thumbnail() -> None:
    image = Image.new("RGBA", (300, 300), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 150, 300))
    small = webp_of(image).convert("RGBA")
    assert small.getpixel((10, 60))[3] == 0  # type: ignore[index]
    red, green, blue, alpha = small.getpixel((118, 60))  # type: ignore[misc]
    assert red > 190
    assert max(green, blue) < 10
    assert alpha == 255


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    out = io.BytesIO()
    image.save(out, kind, **options)
    out.seek(0)
    return out


@pytest.mark.parametrize(
    ("size", "small"), [((400, 300), (64, 48)), ((64, 64), (64, 64)), ((20, 10), (20, 10))]
)
def test_a_picture_becomes_a_png_of_that_side_at_most(size: tuple[int, int], small: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG", "BMP"):
        with Image.open(io.BytesIO(png_of(encoded(Image.new("RGB", size, "red"), kind), 64))) as made:
            assert (made.format, made.mode, made.size) == ("PNG", "RGB", small)
            assert made.getpixel((5, 5))[0] > 250  # type: ignore[index]


@pytest.mark.parametrize(
    ("mode", "options", "shown"),
    [
        ("RGBA", {}, "RGBA"),
        ("LA", {}, "RGBA"),
        ("RGB", {"transparency": (0, 0, 0)}, "RGBA"),
        ("L", {}, "RGB"),
        ("P", {}, "RGB"),
        ("1", {}, "RGB"),
    ],
)
def test_a_png_is_transparent_where_the_picture_is(mode: str, options: dict[str, Any], shown: str) -> None:
    with Image.open(io.BytesIO(png_of(encoded(Image.new(mode, (40, 30)), **options), 64))) as made:
        assert made.mode == shown


def test_a_picture_of_more_pixels_than_are_decoded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightlyfs.staging.image_decoding._MAX_PICTURE_PIXELS", 1_200)
    assert png_of(encoded(Image.new("RGB", (40, 30))), 64)
    with pytest.raises(ValueError, match="41 x 30 pixels"):
        png_of(encoded(Image.new("RGB", (41, 30))), 64)


@pytest.mark.parametrize("size", [(90, 126), (126, 90)])
def test_a_deep_picture_becomes_small_as_one_of_8_bits_does(size: tuple[int, int]) -> None:
    """It is not made smaller in steps so coarse that they show."""
    plain = Image.new("L", size)
    plain.putdata([255 * ((x // 9 + y // 7) % 2) for y in range(size[1]) for x in range(size[0])])
    deep = Image.new("I", size)
    deep.putdata([257 * level for level in plain.tobytes()])
    _, small = statistics_and_small(deep, 16)
    expected = plain.resize(small.size, Image.Resampling.LANCZOS)
    assert max(small.size) == 16
    assert ImageStat.Stat(ImageChops.difference(small, expected)).mean[0] < 2.5


# EXIF


class Tagged:
    """An image with these tags, some of them within its EXIF."""

    def __init__(self, tags: dict[int, Any], within: dict[int, Any] | None = None) -> None:
        self.tags, self.within = tags, within or {}

    def getexif(self) -> Any:
        within = self.within

        class Exif(dict[int, Any]):
            def get_ifd(self, ifd: int) -> dict[int, Any]:
                assert ifd == 0x8769
                return within

        return Exif(self.tags)


def found_in(tags: dict[int, Any], most: int = 10_000, **more: Any) -> dict[str, Any]:
    return exif_of(Tagged(tags, **more), most)  # type: ignore[arg-type]


MAKE, MODEL = 0x010F, 0x0110


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("Maker\0\0", "Maker"),
        ("\ud800", "?"),
        (b"ASCII\0", "ASCII"),
        (b"a\x07b", None),
        (b"\xff", None),
        (True, True),
        (5, 5),
        (1 << 53, 1 << 53),
        (-(1 << 53), -(1 << 53)),
        ((1 << 53) + 1, None),
        (-(1 << 53) - 1, None),
        (1.5, 1.5),
        (math.inf, None),
        ((1, 2.5, "x"), [1, 2.5, "x"]),
        ([1, math.nan], [1, None]),
        ([0] * 600, [0] * 600),
        ([0] * 2_049, None),
        (None, None),
        (object(), None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_value_is_plain_or_left_out(value: Any, plain: Any) -> None:
    assert found_in({MAKE: value}) == ({} if plain is None else {"Make": plain})


def test_tags_go_by_name_and_those_within_count_too() -> None:
    found = found_in({MAKE: "m", 0x8825: 1, 0x8769: 2, 0xFFEE: 3}, within={0x829A: 0.5, 0x927C: b"note"})
    assert found == {"Make": "m", "65518": 3, "ExposureTime": 0.5}


@pytest.mark.parametrize(("length", "kept"), [(2_036, True), (2_037, False)])
def test_a_value_takes_two_kib_at_most(length: int, kept: bool) -> None:
    found = found_in({MAKE: "x" * length, MODEL: "y"})
    assert len(json.dumps({"Make": "x" * 2_036})) == 2_048
    assert ("Make" in found) == kept
    assert found["Model"] == "y"


def test_what_is_too_much_in_all_is_left_out_and_smaller_ones_are_kept() -> None:
    size = len(json.dumps({"Make": "x" * 80}))
    assert found_in({MAKE: "x" * 80}, size) == {"Make": "x" * 80}
    assert found_in({MAKE: "x" * 80}, size - 1) == {}
    tags = {MAKE: "x" * 80, MODEL: "y" * 80, 0x0131: "z"}
    assert found_in(tags, size + 40) == {"Make": "x" * 80, "Software": "z"}


def test_damaged_exif_is_none() -> None:
    class Damaged:
        def getexif(self) -> Any:
            raise SyntaxError("not a TIFF header")

    assert exif_of(Damaged(), 100) == {}  # type: ignore[arg-type]
