"""Image facts are those that Lightly's own uploader computed."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from lightlyfs.api.models import SampleMetaData
from lightlyfs.staging import facts_process
from lightlyfs.staging.image_facts import MAX_EXIF_BYTES, ImageFacts, facts_of, thumbnail_name

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
    import struct
    import zlib

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


def test_an_image_that_takes_too_much_memory_costs_nobody_else(tmp_path: Path) -> None:
    large = save(tmp_path / "large.tiff", Image.new("F", (7_900, 8_000)))
    small = save(tmp_path / "small.png", Image.new("RGB", (20, 20)))
    pool = facts_process.FactsPool(2)
    try:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(pool.facts_of, [large, small, small, small]))
        assert [answer.thumbnail is not None for answer in answers[1:]] == [True] * 3
        assert answers[0].meta["sizeInBytes"] == large.stat().st_size
    finally:
        pool.close()
