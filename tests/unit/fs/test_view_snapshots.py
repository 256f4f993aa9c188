"""Generated files: what is read is what a size was shown of, and that is never old."""

from __future__ import annotations

from typing import Any

from lightlyfs.fs.namespace import Part
from lightlyfs.fs.views import Views

PATH = ".lightlyfs/status.json"


class Growing:
    """Sources whose status is one byte longer each time."""

    def __init__(self) -> None:
        self.size = 0

    def status(self) -> bytes:
        self.size += 1
        return b"x" * self.size


def test_a_read_by_path_gives_as_many_bytes_as_were_shown_however_late_it_comes() -> None:
    """The kernel cuts it at that size: a longer one would end in the middle, a shorter one is not all."""
    now = [1000.0]
    nothing: Any = None
    sources: Any = Growing()
    views = Views(nothing, nothing, sources, Part(), lambda: now[0])

    for pause_s in (0.0, 0.4, 0.9, 1.1, 1.9, 2.1, 10.0):
        now[0] += pause_s
        shown = views.attr(PATH, nothing).size
        for read_after_s in (0.1, 1.0, 3.0):
            now[0] += read_after_s
            assert len(views.content(PATH, nothing, as_shown=True)) == shown


def test_what_is_shown_and_opened_is_as_of_a_second_ago() -> None:
    now = [1000.0]
    nothing: Any = None
    sources: Any = Growing()
    views = Views(nothing, nothing, sources, Part(), lambda: now[0])

    assert views.attr(PATH, nothing).size == 1
    now[0] += 0.9
    assert views.attr(PATH, nothing).size == len(views.content(PATH, nothing)) == 1
    now[0] += 0.2
    assert len(views.content(PATH, nothing)) == 2
    now[0] += 1.1
    assert views.attr(PATH, nothing).size == 3
