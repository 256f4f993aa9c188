"""Image facts are those that Lightly's own uploader computed."""

from __future__ import annotations

import array
import io
import json
import math
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image, ImageChops, ImageFilter, ImageOps, ImageStat, TiffImagePlugin

from lightlyfs.api.models import SampleMetaData
from lightlyfs.staging import facts_process, image_facts
from lightlyfs.staging.image_facts import (
    MAX_EXIF_BYTES,
    ImageFacts,
    facts_of,
    looks_like_image,
    thumbnail_name,
)

MODES = ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "I;16", "F"]


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def pixels_of(image: Image.Image) -> list[tuple[int, ...]]:
    data = image.tobytes()
    return [tuple(data[at : at + 3]) for at in range(0, len(data), 3)]


def plain_statistics(image: Image.Image) -> dict[str, list[float]]:
    """The definitions of lightly_utils 0.0.2, spelled out pixel by pixel."""
    pixels = pixels_of(image)
    bands = [[pixel[band] / 255 for pixel in pixels] for band in range(3)]
    mean = [sum(band) / len(band) for band in bands]
    return {
        "mean": mean,
        "std": [
            math.sqrt(sum((v - m) ** 2 for v in band) / len(band))
            for band, m in zip(bands, mean, strict=True)
        ],
        "sumOfValues": [sum(band) for band in bands],
        "sumOfSquares": [sum(v * v for v in band) for band in bands],
    }


def test_the_statistics_are_those_of_the_definition(tmp_path: Path) -> None:
    image = Image.merge("RGB", [Image.effect_noise((40, 30), sigma) for sigma in (20, 50, 90)])

    facts = facts_of(save(tmp_path / "x.png", image))

    for name, values in plain_statistics(image).items():
        assert facts.meta[name] == pytest.approx(values), name
    everything = [value for pixel in pixels_of(image) for value in pixel]
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((v - mean) ** 2 for v in everything) / len(everything))
    assert facts.meta["snr"] == pytest.approx(mean / std)
    assert facts.meta["shape"] == [30, 40, 3]
    assert facts.meta["sizeInBytes"] == (tmp_path / "x.png").stat().st_size


# files of 8-bit levels, and the modes that they are made in
EIGHT_BIT = {
    "rgb.png": "RGB",
    "l.png": "L",
    "p.png": "P",
    "p.gif": "P",
    "rgba.png": "RGBA",
    "la.png": "LA",
    "1.png": "1",
    "cmyk.tiff": "CMYK",
    "rgb.bmp": "RGB",
    "rgb.ppm": "RGB",
    "rgb.jpg": "RGB",
    "l.jpg": "L",
    "cmyk.jpg": "CMYK",
}
# what the first version of this module, which took the steps one after another over the whole image, made of
# some of them: mean, std, sum of values and of squares of each channel, signal to noise, sharpness
PINNED_FACTS = ("mean", "std", "sumOfValues", "sumOfSquares", "snr", "sharpness")
PINNED = {
    "rgb.png": [
        [0.35051738169980234, 0.5287989768631555, 0.6695609949595464],
        [0.16070979616317552, 0.24002871282393154, 0.28692266410702333],
        [1004.9333333333333, 1516.0666666666666, 1919.6313725490197],
        [426.2944405997693, 966.8732179930796, 1521.3349634755864],
        1.9201341075510283,
        48.00392771246611,
    ],
    "l.png": [
        [0.3504188979393641, 0.3504188979393641, 0.3504188979393641],
        [0.16114306851550514, 0.16114306851550514, 0.16114306851550514],
        [1004.6509803921568, 1004.6509803921568, 1004.6509803921568],
        [426.4963321799308, 426.4963321799308, 426.4963321799308],
        2.1745825071318343,
        51.07726291448919,
    ],
    "p.png": [
        [0.4825622191674019, 0.49744831312364496, 0.5500906187379032],
        [0.2900318816114014, 0.28919423344082995, 0.2770813472708523],
        [1383.5058823529412, 1426.1843137254903, 1577.1098039215685],
        [908.79538638985, 949.2296655132641, 1087.6645751633987],
        1.7773493423829658,
        111.58890293564673,
    ],
    "rgba.png": [
        [0.35017268853826844, 0.5278825307590773, 0.6694023266788404],
        [0.16084799075100503, 0.2394932735350006, 0.2878992267352281],
        [1003.9450980392157, 1513.4392156862746, 1919.1764705882354],
        [425.72939638600536, 963.3607227989235, 1522.3352556708958],
        1.9166424709949725,
        48.82871657143072,
    ],
    "la.png": [
        [0.35007146911781806, 0.35007146911781806, 0.35007146911781806],
        [0.16087896197714216, 0.16087896197714216, 0.16087896197714216],
        [1003.6549019607843, 1003.6549019607843, 1003.6549019607843],
        [425.55475586312957, 425.55475586312957, 425.55475586312957],
        2.175992838439351,
        52.24019062818928,
    ],
    "1.png": [
        [0.39553540286013256, 0.39553540286013256, 0.39553540286013256],
        [0.4889653852210862, 0.4889653852210862, 0.4889653852210862],
        [1134.0, 1134.0, 1134.0],
        [1134.0, 1134.0, 1134.0],
        0.8089231156542724,
        87.88915084940506,
    ],
    "cmyk.tiff": [
        [0.19609347750261596, 0.17833630836359657, 0.1618115540600614],
        [0.24647032435708358, 0.23568195471313005, 0.22790420360335883],
        [562.2, 511.2901960784314, 463.9137254901961],
        [284.4071818531334, 250.4319415609381, 223.97951557093427],
        0.7535037006395976,
        41.54597014640133,
    ],
}


