"""The files of tests that take longest begin first, so that no worker is left with one at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# by the seconds that they take; the others follow in the order of their names
LONGEST = [
    *("test_damaged_files", "test_uploads_command", "test_passing_faults", "test_hostile_dataset"),
    *("test_lifecycle", "test_write_crash", "test_ways_to_save", "test_helper_programs", "test_writing"),
    *("test_offline_writes", "test_offline", "test_catalog_model", "test_mixed_load", "test_full_disk"),
    *("test_secrets", "test_swept", "test_shared_processes", "test_write_model", "test_two_writers_model"),
    *("test_fsx", "test_two_machines", "test_killed_writers", "test_local_files", "test_fsspec_guest"),
    *("test_outages", "test_faults", "test_versions", "test_warming", "test_decoders"),
]
_PLACE = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the long files to the front; the order within a file stays."""
    items.sort(key=lambda item: _PLACE.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _home_of_tests() -> Iterator[None]:
    """Keep what the tests of this process note, such as where uploads are owed, out of the real home."""
    with (
        tempfile.TemporaryDirectory(prefix="lightlyfs-tests-") as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("STATE", "CACHE", "CONFIG"):
            patch.setenv(f"XDG_{name}_HOME", os.path.join(home, name.lower()))
        yield
