"""Names that no person gives: each sample has a path that can be opened, and the others keep theirs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from catalogkit import FakeRemote, Record, World
from contentkit import sample_id
from hypothesis import given, settings
from hypothesis import strategies as st

from lightlyfs.catalog.names import MAX_COMPONENT_BYTES, join_name, split_name, split_path

PATH_MAX = 4096
DEEP = {
    "2,000 parts": "d/" * 1_999 + "end.jpg",
    "a million parts": "d/" * 999_999 + "end.jpg",
    "a million empty parts": "/" * 1_000_000 + "end.jpg",
    "a million dots": "../" * 1_000_000 + "end.jpg",
    "a part of 60 KB": "a/" + "x" * 60_000 + ".jpg",
    "many parts of 60 KB": ("y" * 60_000 + "/") * 30 + "end.jpg",
    "wide letters": "汉字" * 50 + "/" + "é/" * 900 + "end.jpg",
    "lone surrogates": "\ud800/\udfff" * 700 + ".jpg",
    "control characters": "".join(map(chr, range(1, 32))) + "/\x7f\x1b[2J\r\n.jpg",
}


@pytest.mark.parametrize("name", DEEP.values(), ids=DEEP)
def test_a_path_of_any_name_can_be_opened_and_costs_little(name: str) -> None:
    started = time.process_time()
    directory, last = split_path(name)
    assert time.process_time() - started < 5
    path = f"/a/mountpoint/{directory}/{last}"
    assert len(os.fsencode(path)) < PATH_MAX
    assert path.count("/") < 300
    assert all(0 < len(part.encode()) <= MAX_COMPONENT_BYTES for part in split_name(name))
    assert "/".join(split_name(name)) == (f"{directory}/{last}" if directory else last)


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.sampled_from(["d", "", ".", "%2F", "a%2Fb", "é" * 20]), min_size=250, max_size=270))
def test_a_name_around_the_limit_is_found_again_by_its_path(parts: list[str]) -> None:
    name = "/".join(parts)
    found = split_name(name)
    if all("~" not in component for component in found):
        assert join_name(found) == name


def test_neighbours_beyond_the_limit_stay_apart(tmp_path: Path) -> None:
    names = ["d/" * 400 + f"{number}.jpg" for number in range(50)] + [
        "d/" * 401 + "0.jpg",
        "d/" * 256 + "0.jpg",
    ]
    world = World(tmp_path, FakeRemote({sample_id(at): Record(name) for at, name in enumerate(names)}))
    world.refresher.list_now()
    shown = {path: found for path, found in world.tree().items() if found}
    assert sorted(shown.values()) == sorted(sample_id(at) for at in range(len(names)))


def test_all_odd_names_at_once_are_listed_beside_good_ones(tmp_path: Path) -> None:
    names = [*DEEP.values(), *(f"good/{number}.jpg" for number in range(1_000))]
    names += ["same/name.jpg"] * 10_000
    names += ["case/A.jpg", "case/a.jpg", "CASE/a.jpg"]
    names += ["prefix", *(f"prefix/{number}.jpg" for number in range(100_000))]
    remote = FakeRemote({sample_id(at): Record(name) for at, name in enumerate(names)})
    world = World(tmp_path, remote, page_size=1000)
    started = time.process_time()
    world.refresher.list_now()
    assert time.process_time() - started < 60
    shown = {path: found for path, found in world.tree().items() if found}
    assert sorted(shown.values()) == sorted(sample_id(at) for at in range(len(names)))
    assert {f"good/{number}.jpg" for number in range(1_000)} <= shown.keys()
    assert {f"prefix/{number}.jpg" for number in range(100_000)} <= shown.keys()
    assert {"case/A.jpg", "case/a.jpg", "CASE/a.jpg"} <= shown.keys()
    same = sorted(path for path in shown if path.startswith("same/"))
    assert (same[0], len(same)) == ("same/name.jpg", 10_000)