def plain_picture(mode: str, size: tuple[int, int] = (61, 47)) -> Image.Image:
    """A picture with a slope, an edge and noise in every channel, the same wherever it is made."""
    width, height = size
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = random.Random(7)
    data = bytes(
        min(255, 3 * x * (band + 1) // 2 + 60 * (y > height // 2) + noise.getrandbits(5))
        for y in range(height)
        for x in range(width)
        for band in range(bands)
    )
    if mode == "1":
        return Image.frombytes("L", size, data).point(lambda level: 255 * (level > 100)).convert("1")
    image = Image.frombytes(mode, size, data)
    if mode == "P":
        image.putpalette(bytes(noise.getrandbits(8) for _ in range(768)))
    return image


def plain_sharpness(image: Image.Image) -> float:
    """The deviation of the 3x3 Laplacian, which keeps to 0 to 255 and leaves the outermost pixels alone."""
    width, height = image.size
    grey = list(image.convert("L").tobytes())
    edges = list(grey)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            around = sum(sum(grey[row * width + x - 1 : row * width + x + 2]) for row in (y - 1, y, y + 1))
            edges[y * width + x] = min(255, max(0, 9 * grey[y * width + x] - around))
    mean = sum(edges) / len(edges)
    return math.sqrt(sum((value - mean) ** 2 for value in edges) / len(edges))


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_an_image_of_8_bits_keeps_the_facts_that_it_always_had(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, plain_picture(EIGHT_BIT[name]))
    with Image.open(path) as opened:
        rgb = opened.convert("RGB")

    meta = facts_of(path).meta

    for fact, values in plain_statistics(rgb).items():
        assert meta[fact] == pytest.approx(values, rel=1e-9), fact
    levels = list(rgb.tobytes())
    mean = math.fsum(levels) / len(levels)
    deviation = math.sqrt(math.fsum((level - mean) ** 2 for level in levels) / len(levels))
    assert meta["snr"] == pytest.approx(mean / deviation, rel=1e-9)
    assert meta["sharpness"] == pytest.approx(plain_sharpness(rgb), rel=1e-9)
    if name in PINNED:
        for fact, value in zip(PINNED_FACTS, PINNED[name], strict=True):
            assert meta[fact] == pytest.approx(value, rel=1e-12), fact


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (9, 1), (2, 2), (2, 9), (9, 2), (3, 3), (300, 2), (700, 300)]
)
def test_the_edges_of_an_image_of_any_size_are_those_of_the_definition(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = plain_picture("L", size)

    facts = facts_of(save(tmp_path / "x.png", image))

    assert facts.meta["sharpness"] == pytest.approx(plain_sharpness(image), rel=1e-9)


def test_a_flat_image_has_no_noise_and_no_edges(tmp_path: Path) -> None:
    facts = facts_of(save(tmp_path / "x.png", Image.new("RGB", (20, 20), (7, 7, 7))))

    assert facts.meta["snr"] == 0.0
    assert facts.meta["std"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_has_facts_in_three_channels(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode in ("CMYK", "F", "I;16") else "png"
    path = save(tmp_path / f"x.{suffix}", Image.new(mode, (200, 100)))

    facts = facts_of(path)

    assert facts.meta["shape"][:2] == [100, 200]
    assert len(facts.meta["mean"]) == 3
    assert facts.thumbnail is not None
    with Image.open(io.BytesIO(facts.thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (128, 64))


@pytest.mark.parametrize(
    "data", [b"", b"not an image", b"\xff\xd8\xff\xe0broken", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"GIF89a"]
)
def test_what_is_no_image_has_its_size_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)

    assert facts_of(path) == ImageFacts({"sizeInBytes": len(data)}, {}, None)


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )

    facts = facts_of(path)

    assert facts.thumbnail is None
    assert facts.meta["sizeInBytes"] == path.stat().st_size


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        facts_of(tmp_path / "none.jpg")


def test_exif_goes_by_name_without_where_it_was_taken(tmp_path: Path) -> None:
    image = Image.new("RGB", (10, 10))
    exif = image.getexif()
    exif[0x010F] = "Maker\0"
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[2] = (48.0, 11.0, 0.0)
    exif.get_ifd(0x8769)[0x829A] = 0.008

    facts = facts_of(save(tmp_path / "x.jpg", image, exif=exif))

    assert facts.exif["Make"] == "Maker"
    assert facts.exif["Orientation"] == 6
    assert facts.exif["ExposureTime"] == pytest.approx(0.008)
    assert not [name for name in facts.exif if "GPS" in name]
    json.dumps(facts.exif, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a_thumb.webp"),
        ("d.x/a.tar.gz", "d.x/a.tar_thumb.webp"),
        ("d.x/noext", "d.x/noext_thumb.webp"),
        (".hidden", "_thumb.webp"),
    ],
)
def test_a_thumbnail_is_named_after_its_image(name: str, expected: str) -> None:
    assert thumbnail_name(name) == expected


def test_facts_pass_between_processes(tmp_path: Path) -> None:
    facts = facts_of(save(tmp_path / "x.png", Image.new("RGB", (5, 5))))

    assert ImageFacts.from_json(json.loads(json.dumps(facts.as_json()))) == facts


def hostile(tmp_path: Path) -> list[Path]:
    """Images made to be trouble, and a few that are odd only."""
    rgb = Image.effect_noise((64, 48), 60).convert("RGB")
    frames = [Image.new("RGB", (64, 48), (n * 20, 0, 0)) for n in range(5)]
    made = [
        save(tmp_path / "animated.gif", frames[0], save_all=True, append_images=frames[1:]),
        save(tmp_path / "animated.webp", frames[0], save_all=True, append_images=frames[1:]),
        save(tmp_path / "animated.png", frames[0], save_all=True, append_images=frames[1:]),
        save(tmp_path / "two.mpo", rgb, save_all=True, append_images=[rgb]),
        save(tmp_path / "sixteen.png", Image.new("I;16", (64, 48), 40_000)),
        save(tmp_path / "cmyk.jpg", rgb.convert("CMYK")),
    ]
    whole = save(tmp_path / "whole.jpg", rgb).read_bytes()
    for cut in (10, 200, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"cut{cut}.jpg"
        path.write_bytes(whole[:cut])
        made.append(path)
    return made


def test_odd_and_damaged_images_have_facts_that_the_api_takes(tmp_path: Path) -> None:
    for path in hostile(tmp_path):
        facts = facts_of(path)

        meta = msgspec.convert(json.loads(json.dumps(facts.meta, allow_nan=False)), SampleMetaData)
        json.dumps(facts.exif, allow_nan=False)
        assert meta.size_in_bytes == path.stat().st_size, path
        assert all(0 <= value <= 1 for value in (meta.mean or []) + (meta.std or [])), path
        if not path.name.startswith("cut"):
            assert meta.shape is not None, path
            assert meta.shape[:2] == [48, 64], path
            assert facts.thumbnail is not None, path


def test_exif_is_bounded_and_plain_whatever_a_camera_put_there(tmp_path: Path) -> None:
    image = Image.new("RGB", (10, 10))
    exif = image.getexif()
    exif[0x010E] = "d" * 60_000
    exif[0x010F] = "Maker"
    for tag in range(0xC000, 0xC000 + 60):
        exif[tag] = "n" * 1_000
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + bytes(range(256)) * 20

    facts = facts_of(save(tmp_path / "x.png", image, exif=exif))

    assert facts.exif["Make"] == "Maker"
    assert "ImageDescription" not in facts.exif
    assert 1_000 < len(json.dumps(facts.exif)) < MAX_EXIF_BYTES + 1_000
    assert facts.thumbnail is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, b"\xff\xfe", object(), 1 << 60])
