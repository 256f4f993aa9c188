"""The target of memory: where it comes from, who gets which share of it, when names take no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightlyfs.errors import SettingsError
from lightlyfs.memory import LEAST_TARGET_BYTES, MemoryTarget, default_target_bytes, resident_bytes
from lightlyfs.settings import resolve

GIB = 1 << 30


def test_names_are_kept_up_to_a_sixth_of_it_and_that_is_looked_at_now_and_then() -> None:
    taken, now, looks = [GIB // 6 - 1], [5.0], [0]

    def take() -> int:
        looks[0] += 1
        return taken[0]

    target = MemoryTarget(GIB, taken=take, clock=lambda: now[0])
    assert target.has_room_for_names
    taken[0] = GIB // 6
    now[0] += 0.05
    assert target.has_room_for_names
    assert looks == [1]
    now[0] += 0.06
    assert not target.has_room_for_names
    taken[0], now[0] = 100, now[0] + 1.0
    assert target.has_room_for_names


def test_a_mount_that_has_done_nothing_keeps_names() -> None:
    assert MemoryTarget(LEAST_TARGET_BYTES, taken=lambda: 90 << 20).has_room_for_names
    assert not MemoryTarget(LEAST_TARGET_BYTES, taken=lambda: 97 << 20).has_room_for_names


def test_a_part_gets_its_share_and_no_more_than_it_needs() -> None:
    assert MemoryTarget(1 << 30).share(8, 64 << 20) == 64 << 20
    assert MemoryTarget(128 << 20).share(8, 64 << 20) == 16 << 20


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max", None),
        ("2147483648", GIB),
        ("1073741824", GIB // 2),
        ("1000", LEAST_TARGET_BYTES),
        ("9" * 19, None),
    ],
)
def test_the_default_is_half_of_what_the_container_has(
    tmp_path: Path, limit: str, expected: int | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    limits = [str(tmp_path / "memory.max"), str(tmp_path / "none")]
    assert default_target_bytes(limits) == (expected or default_target_bytes([]))
    assert LEAST_TARGET_BYTES <= default_target_bytes() <= GIB


def test_the_resident_set_is_that_of_this_process() -> None:
    assert 5 << 20 < resident_bytes() < 8 << 30


def test_a_target_that_is_too_small_to_work_with_is_refused() -> None:
    assert resolve({"memory_target": "256M"}, {}).memory_target_bytes == 256 << 20
    assert resolve({}, {}).memory_target_bytes is None
    with pytest.raises(SettingsError, match=r"--memory-target.*at least 128M"):
        resolve({"memory_target": "64M"}, {})


_DECODES = """
import resource, sys
from lightlyfs.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for round in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        image = [bytearray(1 << 20) for _ in range(8)]  # as Pillow allocates
        del image
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in os.confstr("CS_GNU_LIBC_VERSION").lower(), reason="malloc is not glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("kept", 0, 500), ("as it is", 10_000, 1 << 30)])
def test_memory_that_was_freed_is_kept_for_the_next_image(how: str, least: int, most: int) -> None:
    faults = subprocess.run([sys.executable, "-c", _DECODES, how], capture_output=True, check=True, text=True)
    assert least <= int(faults.stdout) <= most
