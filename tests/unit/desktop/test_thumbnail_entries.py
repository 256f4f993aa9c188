"""The entries of the desktop's thumbnail cache: their names, their texts, when there is one to fill."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from lightlyfs.desktop.prefill import entry_names, entry_of, mtime_of, thumbnail_cache
from lightlyfs.desktop.thumbnails import PictureStore


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side // 2), "teal").save(out, "PNG")
    return out.getvalue()


def test_the_specification_s_own_example() -> None:
    """Freedesktop thumbnail specification, "Thumbnail Directory"."""
    assert entry_names("/home/jens/photos/me.png") == [
        ("file:///home/jens/photos/me.png", "c6ee772d9e49320e97ec29a7eb5b1697.png")
    ]


@pytest.mark.parametrize(
    ("path", "uris"),
    [
        ("/a b", ["file:///a%20b"]),
        ("/ü", ["file:///%C3%BC"]),
        ("/x#?%", ["file:///x%23%3F%25"]),
        ("/a;[1]", ["file:///a%3B%5B1%5D", "file:///a;[1]"]),
        ("/!$&'()*+,-.:=@_~", ["file:///!$&'()*+,-.:=@_~"]),
        ("/bad\udcff", ["file:///bad%FF"]),
    ],
)
def test_a_path_has_the_uris_that_programs_make_of_it(path: str, uris: list[str]) -> None:
    assert [uri for uri, _ in entry_names(path)] == uris


@pytest.mark.parametrize("side", [16, 128, 129, 500])
def test_an_entry_is_a_small_picture_that_names_its_file(side: int, tmp_path: Path) -> None:
    entry = tmp_path / "entry.png"
    entry.write_bytes(entry_of(png(side), "file:///a%20b", 1_234_567_890))
    with Image.open(entry) as image:
        image.load()
        assert max(image.size) == min(side, 128)
        assert image.info["Thumb::URI"] == "file:///a%20b"
        assert image.info["Thumb::MTime"] == "1234567890"
    assert mtime_of(entry) == 1_234_567_890


def test_what_is_no_picture_becomes_no_entry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG"):
        entry_of(b"GIF89a", "file:///x", 1)
    (tmp_path / "broken").write_bytes(b"\x89PNG")
    assert mtime_of(tmp_path / "broken") is None
    assert mtime_of(tmp_path / "missing") is None


def test_only_ones_own_cache_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert thumbnail_cache(str(tmp_path), tmp_path) == tmp_path / "thumbnails"
    assert thumbnail_cache(None, tmp_path) == tmp_path / ".cache/thumbnails"
    (tmp_path / "thumbnails").symlink_to(tmp_path)
    assert thumbnail_cache(str(tmp_path), tmp_path) is None
    (tmp_path / "thumbnails").unlink()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert thumbnail_cache(str(tmp_path), tmp_path) is None


def test_pictures_are_kept_over_mounts_and_the_oldest_go(tmp_path: Path) -> None:
    store = PictureStore(tmp_path / "t.db", max_bytes=10_000)
    for number in range(20):
        store.put(str(number), bytes([number]) * 1_000)
    assert store.get("0") is None
    assert store.get("19") == bytes([19]) * 1_000
    store.close()
    assert store.get("19") is None

    again = PictureStore(tmp_path / "t.db", max_bytes=10_000)
    assert again.get("19") == bytes([19]) * 1_000
    assert (tmp_path / "t.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"garbage that is no database" * 100, b""])
def test_a_damaged_store_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "t.db").write_bytes(damage)
    store = PictureStore(tmp_path / "t.db")
    store.put("a", b"picture")
    assert store.get("a") == b"picture"


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    (tmp_path / "t.db").symlink_to(other)
    PictureStore(tmp_path / "t.db").put("a", b"picture")
    assert other.read_bytes() == b"precious"