def test_an_exif_value_that_json_cannot_hold_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    class Exif(dict[int, object]):
        def get_ifd(self, _: int) -> dict[int, object]:
            return {0x9202: [1.5, value]}

    monkeypatch.setattr(Image.Image, "getexif", lambda _: Exif({0x010F: "Maker", 0x829A: value}))

    facts = facts_of(save(tmp_path / "x.png", Image.new("RGB", (10, 10))))

    assert facts.exif == {"Make": "Maker", "ApertureValue": [1.5, None]}
    json.dumps(facts.exif, allow_nan=False)


def test_nothing_is_handed_to_another_program(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n")

    assert facts_of(path).meta == {"sizeInBytes": path.stat().st_size}


def test_a_process_that_is_killed_or_hangs_costs_one_image_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (20, 20)))
    pool = facts_process.FactsPool(1)
    try:
        assert pool.facts_of(path).thumbnail is not None
        (process,) = pool._all
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGKILL)
        pool.facts_of(path)
        assert pool.facts_of(path).thumbnail is not None
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(facts_process, "MAX_SECONDS", 0.1)
        assert pool.facts_of(path).thumbnail is None
        monkeypatch.undo()
        assert pool.facts_of(path).thumbnail is not None
    finally:
        pool.close()


def test_an_image_as_large_as_any_that_is_decoded_costs_nobody_else(tmp_path: Path) -> None:
    large = save(tmp_path / "large.tiff", Image.new("F", (7_900, 8_000)))
    small = save(tmp_path / "small.png", Image.new("RGB", (20, 20)))
    pool = facts_process.FactsPool(2)
    try:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(pool.facts_of, [large, small, small, small]))
        assert [answer.thumbnail is not None for answer in answers] == [True] * 4
        assert answers[0].meta["sizeInBytes"] == large.stat().st_size
    finally:
        pool.close()


# images of more than 8 bits


def deep(mode: str, values: list[float], size: tuple[int, int] = (20, 10)) -> Image.Image:
    """A deep image whose pixels repeat some values."""
    count = size[0] * size[1]
    kind = {"F": "f", "I": "i"}.get(mode, "H")
    pixels = array.array(kind, (values * (count // len(values) + 1))[:count])
    if mode == "I;16B":
        pixels.byteswap()
    return Image.frombytes(mode, size, pixels.tobytes())


def assert_described_by(meta: dict[str, Any], values: list[float]) -> None:
    """The statistics are those of three channels of these values from 0 to 1."""
    count = len(values)
    mean = math.fsum(values) / count
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / count)
    assert meta["mean"] == pytest.approx([mean] * 3, rel=1e-6)
    assert meta["std"] == pytest.approx([std] * 3, rel=1e-5, abs=1e-12)
    assert meta["sumOfValues"] == pytest.approx([math.fsum(values)] * 3, rel=1e-6)
    assert meta["sumOfSquares"] == pytest.approx([math.fsum(v * v for v in values)] * 3, rel=1e-6)
    assert meta["snr"] == pytest.approx(mean / std if std > 1e-12 else 0.0, rel=1e-5)
    assert all(0 <= value <= 1 for value in meta["mean"])


def levels_of(thumbnail: bytes | None) -> list[int]:
    """The grey levels of a thumbnail."""
    assert thumbnail is not None
    with Image.open(io.BytesIO(thumbnail)) as image:
        return list(image.convert("L").tobytes())


@pytest.mark.parametrize(
    ("name", "mode", "values", "of_values"),
    [
        ("x.png", "I;16", [0, 255, 256, 40_000, 65_535], lambda v: v / 65_535),
        ("x.tiff", "I;16", [0, 1, 300, 40_000, 65_534], lambda v: v / 65_535),
        ("x.tiff", "I;16B", [0, 1, 300, 40_000, 65_534], lambda v: v / 65_535),
        ("x.tiff", "I;16", [7, 8], lambda v: v / 65_535),
        ("x.tiff", "I", [0, 200, 65_535], lambda v: v / 65_535),
        ("x.tiff", "I", [0, 200, 65_536, 2**31 - 1], lambda v: v / (2**31 - 1)),
        ("x.tiff", "I", [-32_768, -5, 0, 9_000], lambda v: (v + 32_768) / 65_535),
        ("x.tiff", "I", [-(2**31), -70_000, 70_000, 2**31 - 1], lambda v: (v + 2**31) / (2**32 - 1)),
        ("x.tiff", "F", [0.0, 0.25, 0.5, 0.75], lambda v: v),
        ("x.tiff", "F", [0.3, 0.31], lambda v: v),
        ("x.tiff", "F", [0.0, 1e-6, 3e-6], lambda v: v),
        ("x.tiff", "F", [-3.0, 0.0, 5.0], lambda v: (v + 3) / 8),
        ("x.tiff", "F", [100.0, 200.0, 3_000.0], lambda v: (v - 100) / 2_900),
        ("x.tiff", "F", [-3e38, 0.0, 3e38], lambda v: (v + 3e38) / 6e38),
    ],
)
def test_a_deep_image_is_described_by_its_range(
    tmp_path: Path, name: str, mode: str, values: list[float], of_values: Callable[[float], float]
) -> None:
    path = save(tmp_path / name, deep(mode, values))

    facts = facts_of(path)

    assert facts.meta["shape"] == [10, 20, 1]
    assert_described_by(facts.meta, [of_values(value) for value in (values * 200)[:200]])
    assert facts.meta["sharpness"] >= 0
    levels = levels_of(facts.thumbnail)
    assert min(levels) < 12, levels
    assert max(levels) > 243, levels
    json.dumps(facts.meta, allow_nan=False)


def test_a_16_bit_image_wider_than_a_strip_keeps_every_pixel(tmp_path: Path) -> None:
    noise = random.Random(3)
    values = [noise.randrange(1_000, 30_000) for _ in range(700 * 401)]

    facts = facts_of(save(tmp_path / "x.png", deep("I;16", values, (700, 401))))

    assert_described_by(facts.meta, [value / 65_535 for value in values])
    assert facts.thumbnail is not None
    with Image.open(io.BytesIO(facts.thumbnail)) as thumbnail:
        assert thumbnail.size == (128, 73)


def test_a_picture_of_8_bits_in_16_has_the_same_facts(tmp_path: Path) -> None:
    eight = plain_picture("L", (300, 470))
    sixteen = deep("I;16", [257 * level for level in eight.tobytes()], eight.size)

    of_eight = facts_of(save(tmp_path / "8.png", eight)).meta
    of_sixteen = facts_of(save(tmp_path / "16.png", sixteen)).meta

    for fact in PINNED_FACTS:
        assert of_sixteen[fact] == pytest.approx(of_eight[fact], rel=1e-9), fact


def test_unsigned_integers_of_32_bits_go_by_their_own_range(tmp_path: Path) -> None:
    values = [0, 70_000, 2**31 + 5, 2**32 - 1]
    signed = [value - 2**32 if value >= 2**31 else value for value in values]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 1
    data = save(tmp_path / "signed.tiff", deep("I", signed), tiffinfo=tags).read_bytes()
    path = tmp_path / "x.tiff"
    # Pillow writes 2, signed, whatever it is told
    path.write_bytes(data.replace(struct.pack("<HHII", 339, 3, 1, 2), struct.pack("<HHII", 339, 3, 1, 1)))

    facts = facts_of(path)

    with Image.open(path) as image:
        assert image.tag_v2[339] in (1, (1,))
    assert_described_by(facts.meta, [value / (2**32 - 1) for value in (values * 50)])


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("I;16", 0, 0.0),
        ("I;16", 30_000, 30_000 / 65_535),
        ("I;16", 65_535, 1.0),
        ("I", 65_535, 1.0),
        ("I", 2**31 - 1, 1.0),
        ("F", 0.3, 0.3),
        ("F", 1.0, 1.0),
        ("F", 7.0, 0.0),
        ("F", -7.0, 0.0),
        ("F", math.nan, 0.0),
        ("F", math.inf, 0.0),
    ],
)
def test_a_flat_deep_image_has_no_noise(tmp_path: Path, mode: str, value: float, expected: float) -> None:
    facts = facts_of(save(tmp_path / "x.tiff", deep(mode, [value], (30, 20))))

    assert facts.meta["mean"] == pytest.approx([expected] * 3)
    assert facts.meta["std"] == [0.0] * 3
    assert facts.meta["snr"] == 0.0
    assert all(abs(level - 255 * expected) < 2 for level in levels_of(facts.thumbnail))
    json.dumps(facts.meta, allow_nan=False)


@pytest.mark.parametrize("first", [math.nan, math.inf, -math.inf, 2.0])
def test_what_is_not_finite_counts_as_an_end_of_the_range(tmp_path: Path, first: float) -> None:
    values = [first, 2.0, math.nan, 4.0, math.inf, 6.0, -math.inf]

    facts = facts_of(save(tmp_path / "x.tiff", deep("F", values, (70, 10))))

    ends = {math.inf: 1.0, -math.inf: 0.0}
    plain = [0.0 if math.isnan(v) else ends.get(v, (v - 2) / 4) for v in values]
    assert_described_by(facts.meta, plain * 100)
    json.dumps(facts.meta, allow_nan=False)


def test_a_deep_thumbnail_shows_what_is_between_the_outermost_pixels(tmp_path: Path) -> None:
    """A sensor of 12 bits in 16, with a few pixels that are dead and a few that are stuck."""
    pixels = [1_000 + 10 * x for _ in range(100) for x in range(100)]
    pixels[:20] = [0] * 20
    pixels[-20:] = [65_535] * 20

    levels = levels_of(facts_of(save(tmp_path / "x.png", deep("I;16", pixels, (100, 100)))).thumbnail)

    middle = levels[50 * 100 : 51 * 100]
    assert middle[1] < 12
    assert middle[98] > 243
    assert middle[50] == pytest.approx(128, abs=6)


@pytest.mark.parametrize("size", [(3_000, 5), (5, 3_000), (1_000, 700), (1, 1)])
def test_a_deep_image_of_any_shape_keeps_its_aspect(tmp_path: Path, size: tuple[int, int]) -> None:
    deep_one = deep("I;16", [10, 20_000, 3], size)
    plain = Image.new("L", size)

    thumbnail = facts_of(save(tmp_path / "x.png", deep_one)).thumbnail
    other = facts_of(save(tmp_path / "l.png", plain)).thumbnail

    assert thumbnail is not None
    assert other is not None
    assert Image.open(io.BytesIO(thumbnail)).size == Image.open(io.BytesIO(other)).size


# what is opened, and how


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_thumbnail_is_the_right_way_up(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste((250, 0, 0), (0, 0, 30, 20))
    image.paste((0, 0, 250), (30, 0, 60, 20))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{suffix}", image, exif=exif)

    facts = facts_of(path)

    assert facts.meta["shape"] == [40, 60, 3]
    assert facts.exif["Orientation"] == orientation
    assert facts.thumbnail is not None
    with Image.open(path) as opened, Image.open(io.BytesIO(facts.thumbnail)) as thumbnail:
        expected = ImageOps.exif_transpose(opened.convert("RGB"))
        assert thumbnail.size == expected.size
        assert "exif" not in thumbnail.info
        difference = ImageStat.Stat(ImageChops.difference(thumbnail.convert("RGB"), expected))
    assert max(difference.mean) < 12


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_left_alone(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = orientation

    facts = facts_of(save(tmp_path / "x.jpg", image, exif=exif))

    assert facts.thumbnail is not None
    assert Image.open(io.BytesIO(facts.thumbnail)).size == (60, 40)


def png_of(width: int, height: int) -> bytes:
    """A picture of one level, whatever its size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (width + 7) // 8) * min(height, 1_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(8_001, 8_000), (10_000, 9_000), (20_000, 20_000), (300_000, 300_000)], ids=str
)
def test_an_image_that_is_too_large_keeps_its_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    """Above the limit here, above the one where Pillow warns, and above the one where it refuses."""
    path = tmp_path / "x.png"
    path.write_bytes(png_of(*size))

    facts = facts_of(path)

    assert facts == ImageFacts({"sizeInBytes": path.stat().st_size, "shape": [size[1], size[0], 1]}, {}, None)


def test_a_webp_that_is_too_large_keeps_its_shape(tmp_path: Path) -> None:
    """Its decoder would take memory for all pixels at once."""
    path = tmp_path / "x.webp"
    sizes = struct.pack("<I", 19_998)[:3] + struct.pack("<I", 15_999)[:3]
    path.write_bytes(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + sizes)

    facts = facts_of(path)

    assert facts.meta == {"sizeInBytes": 30, "shape": [16_000, 19_999, 4]}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("icc", [None, b"profile"])
def test_the_shape_of_a_webp_is_what_pillow_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, lossless: bool, icc: bytes | None
) -> None:
    image = plain_picture(mode, (301, 47))
    path = save(tmp_path / "x.webp", image, lossless=lossless, icc_profile=icc)
    opened = facts_of(path).meta["shape"]

    monkeypatch.setattr(image_facts, "MAX_PIXELS", 100)

    assert opened == [47, 301, len(mode)]
    assert facts_of(path) == ImageFacts({"sizeInBytes": path.stat().st_size, "shape": opened}, {}, None)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_that_pillow_turns_is_not_turned_again(
    tmp_path: Path, orientation: int, compression: str
) -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste((250, 0, 0), (0, 0, 30, 20))
    tags = {0x0112: orientation}
    path = save(tmp_path / "x.tiff", image, tiffinfo=tags, compression=compression)

    facts = facts_of(path)

    with Image.open(path) as opened:
        opened.load()
        assert facts.meta["shape"] == [opened.height, opened.width, 3]
        assert facts.thumbnail is not None
        with Image.open(io.BytesIO(facts.thumbnail)) as thumbnail:
            assert thumbnail.size == opened.size
            difference = ImageStat.Stat(ImageChops.difference(thumbnail.convert("RGB"), opened))
    assert max(difference.mean) < 12


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "CMYK", "P"])
def test_the_thumbnail_of_any_mode_keeps_its_aspect_and_its_alpha(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    path = save(tmp_path / f"x.{suffix}", plain_picture(mode, (700, 301)))

    thumbnail = facts_of(path).thumbnail

    assert thumbnail is not None
    with Image.open(io.BytesIO(thumbnail)) as opened:
        assert opened.size == (128, 55)
        assert opened.mode == ("RGBA" if mode.endswith("A") else "RGB")


FORMATS = {
    "jpg": "RGB",
    "mpo": "RGB",
    "png": "RGB",
    "webp": "RGB",
    "gif": "P",
    "bmp": "RGB",
    "tiff": "RGB",
    "ppm": "RGB",
    "pgm": "L",
    "pbm": "1",
    "pfm": "F",
    "avif": "RGB",
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_image_of_a_format_of_the_list_is_opened(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in Image.registered_extensions():
        pytest.skip("this Pillow does not know the format")
    image = Image.new(FORMATS[suffix], (30, 20))
    options: dict[str, Any] = {"save_all": True, "append_images": [image]} if suffix == "mpo" else {}
    path = save(tmp_path / f"x.{suffix}", image, **options)

    assert looks_like_image(path)
    assert facts_of(path).meta["shape"][:2] == [20, 30]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_any_make_is_opened(tmp_path: Path, compression: str, big: bool) -> None:
    image = plain_picture("RGB")
    path = save(tmp_path / "x.tiff", image, compression=compression, big_tiff=big)

    assert looks_like_image(path)
    assert facts_of(path).meta["shape"] == [47, 61, 3]


@pytest.mark.parametrize(
    "suffix", ["ico", "tga", "pcx", "jp2", "eps", "pdf", "sgi", "dds", "icns", "msp", "xbm"]
)
def test_an_image_of_another_format_is_none(tmp_path: Path, suffix: str) -> None:
    mode = {"msp": "1", "xbm": "1"}.get(suffix, "RGB")
    path = save(tmp_path / f"x.{suffix}", Image.new(mode, (32, 32)))
    path = path.rename(tmp_path / "x.jpg")

    assert not looks_like_image(path)
    assert facts_of(path) == ImageFacts({"sizeInBytes": path.stat().st_size}, {}, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BM",
        b"BMW is a make of car, and this is a text about it",
        b"P3 is what this line begins with"[:1],
        b"P5x",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x20ftypisom\0\0\2\0",
        b"\0\0\0\x0cjP  \r\n\x87\n",
    ],
)
def test_what_begins_as_no_image_is_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    monkeypatch.setattr(facts_process.subprocess, "Popen", lambda *_, **__: pytest.fail("a process"))
    pool = facts_process.FactsPool(1)

    assert not looks_like_image(path)
    assert pool.facts_of(path) == ImageFacts({"sizeInBytes": len(data)}, {}, None)
    pool.close()


def test_a_file_that_is_gone_is_an_error_of_the_pool_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        facts_process.FactsPool(1).facts_of(tmp_path / "none.jpg")


def test_the_process_that_asks_does_not_load_pillow() -> None:
    code = "import sys, lightlyfs.staging.image_facts; print('PIL' in sys.modules)"

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout == "False\n"


def test_the_process_that_answers_loads_nothing_of_the_mount() -> None:
    code = (
        "import sys, lightlyfs.staging.image_facts\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(answer.stdout.split())
    assert not loaded & {"requests", "urllib3", "pycurl", "msgspec", "mfusepy", "fuse", "click", "numpy"}


def test_an_answer_comes_where_more_descriptors_are_open_than_select_knows(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.new("RGB", (20, 20)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2_000:
        pytest.skip("the machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_000), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    pool = facts_process.FactsPool(1)
    try:
        assert pool.facts_of(path).thumbnail is not None
    finally:
        pool.close()
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_several_files_have_their_facts_computed_at_once(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", plain_picture("RGB", (50 + n, 40))) for n in range(12)]
    pool = facts_process.FactsPool(2)
    try:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(pool.facts_of, paths))
    finally:
        pool.close()

    assert [answer.meta["shape"][1] for answer in answers] == [50 + n for n in range(12)]
    assert answers[3] == facts_of(paths[3])


def test_a_thumbnail_looks_like_the_image(tmp_path: Path) -> None:
    """Within a few levels of the image made small with the best filter, whole, and not compressed."""
    image = plain_picture("RGB", (640, 480)).filter(ImageFilter.GaussianBlur(2))

    thumbnail = facts_of(save(tmp_path / "x.png", image)).thumbnail

    assert thumbnail is not None
    expected = image.resize((128, 96), Image.Resampling.LANCZOS)
    with Image.open(io.BytesIO(thumbnail)) as opened:
        difference = ImageStat.Stat(ImageChops.difference(opened.convert("RGB"), expected))
    assert sum(difference.mean) / 3 < 3


def test_a_process_gives_memory_back_once_when_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    given_back: list[bytes] = []

    def give_back() -> None:
        given_back.append(b"")
        os.write(writes, b"asked\n")

    with open(reads) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(image_facts, "_IDLE_MS", 1)
        lines = image_facts._lines(give_back)
        assert next(lines) == b"asked\n"
        assert len(given_back) == 1
        os.close(writes)
        assert list(lines) == []


def bitmap(header_bytes: int) -> bytes:
    return b"BM" + bytes(12) + header_bytes.to_bytes(4, "little")


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF87a",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"II+\0",
        b"MM\0+",
        b"RIFF1234WEBP",
        *(b"1234ftyp" + brand for brand in (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"hevc")),
        *(b"1234ftyp" + brand for brand in (b"heim", b"heis", b"hevx")),
        *map(bitmap, (12, 40, 52, 56, 64, 108, 124)),
        *(kind + b"\n" for kind in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf")),
        b"P6 ",
    ],
    ids=repr,
)
def test_an_image_is_known_by_its_first_bytes(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(start + bytes(100))
    assert looks_like_image(path)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG",
        b"GIF88a",
        b"RIFF1234WAVE",
        b"RIFX1234WEBP",
        b"1234ftypmp42",
        b"ftypavif",
        *map(bitmap, (0, 11, 13, 39, 41, 107, 109, 123, 125)),
        b"BM",
        b"P7\n",
        b"P6x",
        b"P6",
        b"P",
    ],
    ids=repr,
)
def test_what_only_resembles_an_image_is_none(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(start)
    assert not looks_like_image(path)


@pytest.mark.parametrize(
    ("kind", "body", "shape"),
    [
        (b"VP8X", b"\x0a\0\0\0\x10\0\0\0" + b"\x00\x00\x00" + b"\x01\x02\x00", [514, 1, 4]),
        (b"VP8X", b"\x0a\0\0\0\x00\0\0\0" + b"\xff\xff\xff" + b"\x00\x00\x01", [65_537, 1 << 24, 3]),
        (b"VP8L", b"\x00\0\0\0\x2f" + (0x10000000 | 4 << 14 | 9).to_bytes(4, "little"), [5, 10, 4]),
        (b"VP8L", b"\x00\0\0\0\x2f" + (0x3FFF << 14 | 0x3FFF).to_bytes(4, "little"), [16_384, 16_384, 3]),
        (b"VP8 ", b"\x00\0\0\0\x00\x00\x00\x9d\x01\x2a" + b"\x05\x40\x07\xc0", [7, 5, 3]),
        (b"ALPH", bytes(20), None),
    ],
    ids=repr,
)
def test_the_shape_of_a_webp_is_read_from_its_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes, body: bytes, shape: list[int] | None
) -> None:
    monkeypatch.setattr(image_facts, "MAX_PIXELS", 0)
    path = tmp_path / "x.webp"
    path.write_bytes(b"RIFF1234WEBP" + kind + body + bytes(10))
    facts = facts_of(path)
    assert facts.meta.get("shape") == shape
    assert facts.thumbnail is None


@pytest.mark.parametrize(("most", "decoded"), [(1_200, True), (1_199, False)])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_image_is_decoded_up_to_so_many_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, most: int, decoded: bool
) -> None:
    monkeypatch.setattr(image_facts, "MAX_PIXELS", most)
    facts = facts_of(save(tmp_path / f"x.{suffix}", Image.new("RGB", (40, 30))))
    assert facts.meta["shape"] == [30, 40, 3]
    assert ("mean" in facts.meta) == (facts.thumbnail is not None) == decoded
